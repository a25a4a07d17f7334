// Placeholder, a lane at a time.
template <class T, class F>
inline Vector<T> lanes(Vector<T> x, F f) {
  T a[Vector<T>::width];
  x.store(a);
  for (T& v : a) v = f(v);
  return Vector<T>::load(a);
}
template <class T, class F>
inline Vector<T> lanes(Vector<T> x, Vector<T> y, F f) {
  T a[Vector<T>::width], b[Vector<T>::width];
  x.store(a);
  y.store(b);
  for (int i = 0; i < Vector<T>::width; ++i) a[i] = f(a[i], b[i]);
  return Vector<T>::load(a);
}
#define L1(name, expr)                            \
  template <class T>                              \
  inline Vector<T> name(Vector<T> v) {            \
    return lanes(v, [](T x) { return T(expr); }); \
  }
#define L2(name, expr)                                    \
  template <class T>                                      \
  inline Vector<T> name(Vector<T> v, Vector<T> w) {       \
    return lanes(v, w, [](T x, T y) { return T(expr); }); \
  }
L1(operator-, -x)
L1(sign, x > 0   ? 1
         : x < 0 ? -1
                 : x) L1(floor, __builtin_floor(x)) L1(ceil, __builtin_ceil(x))
    L1(round, __builtin_rint(x)) L1(trunc, __builtin_trunc(x)) L1(square_root, __builtin_sqrt(x))
        L1(rsqrt, 1 / __builtin_sqrt(x)) L1(reciprocal, 1 / x) L1(exp, __builtin_exp(x))
            L1(expm1, __builtin_expm1(x)) L1(log, __builtin_log(x)) L1(log1p, __builtin_log1p(x))
                L1(sin, __builtin_sin(x)) L1(cos, __builtin_cos(x))
                    L1(sigmoid, 1 / (1 + __builtin_exp(-x))) L1(erf, __builtin_erf(x))
                        L2(minimum, x != x   ? x
                                    : y != y ? y
                                    : x < y  ? x
                                             : y) L2(maximum, x != x  ? x
                                                             : y != y ? y
                                                             : x > y  ? x
                                                                      : y) L2(less, x < y)
                            L2(less_equal, x <= y) L2(equal, x == y)
                                L2(not_equal, x != y) template <class T>
                                inline Vector<T> select(Vector<T> m, Vector<T> a, Vector<T> b) {
  T c[Vector<T>::width], x[Vector<T>::width], y[Vector<T>::width];
  m.store(c);
  a.store(x);
  b.store(y);
  for (int i = 0; i < Vector<T>::width; ++i) x[i] = c[i] != 0 ? x[i] : y[i];
  return Vector<T>::load(x);
}
