// 32-byte vectors: AVX2 with FMA. Included inside the anonymous namespace of one translation unit,
// under its target pragma.

template <class T>
struct Vector;

inline constexpr std::int32_t avx2_lane_masks[16] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                                     0,  0,  0,  0,  0,  0,  0,  0};

inline __m256 widened(__m128i x, BFloat16) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
inline __m256 widened(__m128i x, Half) { return _mm256_cvtph_ps(x); }
inline __m128i narrowed(__m256 x, BFloat16) {
  const __m256i u = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i unordered = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i r = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), unordered);
  return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}
inline __m128i narrowed(__m256 x, Half) {
  return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

template <>
struct Vector<float> {
  static constexpr int width = 8;

  __m256 v;

  static Vector broadcast(float x) { return {_mm256_set1_ps(x)}; }
  static Vector load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vector load(const float* p, int n) { return {_mm256_maskload_ps(p, first(n))}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(float* p, int n) const { _mm256_maskstore_ps(p, first(n), v); }

  template <class S>
  static Vector load(const S* p) {
    return {widened(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), S{})};
  }
  template <class S>
  static Vector load(const S* p, int n) {
    S part[width] = {};
    std::memcpy(part, p, n * sizeof(S));
    return load(part);
  }
  template <class S>
  void store(S* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrowed(v, S{}));
  }
  template <class S>
  void store(S* p, int n) const {
    S part[width];
    store(part);
    std::memcpy(p, part, n * sizeof(S));
  }

 private:
  static __m256i first(int n) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(avx2_lane_masks + 8 - n));
  }
};

inline Vector<float> operator+(Vector<float> a, Vector<float> b) {
  return {_mm256_add_ps(a.v, b.v)};
}
inline Vector<float> operator-(Vector<float> a, Vector<float> b) {
  return {_mm256_sub_ps(a.v, b.v)};
}
inline Vector<float> operator*(Vector<float> a, Vector<float> b) {
  return {_mm256_mul_ps(a.v, b.v)};
}
inline Vector<float> operator/(Vector<float> a, Vector<float> b) {
  return {_mm256_div_ps(a.v, b.v)};
}
inline Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
inline Vector<float> subtract_product(Vector<float> c, Vector<float> a, Vector<float> b) {
  return {_mm256_fnmadd_ps(a.v, b.v, c.v)};
}
inline Vector<float> zero_where_not_positive(Vector<float> value, Vector<float> where) {
  return {_mm256_andnot_ps(_mm256_cmp_ps(where.v, _mm256_setzero_ps(), _CMP_LE_OQ), value.v)};
}
// minps returns its second operand where either is NaN.
inline Vector<float> at_most(Vector<float> x, Vector<float> bound) {
  return {_mm256_min_ps(bound.v, x.v)};
}
inline Vector<float> at_least(Vector<float> x, Vector<float> bound) {
  return {_mm256_max_ps(bound.v, x.v)};
}
inline Vector<float> square_root(Vector<float> x) { return {_mm256_sqrt_ps(x.v)}; }
inline Vector<float> magnitude(Vector<float> x) {
  return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.v)};
}
inline Vector<float> with_sign_of(Vector<float> x, Vector<float> sign) {
  return {_mm256_or_ps(x.v, _mm256_and_ps(_mm256_set1_ps(-0.0f), sign.v))};
}
inline Vector<float> flip_sign(Vector<float> x, Vector<float> sign) {
  return {_mm256_xor_ps(x.v, _mm256_and_ps(_mm256_set1_ps(-0.0f), sign.v))};
}
// Comparisons with NaN are false.
inline __m256 operator<(Vector<float> a, Vector<float> b) {
  return _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ);
}
inline __m256 operator<=(Vector<float> a, Vector<float> b) {
  return _mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ);
}
inline __m256 operator==(Vector<float> a, Vector<float> b) {
  return _mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ);
}
// a where the comparison holds, b elsewhere.
inline Vector<float> blend(__m256 mask, Vector<float> a, Vector<float> b) {
  return {_mm256_blendv_ps(b.v, a.v, mask)};
}
inline bool any_less(Vector<float> a, Vector<float> b) { return _mm256_movemask_ps(a < b) != 0; }
// The bfloat16 numbers in the halves of all lanes, and lanes of such numbers.
inline Vector<float> lower_halves(Vector<float> x) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x.v), 16))};
}
inline Vector<float> upper_halves(Vector<float> x) {
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(x.v), upper))};
}
inline Vector<float> joined_halves(Vector<float> lower, Vector<float> upper) {
  return {_mm256_castsi256_ps(_mm256_or_si256(_mm256_srli_epi32(_mm256_castps_si256(lower.v), 16),
                                              _mm256_castps_si256(upper.v)))};
}
// On the bits of a vector.
inline Vector<float> add_bits(Vector<float> x, std::int32_t bits) {
  return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x.v), _mm256_set1_epi32(bits)))};
}
inline Vector<float> and_bits(Vector<float> x, std::int32_t bits) {
  return {_mm256_and_ps(x.v, _mm256_castsi256_ps(_mm256_set1_epi32(bits)))};
}
template <int n>
inline Vector<float> shift_left(Vector<float> x) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x.v), n))};
}
template <int n>
inline Vector<float> shift_right(Vector<float> x) {
  return {_mm256_castsi256_ps(_mm256_srli_epi32(_mm256_castps_si256(x.v), n))};
}

