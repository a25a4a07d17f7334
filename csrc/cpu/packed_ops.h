// The ops of rnn_ext.freeze, without autograd.
//
// _rnn_pack packs the weights of a layer, and returns a uint8 tensor for each direction.
// _rnn_forward_packed is _rnn_forward with them; `weights` are the ones that were packed, of which
// it reads the biases.
#pragma once

#include "common/ops.h"

namespace rnn_ext::cpu {

std::tuple<Tensor, Tensor> rnn_forward_packed(const Tensor& input, const std::optional<Tensor>& hx,
                                              const std::vector<Tensor>& weights,
                                              const std::vector<Tensor>& packed,
                                              const std::optional<Tensor>& batch_sizes,
                                              Nonlinearity nonlinearity, bool bidirectional);

void define_packed_ops(Library& m);
void implement_packed_ops(Library& m);

}  // namespace rnn_ext::cpu
