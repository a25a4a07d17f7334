// What the driver launches: passes over time, as plain pointers into device memory.
//
// Each direction of a layer is one pass; all passes of a call have the same sizes and run side by
// side, as an axis of the grid. What is a product over all steps (the input projection before a
// forward pass, dx and the weight gradients after a backward one) is the driver's.
#pragma once

#include <cuda_runtime.h>

#include <span>

#include "common/half.h"
#include "common/problem.h"
#include "cuda/plan.h"

namespace rnn_ext::cuda {

// The order in which a pass takes the steps. `steps` points into device memory.
struct Walk {
  Steps steps;
  bool descends = false;

  // The i-th step of the walk, and its neighbors in it; they may lie outside the sequence.
  constexpr std::int64_t time(std::int64_t i) const { return descends ? steps.count - 1 - i : i; }
  constexpr std::int64_t before(std::int64_t t) const { return descends ? t + 1 : t - 1; }
  constexpr std::int64_t after(std::int64_t t) const { return descends ? t - 1 : t + 1; }
};

// h_t = φ(states_t + b_ih + b_hh + W_hh h_{t-1}), where states_t is W_ih x_t before and h_t after.
template <class S>
struct ForwardPass {
  Walk walk;
  std::int64_t hidden_size = 0;
  const S* weight = nullptr;  // W_hh, contiguous
  Matrix<const S> bias_ih;    // one row each; null: none
  Matrix<const S> bias_hh;
  Matrix<const S> hx;  // null: zeros
  Sequence<S> states;
  Matrix<S> h_n;
};

// dz_t = (dy_t + W_hhᵀ dz_{t+1}) φ'(z_t), from the last step to the first. The tangent
// y_t = φ'(z_t) (s_t + W y_{t-1}) is the same recurrence, in either order: W stands for W_hhᵀ, s
// for dy, and W times what comes before the first y for grad_h_n.
template <class S>
struct BackwardPass {
  Walk walk;
  std::int64_t hidden_size = 0;
  const S* weight = nullptr;      // W_hhᵀ or W, contiguous
  Sequence<const S> states;       // h_t
  Sequence<const S> grad_output;  // any strides; null: zeros
  Matrix<const S> grad_h_n;       // null: zeros
  Sequence<S> dz;
  Matrix<S> grad_hx;  // null: not wanted
  // What receives h_{t-1}, and the hx that it starts with, for the gradient of W_hh; null: not
  // wanted.
  Sequence<S> previous;
  Matrix<const S> hx;
};

template <class Pass>
cudaError_t run_persistent(const Plan& plan, Nonlinearity nonlinearity,
                           std::span<const Pass> directions, cudaStream_t stream);
template <class Pass>
cudaError_t run_steps(const Plan& plan, Nonlinearity nonlinearity, std::span<const Pass> directions,
                      cudaStream_t stream);

// Brings host values to device memory as arguments of kernels: no copy from pageable memory, which
// would wait for the device and which a CUDA graph cannot record.
cudaError_t upload(std::span<const std::int64_t> values, std::int64_t* target, cudaStream_t stream);

}  // namespace rnn_ext::cuda
