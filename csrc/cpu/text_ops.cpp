#include "cpu/text_ops.h"

#include <tuple>

#include "cpu/dispatch.h"
#include "cpu/generate.h"
#include "cpu/recurrence.h"

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

// A copy, since the caller may change the tensor after it was checked.
Tensor checked_tokens(const Tensor& t, std::initializer_list<std::int64_t> sizes,
                      std::int64_t limit) {
  check(t, "tokens", aoti_torch_dtype_int64(), sizes);
  Tensor tokens = torch::stable::contiguous(torch::stable::clone(t));
  const auto* data = view::data<const std::int64_t>(tokens);
  require(std::all_of(data, data + tokens.numel(),
                      [&](std::int64_t token) { return token >= 0 && token < limit; }),
          "tokens must be from 0 to ", limit - 1);
  return tokens;
}

// A call on tokens, checked.
class TokenCall {
 public:
  TokenCall(const Tensor& tokens, const Tensor& table, const std::optional<Tensor>& hx,
            const Tensor& weight_hh, StringHandle nonlinearity)
      : nonlinearity_(take_nonlinearity(nonlinearity)), dtype(dtype_of(table)) {
    require(dtype == aoti_torch_dtype_float32() || dtype == aoti_torch_dtype_float64(),
            "tokens go with float32 and float64");
    require(tokens.dim() == 2 && tokens.numel() > 0, "tokens must be a matrix, not an empty one");
    require(table.dim() == 2, "table must be a matrix");
    steps.count = tokens.size(0);
    steps.batch = tokens.size(1);
    hidden_size = table.size(1);
    tokens_ = checked_tokens(tokens, {steps.count, steps.batch}, table.size(0));
    table_ = checked(table, "table", dtype, {table.size(0), hidden_size});
    weight_hh_ = checked(weight_hh, "weight_hh", dtype, {hidden_size, hidden_size});
    if (hx) {
      hx_ = checked(*hx, "hx", dtype, {1, steps.batch, hidden_size});
    }
  }

  template <class T>
  Problem<T> problem(const Tensor& output) const {
    Problem<T> p;
    p.steps = steps;
    p.hidden_size = hidden_size;
    p.nonlinearity = nonlinearity_;
    if (hx_) {
      p.hx = view::slice<const T>(*hx_, 0);
    }
    p.weight_hh = view::matrix<const T>(*weight_hh_);
    p.tokens = view::data<const std::int64_t>(*tokens_);
    p.table = view::matrix<const T>(*table_);
    p.output = view::sequence<T>(output);
    return p;
  }

  Tensor new_output() const { return new_tensor({steps.count, steps.batch, hidden_size}); }
  Tensor new_state() const { return new_tensor({1, steps.batch, hidden_size}); }
  Tensor new_tensor(std::initializer_list<std::int64_t> sizes) const {
    return empty(sizes, dtype, {aoti_torch_device_type_cpu(), 0});
  }

  template <class F>
  void with_kernels(F&& f) const {
    const KernelSet& set = kernels();
    guarded([&] { dtype == aoti_torch_dtype_float32() ? f(set.f32) : f(set.f64); });
  }

 private:
  std::optional<Tensor> tokens_;
  std::optional<Tensor> table_;
  std::optional<Tensor> hx_;
  std::optional<Tensor> weight_hh_;
  const Nonlinearity nonlinearity_;

 public:
  const std::int32_t dtype;
  Steps steps;
  std::int64_t hidden_size = 0;
};

std::tuple<Tensor, Tensor> token_rnn_forward(const Tensor& tokens, const Tensor& table,
                                             const std::optional<Tensor>& hx,
                                             const Tensor& weight_hh, StringHandle nonlinearity) {
  const TokenCall call(tokens, table, hx, weight_hh, nonlinearity);
  Tensor output = call.new_output();
  Tensor h_n = call.new_state();
  call.with_kernels([&]<class T>(const Kernels<T>& kernels) {
    run_forward<T, T>({{call.problem<T>(output), view::slice<T>(h_n, 0)}}, kernels, thread_limit(),
                      torch_parallel_for);
  });
  return {std::move(output), std::move(h_n)};
}

