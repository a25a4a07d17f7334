// Products of few rows with panels of B in its 16-bit type. For each pair of successive k, a panel
// holds the two values of every column, so that a full vector of memory becomes two vectors of
// floats: bfloat16 in the halves of a lane, float16 as two half vectors.

template <class S>
inline void load_pair(const S* pair, Vector<float>& even, Vector<float>& odd) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    const auto both = Vector<float>::load(reinterpret_cast<const float*>(pair));
    even = lower_halves(both);
    odd = upper_halves(both);
  } else {
    even = Vector<float>::load(pair);
    odd = Vector<float>::load(pair + Vector<float>::width);
  }
}

// Both have values of S.
template <class S>
inline void store_pair(Vector<float> even, Vector<float> odd, S* pair) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    joined_halves(even, odd).store(reinterpret_cast<float*>(pair));
  } else {
    even.store(pair);
    odd.store(pair + Vector<float>::width);
  }
}

// A vector of columns of B, of which `present` exist; pairs are 2·line apart.
template <class S>
inline void pack_stored_vector(Matrix<const S> b, std::int64_t present, std::int64_t inner,
                               S* target, std::int64_t line) {
  using V = Vector<float>;
  std::int64_t k = 0;
  if (present == V::width && b.row_stride == 1) {
    for (; k + V::width <= inner; k += V::width) {
      V lines[V::width];
      load_transposed(b.row(k), b.column_stride, lines);
      for (std::int64_t i = 0; i < V::width; i += 2) {
        store_pair(lines[i], lines[i + 1], target + (k + i) * line);
      }
    }
  }
  const auto row = [&](std::int64_t k) {
    if (k >= inner) {
      return V::broadcast(0);
    }
    if (b.column_stride == 1) {
      return V::load(b.row(k), static_cast<int>(present));
    }
    float values[V::width] = {};
    for (std::int64_t c = 0; c < present; ++c) {
      values[c] = static_cast<float>(b.row(k)[c * b.column_stride]);
    }
    return V::load(values);
  };
  for (; k < inner; k += 2) {
    store_pair(row(k), row(k + 1), target + k * line);
  }
}

template <class S>
void pack_stored(Matrix<const S> b, std::int64_t columns, std::int64_t inner, S* panels) {
  constexpr std::int64_t width = Vector<float>::width;
  for (std::int64_t column = 0; column < columns; column += tile_vectors * width) {
    const PanelShape<float> shape(columns - column);
    for (std::int64_t j = 0; j < shape.vectors; ++j) {
      pack_stored_vector(b.part(0, column + j * width), j < shape.vectors - 1 ? width : shape.last,
                         inner, panels + column * (inner + inner % 2) + 2 * j * width,
                         shape.line());
    }
  }
}

template <class S, int MR, int NV>
void stored_tile(const float* a, std::int64_t a_stride, const S* b, std::int64_t inner,
                 const Out<S>& out) {
  using V = Vector<float>;
  V acc[MR][NV];
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      acc[i][j] = V::broadcast(0);
    }
  }
  const auto add = [&](std::int64_t k, const V(&b_k)[NV]) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      const V a_ik = V::broadcast(a[i * a_stride + k]);
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) {
        acc[i][j] = multiply_add(a_ik, b_k[j], acc[i][j]);
      }
    }
  };
  for (std::int64_t k = 0; k < inner; k += 2, b += 2 * NV * V::width) {
    V even[NV], odd[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      load_pair(b + 2 * j * V::width, even[j], odd[j]);
    }
    add(k, even);
    if (k + 1 < inner) {
      add(k + 1, odd);
    }
  }
  store_tile<S, MR, NV>(acc, out);
}

template <class S, int... I>
inline auto find_stored_tile(std::int64_t rows, std::int64_t vectors,
                             std::integer_sequence<int, I...>) {
  static constexpr decltype(&stored_tile<S, 1, 1>) table[] = {
      stored_tile<S, I / tile_vectors + 1, I % tile_vectors + 1>...};
  return table[(rows - 1) * tile_vectors + vectors - 1];
}

template <class S>
void stored_product(const Product<S>& p) {
  constexpr std::make_integer_sequence<int, most_rows_of_stored_b * tile_vectors> shapes;
  const auto multiply = [&](std::int64_t rows, std::int64_t, const float* a, std::int64_t column,
                            std::int64_t k, std::int64_t block, Out<S>& out) {
    const PanelShape<float> shape(p.columns - column);
    out.last = shape.last;
    const S* const b = p.b_stored + column * (p.inner + p.inner % 2) + k * shape.line();
    find_stored_tile<S>(rows, shape.vectors, shapes)(a, p.a_stride, b, block, out);
  };
  for_each_tile<1>(p, tile_vectors * Vector<float>::width, multiply);
}

// Null if S is not a 16-bit type, or if a tile of one row takes several panels, which these do not.
template <class S>
constexpr auto pack_stored_of() -> void (*)(Matrix<const S>, std::int64_t, std::int64_t, S*) {
  if constexpr (std::is_same_v<S, Arithmetic<S>> || panels_for_one_row > 1) {
    return nullptr;
  } else {
    return pack_stored<S>;
  }
}
