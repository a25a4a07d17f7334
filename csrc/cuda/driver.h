// The ops' CUDA kernels: torch tensors in, torch tensors out.
#pragma once

#include "common/call.h"

namespace rnn_ext::cuda {

struct Driver {
  // h_n may be the output itself if there is one step.
  static void forward(const Call& call, const Tensor& output, const Tensor& h_n);
  // The gradients of input, hx and each weight that output_mask requests, in this order.
  static std::vector<Tensor> backward(const Call& call, const std::optional<Tensor>& grad_output,
                                      const std::optional<Tensor>& grad_h_n,
                                      const std::vector<Tensor>& weights, const Tensor& output,
                                      const std::vector<bool>& output_mask);
  // `seed` and `tangent` hold all directions. With `reverse`, each direction runs in the opposite
  // time order.
  static void tangent(const Call& call, const Tensor& seed, const Tensor& output,
                      const Tensor& tangent, bool reverse);
};

}  // namespace rnn_ext::cuda
