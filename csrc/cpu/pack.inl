// Packing into panels and tiles, and column sums.

// panel[k][c] = w[c][k]: the source is read along its rows, `lanes` rows at a time, so that
// both sides stay within a few cache lines.
template <class T>
void pack_transposed(Matrix<const T> w, std::int64_t columns, std::int64_t inner, T* panels,
                     std::int64_t panel_stride) {
  constexpr std::int64_t panel_columns = tile_vectors * Vector<T>::width;
  constexpr std::int64_t lanes = Vector<T>::width;
  for (std::int64_t column = 0; column < columns; column += panel_columns, panels += panel_stride) {
    for (std::int64_t part = 0; part < panel_columns; part += lanes) {
      const std::int64_t present = std::clamp<std::int64_t>(columns - column - part, 0, lanes);
      const T* source = w.row(column + part);
      T* target = panels + part;
      if (present == lanes && w.column_stride == 1) {
        std::int64_t k = 0;
        for (; k + lanes <= inner; k += lanes) {
          transpose_block(source + k, w.row_stride, target + k * panel_columns, panel_columns);
        }
        for (; k < inner; ++k) {
          for (std::int64_t c = 0; c < lanes; ++c) {
            target[k * panel_columns + c] = source[c * w.row_stride + k];
          }
        }
        continue;
      }
      for (std::int64_t k = 0; k < inner; ++k) {
        T* line = target + k * panel_columns;
        for (std::int64_t c = 0; c < lanes; ++c) {
          line[c] = c < present ? source[c * w.row_stride + k * w.column_stride] : T{0};
        }
      }
    }
  }
}

// panel[k][c] = w[k][c]
template <class T>
void pack(Matrix<const T> w, std::int64_t columns, std::int64_t inner, T* panels,
          std::int64_t panel_stride) {
  using V = Vector<T>;
  constexpr std::int64_t panel_columns = tile_vectors * V::width;
  for (std::int64_t column = 0; column < columns; column += panel_columns, panels += panel_stride) {
    const std::int64_t present = std::min(panel_columns, columns - column);
    for (std::int64_t k = 0; k < inner; ++k) {
      const T* source = w.row(k) + column * w.column_stride;
      T* line = panels + k * panel_columns;
      if (w.column_stride == 1 && present == panel_columns) {
#pragma GCC unroll 8
        for (int j = 0; j < tile_vectors; ++j) {
          V::load(source + j * V::width).store(line + j * V::width);
        }
        continue;
      }
      for (std::int64_t c = 0; c < panel_columns; ++c) {
        line[c] = c < present ? source[c * w.column_stride] : T{0};
      }
    }
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
        std::memcpy(target, source, tile_rows * sizeof(T));
      } else {
        std::memcpy(target, source, present * sizeof(T));
      }
    }
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
