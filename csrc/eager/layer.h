// Eager calls of a layer, or of one step of a cell, on the CPU, which autograd records.
#pragma once

#include "eager/node.h"

namespace rnn_ext::eager {

struct Settings {
  bool step;  // of a cell
  bool relu;
  bool bidirectional;

  Nonlinearity nonlinearity() const { return relu ? Nonlinearity::relu : Nonlinearity::tanh; }
};

struct Operands {
  Tensor input;
  optional<Tensor> hx;
  optional<Tensor> batch_sizes;
  std::vector<Tensor> weights;
  std::vector<Tensor> packed;  // the same weights, for calls that autograd does not record
};

// Returns (output, h_n), or the next state alone for a step. The kernels must support the call.
variable_list run_layer(const Operands& operands, Settings settings);

// Returns the gradients of input, hx and weights, undefined where `mask` is false; differentiable,
// also under vmap. This is rnn_ext._core.autograd.higher_order_backward. Without `output` it runs
// the layer again.
variable_list higher_order_backward(const variable_list& grads, const Operands& operands,
                                    const optional<Tensor>& output, Settings settings,
                                    const std::vector<bool>& mask);

}  // namespace rnn_ext::eager
