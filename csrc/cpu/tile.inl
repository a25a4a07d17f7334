// The register tile of which every product consists.
//
// A tile holds MR rows × NV vectors of C in registers. For each k it loads NV vectors of B and
// multiplies them by MR broadcast values of A. B is read once per tile of rows, with MR fused
// multiply-adds for each vector of B: tall tiles are limited by flops, a single row by the cache
// bandwidth of B. Where the vectors of a panel are fewer than the multiply-adds that a core has
// under way, a tile of one row takes several panels.

// Terms<O>: the number of terms of the sum in a multiply-add for operands of type O, and its
// registers.

template <class S>
struct Out {
  using T = Arithmetic<S>;

  const T* init;
  std::int64_t init_stride;
  T* c;
  std::int64_t c_stride;
  int last;  // columns in the tile's last vector
  Finish finish = Finish::none;
  Nonlinearity nonlinearity = Nonlinearity::tanh;
  const S* seed = nullptr;
  std::int64_t seed_stride = 0;
  const S* h = nullptr;
  std::int64_t h_stride = 0;
  S* stored = nullptr;
  std::int64_t stored_stride = 0;
};

// The result from C[row, column] on, for the first or last block of the sum or another one.
template <class S, class O>
inline Out<S> out_at(const Product<S, O>& p, std::int64_t row, std::int64_t column, bool is_first,
                     bool is_last) {
  const auto at = [&](auto* data, std::int64_t stride) {
    return data ? data + row * stride + column : nullptr;
  };
  auto* const c = at(p.c, p.c_stride);
  Out<S> out{is_first ? at(p.init, p.init_stride) : c, is_first ? p.init_stride : p.c_stride, c,
             p.c_stride, 0};
  if (is_last) {
    out.finish = p.finish;
    out.nonlinearity = p.nonlinearity;
    out.seed = at(p.seed, p.seed_stride);
    out.seed_stride = p.seed_stride;
    out.h = at(p.h, p.h_stride);
    out.h_stride = p.h_stride;
    out.stored = at(p.stored, p.stored_stride);
    out.stored_stride = p.stored_stride;
  }
  return out;
}

// Calls f with the function that finishes a tile: rule(z, h) -> result.
template <class S, class F>
[[gnu::always_inline]] inline void with_rule(const Out<S>& out, F&& f) {
  using V = Vector<Arithmetic<S>>;
  if (out.finish == Finish::none) {
    f([](V z, const auto&) { return z; });
    return;
  }
  with_cell(out.nonlinearity, [&]<class Cell>(Cell) __attribute__((always_inline)) {
    if (out.finish == Finish::activate) {
      f([](V z, const auto&) { return Cell::activate(z); });
    } else {
      f([](V z, const auto& h) { return Cell::chain(z, h()); });
    }
  });
}

// Vector j of NV in a row, of which the last holds `last` columns.
template <int NV, class S>
inline Vector<Arithmetic<S>> load_part(const S* row, int j, int last) {
  using V = Vector<Arithmetic<S>>;
  return j < NV - 1 || last == V::width ? V::load(row + j * V::width)
                                        : V::load(row + j * V::width, last);
}

template <int NV, class S>
inline void store_part(Vector<Arithmetic<S>> x, S* row, int j, int last) {
  using V = Vector<Arithmetic<S>>;
  if (j < NV - 1 || last == V::width) {
    x.store(row + j * V::width);
  } else {
    x.store(row + j * V::width, last);
  }
}

// Finishes and stores vector j of row i of a tile.
template <int NV, class S, class Rule>
[[gnu::always_inline]] inline void finish_part(Vector<Arithmetic<S>> z, const Out<S>& out, int i,
                                               int j, Rule rule) {
  if (out.seed) {
    z = z + load_part<NV>(out.seed + i * out.seed_stride, j, out.last);
  }
  z = rule(z, [&] { return load_part<NV>(out.h + i * out.h_stride, j, out.last); });
  store_part<NV>(z, out.c + i * out.c_stride, j, out.last);
  if constexpr (!std::is_same_v<S, Arithmetic<S>>) {
    if (out.stored) {
      store_part<NV>(z, out.stored + i * out.stored_stride, j, out.last);
    }
  }
}

