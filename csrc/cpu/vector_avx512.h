// 64-byte vectors, and the tile that their registers hold: AVX-512 F, DQ, BW, VL. Included inside
// the anonymous namespace of one translation unit, under its target pragma.

// 24 of 32 registers are accumulators.
constexpr int tile_rows = 6;
constexpr int tile_vectors = 4;
constexpr int panels_for_one_row = 1;

template <class T>
struct Vector;

inline __m512 widened(__m256i x, BFloat16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
inline __m512 widened(__m256i x, Half) { return _mm512_cvtph_ps(x); }
inline __m256i narrowed(__m512 x, BFloat16) {
  const __m512i u = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 ordered = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);
  return _mm512_cvtepi32_epi16(
      _mm512_mask_srli_epi32(_mm512_set1_epi32(0x7fc0), ordered, rounded, 16));
}
inline __m256i narrowed(__m512 x, Half) {
  return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

template <>
struct Vector<float> {
  static constexpr int width = 16;

  __m512 v;

  static Vector broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static Vector load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vector load(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(float* p, int n) const { _mm512_mask_storeu_ps(p, first(n), v); }

  template <class S>
  static Vector load(const S* p) {
    return {widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), S{})};
  }
  template <class S>
  static Vector load(const S* p, int n) {
    return {widened(_mm256_maskz_loadu_epi16(first(n), p), S{})};
  }
  template <class S>
  void store(S* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrowed(v, S{}));
  }
  template <class S>
  void store(S* p, int n) const {
    _mm256_mask_storeu_epi16(p, first(n), narrowed(v, S{}));
  }

 private:
  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
};

inline Vector<float> operator+(Vector<float> a, Vector<float> b) {
  return {_mm512_add_ps(a.v, b.v)};
}
inline Vector<float> operator-(Vector<float> a, Vector<float> b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
inline Vector<float> operator*(Vector<float> a, Vector<float> b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
inline Vector<float> operator/(Vector<float> a, Vector<float> b) {
  return {_mm512_div_ps(a.v, b.v)};
}
inline Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
inline Vector<float> subtract_product(Vector<float> c, Vector<float> a, Vector<float> b) {
  return {_mm512_fnmadd_ps(a.v, b.v, c.v)};
}
inline Vector<float> zero_where_not_positive(Vector<float> value, Vector<float> where) {
  const __mmask16 keep = _mm512_cmp_ps_mask(where.v, _mm512_setzero_ps(), _CMP_NLE_UQ);
  return {_mm512_maskz_mov_ps(keep, value.v)};
}
// minps returns its second operand where either is NaN.
inline Vector<float> at_most(Vector<float> x, Vector<float> bound) {
  return {_mm512_min_ps(bound.v, x.v)};
}
inline Vector<float> at_least(Vector<float> x, Vector<float> bound) {
  return {_mm512_max_ps(bound.v, x.v)};
}
// x 2ⁿ, rounded once.
inline Vector<float> scale(Vector<float> x, Vector<float> n) {
  return {_mm512_scalef_ps(x.v, n.v)};
}
inline Vector<float> estimated_reciprocal(Vector<float> x) { return {_mm512_rcp14_ps(x.v)}; }
inline Vector<float> square_root(Vector<float> x) { return {_mm512_sqrt_ps(x.v)}; }
inline Vector<float> magnitude(Vector<float> x) { return {_mm512_abs_ps(x.v)}; }
inline Vector<float> with_sign_of(Vector<float> x, Vector<float> sign) {
  return {_mm512_or_ps(x.v, _mm512_and_ps(_mm512_set1_ps(-0.0f), sign.v))};
}
inline Vector<float> flip_sign(Vector<float> x, Vector<float> sign) {
  return {_mm512_xor_ps(x.v, _mm512_and_ps(_mm512_set1_ps(-0.0f), sign.v))};
}
// Comparisons with NaN are false.
inline __mmask16 operator<(Vector<float> a, Vector<float> b) {
  return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ);
}
inline __mmask16 operator<=(Vector<float> a, Vector<float> b) {
  return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ);
}
inline __mmask16 operator==(Vector<float> a, Vector<float> b) {
  return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ);
}
// a where the comparison holds, b elsewhere.
inline Vector<float> blend(__mmask16 mask, Vector<float> a, Vector<float> b) {
  return {_mm512_mask_blend_ps(mask, b.v, a.v)};
}
inline bool any_less(Vector<float> a, Vector<float> b) { return (a < b) != 0; }
// The bfloat16 numbers in the halves of all lanes, and lanes of such numbers.
inline Vector<float> lower_halves(Vector<float> x) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x.v), 16))};
}
inline Vector<float> upper_halves(Vector<float> x) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x.v), upper))};
}
inline Vector<float> joined_halves(Vector<float> lower, Vector<float> upper) {
  return {_mm512_castsi512_ps(_mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(lower.v), 16),
                                              _mm512_castps_si512(upper.v)))};
}
// On the bits of a vector.
inline Vector<float> add_bits(Vector<float> x, std::int32_t bits) {
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x.v), _mm512_set1_epi32(bits)))};
}
inline Vector<float> and_bits(Vector<float> x, std::int32_t bits) {
  return {_mm512_and_ps(x.v, _mm512_castsi512_ps(_mm512_set1_epi32(bits)))};
}
template <int n>
inline Vector<float> shift_left(Vector<float> x) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x.v), n))};
}
template <int n>
inline Vector<float> shift_right(Vector<float> x) {
  return {_mm512_castsi512_ps(_mm512_srli_epi32(_mm512_castps_si512(x.v), n))};
}

