// Elementary functions over a vector type, without a call for each lane. Each lane's result depends
// on its own argument alone, to the bit. Zeros, infinities, NaN and subnormal numbers are as in
// torch's functions of the same names. Polynomials are minimax for the relative error of the
// result, which is given beside each.
//
// Largest error in ulp, over all ISA levels (float: every 97th bit pattern; double: at least
// 170,000 arguments against mpmath):
//
//            exp   expm1  sigmoid  log   log1p  sin   cos   erf   tanh
//   float    1.04  1.25   1.44     0.79  0.83   1.55  1.55  1.07  1.49
//   double   1.03  1.78   1.46     0.76  0.77   1.53  1.48  0.99  1.63

template <class T>
inline constexpr int mantissa_bits = std::numeric_limits<T>::digits - 1;

template <class T, std::size_t n>
inline Vector<T> polynomial(const T (&coefficients)[n], Vector<T> x) {
  Vector<T> sum = Vector<T>::broadcast(coefficients[n - 1]);
  for (std::size_t i = n - 1; i-- > 0;) {
    sum = multiply_add(sum, x, Vector<T>::broadcast(coefficients[i]));
  }
  return sum;
}

// The same, two terms at a time: half the latency if x² is computed anyway.
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

// ---- exp, expm1, sigmoid --------------------------------
//
//   eˣ = 2ⁿ (1 + r + r² Q(r)),   r = x - n ln 2,   |r| ≤ ln 2 / 2
//
// The rounding error of the sum 1 + r is added to the small term.

template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float lowest = -104.0f;    // e⁻¹⁰⁴ rounds to 0
  static constexpr float highest = 89.0f;     // e⁸⁹ overflows
  static constexpr float minus_one = -18.0f;  // e⁻¹⁸ - 1 rounds to -1
  // A sum with 1.5 · 2²³ rounds to an integer, and holds it in its low bits.
  static constexpr float round_to_int = 12582912.0f;
  // The exponent bits of a float's 2⁰: n + round_to_int + bias ends in the exponent of 2ⁿ.
  static constexpr float bias = 127.0f;
  // ln 2 in two parts; n times the first is exact.
  static constexpr float ln2_high = 0.693145752f;
  static constexpr float ln2_low = 1.42860677e-6f;
  static constexpr float q[] = {// relative error 1.3e-8
                                0.49999998131699421f, 0.16666543463435423f, 0.041667204446500978f,
                                0.0083665459762356070f, 0.0013882340208479658f};
};

template <>
struct ExpConstants<double> {
  static constexpr double lowest = -746.0;
  static constexpr double highest = 710.0;
  static constexpr double minus_one = -38.0;
  static constexpr double round_to_int = 6755399441055744.0;  // 1.5 · 2⁵²
  static constexpr double bias = 1023.0;
  static constexpr double ln2_high = 0.69314718036912382;
  static constexpr double ln2_low = 1.9082149292705877e-10;
  static constexpr double q[] = {// relative error 1.8e-17
                                 0.50000000000000051999,     0.16666666666666588965,
                                 0.041666666666576468507,    0.0083333333333897360121,
                                 0.0013888888931666932031,   0.00019841269718703668237,
                                 0.000024801505142895617647, 2.7557407693220775992e-6,
                                 2.7626092757273055331e-7,   2.5053773270876925073e-8};
};

// 2ⁿ where x = round_to_int + bias + n.
template <class T>
inline Vector<T> power_of_two(Vector<T> x) {
  return shift_left<mantissa_bits<T>>(x);
}

template <class T>
struct Reduced {
  Vector<T> n;
  Vector<T> r;
  Vector<T> r2;
  Vector<T> q;  // Q(r)
};

template <class T>
inline Reduced<T> reduced(Vector<T> x) {
  using V = Vector<T>;
  using K = ExpConstants<T>;
  const V magic = V::broadcast(K::round_to_int);
  const V n = multiply_add(x, V::broadcast(T(1.4426950408889634074)), magic) - magic;
  const V high = multiply_add(n, V::broadcast(-K::ln2_high), x);
  const V r = multiply_add(n, V::broadcast(-K::ln2_low), high);
  const V r2 = r * r;
  return {n, r, r2, polynomial(K::q, r, r2)};
}

