#include "text/ops.h"

#include <tuple>

#include "cpu/dispatch.h"
#include "cpu/tokens.h"
#include "text/generate.h"

namespace rnn_ext::cpu {
namespace {

void check(const Tensor& t, const char* name, std::int32_t dtype,
           std::initializer_list<std::int64_t> sizes) {
  require(Device::of(t).type == aoti_torch_device_type_cpu() && dtype_of(t) == dtype, name,
          " must be on the CPU and of the dtype of the others");
  require_sizes(t, name, sizes);
}

Tensor checked(const Tensor& t, const char* name, std::int32_t dtype,
               std::initializer_list<std::int64_t> sizes) {
  check(t, name, dtype, sizes);
  return torch::stable::contiguous(t);
}

std::tuple<Tensor, Tensor> rnn_generate(const Tensor& prompt, const Tensor& draws,
                                        const Tensor& table, const Tensor& hidden,
                                        const std::vector<Tensor>& weights,
                                        const Tensor& out_weight, const Tensor& out_bias,
                                        double temperature, std::int64_t top_k, std::int64_t never,
                                        Nonlinearity nonlinearity) {
  const std::int32_t dtype = aoti_torch_dtype_float32();
  require(table.dim() == 2 && prompt.dim() == 1 && draws.dim() == 1,
          "table must be a matrix, prompt and draws must have one dimension");
  GenerateTask task;
  task.nonlinearity = nonlinearity;
  task.vocab_size = table.size(0);
  task.hidden_size = table.size(1);
  task.prompt_length = prompt.size(0);
  task.length = draws.size(0);
  task.sampling = {temperature, top_k, never};
  require(task.prompt_length > 0 && task.length > 0, "prompt and draws must not be empty");
  require(temperature >= 0 && top_k > 0,
          "temperature must not be negative, top_k must be positive");
  require(task.vocab_size > (never == 0 ? 1 : 0), "there must be a token to choose");
  const auto h = task.hidden_size;
  const auto v = task.vocab_size;
  const auto layers = static_cast<std::int64_t>(weights.size() + 2) / 3;
  require(static_cast<std::int64_t>(weights.size()) == 3 * layers - 2,
          "expected 3 weights for each layer, without the first layer's weight_ih and bias");

  std::vector<Tensor> kept;
  const auto keep = [&](const Tensor& t, const char* name,
                        std::initializer_list<std::int64_t> sizes) -> const Tensor& {
    kept.push_back(checked(t, name, dtype, sizes));
    return kept.back();
  };
  kept.reserve(weights.size() + 3);
  task.table = view::matrix<const float>(keep(table, "table", {v, h}));
  task.out_weight = view::matrix<const float>(keep(out_weight, "out_weight", {v, h}));
  task.out_bias = view::data<const float>(keep(out_bias, "out_bias", {v}));
  task.weight_hh.push_back(view::matrix<const float>(keep(weights[0], "weight_hh", {h, h})));
  for (std::size_t i = 1; i < weights.size(); i += 3) {
    task.weight_ih.push_back(view::matrix<const float>(keep(weights[i], "weight_ih", {h, h})));
    task.weight_hh.push_back(view::matrix<const float>(keep(weights[i + 1], "weight_hh", {h, h})));
    task.bias.push_back(view::row<const float>(keep(weights[i + 2], "bias", {h})));
  }
  check(prompt, "tokens", aoti_torch_dtype_int64(), {task.prompt_length});
  const Tensor tokens = copy_of_tokens(prompt, v);
  task.prompt = view::data<const std::int64_t>(tokens);
  const Tensor numbers = checked(draws, "draws", aoti_torch_dtype_float64(), {task.length});
  task.draws = view::data<const double>(numbers);
  const Tensor before = checked(hidden, "hidden", dtype, {layers, 1, h});
  Tensor after = empty({layers, 1, h}, dtype, Device::of(before));
  std::copy_n(view::data<const float>(before), layers * h, view::data<float>(after));
  task.hidden = view::data<float>(after);
  Tensor generated = empty({task.length}, aoti_torch_dtype_int64(), Device::of(before));
  task.generated = view::data<std::int64_t>(generated);
  guarded([&] { run_generate(task, kernels().f32, thread_limit(), torch_parallel_for); });
  return {std::move(generated), std::move(after)};
}

}  // namespace

void define_text_ops(Library& m) {
  m.def(
      "_rnn_generate(Tensor prompt, Tensor draws, Tensor table, Tensor hidden, Tensor[] weights, "
      "Tensor out_weight, Tensor out_bias, float temperature, int top_k, int never, "
      "str nonlinearity) -> (Tensor tokens, Tensor hidden)");
}

void implement_text_ops(Library& m) {
  m.impl("_rnn_generate", TORCH_BOX(&Boxed<&rnn_generate>::call));
}

}  // namespace rnn_ext::cpu
