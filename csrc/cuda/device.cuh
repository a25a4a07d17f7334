// The primitives of the kernels: arithmetic on one value, lanes of 16 bytes, shared memory.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstddef>

#include "common/cell.h"
#include "common/half.h"

namespace rnn_ext::cuda {

// The arithmetic type of cells.
template <class T>
struct Number {
  T value;

  __host__ __device__ static Number broadcast(T x) { return {x}; }
  __host__ __device__ friend Number operator*(Number a, Number b) { return {a.value * b.value}; }
  // c - a·b, rounded once.
  __host__ __device__ friend Number subtract_product(Number c, Number a, Number b) {
    return {std::fma(-a.value, b.value, c.value)};
  }
  __host__ __device__ friend Number tanh(Number x) { return {std::tanh(x.value)}; }
  __host__ __device__ friend Number zero_where_not_positive(Number x, Number where) {
    return {where.value <= T{0} ? T{0} : x.value};
  }
};

template <class S>
__device__ Arithmetic<S> widen(S x) {
  if constexpr (std::is_same_v<S, Half>) {
    return __half2float(__ushort_as_half(x.bits));
  } else {
    return static_cast<Arithmetic<S>>(x);
  }
}

template <class S>
__device__ S narrow(Arithmetic<S> x) {
  if constexpr (std::is_same_v<S, Half>) {
    return {__half_as_ushort(__float2half_rn(x))};
  } else if constexpr (std::is_same_v<S, BFloat16>) {
    return BFloat16::from(x);
  } else {
    return x;
  }
}

// As many values as one memory access can load.
template <class T>
struct alignas(16) Lanes {
  static constexpr int width = 16 / sizeof(T);
  T values[width];

  // `p` is aligned to 16 bytes.
  __device__ static Lanes load(const T* p) { return *reinterpret_cast<const Lanes*>(p); }
};

extern __shared__ __align__(16) unsigned char shared_bytes[];

// The block's shared memory, from its start.
template <class T>
__device__ T* shared_memory() {
  return reinterpret_cast<T*>(shared_bytes);
}

}  // namespace rnn_ext::cuda