// Finishes a tile that has been stored. It is a loop, because the functions inlined for every
// register of a large tile would not fit the instruction cache.
template <class S, int NV>
[[gnu::noinline]] void finish_stored(const Out<S>& out, int rows) {
  with_rule(out, [&](auto rule) {
    for (int i = 0; i < rows; ++i) {
      for (int j = 0; j < NV; ++j) {
        const auto z = load_part<NV>(out.c + i * out.c_stride, j, out.last);
        finish_part<NV>(z, out, i, j, rule);
      }
    }
  });
}

template <class S, int MR, int NV>
[[gnu::always_inline]] inline void store_tile(Vector<Arithmetic<S>> (&acc)[MR][NV],
                                              const Out<S>& out) {
  if (out.init) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < NV; ++j) {
        acc[i][j] = load_part<NV>(out.init + i * out.init_stride, j, out.last) + acc[i][j];
      }
    }
  }
  if constexpr (MR * NV <= 4) {
    with_rule(out, [&](auto rule) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) {
          finish_part<NV>(acc[i][j], out, i, j, rule);
        }
      }
    });
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < NV; ++j) {
        store_part<NV>(acc[i][j], out.c + i * out.c_stride, j, out.last);
      }
    }
    if (out.finish != Finish::none || out.seed || out.stored) {
      finish_stored<S, NV>(out, MR);
    }
  }
}

// The lines of B for a tile of NV vectors: of a packed panel.
template <class O>
struct PanelLines {
  const O* b;

  template <int NV>
  typename Terms<O>::Register load(std::int64_t k, int j, int) const {
    constexpr std::int64_t width = Vector<Arithmetic<O>>::width;
    return Terms<O>::Register::load(b + k * NV * width + j * Terms<O>::count * width);
  }
};

// The same of several whole panels.
template <class O>
struct PanelsLines {
  const O* b;
  std::int64_t panel_size;

  template <int NV>
  typename Terms<O>::Register load(std::int64_t k, int j, int last) const {
    const PanelLines<O> panel{b + j / tile_vectors * panel_size};
    return panel.template load<tile_vectors>(k, j % tile_vectors, last);
  }
};

// Whether a multiply-add takes one lane of a register. A row then loads as many values of A at
// once, since its loads are as many as its multiply-adds.
template <class V>
concept multiplies_by_lane = requires(V x) { multiply_add_lane<0>(x, x, x); };

// acc[j] += a_lane · B_(k + lane, j)
template <int NV, class V, class Lines, int... lane>
[[gnu::always_inline]] inline void add_lanes(V a, Lines lines, std::int64_t k, int last,
                                             V (&acc)[NV], std::integer_sequence<int, lane...>) {
  const auto add = [&]<int i>(std::integral_constant<int, i>) {
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) {
      acc[j] = multiply_add_lane<i>(a, lines.template load<NV>(k + i, j, last), acc[j]);
    }
  };
  (add(std::integral_constant<int, lane>{}), ...);
}

// A is read in place with a row stride (PackedA false), or as a packed tile whose inner dimension
// is padded to `inner`.
template <class S, class O, int MR, int NV, bool PackedA, class Lines>
void tile(const O* a, std::int64_t a_stride, Lines lines, std::int64_t inner, const Out<S>& out) {
  using V = Vector<Arithmetic<S>>;
  using Register = typename Terms<O>::Register;
  constexpr int terms = Terms<O>::count;
  V acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) {
      acc[i][j] = V::broadcast(0);
    }
  }
  const auto add = [&](std::int64_t k, auto broadcast) __attribute__((always_inline)) {
    Register b_k[NV];
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) {
      b_k[j] = lines.template load<NV>(k, j, out.last);
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const Register a_ik =
          broadcast(PackedA ? a + k * tile_rows + i * terms : a + i * a_stride + k);
#pragma GCC unroll 16
      for (int j = 0; j < NV; ++j) {
        acc[i][j] = multiply_add(a_ik, b_k[j], acc[i][j]);
      }
    }
  };
  std::int64_t k = 0;
  if constexpr (MR == 1 && !PackedA && multiplies_by_lane<V>) {
    for (; k + V::width <= inner; k += V::width) {
      add_lanes(V::load(a + k), lines, k, out.last, acc[0],
                std::make_integer_sequence<int, V::width>{});
    }
  }
  for (; k + terms <= inner; k += terms) {
    add(k, Terms<O>::broadcast);
  }
  if constexpr (terms > 1 && !PackedA) {
    if (k < inner) {
      add(k, Terms<O>::broadcast_last);
    }
  }
  store_tile<S, MR, NV>(acc, out);
}

