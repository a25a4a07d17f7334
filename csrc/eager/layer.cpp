#include "eager/layer.h"

#include <torch/csrc/autograd/functions/utils.h>

#include <algorithm>

namespace rnn_ext::eager {
namespace {

using Forward = std::tuple<Tensor, Tensor>(const Tensor&, const optional<Tensor>&, at::TensorList,
                                           const optional<Tensor>&, c10::string_view, bool);
using PackedForward = std::tuple<Tensor, Tensor>(const Tensor&, const optional<Tensor>&,
                                                 at::TensorList, at::TensorList,
                                                 const optional<Tensor>&, c10::string_view, bool);
using Backward = std::vector<Tensor>(const optional<Tensor>&, const optional<Tensor>&,
                                     const Tensor&, const optional<Tensor>&, at::TensorList,
                                     const Tensor&, const optional<Tensor>&, c10::string_view, bool,
                                     std::vector<bool>);
using CellForward = Tensor(const Tensor&, const optional<Tensor>&, at::TensorList,
                           c10::string_view);
using CellBackward = std::vector<Tensor>(const Tensor&, const Tensor&, const optional<Tensor>&,
                                         at::TensorList, const Tensor&, c10::string_view,
                                         std::vector<bool>);

variable_list run_forward(const Operands& operands, Settings settings) {
  const auto& [input, hx, batch_sizes, weights, packed] = operands;
  return without_autograd([&]() -> variable_list {
    if (settings.step) {
      return {call_op<&direct::Kernels::cell_forward, CellForward>(
          "rnn_ext::_cell_forward", input, hx, weights, settings.nonlinearity())};
    }
    if (!packed.empty()) {
      auto [output, h_n] = call_op<&direct::Kernels::rnn_forward_packed, PackedForward>(
          "rnn_ext::_rnn_forward_packed", input, hx, weights, packed, batch_sizes,
          settings.nonlinearity(), settings.bidirectional);
      return {std::move(output), std::move(h_n)};
    }
    auto [output, h_n] = call_op<&direct::Kernels::rnn_forward, Forward>(
        "rnn_ext::_rnn_forward", input, hx, weights, batch_sizes, settings.nonlinearity(),
        settings.bidirectional);
    return {std::move(output), std::move(h_n)};
  });
}

// Returns a gradient for each element of `mask`, undefined if that is false. If `output` is
// undefined, because it was changed in place, the layer runs again.
variable_list run_backward(const variable_list& grads, const Operands& operands,
                           const Tensor& output, Settings settings, const std::vector<bool>& mask) {
  const auto& [input, hx, batch_sizes, weights, _] = operands;
  const Tensor states = output.defined() ? output : run_forward(operands, settings)[0];
  std::vector<Tensor> found = without_autograd([&] {
    if (settings.step) {
      return call_op<&direct::Kernels::cell_backward, CellBackward>(
          "rnn_ext::_cell_backward", grads[0], input, hx, weights, states, settings.nonlinearity(),
          mask);
    }
    return call_op<&direct::Kernels::rnn_backward, Backward>(
        "rnn_ext::_rnn_backward", if_defined(grads[0]), if_defined(grads[1]), input, hx, weights,
        states, batch_sizes, settings.nonlinearity(), settings.bidirectional, mask);
  });
  return in_places(std::move(found), mask);
}

// A node saves, in this order: input, hx, batch_sizes, output, weights.
Operands operands_of(const variable_list& saved) {
  return {
      saved[0], if_defined(saved[1]), if_defined(saved[2]), {saved.begin() + 4, saved.end()}, {}};
}

variable_list run_saved_backward(const variable_list& grads, const variable_list& saved,
                                 const std::vector<std::int64_t>& settings,
                                 const std::vector<bool>& mask) {
  const bool is_changed = settings[3] != 0;
  return run_backward(grads, operands_of(saved), is_changed ? Tensor() : saved[3],
                      {settings[0] != 0, settings[1] != 0, settings[2] != 0}, mask);
}

class RNNBackward final : public LayerNode {
 public:
  RNNBackward(const Operands& operands, const Tensor& output, Settings settings)
      : LayerNode(
            torch::autograd::collect_next_edges(operands.input, operands.hx, operands.weights),
            run_saved_backward),
        settings_(settings) {
    save(operands.input);
    save(operands.hx.value_or(Tensor()));
    save(operands.batch_sizes.value_or(Tensor()));
    save_unchanged(output);
    save(operands.weights);
  }

  std::string name() const override { return "RNNBackward"; }

 private:
  variable_list apply(variable_list&& grads) override {
    if (std::none_of(grads.begin(), grads.end(), [](const Tensor& t) { return t.defined(); })) {
      return variable_list(num_outputs());
    }
    const variable_list saved = unpack();
    const Operands operands = operands_of(saved);
    if (is_followed(grads)) {
      // With this node's output, through which second derivatives flow.
      return higher_order_backward(
          grads, operands,
          is_changed() ? std::nullopt
                       : optional(torch::autograd::make_variable(saved[3], {getptr(), 0})),
          settings_, wanted());
    }
    return run_saved_backward(grads, saved, settings(), wanted());
  }

  std::vector<std::int64_t> settings() const override {
    return {settings_.step, settings_.relu, settings_.bidirectional, is_changed()};
  }

  const Settings settings_;
};

}  // namespace

variable_list run_layer(const Operands& operands, Settings settings) {
  variable_list results = run_forward(operands, settings);
  if (torch::autograd::compute_requires_grad(operands.input, operands.hx,
                                             at::TensorList(operands.weights))) {
    torch::autograd::set_history(results,
                                 c10::make_intrusive<RNNBackward>(operands, results[0], settings));
  }
  return results;
}

}  // namespace rnn_ext::eager
