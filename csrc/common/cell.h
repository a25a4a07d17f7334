// The activation of a plain RNN, from the pre-activation z of a step, and its derivative.
//
// A cell is a stateless type with two static functions over any number type N that has the
// primitives they call (a float or double vector here, a scalar on a device):
//
//   activate(z)             h = φ(z)
//   chain(gradient, h)      gradient · φ'(z), with φ' as a function of h = φ(z): the
//                           pre-activation is never stored
//
// Both return NaN for NaN, as torch's own tanh and relu do.
#pragma once

#include "common/problem.h"

namespace rnn_ext {

struct TanhCell {
  template <class N>
  static constexpr N activate(N z) {
    return tanh(z);
  }
  template <class N>
  static constexpr N chain(N gradient, N h) {
    return gradient * subtract_product(N::broadcast(1), h, h);
  }
};

struct ReluCell {
  template <class N>
  static constexpr N activate(N z) {
    return zero_where_not_positive(z, z);
  }
  template <class N>
  static constexpr N chain(N gradient, N h) {
    return zero_where_not_positive(gradient, h);
  }
};

// Calls f with the cell of a nonlinearity.
template <class F>
[[gnu::always_inline]] inline auto with_cell(Nonlinearity nonlinearity, F&& f) {
  switch (nonlinearity) {
    case Nonlinearity::tanh:
      return f(TanhCell{});
    case Nonlinearity::relu:
      return f(ReluCell{});
  }
  __builtin_unreachable();
}

}  // namespace rnn_ext
