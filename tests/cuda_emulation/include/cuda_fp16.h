// The conversions of half precision that our kernels use.
#pragma once

#include "common/half.h"

struct __half {
  rnn_ext::Half value;
};

inline __half __ushort_as_half(std::uint16_t bits) { return {{bits}}; }
inline std::uint16_t __half_as_ushort(__half x) { return x.value.bits; }
inline float __half2float(__half x) { return static_cast<float>(x.value); }
inline __half __float2half_rn(float x) { return {rnn_ext::Half::from(x)}; }
