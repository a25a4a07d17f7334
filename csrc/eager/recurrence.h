// Eager calls of a layer whose cell is a program, on the CPU, which autograd records.
#pragma once

#include <c10/core/SafePyObject.h>

#include <array>
#include <memory>

#include "eager/node.h"

namespace rnn_ext::eager {

// The numbers of initial states, weights, parameters, inputs and reset states.
using Counts = std::array<std::int64_t, 5>;

// The settings of a layer: the fields of rnn_ext._core.recurrence.Recurrence without the cell.
struct Recurrence {
  Counts counts;
  bool bidirectional;
  bool return_states;  // all steps of the states beside y
  bool is_step;        // operands and results have the axes of one step of a cell
};

// The parts of rnn_ext._core.cells.cell.Cell that the autograd node needs.
struct CellProgram {
  Tensor program;
  std::int64_t states;        // including y
  std::int64_t saved_states;  // that backward reads at all steps, a bit each
  std::int64_t saved_values;
  std::shared_ptr<c10::SafePyObject> cell;
};

struct RecurrenceOperands {
  variable_list tensors;  // input, then the lists that Recurrence::counts counts
  optional<Tensor> reset;
  optional<Tensor> batch_sizes;
};

// Returns the results of rnn_ext._core.recurrence.run_layer, or the next states for a step, whose
// parameters and inputs need only broadcast to the units. The kernels must support the call.
variable_list run_recurrence(const Recurrence& layer, const RecurrenceOperands& operands,
                             const CellProgram& cell);

// Returns the gradients of the operands' tensors, undefined where `mask` is false; differentiable,
// also under vmap. This is rnn_ext._core.recurrence._differentiable_backward.
variable_list higher_order_backward(const variable_list& grads, const c10::SafePyObject& cell,
                                    const Recurrence& layer, const RecurrenceOperands& operands,
                                    const std::vector<bool>& mask);

}  // namespace rnn_ext::eager
