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

// sums[i][c] += Σ_k a[i][k] b[k][c] for `terms` of the terms and a vector of columns.
template <int terms, class S>
[[gnu::always_inline]] inline void add_terms(const Arithmetic<S>* a, std::int64_t a_stride,
                                             Matrix<const S> b, int present, Arithmetic<S>* sums,
                                             std::int64_t sums_stride, std::int64_t rows) {
  using V = Vector<Arithmetic<S>>;
  V lines[terms];
#pragma GCC unroll 8
  for (int k = 0; k < terms; ++k) {
    lines[k] = present == V::width ? V::load(b.row(k)) : V::load(b.row(k), present);
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    V sum = V::load(sums + i * sums_stride);
#pragma GCC unroll 8
    for (int k = 0; k < terms; ++k) {
      sum = multiply_add(V::broadcast(a[i * a_stride + k]), lines[k], sum);
    }
    sum.store(sums + i * sums_stride);
  }
}

// For a B that no core's cache holds: reads several of its rows at a time along many columns, as
// memory is fastest to read. The sums are in the first-level cache.
template <class S>
void product_along_rows(const Product<S>& p) {
  using T = Arithmetic<S>;
  using V = Vector<T>;
  constexpr int terms = 8;
  constexpr std::int64_t most_sums = 16384 / sizeof(T);
  alignas(64) T sums[most_sums];
  const std::int64_t stride = most_sums / p.rows / V::width * V::width;
  for (std::int64_t column = 0; column < p.columns; column += stride) {
    const auto for_each_vector = [&](auto f) __attribute__((always_inline)) {
      const std::int64_t columns = std::min(stride, p.columns - column);
      std::int64_t c = 0;
      for (; c + V::width <= columns; c += V::width) {
        f(c, V::width);
      }
      if (c < columns) {
        f(c, static_cast<int>(columns - c));
      }
    };
    std::int64_t k = 0;
    do {
      const bool is_first = k == 0;
      const std::int64_t end = std::min(k + reduction_block, p.inner);
      for (std::int64_t i = 0; i < p.rows * stride; i += V::width) {
        V::broadcast(0).store(sums + i);
      }
      const auto add =
          [&]<int count>(std::integral_constant<int, count>) __attribute__((always_inline)) {
            for (; k + count <= end; k += count) {
              for_each_vector([&](std::int64_t c, int present) __attribute__((always_inline)) {
                add_terms<count>(p.a + k, p.a_stride, p.unpacked.part(k, column + c), present,
                                 sums + c, stride, p.rows);
              });
            }
          };
      add(std::integral_constant<int, terms>{});
      add(std::integral_constant<int, 1>{});
      for (std::int64_t row = 0; row < p.rows; ++row) {
        for_each_vector([&](std::int64_t c, int present) {
          Out<S> out = out_at(p, row, column + c, is_first, end == p.inner);
          out.last = present;
          V sum[1][1] = {{V::load(sums + row * stride + c)}};
          store_tile<S, 1, 1>(sum, out);
        });
      }
    } while (k < p.inner);
  }
}

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
  constexpr std::int64_t most_bytes_in_cache = 1 << 20;
  if (p.unpacked.column_stride == 1 &&
      p.columns * p.inner * static_cast<std::int64_t>(sizeof(S)) > most_bytes_in_cache) {
    product_along_rows(p);
  } else if (p.unpacked.column_stride == 1) {
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
