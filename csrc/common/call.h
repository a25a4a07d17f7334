// What the drivers of all devices share: a call's tensors, checked, in the form that problems are
// cut from, and the tensors that a call returns. The checks here keep memory safe; what a user did
// wrong is told at the functional border, in Python.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "common/errors.h"
#include "common/half.h"
#include "common/problem.h"

namespace rnn_ext {

using torch::stable::Tensor;

// A dtype or device as torch's C interface numbers it: to compare these numbers takes one call,
// where Tensor::scalar_type and Tensor::is_cpu take up to ten.
inline std::int32_t dtype_of(const Tensor& t) {
  std::int32_t dtype = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
  return dtype;
}

struct Device {
  std::int32_t type = 0;
  std::int32_t index = 0;

  static Device of(const Tensor& t) {
    Device device;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &device.type));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &device.index));
    return device;
  }
  bool operator==(const Device&) const = default;
};

// Calls f with a value of the type that tensors of this dtype hold; false for those without
// kernels.
template <class F>
bool with_type(std::int32_t dtype, F&& f) {
  if (dtype == aoti_torch_dtype_float32()) {
    f(float{});
  } else if (dtype == aoti_torch_dtype_float64()) {
    f(double{});
  } else if (dtype == aoti_torch_dtype_bfloat16()) {
    f(BFloat16{});
  } else if (dtype == aoti_torch_dtype_float16()) {
    f(Half{});
  } else {
    return false;
  }
  return true;
}

// Torch's C interface tells of a failed allocation only that it failed.
inline Tensor empty(std::initializer_list<std::int64_t> sizes, std::int32_t dtype, Device device) {
  std::int64_t strides[3] = {};
  std::int64_t count = 1;
  for (auto i = static_cast<std::ptrdiff_t>(sizes.size()); i-- > 0;) {
    strides[i] = count;
    count *= std::max<std::int64_t>(1, sizes.begin()[i]);
  }
  AtenTensorHandle handle = nullptr;
  const auto code = aoti_torch_empty_strided(static_cast<std::int64_t>(sizes.size()), sizes.begin(),
                                             strides, dtype, device.type, device.index, &handle);
  require(code == TORCH_SUCCESS, "out of memory: could not allocate a tensor of ", count,
          " elements");
  return Tensor(handle);
}

inline void require_sizes(const Tensor& t, const char* name,
                          std::initializer_list<std::int64_t> sizes) {
  const auto actual = t.sizes();
  require(actual.size() == sizes.size() && std::equal(sizes.begin(), sizes.end(), actual.begin()),
          name, " has an unexpected shape");
}

// Frees the string.
inline Nonlinearity take_nonlinearity(StringHandle handle) {
  const std::unique_ptr<StringOpaque, decltype(&torch_delete_string)> owner(handle,
                                                                            &torch_delete_string);
  const char* data = nullptr;
  std::size_t length = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  const std::string_view name(data, length);
  require(name == "tanh" || name == "relu", "nonlinearity must be 'tanh' or 'relu'");
  return name == "tanh" ? Nonlinearity::tanh : Nonlinearity::relu;
}

// How steps lie in input and output: (T, B, ·), (N, ·) with the rows of each step, or one step
// (B, ·) with an hx (B, H).
enum class Layout { sequence, packed, step };

// A call's tensors, checked, in the form that problems are cut from. Owns whatever had to be
// copied.
class Call {
 public:
  Call(const Tensor& input, const std::optional<Tensor>& hx, const std::vector<Tensor>& weights,
       const std::optional<Tensor>& batch_sizes, Nonlinearity nonlinearity, bool bidirectional,
       Layout layout)
      : dtype(dtype_of(input)),
        device(Device::of(input)),
        input_(with_unit_columns(input)),
        weights_(weights),
        nonlinearity_(nonlinearity),
        layout_(layout),
        directions(bidirectional ? 2 : 1) {
    require(with_type(dtype, [](auto) {}),
            "the kernels take float32, float64, bfloat16 and float16");
    per_direction = static_cast<std::int64_t>(weights.size()) / directions;
    require(static_cast<std::int64_t>(weights.size()) == per_direction * directions &&
                (per_direction == 2 || per_direction == 4),
            "expected 2 or 4 weights for each direction, got ", weights.size(), " in all");
    require(weights[1].dim() == 2, "weight_hh must be a matrix");
    hidden_size = weights[1].size(0);
    input_size = input.size(input.dim() - 1);
    if (hx) {
      hx_ = with_unit_columns(*hx);
      require(hx_->dim() == state_dims(), "hx must have ", state_dims(), " dimensions");
    }
    set_steps(batch_sizes);
    check();
  }