// x 2ⁿ, for whole n from twice the lowest exponent to the highest + 1.
template <class T>
inline Vector<T> scaled(Vector<T> x, Vector<T> n) {
  using V = Vector<T>;
  if constexpr (requires { scale(x, n); }) {
    return scale(x, n);
  } else {
    // 2ⁿ as two factors, neither of which overflows or is subnormal.
    const V magic = V::broadcast(ExpConstants<T>::round_to_int + ExpConstants<T>::bias);
    const V half = multiply_add(n, V::broadcast(T(0.5)), magic);
    return x * power_of_two(half) * power_of_two((n - (half - magic)) + magic);
  }
}

// 1 / x, or at least half of its digits, for x that is neither tiny nor huge.
template <class T>
inline Vector<T> reciprocal_or_estimate(Vector<T> x) {
  if constexpr (requires { estimated_reciprocal(x); }) {
    return estimated_reciprocal(x);
  } else {
    return Vector<T>::broadcast(1) / x;
  }
}

// eˣ, and its rounding error: negligible if the result is subnormal.
template <class T>
struct Exponential {
  Vector<T> value;
  Vector<T> lost;
};

// For x up to `highest`.
template <class T>
inline Exponential<T> exponential(Vector<T> x) {
  using V = Vector<T>;
  using K = ExpConstants<T>;
  const Reduced<T> e = reduced(at_least(x, V::broadcast(K::lowest)));
  const V one = V::broadcast(1);
  const V less_one = multiply_add(e.q, e.r2, e.r);
  const V sum = one + less_one;
  return {scaled(sum, e.n), scaled(less_one - (sum - one), e.n)};
}

template <class T>
inline Vector<T> exp(Vector<T> x) {
  return exponential(at_most(x, Vector<T>::broadcast(ExpConstants<T>::highest))).value;
}

template <class T>
inline Vector<T> expm1(Vector<T> x) {
  using V = Vector<T>;
  using K = ExpConstants<T>;
  const V bounded = at_least(at_most(x, V::broadcast(K::highest)), V::broadcast(K::minus_one));
  const Reduced<T> e = reduced(bounded);
  // Half of the result, since 2ⁿ may overflow although the result does not.
  const V power = power_of_two(e.n + V::broadcast(K::round_to_int + K::bias - 1));
  const V less_half = power - V::broadcast(T(0.5));
  const V sum = multiply_add(power, e.r, less_half);
  const V lost = multiply_add(power, e.r, less_half - sum);
  const V half = sum + multiply_add(power, e.q * e.r2, lost);
  const V tiny = V::broadcast(std::numeric_limits<T>::epsilon() / 4);
  return blend(magnitude(x) < tiny, x, half + half);
}

// 1 / (1 + e⁻ˣ), or eˣ / (1 + eˣ): whichever uses a non-positive power of e. The errors of the
// numerator, the denominator and the quotient are corrected to first order.
template <class T>
inline Vector<T> sigmoid(Vector<T> x) {
  using V = Vector<T>;
  const V zero = V::broadcast(0), one = V::broadcast(1);
  const Exponential<T> e = exponential(with_sign_of(x, V::broadcast(T(-0.0))));
  const auto is_negative = x < zero;
  const V denominator = one + e.value;
  const V lost = (e.value - (denominator - one)) + e.lost;
  const V reciprocal = reciprocal_or_estimate(denominator);
  const V numerator = blend(is_negative, e.value, one);
  const V y = numerator * reciprocal;
  const V remainder = subtract_product(numerator, y, denominator);
  const V error = subtract_product(remainder + blend(is_negative, e.lost, zero), y, lost);
  return multiply_add(error, reciprocal, y);
}

// ---- log, log1p -----------------------------------------
//
//   log x = n ln 2 + log(1 + f),   x = 2ⁿ (1 + f),   √½ ≤ 1 + f < √2
//   log(1 + f) = 2 atanh(s) = f - (f²/2 - s (f²/2 + s² R(s²))),   s = f / (2 + f)

template <class T>
struct LogConstants;

template <>
struct LogConstants<float> {
  using Int = std::int32_t;
  static constexpr float root_half = 0.707106781f;
  static constexpr float r[] = {// relative error 8.1e-10
                                0.666667759f, 0.399775803f, 0.298709303f};
};

template <>
struct LogConstants<double> {
  using Int = std::int64_t;
  static constexpr double root_half = 0.70710678118654752;
  static constexpr double r[] = {// relative error 1.2e-18
                                 0.6666666666666734,  0.39999999999416413, 0.2857142874211232,
                                 0.22222198593772502, 0.18183563552253193, 0.15314064350697065,
                                 0.14795861332836455};
};

