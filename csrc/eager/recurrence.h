// A layer whose cell is a program, as an eager call on the CPU that autograd records.
#pragma once

#include <c10/core/SafePyObject.h>

#include <array>
#include <memory>

#include "eager/node.h"

namespace rnn_ext::eager {

// What a layer computes; the fields of rnn_ext._core.recurrence.Recurrence and of its cell.
struct Recurrence {
  // Of initial states, weights, parameters, inputs and reset states.
  std::array<std::int64_t, 5> counts;
  bool bidirectional;
  std::int64_t states;  // y among them
  std::int64_t results;
  std::int64_t returned_states;  // those of which all steps are returned, a bit each
  std::int64_t saved_states;     // those of which backward reads all steps
  std::int64_t saved_values;
};

struct RecurrenceOperands {
  variable_list tensors;  // input, then the lists that Recurrence::counts counts
  optional<Tensor> reset;
  optional<Tensor> batch_sizes;
};

// Returns what rnn_ext._core.recurrence.run_layer does. `object` is the layer in Python. The
// kernels must support the call.
variable_list run_recurrence(const Recurrence& layer, const RecurrenceOperands& operands,
                             const Tensor& program,
                             const std::shared_ptr<c10::SafePyObject>& object);

// Returns the gradients of the operands' tensors, differentiable or under vmap, undefined where
// `mask` is false: rnn_ext._core.recurrence._differentiable_backward.
variable_list higher_order_backward(const variable_list& grads, const c10::SafePyObject& object,
                                    const RecurrenceOperands& operands,
                                    const std::vector<bool>& mask);

}  // namespace rnn_ext::eager
