// Ops of a recurrence whose cell is a program (common/program.h), on the CPU.
//
// input is (T, B, I), or packed (N, I) with batch_sizes. It may be tokens, int64 (T, B) or (N).
// Then a table (V, G·H), float32 or float64, replaces weight_ih, and W_ih x is its row with the
// token's number. initial has a tensor (D, B, H) for each state, or is empty for zeros. weights are
// weight_ih (G·H, I), weight_hh (G·H, H) and, if the layer has biases, bias_ih, bias_hh (G·H), for
// each direction. parameters are (H,); inputs are (D, T, B, H), or packed (D, N, H). reset (T, B),
// bool, selects the steps before which reset_states replace a row's states. reset_states has a
// tensor (T, D, B, H) for each state, or (D, B, H) for all steps, where B may be 1 for all rows; or
// it is empty for zeros. kept_states is a set of bits: the states from 1 on that are returned at
// all steps. states is the number of states of the program, y included.
//
// recurrence_forward returns the output (T, B, D·H) or (N, D·H), the final states (D, B, H), and,
// in the shape of output, the kept states and the kept_values values that backward needs: all that
// the program saves, or none.
//
// recurrence_backward takes the gradients of output, of the final states and of all steps of the
// states from 1 on; `given` has a flag for each of these, true if `gradients` contains it.
// sequences are the states in kept_states, which include those that the program reads. It returns
// the gradients that output_mask requests, in the order input, initial, weights, parameters, as
// (D, H), inputs and, for each row, reset_states.
#pragma once

#include "common/ops.h"

namespace rnn_ext::cpu {

// None is an empty list: AOTInductor cannot pass another.
using OptionalTensors = std::optional<std::vector<Tensor>>;

std::vector<Tensor> recurrence_forward(
    const Tensor& input, const OptionalTensors& initial, const std::vector<Tensor>& weights,
    const OptionalTensors& parameters, const OptionalTensors& inputs,
    const OptionalTensors& reset_states, const std::optional<Tensor>& reset,
    const std::optional<Tensor>& batch_sizes, const Tensor& program, bool bidirectional,
    std::int64_t states, std::int64_t kept_states, std::int64_t kept_values);
std::vector<Tensor> recurrence_backward(
    const std::vector<Tensor>& gradients, const std::vector<bool>& given, const Tensor& input,
    const std::vector<Tensor>& initial, const std::vector<Tensor>& weights,
    const std::vector<Tensor>& parameters, const std::vector<Tensor>& inputs,
    const std::vector<Tensor>& reset_states, const Tensor& output,
    const std::vector<Tensor>& sequences, const std::vector<Tensor>& saved,
    const std::optional<Tensor>& reset, const std::optional<Tensor>& batch_sizes,
    const Tensor& program, bool bidirectional, std::int64_t kept_states,
    const std::vector<bool>& output_mask);

void define_cell_ops(Library& m);
void implement_cell_ops(Library& m);

}  // namespace rnn_ext::cpu
