// Allocates, checks and reads torch tensors for the drivers.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "common/compat.h"
#include "common/errors.h"
#include "common/half.h"

namespace rnn_ext {

using torch::stable::Tensor;

// Torch's number of a dtype or device. Comparing these numbers takes one call of its C interface;
// Tensor::scalar_type and Tensor::is_cpu take up to ten.
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

// Calls f with a value of the type that tensors of this dtype store; returns false if there are no
// kernels for it.
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

// If an allocation fails, torch's C interface reports only that it failed.
inline Tensor empty(std::initializer_list<std::int64_t> sizes, std::int32_t dtype, Device device) {
  std::int64_t strides[4] = {};
  std::uint64_t count = 1;  // may wrap if a size is 0, or for sizes that torch then rejects
  for (auto i = static_cast<std::ptrdiff_t>(sizes.size()); i-- > 0;) {
    strides[i] = static_cast<std::int64_t>(count);
    count *= static_cast<std::uint64_t>(std::max<std::int64_t>(1, sizes.begin()[i]));
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

}  // namespace rnn_ext
