// tanh over a vector type, within 2 ulp (float: checked over every bit pattern).
//
//   |x| < split:  x + x³ P(x²)
//   above:        f / (f + 1),   f = expm1(2|x|) / 2 = 2ⁿ p + (2ⁿ - 1) / 2,
//                 p = expm1(2r) / 2 = r + r² Q(r),   r = |x| - n ln 2 / 2,   |r| ≤ ln 2 / 4
//
// Both are computed for all x and one is chosen. The second loses digits where n = 0 and none to
// speak of from the split on. P and Q are minimax polynomials for the relative error of the whole;
// beyond the bound tanh has rounded to 1.

template <class T>
struct TanhConstants;

template <>
struct TanhConstants<float> {
  static constexpr float split = 0.3f;
  static constexpr float bound = 10.0f;  // tanh(10) = 1 - 4e-9
  // 1.5 · 2²³, and what a float's exponent has for 2⁰: in a sum with n it ends as that of 2ⁿ.
  static constexpr float round_to_int = 12582912.0f + 127.0f;
  static constexpr float half_ln2 = 0.346573590279972654f;
  static constexpr float p[] = {// relative error 1.2e-8
                                -0.3333306080892757f, 0.13314832084912442f, -0.05036624162611832f};
  static constexpr float q[] = {// relative error 1.3e-8
                                2 * 0.49999998131699421f, 4 * 0.16666543463435423f,
                                8 * 0.041667204446500978f, 16 * 0.0083665459762356070f,
                                32 * 0.0013882340208479658f};
};

template <>
struct TanhConstants<double> {
  static constexpr double split = 0.625;
  static constexpr double bound = 22.0;                                // tanh(22) = 1 - 1.6e-19
  static constexpr double round_to_int = 6755399441055744.0 + 1023.0;  // likewise, 1.5 · 2⁵²
  static constexpr double half_ln2 = 0.346573590279972654709;
  static constexpr double p[] = {
      // relative error 3.7e-19
      -0.33333333333333312792,    0.13333333333329739314,      -0.053968253966056970878,
      0.021869488468662244136,    -0.008863234311733002687,    0.0035921139914530805401,
      -0.001455725893308723179,   0.00058945156297123779846,   -0.0002370110617230597963,
      0.000091557215661068088459, -0.000030185994872305879008, 6.0419203694061322678e-6};
  static constexpr double q[] = {// relative error 1.8e-17
                                 2 * 0.50000000000000051999,       4 * 0.16666666666666588965,
                                 8 * 0.041666666666576468507,      16 * 0.0083333333333897360121,
                                 32 * 0.0013888888931666932031,    64 * 0.00019841269718703668237,
                                 128 * 0.000024801505142895617647, 256 * 2.7557407693220775992e-6,
                                 512 * 2.7626092757273055331e-7,   1024 * 2.5053773270876925073e-8};
};

template <class T, std::size_t n>
inline Vector<T> polynomial(const T (&coefficients)[n], Vector<T> x) {
  Vector<T> sum = Vector<T>::broadcast(coefficients[n - 1]);
  for (std::size_t i = n - 1; i-- > 0;) {
    sum = multiply_add(sum, x, Vector<T>::broadcast(coefficients[i]));
  }
  return sum;
}

// The same, two terms at a time: half the latency for x², if that is needed anyway.
template <class T, std::size_t n>
inline Vector<T> polynomial(const T (&coefficients)[n], Vector<T> x, Vector<T> square) {
  const auto term = [&](std::size_t i) { return Vector<T>::broadcast(coefficients[i]); };
  const auto pair = [&](std::size_t i) {
    return i + 1 < n ? multiply_add(term(i + 1), x, term(i)) : term(i);
  };
  std::size_t i = (n - 1) / 2 * 2;
  Vector<T> sum = pair(i);
  while (i > 0) {
    i -= 2;
    sum = multiply_add(sum, square, pair(i));
  }
  return sum;
}

template <class T>
inline Vector<T> tanh(Vector<T> x) {
  using V = Vector<T>;
  using K = TanhConstants<T>;
  const V a = at_most(magnitude(x), V::broadcast(K::bound));
  const V a2 = a * a;
  const V near = multiply_add(polynomial(K::p, a2) * a2, a, a);

  const V magic = V::broadcast(K::round_to_int);
  const V shifted = multiply_add(a, V::broadcast(T(2.8853900817779268147)), magic);
  const V r = multiply_add(shifted - magic, V::broadcast(-K::half_ln2), a);
  const V r2 = r * r;
  const V p = multiply_add(polynomial(K::q, r, r2), r2, r);
  const V s = power_of_two(shifted);
  const V half = V::broadcast(T(0.5));
  const V f = multiply_add(s, p, multiply_add(s, half, V::broadcast(T(-0.5))));
  const V far = f / (f + V::broadcast(1));

  return with_sign_of(first_where_below(near, far, a, V::broadcast(K::split)), x);
}
