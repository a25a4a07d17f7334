// A call as plain sizes and pointers, which a driver passes to the kernels.
//
// A problem is one direction of one layer over a whole sequence. Steps may hold different
// numbers of rows (packed sequences): step t covers batch rows [0, rows(t)). Strides count
// elements. Nothing here owns memory. Functions are constexpr so that device code can call them.
#pragma once

#include <cstdint>
#include <type_traits>

namespace rnn_ext {

enum class Nonlinearity { tanh, relu };

// Their names in Python.
inline constexpr const char* nonlinearity_names[] = {"tanh", "relu"};
constexpr const char* name_of(Nonlinearity nonlinearity) {
  return nonlinearity_names[static_cast<int>(nonlinearity)];
}

// The time axis: how many batch rows each step has, and where step t starts in a tensor that holds
// the rows of all steps consecutively.
struct Steps {
  std::int64_t count = 0;
  std::int64_t batch = 0;                       // rows of the longest step
  const std::int64_t* batch_sizes = nullptr;    // rows of each step; null: `batch` in all
  const std::int64_t* batch_offsets = nullptr;  // exclusive prefix sums of batch_sizes

  constexpr std::int64_t rows(std::int64_t t) const { return batch_sizes ? batch_sizes[t] : batch; }
  constexpr std::int64_t offset(std::int64_t t) const {
    return batch_offsets ? batch_offsets[t] : t * batch;
  }
  // Rows of step t, or 0 if t is outside of the sequence.
  constexpr std::int64_t rows_or_none(std::int64_t t) const {
    return t >= 0 && t < count ? rows(t) : 0;
  }
  std::int64_t total_rows() const { return count > 0 ? offset(count - 1) + rows(count - 1) : 0; }
};

// The order in which a direction processes the steps.
struct TimeOrder {
  std::int64_t count = 0;
  bool reverse = false;

  // The s-th step in this order.
  constexpr std::int64_t step(std::int64_t s) const { return reverse ? count - 1 - s : s; }
  // The steps before and after step t in this order; -1 or `count` if there is none.
  constexpr std::int64_t previous(std::int64_t t) const { return reverse ? t + 1 : t - 1; }
  constexpr std::int64_t next(std::int64_t t) const { return reverse ? t - 1 : t + 1; }
  constexpr TimeOrder reversed() const { return {count, !reverse}; }
};

// A matrix with any strides.
template <class T>
struct Matrix {
  T* data = nullptr;
  std::int64_t row_stride = 0;
  std::int64_t column_stride = 1;

  constexpr T* row(std::int64_t r) const { return data + r * row_stride; }
  // The matrix whose first element is element (r, c) of this one.
  constexpr Matrix part(std::int64_t r, std::int64_t c) const {
    return {data + r * row_stride + c * column_stride, row_stride, column_stride};
  }
  constexpr Matrix transposed() const { return {data, column_stride, row_stride}; }
  constexpr explicit operator bool() const { return data != nullptr; }
  template <class U>
    requires(!std::is_const_v<T> && std::is_same_v<U, const T>)
  constexpr operator Matrix<U>() const {
    return {data, row_stride, column_stride};
  }
};

// A (step, batch row, feature) operand. Packed data has no step stride of its own: its steps
// start where `batch_offsets` says.
template <class T>
struct Sequence {
  T* data = nullptr;
  std::int64_t step_stride = 0;
  std::int64_t row_stride = 0;
  std::int64_t column_stride = 1;

  constexpr explicit operator bool() const { return data != nullptr; }
  constexpr Matrix<T> at(const Steps& steps, std::int64_t t) const {
    const auto start = steps.batch_offsets ? steps.batch_offsets[t] * row_stride : t * step_stride;
    return {data + start, row_stride, column_stride};
  }
  // Whether the rows of successive steps follow each other at `row_stride`.
  bool is_linear(const Steps& steps) const {
    return steps.batch_offsets || steps.count <= 1 || step_stride == steps.batch * row_stride;
  }
};

// h_t = φ(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), for all t in the order of the direction.
template <class T>
struct Problem {
  Steps steps;
  std::int64_t input_size = 0;
  std::int64_t hidden_size = 0;
  Nonlinearity nonlinearity = Nonlinearity::tanh;
  bool reverse = false;

  Sequence<const T> input;    // column stride 1
  Matrix<const T> hx;         // (batch, hidden), column stride 1; null: zeros
  Matrix<const T> weight_ih;  // (hidden, input)
  Matrix<const T> weight_hh;  // (hidden, hidden)
  // Instead of input and W_ih: the row of `table` with the token's number is W_ih x.
  const std::int64_t* tokens = nullptr;  // one for each row of each step
  Matrix<const T> table;                 // (any, hidden)
  Matrix<const T> bias_ih;               // one row each; null: none
  Matrix<const T> bias_hh;
  Sequence<T> output;  // linear, column stride 1; written by forward, read by backward

  TimeOrder order() const { return {steps.count, reverse}; }
};

// The gradients that a backward call reads and writes; null if absent or not requested.
template <class T>
struct Gradients {
  Sequence<const T> output;  // any strides, 0 included
  Matrix<const T> h_n;       // column stride 1

  Sequence<T> input;          // linear, column stride 1
  bool add_to_input = false;  // the other direction has written it already
  Matrix<T> hx;
  Matrix<T> weight_ih;
  Matrix<T> weight_hh;
  Matrix<T> bias_ih;  // one row each
  Matrix<T> bias_hh;
  Matrix<T> table;  // zeros in rows without a token; column stride 1
};

}  // namespace rnn_ext
