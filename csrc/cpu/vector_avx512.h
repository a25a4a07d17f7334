// 64-byte vectors, and the tile that their registers hold: AVX-512 F, DQ, BW, VL. Included inside
// the anonymous namespace of one translation unit, under its target pragma.

// 24 accumulators of 32 registers.
constexpr int tile_rows = 6;
constexpr int tile_vectors = 4;

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
inline Vector<float> zero_where_not_positive(Vector<float> value, Vector<float> where) {
  const __mmask16 keep = _mm512_cmp_ps_mask(where.v, _mm512_setzero_ps(), _CMP_NLE_UQ);
  return {_mm512_maskz_mov_ps(keep, value.v)};
}
// minps returns its second operand where either is NaN.
inline Vector<float> at_most(Vector<float> x, Vector<float> bound) {
  return {_mm512_min_ps(bound.v, x.v)};
}
inline Vector<float> first_where_below(Vector<float> a, Vector<float> b, Vector<float> x,
                                       Vector<float> bound) {
  const __mmask16 below = _mm512_cmp_ps_mask(x.v, bound.v, _CMP_LT_OQ);
  return {_mm512_mask_blend_ps(below, b.v, a.v)};
}
inline Vector<float> magnitude(Vector<float> x) { return {_mm512_abs_ps(x.v)}; }
inline Vector<float> with_sign_of(Vector<float> x, Vector<float> sign) {
  return {_mm512_or_ps(x.v, _mm512_and_ps(_mm512_set1_ps(-0.0f), sign.v))};
}
inline Vector<float> power_of_two(Vector<float> x) {
  const __m512i n = _mm512_slli_epi32(_mm512_castps_si512(x.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(0x3f800000)))};
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
inline Vector<double> zero_where_not_positive(Vector<double> value, Vector<double> where) {
  const __mmask8 keep = _mm512_cmp_pd_mask(where.v, _mm512_setzero_pd(), _CMP_NLE_UQ);
  return {_mm512_maskz_mov_pd(keep, value.v)};
}
inline Vector<double> at_most(Vector<double> x, Vector<double> bound) {
  return {_mm512_min_pd(bound.v, x.v)};
}
inline Vector<double> first_where_below(Vector<double> a, Vector<double> b, Vector<double> x,
                                        Vector<double> bound) {
  const __mmask8 below = _mm512_cmp_pd_mask(x.v, bound.v, _CMP_LT_OQ);
  return {_mm512_mask_blend_pd(below, b.v, a.v)};
}
inline Vector<double> magnitude(Vector<double> x) { return {_mm512_abs_pd(x.v)}; }
inline Vector<double> with_sign_of(Vector<double> x, Vector<double> sign) {
  return {_mm512_or_pd(x.v, _mm512_and_pd(_mm512_set1_pd(-0.0), sign.v))};
}
inline Vector<double> power_of_two(Vector<double> x) {
  const __m512i n = _mm512_slli_epi64(_mm512_castpd_si512(x.v), 52);
  return {_mm512_castsi512_pd(_mm512_add_epi64(n, _mm512_set1_epi64(0x3ff0000000000000)))};
}

// Transposes by interleaving rows i and i + n/2 in log2(n) rounds: each round is a perfect shuffle
// of the row list, after which every register holds one column.
template <class V, int n, class Low, class High>
inline void interleave_rounds(V (&r)[n], Low low, High high) {
  for (int round = 1; round < n; round *= 2) {
    V s[n];
    for (int i = 0; i < n / 2; ++i) {
      s[2 * i] = {low(r[i].v, r[i + n / 2].v)};
      s[2 * i + 1] = {high(r[i].v, r[i + n / 2].v)};
    }
    for (int i = 0; i < n; ++i) {
      r[i] = s[i];
    }
  }
}

inline void transpose(Vector<float> (&r)[16]) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high =
      _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  interleave_rounds(
      r, [&](__m512 a, __m512 b) { return _mm512_permutex2var_ps(a, low, b); },
      [&](__m512 a, __m512 b) { return _mm512_permutex2var_ps(a, high, b); });
}

inline void transpose(Vector<double> (&r)[8]) {
  const __m512i low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  const __m512i high = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
  interleave_rounds(
      r, [&](__m512d a, __m512d b) { return _mm512_permutex2var_pd(a, low, b); },
      [&](__m512d a, __m512d b) { return _mm512_permutex2var_pd(a, high, b); });
}