  template <class T>
  Problem<T> problem(const Tensor& output, std::int64_t direction) const {
    Problem<T> p;
    p.steps = steps;
    p.input_size = input_size;
    p.hidden_size = hidden_size;
    p.nonlinearity = nonlinearity_;
    p.reverse = direction == 1;
    p.input = sequence<const T>(input_);
    if (hx_) {
      p.hx = slice<const T>(*hx_, direction);
    }
    p.weight_ih = matrix<const T>(weight(direction, 0));
    p.weight_hh = matrix<const T>(weight(direction, 1));
    if (per_direction == 4) {
      p.bias_ih = row<const T>(weight(direction, 2));
      p.bias_hh = row<const T>(weight(direction, 3));
    }
    p.output = sequence<T>(output);
    p.output.data += direction * hidden_size;
    return p;
  }

  Tensor new_output() const { return new_sequence(directions * hidden_size); }
  Tensor new_input_gradient() const { return new_sequence(input_size); }
  Tensor new_state() const {
    return layout_ == Layout::step ? empty({steps.batch, hidden_size}, dtype, device)
                                   : empty({directions, steps.batch, hidden_size}, dtype, device);
  }
  const Tensor& weight(std::int64_t direction, std::int64_t i) const {
    return weights_[direction * per_direction + i];
  }
  const Tensor& input() const { return input_; }
  const std::optional<Tensor>& hx() const { return hx_; }
  // What a backward call brings beside the operands of its forward.
  void check_backward(const Tensor& output, const std::optional<Tensor>& grad_output,
                      const std::optional<Tensor>& grad_h_n) const {
    require_output(output, "output");
    require(output.is_contiguous(), "output must be contiguous, as rnn_forward made it");
    if (grad_output) {
      require_output(*grad_output, "grad_output");
    }
    if (grad_h_n) {
      require_state(*grad_h_n, "grad_h_n");
    }
  }

  // Views of tensors as the kernels take them.
  template <class T>
  static T* data(const Tensor& t) {
    if constexpr (std::is_const_v<T>) {
      return static_cast<T*>(t.const_data_ptr());
    } else {
      return static_cast<T*>(t.mutable_data_ptr());
    }
  }
  template <class T>
  static Matrix<T> matrix(const Tensor& t) {
    return {data<T>(t), t.stride(0), t.stride(1)};
  }
  template <class T>
  static Matrix<T> row(const Tensor& t) {
    return {data<T>(t), 0, t.stride(0)};
  }
  // The states of a direction: of (D, B, H) its part, of (B, H) all.
  template <class T>
  static Matrix<T> slice(const Tensor& t, std::int64_t direction) {
    return t.dim() == 2
               ? Matrix<T>{data<T>(t), t.stride(0), column_stride(t)}
               : Matrix<T>{data<T>(t) + direction * t.stride(0), t.stride(1), column_stride(t)};
  }
  // A batch of one has no row stride of its own: its steps may lie as rows do.
  template <class T>
  static Sequence<T> sequence(const Tensor& t) {
    return t.dim() == 2 ? Sequence<T>{data<T>(t), 0, t.stride(0), column_stride(t)}
                        : Sequence<T>{data<T>(t), t.stride(0), t.stride(t.size(1) == 1 ? 0 : 1),
                                      column_stride(t)};
  }
  // The stride of a dimension of size 1 can be any number.
  static std::int64_t column_stride(const Tensor& t) {
    const std::int64_t last = t.dim() - 1;
    return t.size(last) == 1 ? 1 : t.stride(last);
  }

  static Tensor with_unit_columns(const Tensor& t) {
    return column_stride(t) == 1 ? t : torch::stable::contiguous(t);
  }

  const std::int32_t dtype;
  const Device device;
  Steps steps;
  std::int64_t input_size = 0;
  std::int64_t hidden_size = 0;

 private:
  Tensor new_sequence(std::int64_t features) const {
    return layout_ == Layout::sequence ? empty({steps.count, steps.batch, features}, dtype, device)
                                       : empty({steps.total_rows(), features}, dtype, device);
  }

  std::int64_t state_dims() const { return layout_ == Layout::step ? 2 : 3; }