// log(2ᵉ (x + low)), for x that is not subnormal and low of at most half a unit of its last place.
template <class T>
inline Vector<T> log_of_sum(Vector<T> x, Vector<T> low, Vector<T> e) {
  using V = Vector<T>;
  using K = LogConstants<T>;
  using E = ExpConstants<T>;
  using Int = typename K::Int;
  constexpr auto bits = [](T value) { return std::bit_cast<Int>(value); };
  constexpr T infinity = std::numeric_limits<T>::infinity();

  // As integers: the exponent of `shifted` is that of 2ⁿ, its mantissa that of x less √½'s.
  const V shifted = add_bits(x, bits(1) - bits(K::root_half));
  const V n = add_bits(shift_right<mantissa_bits<T>>(shifted), bits(E::round_to_int)) -
              V::broadcast(E::round_to_int + E::bias) + e;
  const V one = V::broadcast(1);
  const V f = add_bits(and_bits(shifted, (Int{1} << mantissa_bits<T>)-1), bits(K::root_half)) - one;
  const V s = f / (f + V::broadcast(2));
  const V z = s * s;
  const V half_square = V::broadcast(T(0.5)) * f * f;
  const V rest = multiply_add(n, V::broadcast(E::ln2_low), low / x);
  const V t = multiply_add(s, multiply_add(polynomial(K::r, z), z, half_square), rest);
  const V y = multiply_add(n, V::broadcast(E::ln2_high), f - (half_square - t));

  const V zero = V::broadcast(0), infinite = V::broadcast(infinity);
  const V not_positive = blend(x == zero, -infinite, zero / zero);
  return blend(zero < x, blend(x < infinite, y, x), not_positive);
}

template <class T>
inline Vector<T> log(Vector<T> x) {
  using V = Vector<T>;
  constexpr int digits = std::numeric_limits<T>::digits;
  const auto subnormal = x < V::broadcast(std::numeric_limits<T>::min());
  const V zero = V::broadcast(0);
  const V scaled = blend(subnormal, x * V::broadcast(T(std::int64_t{1} << digits)), x);
  return log_of_sum(scaled, zero, blend(subnormal, V::broadcast(-digits), zero));
}

template <class T>
inline Vector<T> log1p(Vector<T> x) {
  using V = Vector<T>;
  const V one = V::broadcast(1);
  const auto is_small = magnitude(x) < one;
  const V large = blend(is_small, one, x), small = blend(is_small, x, one);
  const V sum = large + small;
  return with_sign_of(log_of_sum(sum, small - (sum - large), V::broadcast(0)), x);
}

// ---- sin, cos -------------------------------------------
//
//   x = n π/2 + r,   |r| ≤ π/4;   ± sin r or ± cos r, by the two low bits of n
//   sin r = r + r³ S(r²),   cos r = 1 - r²/2 + r⁴ C(r²)

template <class T>
struct TrigonometricConstants;

template <>
struct TrigonometricConstants<float> {
  // Up to here n has 13 bits, and its products with the first three parts of π/2 are exact.
  static constexpr float bound = 1e4f;
  static constexpr float half_pi[] = {0x1.9200000000p+0f, 0x1.fb00000000p-12f, 0x1.5100000000p-22f,
                                      0x1.0b46120000p-34f};
  static constexpr float s[] = {// relative error 4.0e-9
                                -0.166666552f, 0.00833218731f, -0.000195178975f};
  static constexpr float c[] = {// relative error 1.2e-10
                                0.0416666456f, -0.00138873095f, 2.44323273e-5f};
};

template <>
struct TrigonometricConstants<double> {
  static constexpr double bound = 1e5;  // likewise, 17 bits
  static constexpr double half_pi[] = {0x1.921fb54440000p+0, 0x1.68c234c400000p-39,
                                       0x1.8cc51701a0000p-72, 0x1.839a252049c11p-108};
  static constexpr double s[] = {// relative error 3.8e-18
                                 -0.1666666666666663,     0.0083333333333218407,
                                 -0.00019841269829358522, 2.7557313538511701e-6,
                                 -2.5050734388955311e-8,  1.5895433285029149e-10};
  static constexpr double c[] = {// relative error 5.8e-20
                                 0.041666666666666595,  -0.0013888888888873307,
                                 2.4801587288965237e-5, -2.7557314203083294e-7,
                                 2.087570314023792e-9,  -1.1358617042746396e-11};
};

