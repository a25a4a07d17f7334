// Products that read B in place, for few tiles, for which packing B would take longer. They read B
// along its rows; or, if B is the transpose of a matrix in memory, one square of that matrix at a
// time, transposed in registers. The order of the sums is the same as with a packed B.

template <class S>
struct MatrixLines {
  const S* b;
  std::int64_t stride;

  template <int NV>
  Vector<Arithmetic<S>> load(std::int64_t k, int j, int last) const {
    return load_part<NV>(b + k * stride, j, last);
  }
};

// A tile of one vector whose B is the transpose of a matrix in memory, or has any strides.
template <class S, int MR>
void turning_tile(const Arithmetic<S>* a, std::int64_t a_stride, Matrix<const S> b,
                  std::int64_t inner, const Out<S>& out) {
  using T = Arithmetic<S>;
  using V = Vector<T>;
  V acc[MR][1];
  for (int i = 0; i < MR; ++i) {
    acc[i][0] = V::broadcast(0);
  }
  const auto add = [&](std::int64_t k, V line) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      acc[i][0] = multiply_add(V::broadcast(a[i * a_stride + k]), line, acc[i][0]);
    }
  };
  std::int64_t k = 0;
  if (out.last == V::width && b.row_stride == 1) {
    for (; k + V::width <= inner; k += V::width) {
      V lines[V::width];
      load_transposed(b.data + k, b.column_stride, lines);
#pragma GCC unroll 16
      for (int i = 0; i < V::width; ++i) {
        add(k + i, lines[i]);
      }
    }
  }
  for (; k < inner; ++k) {
    T line[V::width] = {};
    for (int c = 0; c < out.last; ++c) {
      line[c] = static_cast<T>(b.row(k)[c * b.column_stride]);
    }
    add(k, V::load(line));
  }
  store_tile<S, MR, 1>(acc, out);
}

template <class S, int... I>
inline auto find_turning_tile(std::int64_t rows, std::integer_sequence<int, I...>) {
  static constexpr decltype(&turning_tile<S, 1>) table[] = {turning_tile<S, I + 1>...};
  return table[rows - 1];
}

template <class S>
void product_in_place(const Product<S>& p) {
  using T = Arithmetic<S>;
  constexpr std::int64_t width = Vector<T>::width;
  if (p.unpacked.column_stride == 1) {
    const auto multiply = [&](std::int64_t rows, std::int64_t panels, const T* a,
                              std::int64_t column, std::int64_t k, std::int64_t block,
                              Out<S>& out) {
      const PanelShape<T> shape(p.columns - column);
      out.last = shape.last;
      const MatrixLines<S> lines{p.unpacked.row(k) + column, p.unpacked.row_stride};
      const auto tile = panels > 1 ? find_row_tile<S, T, MatrixLines<S>>(panels)
                                   : find_tile<S, T, false, MatrixLines<S>>(rows, shape.vectors);
      tile(a, p.a_stride, lines, block, out);
    };
    for_each_tile<panels_for_one_row>(p, tile_vectors * width, multiply);
  } else {
    const auto multiply = [&](std::int64_t rows, std::int64_t, const T* a, std::int64_t column,
                              std::int64_t k, std::int64_t block, Out<S>& out) {
      out.last = static_cast<int>(std::min(width, p.columns - column));
      find_turning_tile<S>(rows, std::make_integer_sequence<int, tile_rows>{})(
          a, p.a_stride, p.unpacked.part(k, column), block, out);
    };
    for_each_tile<1>(p, width, multiply);
  }
}