template <class S, class O, class Lines>
using TileFunction = void (*)(const O*, std::int64_t, Lines, std::int64_t, const Out<S>&);

template <class S, class O, bool PackedA, class Lines, int... I>
constexpr auto make_tile_table(std::integer_sequence<int, I...>) {
  return std::array<TileFunction<S, O, Lines>, sizeof...(I)>{
      tile<S, O, I / tile_vectors + 1, I % tile_vectors + 1, PackedA, Lines>...};
}

// The tile of the given number of rows and vectors.
template <class S, class O, bool PackedA, class Lines>
inline TileFunction<S, O, Lines> find_tile(std::int64_t rows, std::int64_t vectors) {
  static constexpr auto table = make_tile_table<S, O, PackedA, Lines>(
      std::make_integer_sequence<int, tile_rows * tile_vectors>{});
  return table[(rows - 1) * tile_vectors + vectors - 1];
}

template <class S, class O, class Lines, int... I>
constexpr auto make_row_tile_table(std::integer_sequence<int, I...>) {
  return std::array<TileFunction<S, O, Lines>, sizeof...(I)>{
      tile<S, O, 1, (I + 1) * tile_vectors, false, Lines>...};
}

// The tile of one row and so many whole panels.
template <class S, class O, class Lines>
inline TileFunction<S, O, Lines> find_row_tile(std::int64_t panels) {
  static constexpr auto table =
      make_row_tile_table<S, O, Lines>(std::make_integer_sequence<int, panels_for_one_row>{});
  return table[panels - 1];
}

// The inner dimension of packed operands.
template <class O>
inline std::int64_t filled(std::int64_t inner) {
  return (inner + Terms<O>::count - 1) / Terms<O>::count * Terms<O>::count;
}

// A column panel of C: its width in vectors and the columns in the last of them.
template <class T>
struct PanelShape {
  int vectors;
  int last;

  explicit PanelShape(std::int64_t columns_left) {
    constexpr int width = Vector<T>::width;
    const auto columns =
        static_cast<int>(std::min<std::int64_t>(columns_left, tile_vectors * width));
    vectors = (columns + width - 1) / width;
    last = columns - (vectors - 1) * width;
  }
  // Values of a packed panel of B for each k.
  std::int64_t line() const { return vectors * Vector<T>::width; }
};

// Calls multiply(rows, panels, a, column, k, block, out) for every tile of C and every block of the
// sum. A tile has up to tile_rows rows of a panel, or one row of up to `most_panels` whole ones.
// Before the first tile of a block of a panel it calls prepare(column, k, block).
template <int most_panels, class S, class O, class Multiply, class Prepare>
[[gnu::always_inline]] inline void for_each_tile(const Product<S, O>& p, std::int64_t panel_columns,
                                                 Multiply multiply, Prepare prepare) {
  const std::int64_t tiles = (p.rows + tile_rows - 1) / tile_rows;
  for (std::int64_t column = 0, panels = 1; column < p.columns; column += panels * panel_columns) {
    if (most_panels > 1 && p.rows == 1) {
      const std::int64_t whole = (p.columns - column) / panel_columns;
      const std::int64_t wide_tiles = (whole + most_panels - 1) / most_panels;
      panels = whole > 0 ? whole / wide_tiles : 1;  // of even width
    }
    std::int64_t k = 0;
    do {
      const std::int64_t block = std::min(reduction_block, p.inner - k);
      prepare(column, k, block);
      // Tiles of even height: 8 rows go as 4 + 4 rather than 6 + 2.
      for (std::int64_t i = 0, row = 0; i < tiles; ++i) {
        const std::int64_t height = (p.rows - row) / (tiles - i);
        Out<S> out = out_at(p, row, column, k == 0, k + block == p.inner);
        multiply(height, panels, p.a + row * p.a_stride + k, column, k, block, out);
        row += height;
      }
      k += block;
    } while (k < p.inner);
  }
}
template <int most_panels, class S, class O, class Multiply>
[[gnu::always_inline]] inline void for_each_tile(const Product<S, O>& p, std::int64_t panel_columns,
                                                 Multiply multiply) {
  for_each_tile<most_panels>(p, panel_columns, multiply,
                             [](std::int64_t, std::int64_t, std::int64_t) {});
}
