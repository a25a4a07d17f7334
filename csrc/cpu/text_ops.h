// Ops of the text generator: tokens where the others take an input.
//
// The input projection of a token is a row of a table (V, H), W_ih·E + b of its embedding, so it is
// looked up instead of computed. tokens is int64, (T, B); hx (1, B, H); output (T, B, H).
// _token_rnn_backward returns the gradients that output_mask asks for, in the order table, hx,
// weight_hh. float32 and float64; no autograd of their own.
//
// _rnn_generate continues a prompt (P) by one character for each of draws, float64 from [0, 1).
// hidden is (L, 1, H); weights are weight_hh of the first layer, then weight_ih, weight_hh and bias
// of every other. float32.
#pragma once

#include <torch/csrc/stable/library.h>

#include "common/ops.h"

namespace rnn_ext::cpu {

void define_text_ops(Library& m);
void implement_text_ops(Library& m);

}  // namespace rnn_ext::cpu
