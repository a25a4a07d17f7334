// Packing into panels and tiles, conversion, and column sums.

// target[k·line + c] = w[c][k] for a vector of columns c, of which `present` exist and the others
// are zero. The source is read along its rows, as many rows at a time as a vector has values: both
// sides then use few cache lines.
template <class S>
inline void pack_vector_transposed(Matrix<const S> w, std::int64_t present, std::int64_t inner,
                                   Arithmetic<S>* target, std::int64_t line) {
  using T = Arithmetic<S>;
  constexpr std::int64_t width = Vector<T>::width;
  std::int64_t k = 0;
  if (present == width && w.column_stride == 1) {
    for (; k + width <= inner; k += width) {
      Vector<T> lines[width];
      load_transposed(w.data + k, w.row_stride, lines);
      for (std::int64_t i = 0; i < width; ++i) {
        lines[i].store(target + (k + i) * line);
      }
    }
  }
  for (; k < inner; ++k) {
    for (std::int64_t c = 0; c < width; ++c) {
      target[k * line + c] =
          c < present ? static_cast<T>(w.data[c * w.row_stride + k * w.column_stride]) : T{0};
    }
  }
}

// panel[k][c] = w[c][k]
template <class S>
void pack_transposed(Matrix<const S> w, std::int64_t columns, std::int64_t inner,
                     Arithmetic<S>* panels) {
  using T = Arithmetic<S>;
  constexpr std::int64_t width = Vector<T>::width;
  for (std::int64_t column = 0; column < columns; column += tile_vectors * width) {
    const PanelShape<T> shape(columns - column);
    for (std::int64_t j = 0; j < shape.vectors; ++j) {
      pack_vector_transposed<S>(w.part(column + j * width, 0),
                                j < shape.vectors - 1 ? width : shape.last, inner,
                                panels + column * inner + j * width, shape.line());
    }
  }
}

template <class S>
void pack_gates(Matrix<const S> w, std::int64_t gates, std::int64_t hidden, std::int64_t units,
                std::int64_t inner, Arithmetic<S>* panels) {
  using T = Arithmetic<S>;
  constexpr std::int64_t width = Vector<T>::width;
  const std::int64_t vectors = (units + width - 1) / width;
  for (std::int64_t i = 0; i < gates * vectors; ++i) {
    const std::int64_t unit = i % vectors * width;
    const std::int64_t panel = i / tile_vectors * tile_vectors;
    const PanelShape<T> shape((gates * vectors - panel) * width);
    pack_vector_transposed<S>(w.part(i / vectors * hidden + unit, 0), std::min(width, units - unit),
                              inner, panels + panel * width * inner + (i - panel) * width,
                              shape.line());
  }
}

// panel[at + k][c] = w[k][c]
template <class S>
void pack(Matrix<const S> w, std::int64_t columns, std::int64_t rows, Arithmetic<S>* panels,
          std::int64_t inner, std::int64_t at) {
  using T = Arithmetic<S>;
  using V = Vector<T>;
  constexpr std::int64_t panel_columns = tile_vectors * V::width;
  for (std::int64_t column = 0; column < columns; column += panel_columns) {
    const PanelShape<T> shape(columns - column);
    const int full = shape.vectors - 1;
    const std::int64_t line = shape.line();
    T* target = panels + column * inner + at * line;
    for (std::int64_t k = 0; k < rows; ++k, target += line) {
      const S* source = w.row(k) + column * w.column_stride;
      if (w.column_stride == 1) {
        for (int j = 0; j < full; ++j) {
          V::load(source + j * V::width).store(target + j * V::width);
        }
        V::load(source + full * V::width, shape.last).store(target + full * V::width);
      } else {
        const std::int64_t present = full * V::width + shape.last;
        for (std::int64_t c = 0; c < line; ++c) {
          target[c] = c < present ? static_cast<T>(source[c * w.column_stride]) : T{0};
        }
      }
    }
  }
}

// The panel of a block of B.
template <class S>
void pack_block(Matrix<const S> b, std::int64_t columns, std::int64_t inner, Arithmetic<S>* panel) {
  if (b.column_stride == 1) {
    pack(b, columns, inner, panel, inner, 0);
  } else {
    pack_transposed(b.transposed(), columns, inner, panel);
  }
}

// tile[k][i] = a[k][i] for the rows i of A that the tile holds: A's columns are the product's rows.
template <class T>
void pack_tiles(Matrix<const T> a, std::int64_t rows, std::int64_t inner, T* tiles) {
  for (std::int64_t row = 0; row < rows; row += tile_rows, tiles += tile_rows * inner) {
    const std::int64_t present = std::min<std::int64_t>(tile_rows, rows - row);
    for (std::int64_t k = 0; k < inner; ++k) {
      const T* source = a.row(k) + row;
      T* target = tiles + k * tile_rows;
      if (present == tile_rows) {
        std::memcpy(target, source, tile_rows * sizeof(T));  // of constant size, so without a call
      } else {
        std::copy_n(source, present, target);
      }
    }
  }
}

template <class From, class To>
inline void convert_row(const From* from, To* to, std::int64_t count) {
  using V = Vector<std::conditional_t<sizeof(From) < sizeof(To), To, From>>;
  std::int64_t c = 0;
  for (; c + V::width <= count; c += V::width) {
    V::load(from + c).store(to + c);
  }
  if (c < count) {
    V::load(from + c, static_cast<int>(count - c)).store(to + c, static_cast<int>(count - c));
  }
}

template <class S, class To>
void widen(Matrix<const S> source, std::int64_t rows, std::int64_t columns, Matrix<To> target) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const S* from = source.row(r);
    To* to = target.row(r);
    if (source.column_stride == 1) {
      convert_row(from, to, columns);
    } else {
      for (std::int64_t c = 0; c < columns; ++c) {
        to[c] = static_cast<To>(from[c * source.column_stride]);
      }
    }
  }
}

template <class S>
void narrow(Matrix<const Arithmetic<S>> source, std::int64_t rows, std::int64_t columns,
            Matrix<S> target) {
  for (std::int64_t r = 0; r < rows; ++r) {
    convert_row(source.row(r), target.row(r), columns);
  }
}

// Four interleaved chains over at most reduction_block rows, then blocks in order.
template <class T>
void column_sums(Matrix<const T> a, std::int64_t rows, std::int64_t columns, T* sums,
                 bool accumulate) {
  using V = Vector<T>;
  for (std::int64_t column = 0; column < columns; column += V::width) {
    const int present = static_cast<int>(std::min<std::int64_t>(V::width, columns - column));
    V total = accumulate ? V::load(sums + column, present) : V::broadcast(0);
    for (std::int64_t row = 0; row < rows; row += reduction_block) {
      const std::int64_t end = std::min(rows, row + reduction_block);
      V chains[4] = {V::broadcast(0), V::broadcast(0), V::broadcast(0), V::broadcast(0)};
      for (std::int64_t r = row; r < end; ++r) {
        V& chain = chains[r % 4];
        chain = chain + V::load(a.row(r) + column, present);
      }
      total = total + ((chains[0] + chains[1]) + (chains[2] + chains[3]));
    }
    total.store(sums + column, present);
  }
}
