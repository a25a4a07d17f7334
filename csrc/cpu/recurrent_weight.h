// W_hh or its transpose as the second operand of a step's products: packed, or read in place where
// packing costs more than it saves.
//
// A step with few rows takes as long as reading the weight, so panels for it keep the 16-bit type
// in which the weight is stored; the kernels widen them while they multiply.
#pragma once

#include "cpu/recurrence.h"

namespace rnn_ext::cpu {

template <class S, class O>
class RecurrentWeight {
  using T = Arithmetic<S>;

 public:
  // at_start: the first step multiplies, too.
  RecurrentWeight(const Kernels<S, O>& kernels, const Problem<S>& p, Matrix<const S> b,
                  bool at_start)
      : kernels_(kernels), b_(b), inner_(p.hidden_size) {
    const std::int64_t products = p.steps.count - (at_start ? 0 : 1);
    if (reads_in_place(kernels, products, p.steps.batch) ||
        is_used_once(products, inner_ * inner_)) {
      return;
    }
    if (is_stored(kernels, p)) {
      stored_ = Buffer<S>(stored_size(kernels, inner_));
    } else {
      panels_ = Buffer<T>(packed_size(kernels, inner_, inner_));
    }
  }
  // Panels that the caller has packed, of which it uses one kind.
  RecurrentWeight(const Kernels<S, O>& kernels, const Problem<S>& p, Matrix<const S> b, T* panels,
                  S* stored)
      : kernels_(kernels), b_(b), inner_(p.hidden_size) {
    if (is_stored(kernels, p)) {
      stored_ = Buffer<S>::of(stored);
    } else {
      panels_ = Buffer<T>::of(panels);
    }
  }

  static bool is_stored(const Kernels<S, O>& kernels, const Problem<S>& p) {
    return kernels.pack_stored && p.steps.batch <= most_rows_of_stored_b;
  }
  static std::int64_t stored_size(const Kernels<S, O>& kernels, std::int64_t units) {
    return packed_size(kernels, units, units + units % 2);
  }

  // Packs these columns: whole panels.
  void pack(Range columns) const {
    const Matrix<const S> b = b_.part(0, columns.begin);
    if (columns.empty()) {
      return;
    }
    if (stored_.data()) {
      kernels_.pack_stored(b, columns.size(), inner_, stored(columns));
    } else if (panels_.data() && b.column_stride == 1) {
      kernels_.pack(b, columns.size(), inner_, panels(columns), inner_, 0);
    } else if (panels_.data()) {
      kernels_.pack_transposed(b.transposed(), columns.size(), inner_, panels(columns));
    }
  }

  // A product with these columns.
  Product<S> product(Range columns) const {
    Product<S> product = product_by(b_, columns, panels(columns));
    product.b_stored = stored(columns);  // instead of b_ in place
    return product;
  }

 private:
  T* panels(Range columns) const { return panels_.from(columns.begin * inner_); }
  S* stored(Range columns) const { return stored_.from(columns.begin * (inner_ + inner_ % 2)); }

  const Kernels<S, O>& kernels_;
  Matrix<const S> b_;
  std::int64_t inner_;
  Buffer<T> panels_;  // one of the two has memory, or none
  Buffer<S> stored_;
};

}  // namespace rnn_ext::cpu
