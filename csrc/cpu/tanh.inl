// tanh over a vector type, within 2 ulp (float: checked over every bit pattern).
//
//   |x| < split:  x + x³ P(x²)
//   above:        f / (f + 2),   f = expm1(2|x|) = 2ⁿ p + (2ⁿ - 1)   (functions.inl)
//
// Both are computed for all x and one is selected. The second loses digits where n = 0, but hardly
// any from the split on. P is a minimax polynomial for the relative error of the result; beyond the
// bound tanh rounds to 1.

template <class T>
struct TanhConstants;

template <>
struct TanhConstants<float> {
  static constexpr float split = 0.3f;
  static constexpr float bound = 10.0f;  // tanh(10) = 1 - 4e-9
  static constexpr float p[] = {         // relative error 1.2e-8
                                -0.3333306080892757f, 0.13314832084912442f, -0.05036624162611832f};
};

template <>
struct TanhConstants<double> {
  static constexpr double split = 0.625;
  static constexpr double bound = 22.0;  // tanh(22) = 1 - 1.6e-19
  static constexpr double p[] = {
      // relative error 3.7e-19
      -0.33333333333333312792,    0.13333333333329739314,      -0.053968253966056970878,
      0.021869488468662244136,    -0.008863234311733002687,    0.0035921139914530805401,
      -0.001455725893308723179,   0.00058945156297123779846,   -0.0002370110617230597963,
      0.000091557215661068088459, -0.000030185994872305879008, 6.0419203694061322678e-6};
};

template <class T>
inline Vector<T> tanh(Vector<T> x) {
  using V = Vector<T>;
  using K = TanhConstants<T>;
  using E = ExpConstants<T>;
  const V a = at_most(magnitude(x), V::broadcast(K::bound));
  const V a2 = a * a;
  const V near = multiply_add(polynomial(K::p, a2) * a2, a, a);

  const V magic = V::broadcast(E::round_to_int + E::bias);
  const V shifted = multiply_add(a, V::broadcast(T(2.8853900817779268147)), magic);
  const V r = multiply_add(shifted - magic, V::broadcast(T(-0.693147180559945309417)), a + a);
  const V r2 = r * r;
  const V p = multiply_add(polynomial(E::q, r, r2), r2, r);
  const V s = power_of_two(shifted);
  const V f = multiply_add(s, p, s - V::broadcast(1));
  const V far = f / (f + V::broadcast(2));

  return with_sign_of(blend(a < V::broadcast(K::split), near, far), x);
}
