// tanh over a vector type, within 2 ulp (float: checked over every bit pattern).
//
//   tanh|x| = e / (e + 2),   e = expm1(2|x|) = 2ⁿ p + (2ⁿ - 1),   p = expm1(r),
//   r = 2|x| - n ln 2,  |r| ≤ ln 2 / 2
//
// One path for all x: small |x| keep full relative precision because n = 0 makes e = p, and beyond
// the bound tanh has rounded to 1. p is r + r² q(r), q the minimax polynomial for relative error.

template <class T>
struct TanhConstants;

template <>
struct TanhConstants<float> {
  static constexpr float bound = 20.0f;               // of 2|x|: tanh(10) = 1 - 4e-9
  static constexpr float round_to_int = 12582912.0f;  // 1.5 · 2²³
  // ln 2 in two parts, the first short enough for n · high to be exact.
  static constexpr float ln2_high = 0.693359375f;
  static constexpr float ln2_low = -2.12194440054690583e-4f;
  static constexpr float q[] = {// relative error of p: 1.3e-8
                                0.49999998131699421f, 0.16666543463435423f, 0.041667204446500978f,
                                0.0083665459762356070f, 0.0013882340208479658f};
};

template <>
struct TanhConstants<double> {
  static constexpr double bound = 44.0;                       // tanh(22) = 1 - 1.6e-19
  static constexpr double round_to_int = 6755399441055744.0;  // 1.5 · 2⁵²
  static constexpr double ln2_high = 6.93147180369123816490e-01;
  static constexpr double ln2_low = 1.90821492927058770002e-10;
  static constexpr double q[] = {// relative error of p: 1.8e-17
                                 0.50000000000000051999,     0.16666666666666588965,
                                 0.041666666666576468507,    0.0083333333333897360121,
                                 0.0013888888931666932031,   0.00019841269718703668237,
                                 0.000024801505142895617647, 2.7557407693220775992e-6,
                                 2.7626092757273055331e-7,   2.5053773270876925073e-8};
};

template <class T>
inline Vector<T> tanh(Vector<T> x) {
  using V = Vector<T>;
  using K = TanhConstants<T>;
  const V a = magnitude(x);
  const V y = at_most(a + a, V::broadcast(K::bound));
  const V magic = V::broadcast(K::round_to_int);
  const V shifted = multiply_add(y, V::broadcast(static_cast<T>(1.4426950408889634074)), magic);
  const V n = shifted - magic;
  V r = multiply_add(n, V::broadcast(-K::ln2_high), y);
  r = multiply_add(n, V::broadcast(-K::ln2_low), r);
  constexpr int degree = static_cast<int>(std::size(K::q)) - 1;
  V q = V::broadcast(K::q[degree]);
  for (int i = degree - 1; i >= 0; --i) {
    q = multiply_add(q, r, V::broadcast(K::q[i]));
  }
  const V p = multiply_add(q, r * r, r);
  const V s = power_of_two(shifted);
  const V e = multiply_add(s, p, s - V::broadcast(1));
  return with_sign_of(e / (e + V::broadcast(2)), x);
}
