// How one element of a step is computed, in every kernel.
//
// A rule is a pass and a cell. For step t, batch row r and column c it selects the state that is
// multiplied by the weights, loads the other operands before that product, and finishes the sum to
// a new state. Loading involves no arithmetic, which would wait for the loaded values. A row of
// step t is "carried" if the previous step has it, too; other rows start at t.
#pragma once

#include "cuda/device.cuh"
#include "cuda/kernels.h"

namespace rnn_ext::cuda {

template <class S, class Cell>
struct Forward : ForwardPass<S> {
  using Stored = S;
  using T = Arithmetic<S>;
  using Operands = S;  // W_ih x_t

  __host__ __device__ std::int64_t step_count() const { return this->order.steps.count; }
  // The rows that take part in a step.
  __device__ std::int64_t rows(std::int64_t t) const { return this->order.steps.rows(t); }
  __device__ bool keeps_state(std::int64_t t, std::int64_t r) const { return r < rows(t); }

  // The state of row r before its first step.
  __device__ T initial(std::int64_t r, std::int64_t c) const {
    return this->hx ? widen(this->hx.row(r)[c]) : T{0};
  }
  // The previous states of row r at step t; null: zeros.
  __device__ const S* source(std::int64_t t, std::int64_t r) const {
    const std::int64_t before = this->order.previous(t);
    if (r < this->order.steps.rows_or_none(before)) {
      return this->states.at(this->order.steps, before).row(r);
    }
    return this->hx ? this->hx.row(r) : nullptr;
  }

  // The summand of column c in every step and row.
  __device__ T constant(std::int64_t c) const {
    return this->bias_ih ? widen(this->bias_ih.data[c * this->bias_ih.column_stride]) +
                               widen(this->bias_hh.data[c * this->bias_hh.column_stride])
                         : T{0};
  }
  __device__ Operands load(std::int64_t t, std::int64_t r, std::int64_t c) const {
    return this->states.at(this->order.steps, t).row(r)[c];
  }

  __device__ T finish(std::int64_t t, std::int64_t r, std::int64_t c, T constant, Operands x,
                      T sum) const {
    const S h = narrow<S>(Cell::activate(Number<T>{widen(x) + constant + sum}).value);
    this->states.at(this->order.steps, t).row(r)[c] = h;
    if (r >= this->order.steps.rows_or_none(this->order.next(t))) {
      this->h_n.row(r)[c] = h;
    }
    return widen(h);
  }
};

template <class S, class Cell>
struct Backward : BackwardPass<S> {
  using Stored = S;
  using T = Arithmetic<S>;
  struct Operands {
    S dy;
    S h;
  };

  // After the last step follows one outside of the sequence, for the gradient of hx.
  __host__ __device__ std::int64_t step_count() const {
    return this->order.steps.count + (this->grad_hx ? 1 : 0);
  }
  __device__ std::int64_t carried(std::int64_t t) const {
    return this->order.steps.rows_or_none(this->order.previous(t));
  }
  __device__ std::int64_t rows(std::int64_t t) const {
    const std::int64_t own = this->order.steps.rows_or_none(t);
    const std::int64_t before = carried(t);
    return own > before ? own : before;
  }
  __device__ bool keeps_state(std::int64_t t, std::int64_t r) const {
    return r < this->order.steps.rows_or_none(t);
  }

  __device__ T initial(std::int64_t, std::int64_t) const { return 0; }
  __device__ const S* source(std::int64_t t, std::int64_t r) const {
    return r < carried(t) ? this->dz.at(this->order.steps, this->order.previous(t)).row(r)
                          : nullptr;
  }

  __device__ T constant(std::int64_t) const { return 0; }
  __device__ Operands load(std::int64_t t, std::int64_t r, std::int64_t c) const {
    if (!keeps_state(t, r)) {
      return {};
    }
    const Matrix<const S> dy =
        this->grad_output ? this->grad_output.at(this->order.steps, t) : Matrix<const S>{};
    return {dy ? dy.row(r)[c * dy.column_stride] : S{},
            this->states.at(this->order.steps, t).row(r)[c]};
  }

  __device__ T finish(std::int64_t t, std::int64_t r, std::int64_t c, T, Operands x, T sum) const {
    const Steps& steps = this->order.steps;
    const bool is_carried = r < carried(t);
    if (!keeps_state(t, r)) {
      if (this->grad_hx) {
        this->grad_hx.row(r)[c] = narrow<S>(sum);
      }
      return 0;
    }
    T gradient = widen(x.dy);
    if (is_carried) {
      gradient += sum;
    } else if (this->grad_h_n) {
      gradient += widen(this->grad_h_n.row(r)[c]);
    }
    const S dz = narrow<S>(Cell::chain(Number<T>{gradient}, Number<T>{widen(x.h)}).value);
    this->dz.at(steps, t).row(r)[c] = dz;
    if (this->previous) {
      if (is_carried) {
        this->previous.at(steps, this->order.previous(t)).row(r)[c] = x.h;
      }
      if (r >= steps.rows_or_none(this->order.next(t))) {
        this->previous.at(steps, t).row(r)[c] = this->hx.row(r)[c];
      }
    }
    return widen(dz);
  }
};

// The rules of all directions of a call: the grid's second axis.
template <class Rule>
struct Directions {
  Rule of[2];
};

template <class Cell, class S>
Forward<S, Cell> rule_of(const ForwardPass<S>& pass) {
  return {pass};
}
template <class Cell, class S>
Backward<S, Cell> rule_of(const BackwardPass<S>& pass) {
  return {pass};
}

// Calls f with the rules of the passes.
template <class Pass, class F>
cudaError_t with_rules(Nonlinearity nonlinearity, std::span<const Pass> passes, F&& f) {
  return with_cell(nonlinearity, [&]<class Cell>(Cell) {
    using Rule = decltype(rule_of<Cell>(passes.front()));
    return f(Directions<Rule>{{rule_of<Cell>(passes.front()), rule_of<Cell>(passes.back())}});
  });
}

// Available to every kernel without a request.
constexpr std::size_t granted_shared_bytes = 48 << 10;

template <class Kernel, class... Arguments>
cudaError_t launch(Kernel* kernel, dim3 grid, int threads, std::size_t shared, cudaStream_t stream,
                   const Arguments&... arguments) {
  if (shared > granted_shared_bytes) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) {
      return error;
    }
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace rnn_ext::cuda