template <>
struct Vector<double> {
  static constexpr int width = 4;

  __m256d v;

  static Vector broadcast(double x) { return {_mm256_set1_pd(x)}; }
  static Vector load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static Vector load(const double* p, int n) { return {_mm256_maskload_pd(p, first(n))}; }
  void store(double* p) const { _mm256_storeu_pd(p, v); }
  void store(double* p, int n) const { _mm256_maskstore_pd(p, first(n), v); }

 private:
  static __m256i first(int n) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(avx2_lane_masks + 8 - 2 * n));
  }
};

inline Vector<double> operator+(Vector<double> a, Vector<double> b) {
  return {_mm256_add_pd(a.v, b.v)};
}
inline Vector<double> operator-(Vector<double> a, Vector<double> b) {
  return {_mm256_sub_pd(a.v, b.v)};
}
inline Vector<double> operator*(Vector<double> a, Vector<double> b) {
  return {_mm256_mul_pd(a.v, b.v)};
}
inline Vector<double> operator/(Vector<double> a, Vector<double> b) {
  return {_mm256_div_pd(a.v, b.v)};
}
inline Vector<double> multiply_add(Vector<double> a, Vector<double> b, Vector<double> c) {
  return {_mm256_fmadd_pd(a.v, b.v, c.v)};
}
inline Vector<double> subtract_product(Vector<double> c, Vector<double> a, Vector<double> b) {
  return {_mm256_fnmadd_pd(a.v, b.v, c.v)};
}
inline Vector<double> zero_where_not_positive(Vector<double> value, Vector<double> where) {
  return {_mm256_andnot_pd(_mm256_cmp_pd(where.v, _mm256_setzero_pd(), _CMP_LE_OQ), value.v)};
}
inline Vector<double> at_most(Vector<double> x, Vector<double> bound) {
  return {_mm256_min_pd(bound.v, x.v)};
}
inline Vector<double> at_least(Vector<double> x, Vector<double> bound) {
  return {_mm256_max_pd(bound.v, x.v)};
}
inline Vector<double> square_root(Vector<double> x) { return {_mm256_sqrt_pd(x.v)}; }
inline Vector<double> magnitude(Vector<double> x) {
  return {_mm256_andnot_pd(_mm256_set1_pd(-0.0), x.v)};
}
inline Vector<double> with_sign_of(Vector<double> x, Vector<double> sign) {
  return {_mm256_or_pd(x.v, _mm256_and_pd(_mm256_set1_pd(-0.0), sign.v))};
}
inline Vector<double> flip_sign(Vector<double> x, Vector<double> sign) {
  return {_mm256_xor_pd(x.v, _mm256_and_pd(_mm256_set1_pd(-0.0), sign.v))};
}
// Comparisons with NaN are false.
inline __m256d operator<(Vector<double> a, Vector<double> b) {
  return _mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ);
}
inline __m256d operator<=(Vector<double> a, Vector<double> b) {
  return _mm256_cmp_pd(a.v, b.v, _CMP_LE_OQ);
}
inline __m256d operator==(Vector<double> a, Vector<double> b) {
  return _mm256_cmp_pd(a.v, b.v, _CMP_EQ_OQ);
}
// a where the comparison holds, b elsewhere.
inline Vector<double> blend(__m256d mask, Vector<double> a, Vector<double> b) {
  return {_mm256_blendv_pd(b.v, a.v, mask)};
}
inline bool any_less(Vector<double> a, Vector<double> b) { return _mm256_movemask_pd(a < b) != 0; }
// On the bits of a vector.
inline Vector<double> add_bits(Vector<double> x, std::int64_t bits) {
  return {
      _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(x.v), _mm256_set1_epi64x(bits)))};
}
inline Vector<double> and_bits(Vector<double> x, std::int64_t bits) {
  return {_mm256_and_pd(x.v, _mm256_castsi256_pd(_mm256_set1_epi64x(bits)))};
}
template <int n>
inline Vector<double> shift_left(Vector<double> x) {
  return {_mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(x.v), n))};
}
template <int n>
inline Vector<double> shift_right(Vector<double> x) {
  return {_mm256_castsi256_pd(_mm256_srli_epi64(_mm256_castpd_si256(x.v), n))};
}

