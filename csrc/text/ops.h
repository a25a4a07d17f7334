// The op of the text generator.
//
// _rnn_generate continues a prompt (P) by one character for each of draws, float64 from [0, 1).
// The first layer reads a row of a table (V, H), W_ih E + b for the character's embedding. hidden
// is (L, 1, H); weights are weight_hh of the first layer, then weight_ih, weight_hh and bias of
// every other. float32; no autograd.
#pragma once

#include <torch/csrc/stable/library.h>

#include "common/ops.h"

namespace rnn_ext::cpu {

void define_text_ops(Library& m);
void implement_text_ops(Library& m);

}  // namespace rnn_ext::cpu
