// The 16-bit number types. Values are stored in them; arithmetic is in float.
#pragma once

#include <bit>
#include <cstdint>

namespace rnn_ext {

// The upper half of a float.
struct BFloat16 {
  std::uint16_t bits;

  constexpr explicit operator float() const {
    return std::bit_cast<float>(std::uint32_t{bits} << 16);
  }

  // To nearest, ties to even.
  static constexpr BFloat16 from(float x) {
    const auto u = std::bit_cast<std::uint32_t>(x);
    const bool is_nan = (u & 0x7fffffff) > 0x7f800000;
    const std::uint32_t rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    return {static_cast<std::uint16_t>(is_nan ? 0x7fc0 : rounded)};
  }
};

// IEEE 754 binary16.
struct Half {
  std::uint16_t bits;

  constexpr explicit operator float() const {
    const std::uint32_t sign = std::uint32_t{bits} << 16 & 0x80000000;
    const std::uint32_t rest = bits & 0x7fff;
    const std::uint32_t rebias = rest >= 0x7c00 ? 0x70000000 : 0x38000000;  // infinity and NaN
    const float subnormal = static_cast<float>(rest) * 0x1p-24f;
    const std::uint32_t magnitude =
        rest < 0x400 ? std::bit_cast<std::uint32_t>(subnormal) : (rest << 13) + rebias;
    return std::bit_cast<float>(sign | magnitude);
  }

  // To nearest, ties to even; too large becomes infinity.
  static constexpr Half from(float x) {
    const auto u = std::bit_cast<std::uint32_t>(x);
    const std::uint32_t sign = u >> 16 & 0x8000;
    const std::uint32_t rest = u & 0x7fffffff;
    // One unit in the last place of 0.5f is the spacing of subnormal halves.
    const std::uint32_t subnormal =
        std::bit_cast<std::uint32_t>(std::bit_cast<float>(rest) + 0.5f) - 0x3f000000;
    const std::uint32_t normal = (rest + 0xfff + (rest >> 13 & 1) - 0x38000000) >> 13;
    const std::uint32_t finite = rest < 0x38800000 ? subnormal : normal;
    const std::uint32_t special = rest > 0x7f800000 ? 0x7e00 : 0x7c00;
    return {static_cast<std::uint16_t>(sign | (rest < 0x47800000 ? finite : special))};
  }
};

namespace detail {
template <class S>
struct ArithmeticOf {
  using type = S;
};
template <>
struct ArithmeticOf<BFloat16> {
  using type = float;
};
template <>
struct ArithmeticOf<Half> {
  using type = float;
};
}  // namespace detail

// The arithmetic type for values stored as S.
template <class S>
using Arithmetic = typename detail::ArithmeticOf<S>::type;

}  // namespace rnn_ext