  void set_steps(const std::optional<Tensor>& batch_sizes) {
    const std::int64_t dims = layout_ == Layout::sequence ? 3 : 2;
    require(input_.dim() == dims, "input must have ", dims, " dimensions");
    if (layout_ != Layout::packed) {
      steps.count = layout_ == Layout::step ? 1 : input_.size(0);
      steps.batch = input_.size(dims - 2);
      return;
    }
    require(hx_.has_value(), "packed input needs hx");
    require(Device::of(*batch_sizes).type == aoti_torch_device_type_cpu() &&
                batch_sizes->dim() == 1 && dtype_of(*batch_sizes) == aoti_torch_dtype_int64(),
            "batch_sizes must be a 1-D int64 tensor on the CPU");
    batch_sizes_ = torch::stable::contiguous(*batch_sizes);
    steps.count = batch_sizes_->numel();
    steps.batch = hx_->size(1);
    steps.batch_sizes = data<const std::int64_t>(*batch_sizes_);
    offsets_.reserve(steps.count);
    std::int64_t total = 0;
    for (std::int64_t t = 0; t < steps.count; ++t) {
      const std::int64_t limit = t == 0 ? steps.batch : steps.batch_sizes[t - 1];
      require(steps.batch_sizes[t] > 0 && steps.batch_sizes[t] <= limit,
              "batch_sizes must be positive and must not increase");
      offsets_.push_back(total);
      total += steps.batch_sizes[t];
    }
    require(total == input_.size(0), "batch_sizes must add up to the rows of input");
    require(steps.count == 0 || steps.batch_sizes[0] == steps.batch,
            "batch_sizes[0] must equal the batch size of hx");
    steps.batch_offsets = offsets_.data();
  }

  void require_like_input(const Tensor& t, const char* name) const {
    require(Device::of(t) == device && dtype_of(t) == dtype, name,
            " must be on the input's device and of its dtype");
  }
  void require_output(const Tensor& t, const char* name) const {
    require_like_input(t, name);
    if (layout_ == Layout::sequence) {
      require_sizes(t, name, {steps.count, steps.batch, directions * hidden_size});
    } else {
      require_sizes(t, name, {steps.total_rows(), directions * hidden_size});
    }
  }
  void require_state(const Tensor& t, const char* name) const {
    require_like_input(t, name);
    if (layout_ == Layout::step) {
      require_sizes(t, name, {steps.batch, hidden_size});
    } else {
      require_sizes(t, name, {directions, steps.batch, hidden_size});
    }
  }

  void check() const {
    if (hx_) {
      require_state(*hx_, "hx");
    }
    for (const Tensor& w : weights_) {
      require_like_input(w, "weights");
    }
    for (std::int64_t d = 0; d < directions; ++d) {
      require_sizes(weight(d, 0), "weight_ih", {hidden_size, input_size});
      require_sizes(weight(d, 1), "weight_hh", {hidden_size, hidden_size});
      for (std::int64_t i = 2; i < per_direction; ++i) {
        require_sizes(weight(d, i), "bias", {hidden_size});
      }
    }
  }

  Tensor input_;
  std::optional<Tensor> hx_;
  const std::vector<Tensor>& weights_;
  std::optional<Tensor> batch_sizes_;
  std::vector<std::int64_t> offsets_;
  const Nonlinearity nonlinearity_;
  const Layout layout_;

 public:
  const std::int64_t directions;
  std::int64_t per_direction = 0;
};

// The gradients that a backward call returns: one slot for input, hx and each weight, filled where
// output_mask asks for it.
class GradientSlots {
 public:
  GradientSlots(const Call& call, const std::vector<Tensor>& weights,
                const std::vector<bool>& output_mask)
      : slots_(output_mask.size()), per_direction_(call.per_direction) {
    require(output_mask.size() == 2 + weights.size(),
            "output_mask needs a flag for input, hx and each weight");
    require(!output_mask[1] || call.hx(), "there is no hx to compute a gradient for");
    if (output_mask[0]) {
      slots_[0] = call.new_input_gradient();
    }
    if (output_mask[1]) {
      slots_[1] = call.new_state();
    }
    for (std::size_t i = 2; i < slots_.size(); ++i) {
      if (output_mask[i]) {
        const auto sizes = weights[i - 2].sizes();
        slots_[i] = sizes.size() == 2 ? empty({sizes[0], sizes[1]}, call.dtype, call.device)
                                      : empty({sizes[0]}, call.dtype, call.device);
      }
    }
  }

  std::optional<Tensor>& input() { return slots_[0]; }
  std::optional<Tensor>& hx() { return slots_[1]; }
  std::optional<Tensor>& weight(std::int64_t direction, std::int64_t i) {
    return slots_[2 + direction * per_direction_ + i];
  }
  std::vector<Tensor> take() {
    std::vector<Tensor> filled;
    filled.reserve(slots_.size());
    for (auto& slot : slots_) {
      if (slot) {
        filled.push_back(std::move(*slot));
      }
    }
    return filled;
  }

 private:
  std::vector<std::optional<Tensor>> slots_;
  std::int64_t per_direction_;
};

}  // namespace rnn_ext