template <>
struct Vector<double> {
  static constexpr int width = 8;

  __m512d v;

  static Vector broadcast(double x) { return {_mm512_set1_pd(x)}; }
  static Vector load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static Vector load(const double* p, int n) { return {_mm512_maskz_loadu_pd(first(n), p)}; }
  void store(double* p) const { _mm512_storeu_pd(p, v); }
  void store(double* p, int n) const { _mm512_mask_storeu_pd(p, first(n), v); }

 private:
  static __mmask8 first(int n) { return static_cast<__mmask8>((1u << n) - 1); }
};

inline Vector<double> operator+(Vector<double> a, Vector<double> b) {
  return {_mm512_add_pd(a.v, b.v)};
}
inline Vector<double> operator-(Vector<double> a, Vector<double> b) {
  return {_mm512_sub_pd(a.v, b.v)};
}
inline Vector<double> operator*(Vector<double> a, Vector<double> b) {
  return {_mm512_mul_pd(a.v, b.v)};
}
inline Vector<double> operator/(Vector<double> a, Vector<double> b) {
  return {_mm512_div_pd(a.v, b.v)};
}
inline Vector<double> multiply_add(Vector<double> a, Vector<double> b, Vector<double> c) {
  return {_mm512_fmadd_pd(a.v, b.v, c.v)};
}
inline Vector<double> subtract_product(Vector<double> c, Vector<double> a, Vector<double> b) {
  return {_mm512_fnmadd_pd(a.v, b.v, c.v)};
}
inline Vector<double> zero_where_not_positive(Vector<double> value, Vector<double> where) {
  const __mmask8 keep = _mm512_cmp_pd_mask(where.v, _mm512_setzero_pd(), _CMP_NLE_UQ);
  return {_mm512_maskz_mov_pd(keep, value.v)};
}
inline Vector<double> at_most(Vector<double> x, Vector<double> bound) {
  return {_mm512_min_pd(bound.v, x.v)};
}
inline Vector<double> at_least(Vector<double> x, Vector<double> bound) {
  return {_mm512_max_pd(bound.v, x.v)};
}
inline Vector<double> scale(Vector<double> x, Vector<double> n) {
  return {_mm512_scalef_pd(x.v, n.v)};
}
// rcp14 has half of a float's digits; a step of Newton's method doubles them.
inline Vector<double> estimated_reciprocal(Vector<double> x) {
  const Vector<double> r{_mm512_rcp14_pd(x.v)};
  return multiply_add(subtract_product(Vector<double>::broadcast(1), x, r), r, r);
}
inline Vector<double> square_root(Vector<double> x) { return {_mm512_sqrt_pd(x.v)}; }
inline Vector<double> magnitude(Vector<double> x) { return {_mm512_abs_pd(x.v)}; }
inline Vector<double> with_sign_of(Vector<double> x, Vector<double> sign) {
  return {_mm512_or_pd(x.v, _mm512_and_pd(_mm512_set1_pd(-0.0), sign.v))};
}
inline Vector<double> flip_sign(Vector<double> x, Vector<double> sign) {
  return {_mm512_xor_pd(x.v, _mm512_and_pd(_mm512_set1_pd(-0.0), sign.v))};
}
// Comparisons with NaN are false.
inline __mmask8 operator<(Vector<double> a, Vector<double> b) {
  return _mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ);
}
inline __mmask8 operator<=(Vector<double> a, Vector<double> b) {
  return _mm512_cmp_pd_mask(a.v, b.v, _CMP_LE_OQ);
}
inline __mmask8 operator==(Vector<double> a, Vector<double> b) {
  return _mm512_cmp_pd_mask(a.v, b.v, _CMP_EQ_OQ);
}
// a where the comparison holds, b elsewhere.
inline Vector<double> blend(__mmask8 mask, Vector<double> a, Vector<double> b) {
  return {_mm512_mask_blend_pd(mask, b.v, a.v)};
}
inline bool any_less(Vector<double> a, Vector<double> b) { return (a < b) != 0; }
// On the bits of a vector.
inline Vector<double> add_bits(Vector<double> x, std::int64_t bits) {
  return {_mm512_castsi512_pd(_mm512_add_epi64(_mm512_castpd_si512(x.v), _mm512_set1_epi64(bits)))};
}
inline Vector<double> and_bits(Vector<double> x, std::int64_t bits) {
  return {_mm512_and_pd(x.v, _mm512_castsi512_pd(_mm512_set1_epi64(bits)))};
}
template <int n>
inline Vector<double> shift_left(Vector<double> x) {
  return {_mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(x.v), n))};
}
template <int n>
inline Vector<double> shift_right(Vector<double> x) {
  return {_mm512_castsi512_pd(_mm512_srli_epi64(_mm512_castpd_si512(x.v), n))};
}

