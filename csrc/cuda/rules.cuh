// What one element of a step is made of, whichever kernel walks it over time.
//
// A rule is a pass and a cell. For step t, batch row r and column c it says which state the product
// with the weights starts from, loads the other operands ahead of that product, and finishes the
// sum into a new state. Loading does no arithmetic, which would wait for what is loaded. Rows r
// that step t has are "carried" where the step before it in the walk has them too; the others start
// at t.
#pragma once

#include "cuda/device.cuh"
#include "cuda/kernels.h"

namespace rnn_ext::cuda {

template <class S, class Cell>
struct Forward : ForwardPass<S> {
  using Stored = S;
  using T = Arithmetic<S>;
  using Operands = S;  // W_ih x_t

  __host__ __device__ std::int64_t step_count() const { return this->walk.steps.count; }
  // The rows that a step has to do with.
  __device__ std::int64_t rows(std::int64_t t) const { return this->walk.steps.rows(t); }
  __device__ bool keeps_state(std::int64_t t, std::int64_t r) const { return r < rows(t); }

  // The state of row r before its first step.
  __device__ T initial(std::int64_t r, std::int64_t c) const {
    return this->hx ? widen(this->hx.row(r)[c]) : T{0};
  }
  // The states that row r brings into step t; null: zeros.
  __device__ const S* source(std::int64_t t, std::int64_t r) const {
    const std::int64_t before = this->walk.before(t);
    if (r < this->walk.steps.rows_or_none(before)) {
      return this->states.at(this->walk.steps, before).row(r);
    }
    return this->hx ? this->hx.row(r) : nullptr;
  }

  // What column c adds in every step and row.
  __device__ T constant(std::int64_t c) const {
    return this->bias_ih ? widen(this->bias_ih.data[c * this->bias_ih.column_stride]) +
                               widen(this->bias_hh.data[c * this->bias_hh.column_stride])
                         : T{0};
  }
  __device__ Operands load(std::int64_t t, std::int64_t r, std::int64_t c) const {
    return this->states.at(this->walk.steps, t).row(r)[c];
  }

  __device__ T finish(std::int64_t t, std::int64_t r, std::int64_t c, T constant, Operands x,
                      T sum) const {
    const S h = narrow<S>(Cell::activate(Number<T>{widen(x) + constant + sum}).value);
    this->states.at(this->walk.steps, t).row(r)[c] = h;
    if (r >= this->walk.steps.rows_or_none(this->walk.after(t))) {
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

  // After the last step of the walk comes one outside the sequence: the gradient of hx.
  __host__ __device__ std::int64_t step_count() const {
    return this->walk.steps.count + (this->grad_hx ? 1 : 0);
  }
  __device__ std::int64_t carried(std::int64_t t) const {
    return this->walk.steps.rows_or_none(this->walk.before(t));
  }
  __device__ std::int64_t rows(std::int64_t t) const {
    const std::int64_t own = this->walk.steps.rows_or_none(t);
    const std::int64_t before = carried(t);
    return own > before ? own : before;
  }
  __device__ bool keeps_state(std::int64_t t, std::int64_t r) const {
    return r < this->walk.steps.rows_or_none(t);
  }

  __device__ T initial(std::int64_t, std::int64_t) const { return 0; }
  __device__ const S* source(std::int64_t t, std::int64_t r) const {
    return r < carried(t) ? this->dz.at(this->walk.steps, this->walk.before(t)).row(r) : nullptr;
  }

  __device__ T constant(std::int64_t) const { return 0; }
  __device__ Operands load(std::int64_t t, std::int64_t r, std::int64_t c) const {
    if (!keeps_state(t, r)) {
      return {};
    }
    const Matrix<const S> dy =
        this->grad_output ? this->grad_output.at(this->walk.steps, t) : Matrix<const S>{};
    return {dy ? dy.row(r)[c * dy.column_stride] : S{},
            this->states.at(this->walk.steps, t).row(r)[c]};
  }

  __device__ T finish(std::int64_t t, std::int64_t r, std::int64_t c, T, Operands x, T sum) const {
    const Steps& steps = this->walk.steps;
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
        this->previous.at(steps, this->walk.before(t)).row(r)[c] = x.h;
      }
      if (r >= steps.rows_or_none(this->walk.after(t))) {
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

constexpr std::size_t granted_shared_bytes = 48 << 10;  // to every kernel, without asking

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