// sin(x + quarters π/2), for |x| up to the bound.
template <int quarters, class T>
inline Vector<T> sin_of_sum(Vector<T> x) {
  using V = Vector<T>;
  using K = TrigonometricConstants<T>;
  const V magic = V::broadcast(ExpConstants<T>::round_to_int);
  const V shifted = multiply_add(x, V::broadcast(T(0.636619772367581343)), magic);
  const V n = shifted - magic;
  const auto part = [](int i) { return V::broadcast(K::half_pi[i]); };
  const V first = multiply_add(n, -part(0), x);
  const V second = multiply_add(n, -part(1), first);
  const V third = multiply_add(n, -part(2), second);
  // The rounding error of the third difference, and the last part.
  const V lost = multiply_add(n, part(2), third - second);
  const V r = third - multiply_add(n, part(3), lost);

  const V z = r * r;
  const V sine = multiply_add(polynomial(K::s, z) * z, r, r);
  const V cosine = multiply_add(z * z, polynomial(K::c, z),
                                multiply_add(z, V::broadcast(T(-0.5)), V::broadcast(1)));
  // The two low bits of n, moved to the top: ±0 where n is even and ±2 where it is odd.
  const V quadrant = shift_left<8 * sizeof(T) - 2>(add_bits(shifted, quarters));
  const V zero = V::broadcast(0);
  return flip_sign(blend(quadrant == zero, with_sign_of(sine, r), cosine), quadrant);
}

// f of each lane beyond the bound, `near` elsewhere.
template <class F, class T>
inline Vector<T> beyond_bound(F f, Vector<T> x, Vector<T> near) {
  using V = Vector<T>;
  const V bound = V::broadcast(TrigonometricConstants<T>::bound);
  if (!any_less(bound, magnitude(x))) {
    return near;
  }
  T lanes[V::width];
  x.store(lanes);
  for (T& lane : lanes) {
    lane = f(lane);
  }
  return blend(bound < magnitude(x), V::load(lanes), near);
}

template <class T>
inline Vector<T> sin(Vector<T> x) {
  return beyond_bound([](T lane) { return std::sin(lane); }, x, sin_of_sum<0>(x));
}

template <class T>
inline Vector<T> cos(Vector<T> x) {
  return beyond_bound([](T lane) { return std::cos(lane); }, x, sin_of_sum<1>(x));
}

// ---- erf ------------------------------------------------
//
//   |x| < split:  x + x P(x²)
//   above:        1 - eᶠ,   f = log erfc |x| = |x| L(|x|)

template <class T>
struct ErfConstants;

template <>
struct ErfConstants<float> {
  static constexpr float split = 0.9f;
  static constexpr float bound = 4.0f;  // erf(4) = 1 - 1.5e-8
  static constexpr float p[] = {        // relative error 8.9e-10
                                0.128379166f,   -0.376126289f,    0.112836242f,  -0.02685556f,
                                0.00519175315f, -0.000803975272f, 7.94310035e-5f};
  static constexpr float l[] = {
      // relative error 3.1e-9
      -1.12852001f, -0.635699153f, -0.105287157f, 0.0229062345f, -0.00322004058f, 0.000214602915f};
};

template <>
struct ErfConstants<double> {
  static constexpr double split = 0.9;
  static constexpr double bound = 6.0;  // erf(6) = 1 - 2.2e-17
  static constexpr double p[] = {
      // relative error 1.1e-17
      0.12837916709551259,    -0.37612638903184109,   0.11283791670972039,
      -0.026866170648260555,  0.0052239776550773807,  -0.00085483286522868951,
      0.00012055388224835576, -1.4926829985644146e-5, 1.647763515478797e-6,
      -1.6479701056869435e-7, 1.5098300935677606e-8,  -1.0825041310700836e-9};
  static constexpr double l[] = {
      // relative error 6.5e-18
      -1.1283791617879146,    -0.63661977696494321,    -0.10277288865489617,
      0.01913046859406892,    0.00020189980699982269,  -0.0016789434530308732,
      0.00056069962814787422, 1.2011545857250562e-5,   -0.00010232329789680524,
      5.9375321510392778e-5,  -2.1634454147329775e-5,  5.7717405277267614e-6,
      -1.1682112661245978e-6, 1.7892935338583466e-7,   -2.0185308854427595e-8,
      1.5853957851671547e-9,  -7.7479215984019323e-11, 1.7738101723059287e-12};
};

template <class T>
inline Vector<T> erf(Vector<T> x) {
  using V = Vector<T>;
  using K = ErfConstants<T>;
  const V a = at_most(magnitude(x), V::broadcast(K::bound));
  const V near = multiply_add(polynomial(K::p, a * a), a, a);
  const V far = magnitude(expm1(polynomial(K::l, a, a * a) * a));
  return with_sign_of(blend(a < V::broadcast(K::split), near, far), x);
}
