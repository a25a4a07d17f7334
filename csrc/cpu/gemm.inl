// Products: of rows at any address, and of two packed operands.

template <class S, class O>
void packed_product(const Product<S, O>& p) {
  using T = Arithmetic<S>;
  constexpr std::int64_t panel_columns = tile_vectors * Vector<T>::width;
  const auto multiply = [&](std::int64_t rows, std::int64_t panels, const O* a, std::int64_t column,
                            std::int64_t k, std::int64_t block, Out<S>& out) {
    const PanelShape<T> shape(p.columns - column);
    out.last = shape.last;
    const O* b = p.b + column * filled<O>(p.inner) + k * shape.line();
    if constexpr (panels_for_one_row > 1) {
      if (panels > 1) {
        const PanelsLines<O> lines{b, panel_columns * filled<O>(p.inner)};
        return find_row_tile<S, O, PanelsLines<O>>(panels)(a, p.a_stride, lines, block, out);
      }
    }
    const PanelLines<O> lines{b};
    find_tile<S, O, false, PanelLines<O>>(rows, shape.vectors)(a, p.a_stride, lines, block, out);
  };
  for_each_tile<panels_for_one_row>(p, panel_columns, multiply);
}

// B is packed here, a block at a time, into memory that stays in the second-level cache while all
// rows are multiplied by it. A packed copy of all of a large B would be written to memory and read
// again.
template <class S, class O>
void product_by_blocks(const Product<S, O>& p) {
  constexpr std::int64_t panel_columns = tile_vectors * Vector<Arithmetic<S>>::width;
  alignas(64) O panel[reduction_block * panel_columns];
  const auto pack = [&](std::int64_t column, std::int64_t k, std::int64_t block) {
    pack_block(p.unpacked.part(k, column), std::min(panel_columns, p.columns - column), block,
               panel);
  };
  const auto multiply = [&](std::int64_t rows, std::int64_t, const O* a, std::int64_t column,
                            std::int64_t, std::int64_t block, Out<S>& out) {
    const PanelShape<Arithmetic<S>> shape(p.columns - column);
    out.last = shape.last;
    const PanelLines<O> lines{panel};
    find_tile<S, O, false, PanelLines<O>>(rows, shape.vectors)(a, p.a_stride, lines, block, out);
  };
  for_each_tile<1>(p, panel_columns, multiply, pack);
}

template <class S, class O>
void product(const Product<S, O>& p) {
  if constexpr (std::is_same_v<O, Arithmetic<S>>) {
    if constexpr (!std::is_same_v<S, O>) {
      if (p.b_stored) {
        return stored_product(p);
      }
    }
    if (p.unpacked && p.rows <= most_tiles_in_place * tile_rows) {
      return product_in_place(p);
    }
  }
  if (p.unpacked) {
    return product_by_blocks(p);
  }
  packed_product(p);
}

// G (+)= a bᵀ: the packed operands are plain vectors then, and G is written row by row.
template <class T>
void outer_product_of_vectors(const OuterProduct<T>& p) {
  using V = Vector<T>;
  for (std::int64_t row = 0; row < p.rows; ++row) {
    const V a = V::broadcast(p.a[row]);
    T* const g = p.g + row * p.g_stride;
    const auto add = [&](std::int64_t column, auto... count) __attribute__((always_inline)) {
      const V product = multiply_add(a, V::load(p.b + column), V::broadcast(0));
      (p.accumulate ? V::load(g + column, count...) + product : product)
          .store(g + column, count...);
    };
    std::int64_t column = 0;
    for (; column + V::width <= p.columns; column += V::width) {
      add(column);
    }
    if (column < p.columns) {
      add(column, static_cast<int>(p.columns - column));
    }
  }
}

template <class O>
void outer_product(const OuterProduct<O>& p) {
  using T = Arithmetic<O>;
  if constexpr (std::is_same_v<O, T>) {
    if (p.inner == 1) {
      return outer_product_of_vectors(p);
    }
  }
  constexpr std::int64_t panel_columns = tile_vectors * Vector<T>::width;
  // A B of fewer values stays in the second-level cache, so that G can be written along its rows.
  constexpr std::int64_t few_values = 65536;
  const std::int64_t inner = filled<O>(p.inner);
  const auto add = [&](std::int64_t row, std::int64_t column, std::int64_t k) {
    const PanelShape<T> shape(p.columns - column);
    const std::int64_t block = std::min(reduction_block, inner - k);
    T* g = p.g + row * p.g_stride + column;
    const Out<T> out{p.accumulate || k > 0 ? g : nullptr, p.g_stride, g, p.g_stride, shape.last};
    const std::int64_t height = std::min<std::int64_t>(tile_rows, p.rows - row);
    const PanelLines<O> lines{p.b + column * inner + k * shape.line()};
    find_tile<T, O, true, PanelLines<O>>(height, shape.vectors)(p.a + row * inner + k * tile_rows,
                                                                0, lines, block, out);
  };
  if (inner <= reduction_block && inner * p.columns <= few_values) {
    for (std::int64_t row = 0; row < p.rows; row += tile_rows) {
      for (std::int64_t column = 0; column < p.columns; column += panel_columns) {
        add(row, column, 0);
      }
    }
    return;
  }
  for (std::int64_t column = 0; column < p.columns; column += panel_columns) {
    for (std::int64_t k = 0; k < inner; k += reduction_block) {
      for (std::int64_t row = 0; row < p.rows; row += tile_rows) {
        add(row, column, k);
      }
    }
  }
}
