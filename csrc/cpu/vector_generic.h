// Vectors for any 64-bit machine: 16 bytes through the compiler's vector extension (SSE2, NEON).
// Included inside the anonymous namespace of one translation unit.

template <class T>
struct Vector {
  using Int = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  typedef T Lanes __attribute__((vector_size(16)));
  typedef Int IntLanes __attribute__((vector_size(16)));
  typedef std::make_unsigned_t<Int> UnsignedLanes __attribute__((vector_size(16)));
  typedef std::uint16_t Bits __attribute__((vector_size(2 * (16 / sizeof(T)))));
  static constexpr int width = 16 / sizeof(T);

  Lanes v;

  static Vector broadcast(T x) { return {x - Lanes{}}; }  // keeps the sign of zero
  static Vector load(const T* p) {
    Vector r;
    std::memcpy(&r.v, p, sizeof(r.v));
    return r;
  }
  static Vector load(const T* p, int n) {
    Vector r = broadcast(0);
    std::memcpy(&r.v, p, n * sizeof(T));
    return r;
  }
  void store(T* p) const { std::memcpy(p, &v, sizeof(v)); }
  void store(T* p, int n) const { std::memcpy(p, &v, n * sizeof(T)); }

  template <class S>
  static Vector load(const S* p, int n = width) {
    Bits bits{};
    std::memcpy(&bits, p, n * sizeof(S));
    return {widened(__builtin_convertvector(bits, UnsignedLanes), S{})};
  }
  template <class S>
  void store(S* p, int n = width) const {
    const Bits bits = __builtin_convertvector(narrowed(v, S{}), Bits);
    std::memcpy(p, &bits, n * sizeof(S));
  }

  friend Vector operator+(Vector a, Vector b) { return {a.v + b.v}; }
  friend Vector operator-(Vector a, Vector b) { return {a.v - b.v}; }
  friend Vector operator*(Vector a, Vector b) { return {a.v * b.v}; }
  friend Vector operator/(Vector a, Vector b) { return {a.v / b.v}; }
  // a·b + c and c - a·b: rounded once if every machine of this kind has the instruction, else
  // twice.
#if defined(__aarch64__)
  friend Vector multiply_add(Vector a, Vector b, Vector c) {
    if constexpr (sizeof(T) == 4) {
      return {vfmaq_f32(c.v, a.v, b.v)};
    } else {
      return {vfmaq_f64(c.v, a.v, b.v)};
    }
  }
  friend Vector subtract_product(Vector c, Vector a, Vector b) {
    if constexpr (sizeof(T) == 4) {
      return {vfmsq_f32(c.v, a.v, b.v)};
    } else {
      return {vfmsq_f64(c.v, a.v, b.v)};
    }
  }
  // a_lane·b + c
  template <int lane>
  friend Vector multiply_add_lane(Vector a, Vector b, Vector c) {
    if constexpr (sizeof(T) == 4) {
      return {vfmaq_laneq_f32(c.v, b.v, a.v, lane)};
    } else {
      return {vfmaq_laneq_f64(c.v, b.v, a.v, lane)};
    }
  }
#else
  friend Vector multiply_add(Vector a, Vector b, Vector c) { return {a.v * b.v + c.v}; }
  friend Vector subtract_product(Vector c, Vector a, Vector b) { return {c.v - a.v * b.v}; }
#endif

  friend Vector zero_where_not_positive(Vector value, Vector where) {
    return {(where.v <= Lanes{}) ? Lanes{} : value.v};
  }
  // x, if it is NaN.
  friend Vector at_most(Vector x, Vector bound) { return {(x.v > bound.v) ? bound.v : x.v}; }
  friend Vector at_least(Vector x, Vector bound) { return {(x.v < bound.v) ? bound.v : x.v}; }
  friend Vector square_root(Vector x) {
    for (int i = 0; i < width; ++i) {
      x.v[i] = std::sqrt(x.v[i]);
    }
    return x;
  }
  friend Vector magnitude(Vector x) { return {(Lanes)((IntLanes)x.v & ~sign_bit())}; }
  friend Vector with_sign_of(Vector x, Vector sign) {
    return {(Lanes)((IntLanes)x.v | ((IntLanes)sign.v & sign_bit()))};
  }
  friend Vector flip_sign(Vector x, Vector sign) {
    return {(Lanes)((IntLanes)x.v ^ ((IntLanes)sign.v & sign_bit()))};
  }

  // Comparisons with NaN are false.
  friend IntLanes operator<(Vector a, Vector b) { return a.v < b.v; }
  friend IntLanes operator<=(Vector a, Vector b) { return a.v <= b.v; }
  friend IntLanes operator==(Vector a, Vector b) { return a.v == b.v; }
  // a where the comparison holds, b elsewhere.
  friend Vector blend(IntLanes mask, Vector a, Vector b) { return {mask ? a.v : b.v}; }
  friend bool any_less(Vector a, Vector b) {
    const IntLanes mask = a < b;
    Int any = 0;
    for (int i = 0; i < width; ++i) {
      any |= mask[i];
    }
    return any;
  }

