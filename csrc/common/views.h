// Torch tensors as the kernels' pointers and strides.
#pragma once

#include "common/problem.h"
#include "common/tensors.h"

namespace rnn_ext {
namespace view {

// The stride of a dimension of size 1 can be any number.
inline std::int64_t column_stride(const Tensor& t) {
  const std::int64_t last = t.dim() - 1;
  return t.size(last) == 1 ? 1 : t.stride(last);
}

template <class T>
T* data(const Tensor& t) {
  if constexpr (std::is_const_v<T>) {
    return static_cast<T*>(t.const_data_ptr());
  } else {
    return static_cast<T*>(t.mutable_data_ptr());
  }
}

template <class T>
Matrix<T> matrix(const Tensor& t) {
  return {data<T>(t), t.stride(0), t.stride(1)};
}

template <class T>
Matrix<T> row(const Tensor& t) {
  return {data<T>(t), 0, t.stride(0)};
}

// The states of a direction: its part of (D, B, H), or all of (B, H).
template <class T>
Matrix<T> slice(const Tensor& t, std::int64_t direction) {
  return t.dim() == 2
             ? Matrix<T>{data<T>(t), t.stride(0), column_stride(t)}
             : Matrix<T>{data<T>(t) + direction * t.stride(0), t.stride(1), column_stride(t)};
}

// The row stride of a batch of one is free, so its steps can serve as rows.
template <class T>
Sequence<T> sequence(const Tensor& t) {
  return t.dim() == 2 ? Sequence<T>{data<T>(t), 0, t.stride(0), column_stride(t)}
                      : Sequence<T>{data<T>(t), t.stride(0), t.stride(t.size(1) == 1 ? 0 : 1),
                                    column_stride(t)};
}

}  // namespace view

inline Tensor with_unit_columns(const Tensor& t) {
  return view::column_stride(t) == 1 ? t : torch::stable::contiguous(t);
}

}  // namespace rnn_ext
