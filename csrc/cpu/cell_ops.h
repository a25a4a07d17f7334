// Ops of a recurrence whose cell is a program (common/program.h), on the CPU.
//
// input is (T, B, I), or packed (N, I) with batch_sizes. It may be tokens, int64 (T, B) or (N);
// then a table (V, G·H), float32 or float64, stands for weight_ih: W_ih x is its row with the
// token's number. initial has a tensor (D, B, H) for each state, or is empty for zeros. weights are
// weight_ih (G·H, I), weight_hh (G·H, H) and, where the layer has them, bias_ih, bias_hh (G·H), for
// each direction. parameters are (H,); inputs are (D, T, B, H), or packed (D, N, H). reset (T, B)
// bool says where a row starts anew, from reset_states instead of the states before the step: a
// tensor (T, D, B, H), or (D, B, H) for all steps, where B may be 1 for all rows, for each state,
// or none for zeros. kept_states is a set of bits: the states from 1 on of which all steps are
// wanted. states is how many the program has, y among them.
//
// recurrence_forward returns the output (T, B, D·H) or (N, D·H), the final states (D, B, H), then
// like output the kept states and the kept_values values that backward needs: all that the program
// keeps, or none.
// recurrence_backward takes the gradients of output, the final states and all steps of the states
// from 1 on; `given` says which of these `gradients` has. sequences are the states in
// kept_states, those that the program reads among them. It returns what output_mask asks for of the
// gradients of input, initial, weights, parameters, as (D, H), inputs and, for each row,
// reset_states.
#pragma once

#include "common/ops.h"

namespace rnn_ext::cpu {

void define_cell_ops(Library& m);
void implement_cell_ops(Library& m);

}  // namespace rnn_ext::cpu
