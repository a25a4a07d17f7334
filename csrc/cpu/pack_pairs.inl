// Packing for products of pairs of bfloat16: the values of two successive terms of a sum are
// adjacent, for a column (in a panel) or a row (in a tile).

// The values of 16 columns in two successive rows; a null row is zero.
inline __m512i interleaved(const BFloat16* even, const BFloat16* odd, int columns) {
  const auto load = [&](const BFloat16* p) __attribute__((always_inline)) {
    const auto present = static_cast<__mmask16>((1u << columns) - 1);
    return p ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(present, p)) : _mm512_setzero_si512();
  };
  return _mm512_or_si512(load(even), _mm512_slli_epi32(load(odd), 16));
}

// panel[k / 2][c] = (w[c][k], w[c][k + 1]): the transpose of W seen as a matrix of pairs.
inline void pack_pairs_transposed(Matrix<const BFloat16> w, std::int64_t columns,
                                  std::int64_t inner, BFloat16* panels) {
  constexpr std::int64_t width = Vector<float>::width;
  constexpr std::int64_t panel_columns = tile_vectors * width;
  for (std::int64_t column = 0; column < columns; column += panel_columns) {
    const PanelShape<float> shape(columns - column);
    const std::int64_t line = shape.line();
    for (std::int64_t j = 0; j < shape.vectors; ++j) {
      const std::int64_t present = j < shape.vectors - 1 ? width : shape.last;
      const Matrix<const BFloat16> source = w.part(column + j * width, 0);
      BFloat16* target = panels + column * filled<BFloat16>(inner) + 2 * j * width;
      std::int64_t k = 0;
      if (present == width && w.column_stride == 1) {
        for (; k + 2 * width <= inner; k += 2 * width) {
          Vector<float> pairs[width];
          transpose_rows(
              [&](int c, int d, int half) {
                const auto at = [&](int row) {
                  return reinterpret_cast<const float*>(source.row(row) + k + width * half);
                };
                return load_halves(at(c), at(d));
              },
              pairs);
          for (int i = 0; i < width; ++i) {
            _mm512_storeu_ps(target + (k + 2 * i) * line, pairs[i].v);
          }
        }
      }
      for (; k < filled<BFloat16>(inner); ++k) {
        for (std::int64_t c = 0; c < width; ++c) {
          target[(k - k % 2) * line + 2 * c + k % 2] =
              c < present && k < inner ? source.row(c)[k * w.column_stride] : BFloat16{};
        }
      }
    }
  }
}

// panel[(at + k) / 2][c], first or second = w[k][c]
inline void pack_pairs(Matrix<const BFloat16> w, std::int64_t columns, std::int64_t rows,
                       BFloat16* panels, std::int64_t inner, std::int64_t at) {
  constexpr std::int64_t width = Vector<float>::width;
  constexpr std::int64_t panel_columns = tile_vectors * width;
  for (std::int64_t column = 0; column < columns; column += panel_columns) {
    const PanelShape<float> shape(columns - column);
    const std::int64_t line = shape.line();
    BFloat16* panel = panels + column * filled<BFloat16>(inner);
    for (int j = 0; j < shape.vectors; ++j) {
      const int present = j < shape.vectors - 1 ? static_cast<int>(width) : shape.last;
      const Matrix<const BFloat16> source = w.part(0, column + j * width);
      for (std::int64_t k = at; k < at + rows;) {
        BFloat16* target = panel + (k - k % 2) * line + 2 * j * width;
        const bool is_pair = k % 2 == 0 && (k + 1 < at + rows || k + 1 == inner);
        if (is_pair && w.column_stride == 1) {
          const BFloat16* odd = k + 1 < at + rows ? source.row(k + 1 - at) : nullptr;
          _mm512_storeu_si512(target, interleaved(source.row(k - at), odd, present));
          k += 2;
          continue;
        }
        for (std::int64_t c = 0; c < width; ++c) {
          target[2 * c + k % 2] =
              c < present ? source.row(k - at)[c * w.column_stride] : BFloat16{};
          if (k + 1 == inner && k % 2 == 0) {
            target[2 * c + 1] = BFloat16{};
          }
        }
        ++k;
      }
    }
  }
}

// The panel of a block of B.
inline void pack_block(Matrix<const BFloat16> b, std::int64_t columns, std::int64_t inner,
                       BFloat16* panel) {
  if (b.column_stride == 1) {
    pack_pairs(b, columns, inner, panel, inner, 0);
  } else {
    pack_pairs_transposed(b.transposed(), columns, inner, panel);
  }
}

// tile[k / 2][i] = (a[k][i], a[k + 1][i]) for the rows i of A that the tile holds.
inline void pack_pair_tiles(Matrix<const BFloat16> a, std::int64_t rows, std::int64_t inner,
                            BFloat16* tiles) {
  constexpr auto whole = static_cast<__mmask16>((1u << tile_rows) - 1);
  for (std::int64_t row = 0; row < rows; row += tile_rows) {
    const int present = static_cast<int>(std::min<std::int64_t>(tile_rows, rows - row));
    BFloat16* target = tiles + row * filled<BFloat16>(inner);
    for (std::int64_t k = 0; k < inner; k += 2, target += 2 * tile_rows) {
      const BFloat16* odd = k + 1 < inner ? a.row(k + 1) + row : nullptr;
      _mm512_mask_storeu_epi32(target, whole, interleaved(a.row(k) + row, odd, present));
    }
  }
}

inline void copy_rows(Matrix<const BFloat16> source, std::int64_t rows, std::int64_t columns,
                      Matrix<BFloat16> target) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) {
      target.row(r)[c] = source.row(r)[c * source.column_stride];
    }
  }
}
