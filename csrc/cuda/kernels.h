// The driver's launches: passes over time, as plain pointers into device memory.
//
// Each direction of a layer is one pass. All passes of a call have the same sizes and run
// concurrently, as an axis of the grid. The driver computes the products over all steps: the input
// projection before a forward pass, dx and the weight gradients after a backward one.
#pragma once

#include <cuda_runtime.h>

#include <span>

#include "common/half.h"
#include "common/problem.h"
#include "cuda/plan.h"

namespace rnn_ext::cuda {

// The time order of a pass. `steps` points into device memory.
struct PassOrder {
  Steps steps;
  bool descends = false;

  // The i-th step in this order, and the steps before and after step t; these may be outside of
  // the sequence.
  constexpr std::int64_t time(std::int64_t i) const { return descends ? steps.count - 1 - i : i; }
  constexpr std::int64_t previous(std::int64_t t) const { return descends ? t + 1 : t - 1; }
  constexpr std::int64_t next(std::int64_t t) const { return descends ? t - 1 : t + 1; }
};

// h_t = φ(states_t + b_ih + b_hh + W_hh h_{t-1}), where states_t is W_ih x_t before and h_t after.
template <class S>
struct ForwardPass {
  PassOrder order;
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
  PassOrder order;
  std::int64_t hidden_size = 0;
  const S* weight = nullptr;      // W_hhᵀ or W, contiguous
  Sequence<const S> states;       // h_t
  Sequence<const S> grad_output;  // any strides; null: zeros
  Matrix<const S> grad_h_n;       // null: zeros
  Sequence<S> dz;
  Matrix<S> grad_hx;  // null: not wanted
  // Receives h_{t-1}, starting with hx, for the gradient of W_hh; null: not wanted.
  Sequence<S> previous;
  Matrix<const S> hx;
};

template <class Pass>
cudaError_t run_persistent(const Plan& plan, Nonlinearity nonlinearity,
                           std::span<const Pass> directions, cudaStream_t stream);
template <class Pass>
cudaError_t run_steps(const Plan& plan, Nonlinearity nonlinearity, std::span<const Pass> directions,
                      cudaStream_t stream);

// Copies host values to device memory as arguments of kernels. A copy from pageable memory would
// wait for the device, and a CUDA graph cannot record it.
cudaError_t upload(std::span<const std::int64_t> values, std::int64_t* target, cudaStream_t stream);

}  // namespace rnn_ext::cuda