// A vector of the first half of one row and that of another.
inline __m512 load_halves(const float* first, const float* second) {
  return _mm512_mask_broadcast_f32x8(_mm512_castps256_ps512(_mm256_loadu_ps(first)), 0xff00,
                                     _mm256_loadu_ps(second));
}
template <class S>
inline __m512 load_halves(const S* first, const S* second) {
  const auto load = [](const S* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); };
  return widened(_mm256_inserti128_si256(_mm256_castsi128_si256(load(first)), load(second), 1),
                 S{});
}
inline __m512d load_halves(const double* first, const double* second) {
  return _mm512_mask_broadcast_f64x4(_mm512_castpd256_pd512(_mm256_loadu_pd(first)), 0xf0,
                                     _mm256_loadu_pd(second));
}

// The first, or last, two elements of each quarter of a and b, interleaved.
inline __m512d low_pairs(__m512 a, __m512 b) { return _mm512_castps_pd(_mm512_unpacklo_ps(a, b)); }
inline __m512d high_pairs(__m512 a, __m512 b) { return _mm512_castps_pd(_mm512_unpackhi_ps(a, b)); }

// r[k] = element k of 16 rows. load(i, j, half): the halves, 0 or 1, of rows i and j. Halves are
// joined when they are loaded, so three shuffles per vector suffice where whole rows would need
// four. Both halves of a row are loaded at once, since 16 rows may all fall into one set of the
// cache.
template <class Load>
[[gnu::always_inline]] inline void transpose_rows(Load load, Vector<float> (&r)[16]) {
  __m512 quarters[4][4];  // of rows i, i + 4, i + 8, i + 12
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512 low = load(i, i + 4, half), high = load(i + 8, i + 12, half);
      quarters[2 * half][i] = _mm512_shuffle_f32x4(low, high, 0x88);
      quarters[2 * half + 1][i] = _mm512_shuffle_f32x4(low, high, 0xdd);
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    const auto& x = quarters[q];
    const __m512d a = low_pairs(x[0], x[1]);
    const __m512d b = high_pairs(x[0], x[1]);
    const __m512d c = low_pairs(x[2], x[3]);
    const __m512d d = high_pairs(x[2], x[3]);
    r[4 * q] = {_mm512_castpd_ps(_mm512_unpacklo_pd(a, c))};
    r[4 * q + 1] = {_mm512_castpd_ps(_mm512_unpackhi_pd(a, c))};
    r[4 * q + 2] = {_mm512_castpd_ps(_mm512_unpacklo_pd(b, d))};
    r[4 * q + 3] = {_mm512_castpd_ps(_mm512_unpackhi_pd(b, d))};
  }
}

// r[k][c] = source[c][k]
template <class S>
[[gnu::always_inline]] inline void load_transposed(const S* source, std::int64_t stride,
                                                   Vector<float> (&r)[16]) {
  // Four addresses and three strides: otherwise the compiler would form 16 addresses and keep most
  // of them in memory.
  const S* groups[4];
  for (int i = 0; i < 4; ++i) {
    groups[i] = source + 4 * i * stride;
    asm("" : "+r"(groups[i]));
  }
  transpose_rows(
      [&](int i, int j, int half) __attribute__((always_inline)) {
        const auto at = [&](int row) __attribute__((always_inline)) {
          return groups[row / 4] + row % 4 * stride + 8 * half;
        };
        return load_halves(at(i), at(j));
      },
      r);
}
[[gnu::always_inline]] inline void load_transposed(const double* source, std::int64_t stride,
                                                   Vector<double> (&r)[8]) {
  __m512d pairs[4][2];  // of the even and of the odd rows
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const double* at = source + i * stride + 4 * half;
      const __m512d low = load_halves(at, at + 2 * stride);
      const __m512d high = load_halves(at + 4 * stride, at + 6 * stride);
      pairs[2 * half][i] = _mm512_shuffle_f64x2(low, high, 0x88);
      pairs[2 * half + 1][i] = _mm512_shuffle_f64x2(low, high, 0xdd);
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < 4; ++p) {
    r[2 * p] = {_mm512_unpacklo_pd(pairs[p][0], pairs[p][1])};
    r[2 * p + 1] = {_mm512_unpackhi_pd(pairs[p][0], pairs[p][1])};
  }
}
