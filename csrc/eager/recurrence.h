// A layer whose cell is a program, as an eager call on the CPU that autograd records.
#pragma once

#include <c10/core/SafePyObject.h>

#include <array>
#include <memory>

#include "eager/node.h"

namespace rnn_ext::eager {

// What a layer computes; the fields of rnn_ext._core.recurrence.Recurrence and of its cell.
struct Recurrence {
  std::array<std::int64_t, 4> counts;  // of initial states, weights, parameters and inputs
  bool bidirectional;
  std::int64_t states;  // y among them
  std::int64_t results;
  std::int64_t returned_states;  // those of which all steps are returned, a bit each
  std::int64_t saved_states;     // those of which backward reads all steps
  std::int64_t saved_values;
};

// Returns what rnn_ext._core.recurrence.run_layer does. `tensors` are input, initial states,
// weights, parameters and inputs, `object` is the layer in Python. The kernels must support the
// call.
variable_list run_recurrence(const Recurrence& layer, const variable_list& tensors,
                             const optional<Tensor>& batch_sizes, const Tensor& program,
                             const std::shared_ptr<c10::SafePyObject>& object);

// Returns the gradients of `tensors`, differentiable or under vmap, undefined where `mask` is
// false: rnn_ext._core.recurrence._backward.
variable_list higher_order_backward(const variable_list& grads, const c10::SafePyObject& object,
                                    const variable_list& tensors,
                                    const optional<Tensor>& batch_sizes, const variable_list& kept,
                                    std::int64_t kept_states, const std::vector<bool>& mask);

}  // namespace rnn_ext::eager
