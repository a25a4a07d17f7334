// Checks whether the kernels support a call, for the ops, for dispatch in Python, and for the
// autograd node. It reads sizes, dtypes and devices, never throws and includes no torch.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace rnn_ext {

// The layout of steps in input and output: (T, B, ·), packed (N, ·) with the rows of each step, or
// one step (B, ·) with an hx (B, H).
enum class Layout { sequence, packed, step };

// The traits of a tensor that the check reads. `dtype` and `device_type` are torch's numbers.
struct Traits {
  std::int32_t dtype = 0;
  std::int32_t device_type = 0;
  std::int32_t device_index = 0;
  std::size_t dim = 0;
  const std::int64_t* sizes = nullptr;

  bool has_sizes(std::int64_t first) const { return dim == 1 && sizes[0] == first; }
  bool has_sizes(std::int64_t first, std::int64_t second) const {
    return dim == 2 && sizes[0] == first && sizes[1] == second;
  }
  bool has_sizes(std::int64_t first, std::int64_t second, std::int64_t third) const {
    return dim == 3 && sizes[0] == first && sizes[1] == second && sizes[2] == third;
  }
  bool matches(const Traits& other) const {
    return dtype == other.dtype && device_type == other.device_type &&
           device_index == other.device_index;
  }
};

enum class Obstacle : std::int32_t {
  none,
  dtype,
  input_dims,
  no_steps,
  weight_count,
  weight_kind,
  weight_shape,
  hx_kind,
  hx_shape,
  row_count,
  batch_sizes,
  too_large,
};

// In the order of Obstacle.
inline constexpr std::array<const char*, 12> obstacle_texts = {
    "",
    "the kernels take float32, float64, bfloat16 and float16",
    "input has an unexpected number of dimensions",
    "expected at least one time step",
    "expected 2 or 4 weights for each layer and direction",
    "weights must be on the input's device and of its dtype",
    "a weight has an unexpected shape",
    "hx must be on the input's device and of its dtype",
    "hx has an unexpected shape",
    "batch_sizes must add up to the rows of input",
    "batch_sizes must be positive and must not increase",
    "the sizes are beyond what memory can hold",
};

inline const char* text_of(Obstacle obstacle) {
  return obstacle_texts[static_cast<std::size_t>(obstacle)];
}

// The layers of a call: their number and the order of their weights.
struct Stack {
  std::int64_t layers = 1;
  std::int64_t directions = 1;
  std::int64_t weights = 0;  // of all layers
  std::int64_t gates = 1;    // blocks of hidden_size rows in each weight

  std::int64_t per_direction() const { return weights / (layers * directions); }
  bool is_complete() const {
    const std::int64_t each = layers > 0 && layers <= weights ? per_direction() : 0;
    return (each == 2 || each == 4) && each * layers * directions == weights;
  }
};

// The rows of each step of packed input.
struct BatchSizes {
  const std::int64_t* data = nullptr;
  std::int64_t count = 0;

  std::int64_t first() const { return count > 0 ? data[0] : 0; }

  // Whether the sizes fit `rows` of input. No sum overflows: each size is compared with the rows
  // left.
  Obstacle find_obstacle(std::int64_t rows) const {
    std::int64_t limit = first();
    for (std::int64_t t = 0; t < count; ++t) {
      if (data[t] <= 0 || data[t] > limit) {
        return Obstacle::batch_sizes;
      }
      if (data[t] > rows) {
        return Obstacle::row_count;
      }
      limit = data[t];
      rows -= data[t];
    }
    return rows == 0 ? Obstacle::none : Obstacle::row_count;
  }
};

// Whether all products and sums of a call's sizes fit into 64 bits, as bytes of padded tiles and
// for all buffers together. An expanded tensor can have sizes that exceed any memory.
inline bool is_addressable(double rows, double hidden_size, double features) {
  constexpr double padding = 128;
  constexpr double most_elements = 0x1p48;
  return (std::max(rows, hidden_size) + padding) * (std::max(hidden_size, features) + padding) <=
         most_elements;
}

// Returns why the kernels do not support these layers. `weight(i)` returns the traits of the i-th
// weight; `hx` is null for zeros.
template <class Weight>
Obstacle find_obstacle(const Stack& stack, Layout layout, bool has_kernels, const Traits& input,
                       const Traits* hx, const BatchSizes& batch_sizes, const Weight& weight) {
  if (!has_kernels) {
    return Obstacle::dtype;
  }
  if (input.dim != (layout == Layout::sequence ? 3 : 2)) {
    return Obstacle::input_dims;
  }
  const bool packed = layout == Layout::packed;
  if (packed) {
    const Obstacle obstacle = batch_sizes.find_obstacle(input.sizes[0]);
    if (obstacle != Obstacle::none) {
      return obstacle;
    }
  }
  if (!stack.is_complete()) {
    return Obstacle::weight_count;
  }
  const Traits weight_hh = weight(1);
  if (weight_hh.dim != 2) {
    return Obstacle::weight_shape;
  }
  const std::int64_t hidden_size = weight_hh.sizes[1];
  std::int64_t features = input.sizes[input.dim - 1];
  const double rows = static_cast<double>(input.sizes[0]) *
                      (layout == Layout::sequence ? static_cast<double>(input.sizes[1]) : 1);
  const double columns = static_cast<double>(stack.gates) * static_cast<double>(hidden_size);
  if (!is_addressable(rows, 2 * columns, static_cast<double>(features))) {
    return Obstacle::too_large;
  }
  const std::int64_t gate_rows = stack.gates * hidden_size;
  std::int64_t i = 0;
  for (std::int64_t layer = 0; layer < stack.layers; ++layer) {
    for (std::int64_t direction = 0; direction < stack.directions; ++direction) {
      for (std::int64_t place = 0; place < stack.per_direction(); ++place, ++i) {
        const Traits w = weight(i);
        if (!w.matches(input)) {
          return Obstacle::weight_kind;
        }
        if (!(place == 0   ? w.has_sizes(gate_rows, features)
              : place == 1 ? w.has_sizes(gate_rows, hidden_size)
                           : w.has_sizes(gate_rows))) {
          return Obstacle::weight_shape;
        }
      }
    }
    features = stack.directions * hidden_size;
  }
  const std::int64_t batch = packed ? batch_sizes.first() : input.sizes[input.dim - 2];
  if (hx) {
    if (!hx->matches(input)) {
      return Obstacle::hx_kind;
    }
    if (!(layout == Layout::step
              ? hx->has_sizes(batch, hidden_size)
              : hx->has_sizes(stack.layers * stack.directions, batch, hidden_size))) {
      return Obstacle::hx_shape;
    }
  }
  if (layout != Layout::step && (packed ? batch_sizes.count : input.sizes[0]) == 0) {
    return Obstacle::no_steps;
  }
  return Obstacle::none;
}

}  // namespace rnn_ext