  // On the bits of a vector.
  friend Vector add_bits(Vector x, Int bits) { return {(Lanes)((IntLanes)x.v + bits)}; }
  friend Vector and_bits(Vector x, Int bits) { return {(Lanes)((IntLanes)x.v & bits)}; }
  template <int n>
  friend Vector shift_left(Vector x) {
    return {(Lanes)((IntLanes)x.v << n)};
  }
  template <int n>
  friend Vector shift_right(Vector x) {
    return {(Lanes)((UnsignedLanes)x.v >> n)};
  }

 private:
  // The conversions of common/half.h, for all lanes at once. Comparisons are signed, for which SSE2
  // has instructions.
  static Lanes widened(UnsignedLanes u, BFloat16) { return (Lanes)(u << 16); }
  static UnsignedLanes narrowed(Lanes x, BFloat16) {
    const UnsignedLanes u = (UnsignedLanes)x;
    const UnsignedLanes rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    return x == x ? rounded : UnsignedLanes{} + 0x7fc0;
  }
#if defined(__aarch64__)
  static Lanes widened(UnsignedLanes u, Half) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(u)));
  }
  static UnsignedLanes narrowed(Lanes x, Half) {
    return vmovl_u16(vreinterpret_u16_f16(vcvt_f16_f32(x)));
  }
#else
  static Lanes widened(UnsignedLanes u, Half) {
    const IntLanes rest = (IntLanes)(u & 0x7fff);
    const IntLanes rebias = rest >= 0x7c00 ? IntLanes{} + 0x70000000 : IntLanes{} + 0x38000000;
    const Lanes subnormal = __builtin_convertvector(rest, Lanes) * T(0x1p-24);
    const IntLanes magnitude = rest < 0x400 ? (IntLanes)subnormal : (rest << 13) + rebias;
    return (Lanes)((u & 0x8000) << 16 | (UnsignedLanes)magnitude);
  }
  static UnsignedLanes narrowed(Lanes x, Half) {
    const UnsignedLanes u = (UnsignedLanes)x;
    const UnsignedLanes rest = u & 0x7fffffff;
    const IntLanes size = (IntLanes)rest;
    const UnsignedLanes subnormal = (UnsignedLanes)((Lanes)rest + T(0.5)) - 0x3f000000;
    const UnsignedLanes normal = (rest + 0xfff + (rest >> 13 & 1) - 0x38000000) >> 13;
    const UnsignedLanes finite = size < 0x38800000 ? subnormal : normal;
    const UnsignedLanes special =
        size > 0x7f800000 ? UnsignedLanes{} + 0x7e00 : UnsignedLanes{} + 0x7c00;
    return (u >> 16 & 0x8000) | (size < 0x47800000 ? finite : special);
  }
#endif

  static IntLanes sign_bit() { return IntLanes{} + std::numeric_limits<Int>::min(); }
};

// The bfloat16 numbers in the halves of all lanes, and lanes of such numbers.
inline Vector<float> lower_halves(Vector<float> x) {
  return {(Vector<float>::Lanes)((Vector<float>::UnsignedLanes)x.v << 16)};
}
inline Vector<float> upper_halves(Vector<float> x) {
  return {(Vector<float>::Lanes)((Vector<float>::UnsignedLanes)x.v & 0xffff0000)};
}
inline Vector<float> joined_halves(Vector<float> lower, Vector<float> upper) {
  return {(Vector<float>::Lanes)((Vector<float>::UnsignedLanes)lower.v >> 16 |
                                 (Vector<float>::UnsignedLanes)upper.v)};
}

// r[k][c] = source[c][k]
#if defined(__aarch64__)
template <class S>
inline void load_transposed(const S* source, std::int64_t stride, Vector<float> (&r)[4]) {
  const auto load = [&](int c) { return Vector<float>::load(source + c * stride).v; };
  const auto pairs = [](float32x4_t x) { return vreinterpretq_f64_f32(x); };
  const auto values = [](float64x2_t x) { return Vector<float>{vreinterpretq_f32_f64(x)}; };
  const float32x4_t x[4] = {load(0), load(1), load(2), load(3)};
  for (int odd = 0; odd < 2; ++odd) {
    const auto zip = [&](int i) {
      return pairs(odd ? vtrn2q_f32(x[i], x[i + 1]) : vtrn1q_f32(x[i], x[i + 1]));
    };
    r[odd] = values(vtrn1q_f64(zip(0), zip(2)));
    r[odd + 2] = values(vtrn2q_f64(zip(0), zip(2)));
  }
}
inline void load_transposed(const double* source, std::int64_t stride, Vector<double> (&r)[2]) {
  const float64x2_t even = vld1q_f64(source), odd = vld1q_f64(source + stride);
  r[0] = {vtrn1q_f64(even, odd)};
  r[1] = {vtrn2q_f64(even, odd)};
}
#else
template <class S, class T, std::size_t width>
inline void load_transposed(const S* source, std::int64_t stride, Vector<T> (&r)[width]) {
  for (std::size_t k = 0; k < width; ++k) {
    T line[width];
    for (std::size_t c = 0; c < width; ++c) {
      line[c] = static_cast<T>(source[c * stride + k]);
    }
    r[k] = Vector<T>::load(line);
  }
}
#endif
