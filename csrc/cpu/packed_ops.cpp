#include "cpu/packed_ops.h"

#include "cpu/dispatch.h"
#include "cpu/packed_layer.h"

namespace rnn_ext::cpu {
namespace {

std::vector<Tensor> rnn_pack(const std::vector<Tensor>& weights, bool bidirectional) {
  require(weights.size() >= 2 && weights[0].dim() == 2, "weights have an unexpected shape");
  const Device device = Device::of(weights[0]);
  // The checks need an input.
  const Tensor input = empty({1, 1, weights[0].size(1)}, dtype_of(weights[0]), device);
  const Call call(input, std::nullopt, weights, std::nullopt, Nonlinearity::tanh, bidirectional,
                  Layout::sequence);
  constexpr std::int64_t most = std::int64_t{1} << 48;  // no size in bytes overflows
  require(weights[0].numel() < most && weights[1].numel() < most, "the weights are too large");
  std::vector<Tensor> packed;
  with_kernels(call.dtype, [&]<class S, class O>(const Kernels<S, O>& k) {
    for (std::int64_t d = 0; d < call.directions; ++d) {
      const Problem<S> p = call.problem<S>(input, d);
      packed.push_back(empty({PackedLayer<S, O>::bytes(k, p.input_size, p.hidden_size)},
                             aoti_torch_dtype_uint8(), device));
      auto* const memory = view::data<std::byte>(packed.back());
      const PackedHeader header(kernels().name, call.dtype, p.input_size, p.hidden_size);
      std::memset(memory, 0, static_cast<std::size_t>(packed.back().numel()));
      std::memcpy(memory, &header, sizeof(header));
      PackedLayer<S, O>(memory, p, k).fill(p, k);
    }
  });
  return packed;
}

}  // namespace

std::tuple<Tensor, Tensor> rnn_forward_packed(const Tensor& input, const std::optional<Tensor>& hx,
                                              const std::vector<Tensor>& weights,
                                              const std::vector<Tensor>& packed,
                                              const std::optional<Tensor>& batch_sizes,
                                              Nonlinearity nonlinearity, bool bidirectional) {
  const LayerCall call(input, hx, weights, batch_sizes, nonlinearity, bidirectional);
  require(static_cast<std::int64_t>(packed.size()) == call.directions,
          "expected packed weights for each direction");
  Tensor output = call.new_output();
  Tensor h_n = call.new_state();
  with_kernels(call.dtype, [&]<class S, class O>(const Kernels<S, O>& k) {
    const PackedHeader header(kernels().name, call.dtype, call.input_size, call.hidden_size);
    std::vector<ForwardTask<S>> tasks;
    for (std::int64_t d = 0; d < call.directions; ++d) {
      const Tensor& t = packed[d];
      require(Device::of(t) == call.device && dtype_of(t) == aoti_torch_dtype_uint8() &&
                  t.dim() == 1 && t.is_contiguous() &&
                  t.size(0) == PackedLayer<S, O>::bytes(k, call.input_size, call.hidden_size) &&
                  std::memcmp(t.const_data_ptr(), &header, sizeof(header)) == 0,
              "the weights were packed for other sizes, another dtype or another ISA level");
      tasks.push_back(
          {call.problem<S>(output, d), view::slice<S>(h_n, d), view::data<std::byte>(t)});
    }
    if (output.numel() > 0) {
      guarded([&] { run_forward(tasks, k, thread_limit(), torch_parallel_for); });
    }
  });
  return {std::move(output), std::move(h_n)};
}

void define_packed_ops(Library& m) {
  m.def("_rnn_pack(Tensor[] weights, bool bidirectional) -> Tensor[]");
  m.def(
      "_rnn_forward_packed(Tensor input, Tensor? hx, Tensor[] weights, Tensor[] packed, "
      "Tensor? batch_sizes, str nonlinearity, bool bidirectional) -> (Tensor output, Tensor h_n)");
}

void implement_packed_ops(Library& m) {
  m.impl("_rnn_pack", TORCH_BOX(&Boxed<&rnn_pack>::call));
  m.impl("_rnn_forward_packed", TORCH_BOX(&Boxed<&rnn_forward_packed>::call));
}

}  // namespace rnn_ext::cpu