std::vector<Tensor> token_rnn_backward(const std::optional<Tensor>& grad_output,
                                       const std::optional<Tensor>& grad_h_n, const Tensor& tokens,
                                       const Tensor& table, const std::optional<Tensor>& hx,
                                       const Tensor& weight_hh, const Tensor& output,
                                       StringHandle nonlinearity,
                                       const std::vector<bool>& output_mask) {
  const TokenCall call(tokens, table, hx, weight_hh, nonlinearity);
  const std::int64_t h = call.hidden_size;
  const auto [steps, batch] = std::pair(call.steps.count, call.steps.batch);
  require(output_mask.size() == 3, "output_mask needs a flag for table, hx and weight_hh");
  require(!output_mask[1] || hx.has_value(), "there is no hx to compute a gradient for");
  const Tensor states = checked(output, "output", call.dtype, {steps, batch, h});
  std::optional<Tensor> h_n_gradient;
  if (grad_output) {
    check(*grad_output, "grad_output", call.dtype, {steps, batch, h});
  }
  if (grad_h_n) {
    h_n_gradient = checked(*grad_h_n, "grad_h_n", call.dtype, {1, batch, h});
  }
  std::vector<Tensor> gradients;
  call.with_kernels([&]<class T>(const Kernels<T>& kernels) {
    Gradients<T> g;
    if (grad_output) {
      g.output = view::sequence<const T>(*grad_output);
    }
    if (h_n_gradient) {
      g.h_n = view::slice<const T>(*h_n_gradient, 0);
    }
    if (output_mask[0]) {
      gradients.push_back(call.new_tensor({table.size(0), h}));
      g.table = view::matrix<T>(gradients.back());
      std::fill_n(g.table.data, table.size(0) * h, T{0});
    }
    if (output_mask[1]) {
      gradients.push_back(call.new_state());
      g.hx = view::slice<T>(gradients.back(), 0);
    }
    if (output_mask[2]) {
      gradients.push_back(call.new_tensor({h, h}));
      g.weight_hh = view::matrix<T>(gradients.back());
    }
    run_backward<T, T>({{call.problem<T>(states), g}}, kernels, thread_limit(), torch_parallel_for);
  });
  return gradients;
}

std::tuple<Tensor, Tensor> rnn_generate(const Tensor& prompt, const Tensor& draws,
                                        const Tensor& table, const Tensor& hidden,
                                        const std::vector<Tensor>& weights,
                                        const Tensor& out_weight, const Tensor& out_bias,
                                        double temperature, std::int64_t top_k, std::int64_t never,
                                        StringHandle nonlinearity) {
  const std::int32_t dtype = aoti_torch_dtype_float32();
  require(table.dim() == 2 && prompt.dim() == 1 && draws.dim() == 1,
          "table must be a matrix, prompt and draws must have one dimension");
  GenerateTask task;
  task.nonlinearity = take_nonlinearity(nonlinearity);
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
  const Tensor tokens = checked_tokens(prompt, {task.prompt_length}, v);
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
      "_token_rnn_forward(Tensor tokens, Tensor table, Tensor? hx, Tensor weight_hh, "
      "str nonlinearity) -> (Tensor output, Tensor h_n)");
  m.def(
      "_token_rnn_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor tokens, Tensor table, "
      "Tensor? hx, Tensor weight_hh, Tensor output, str nonlinearity, bool[] output_mask) "
      "-> Tensor[]");
  m.def(
      "_rnn_generate(Tensor prompt, Tensor draws, Tensor table, Tensor hidden, Tensor[] weights, "
      "Tensor out_weight, Tensor out_bias, float temperature, int top_k, int never, "
      "str nonlinearity) -> (Tensor tokens, Tensor hidden)");
}

void implement_text_ops(Library& m) {
  m.impl("_token_rnn_forward", TORCH_BOX(&WithTorchsWords<&token_rnn_forward>::call));
  m.impl("_token_rnn_backward", TORCH_BOX(&WithTorchsWords<&token_rnn_backward>::call));
  m.impl("_rnn_generate", TORCH_BOX(&WithTorchsWords<&rnn_generate>::call));
}

}  // namespace rnn_ext::cpu