// A vector of the first half of one row and that of another.
inline __m256 load_halves(const float* first, const float* second) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(first)), _mm_loadu_ps(second), 1);
}
template <class S>
inline __m256 load_halves(const S* first, const S* second) {
  const auto load = [](const S* p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)); };
  return widened(_mm_unpacklo_epi64(load(first), load(second)), S{});
}
inline __m256d load_halves(const double* first, const double* second) {
  return _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(first)), _mm_loadu_pd(second), 1);
}

// The first, or last, two elements of each half of a and b, interleaved.
inline __m256d low_pairs(__m256 a, __m256 b) { return _mm256_castps_pd(_mm256_unpacklo_ps(a, b)); }
inline __m256d high_pairs(__m256 a, __m256 b) { return _mm256_castps_pd(_mm256_unpackhi_ps(a, b)); }

// r[k][c] = source[c][k]. Halves are joined when they are loaded, so two shuffles per vector
// suffice.
template <class S>
[[gnu::always_inline]] inline void load_transposed(const S* source, std::int64_t stride,
                                                   Vector<float> (&r)[8]) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    __m256 x[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      x[i] = load_halves(source + i * stride + 4 * half, source + (i + 4) * stride + 4 * half);
    }
    const __m256d a = low_pairs(x[0], x[1]);
    const __m256d b = high_pairs(x[0], x[1]);
    const __m256d c = low_pairs(x[2], x[3]);
    const __m256d d = high_pairs(x[2], x[3]);
    Vector<float>* out = r + 4 * half;
    out[0] = {_mm256_castpd_ps(_mm256_unpacklo_pd(a, c))};
    out[1] = {_mm256_castpd_ps(_mm256_unpackhi_pd(a, c))};
    out[2] = {_mm256_castpd_ps(_mm256_unpacklo_pd(b, d))};
    out[3] = {_mm256_castpd_ps(_mm256_unpackhi_pd(b, d))};
  }
}
[[gnu::always_inline]] inline void load_transposed(const double* source, std::int64_t stride,
                                                   Vector<double> (&r)[4]) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const auto load = [&](int i) __attribute__((always_inline)) {
      return load_halves(source + i * stride + 2 * half, source + (i + 2) * stride + 2 * half);
    };
    const __m256d even = load(0), odd = load(1);
    r[2 * half] = {_mm256_unpacklo_pd(even, odd)};
    r[2 * half + 1] = {_mm256_unpackhi_pd(even, odd)};
  }
}
