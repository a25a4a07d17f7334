// tanh over a vector type, within 2 ulp (float: checked over every bit pattern).
//
//   |x| < 5/8:  x + x³ P(x²)
//   above:      e / (e + 2),   e = expm1(2|x|) = 2ⁿ p + (2ⁿ - 1),   p = expm1(r) = r + r² Q(r),
//               r = 2|x| - n ln 2,   |r| ≤ ln 2 / 2
//
// Both are computed for all x and one is chosen. P and Q are minimax polynomials for the relative
// error of the whole; beyond the bound tanh has rounded to 1.

template <class T>
struct TanhConstants;

template <>
struct TanhConstants<float> {
  static constexpr float bound = 20.0f;               // of 2|x|: tanh(10) = 1 - 4e-9
  static constexpr float round_to_int = 12582912.0f;  // 1.5 · 2²³
  // ln 2 in two parts, the first short enough for n · high to be exact.
  static constexpr float ln2_high = 0.693359375f;
  static constexpr float ln2_low = -2.12194440054690583e-4f;
  static constexpr float p[] = {// relative error 4.4e-9
                                -0.3333328198508786f, 0.13331442907612533f, -0.053739738449088794f,
                                0.02063906961085877f, -0.0057048856333120371f};
  static constexpr float q[] = {// relative error 1.3e-8
                                0.49999998131699421f, 0.16666543463435423f, 0.041667204446500978f,
                                0.0083665459762356070f, 0.0013882340208479658f};
};

template <>
struct TanhConstants<double> {
  static constexpr double bound = 44.0;                       // tanh(22) = 1 - 1.6e-19
  static constexpr double round_to_int = 6755399441055744.0;  // 1.5 · 2⁵²
  static constexpr double ln2_high = 6.93147180369123816490e-01;
  static constexpr double ln2_low = 1.90821492927058770002e-10;
  static constexpr double p[] = {
      // relative error 3.7e-19
      -0.33333333333333312792,    0.13333333333329739314,      -0.053968253966056970878,
      0.021869488468662244136,    -0.008863234311733002687,    0.0035921139914530805401,
      -0.001455725893308723179,   0.00058945156297123779846,   -0.0002370110617230597963,
      0.000091557215661068088459, -0.000030185994872305879008, 6.0419203694061322678e-6};
  static constexpr double q[] = {// relative error 1.8e-17
                                 0.50000000000000051999,     0.16666666666666588965,
                                 0.041666666666576468507,    0.0083333333333897360121,
                                 0.0013888888931666932031,   0.00019841269718703668237,
                                 0.000024801505142895617647, 2.7557407693220775992e-6,
                                 2.7626092757273055331e-7,   2.5053773270876925073e-8};
};

template <class T, std::size_t n>
inline Vector<T> polynomial(const T (&coefficients)[n], Vector<T> x) {
  Vector<T> sum = Vector<T>::broadcast(coefficients[n - 1]);
  for (std::size_t i = n - 1; i-- > 0;) {
    sum = multiply_add(sum, x, Vector<T>::broadcast(coefficients[i]));
  }
  return sum;
}

template <class T>
inline Vector<T> tanh(Vector<T> x) {
  using V = Vector<T>;
  using K = TanhConstants<T>;
  const V a = magnitude(x);
  const V square = a * a;
  const V near = multiply_add(polynomial(K::p, square) * square, a, a);

  const V y = at_most(a + a, V::broadcast(K::bound));
  const V magic = V::broadcast(K::round_to_int);
  const V shifted = multiply_add(y, V::broadcast(T(1.4426950408889634074)), magic);
  const V n = shifted - magic;
  V r = multiply_add(n, V::broadcast(-K::ln2_high), y);
  r = multiply_add(n, V::broadcast(-K::ln2_low), r);
  const V p = multiply_add(polynomial(K::q, r), r * r, r);
  const V s = power_of_two(shifted);
  const V e = multiply_add(s, p, s - V::broadcast(1));
  const V far = e / (e + V::broadcast(2));

  return with_sign_of(first_where_below(near, far, a, V::broadcast(T(0.625))), x);
}
