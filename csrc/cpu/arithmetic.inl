// Functions that take a few instructions, over a vector type. Special values are those of torch's
// functions of the same names.

template <class T>
inline Vector<T> operator-(Vector<T> x) {
  return flip_sign(x, Vector<T>::broadcast(T(-0.0)));
}

template <class T>
inline Vector<T> reciprocal(Vector<T> x) {
  return Vector<T>::broadcast(1) / x;
}

template <class T>
inline Vector<T> rsqrt(Vector<T> x) {
  return reciprocal(square_root(x));
}

// 1 where the comparison holds, 0 elsewhere.
template <class T>
inline Vector<T> less(Vector<T> a, Vector<T> b) {
  return blend(a < b, Vector<T>::broadcast(1), Vector<T>::broadcast(0));
}
template <class T>
inline Vector<T> less_equal(Vector<T> a, Vector<T> b) {
  return blend(a <= b, Vector<T>::broadcast(1), Vector<T>::broadcast(0));
}
template <class T>
inline Vector<T> equal(Vector<T> a, Vector<T> b) {
  return blend(a == b, Vector<T>::broadcast(1), Vector<T>::broadcast(0));
}
template <class T>
inline Vector<T> not_equal(Vector<T> a, Vector<T> b) {
  return blend(a == b, Vector<T>::broadcast(0), Vector<T>::broadcast(1));
}

// b where a is not zero (NaN is not zero), c elsewhere.
template <class T>
inline Vector<T> select(Vector<T> a, Vector<T> b, Vector<T> c) {
  return blend(a == Vector<T>::broadcast(0), c, b);
}

// NaN where either is NaN.
template <class T>
inline Vector<T> minimum(Vector<T> a, Vector<T> b) {
  return blend(a == a, at_most(b, a), a);
}
template <class T>
inline Vector<T> maximum(Vector<T> a, Vector<T> b) {
  return blend(a == a, at_least(b, a), a);
}

// Zero for NaN, as in torch.sign.
template <class T>
inline Vector<T> sign(Vector<T> x) {
  const Vector<T> zero = Vector<T>::broadcast(0);
  return less(zero, x) - less(x, zero);
}

// To the nearest integer, ties to even. From 2²³ (double: 2⁵²) on all numbers are integers; below,
// adding and subtracting that number rounds away the fraction.
template <class T>
inline Vector<T> round(Vector<T> x) {
  const Vector<T> limit = Vector<T>::broadcast(1 / std::numeric_limits<T>::epsilon());
  const Vector<T> size = magnitude(x);
  return blend(size < limit, with_sign_of((size + limit) - limit, x), x);
}

template <class T>
inline Vector<T> floor(Vector<T> x) {
  const Vector<T> nearest = round(x);
  return blend(x < nearest, nearest - Vector<T>::broadcast(1), nearest);
}

template <class T>
inline Vector<T> ceil(Vector<T> x) {
  return -floor(-x);
}

template <class T>
inline Vector<T> trunc(Vector<T> x) {
  return with_sign_of(floor(magnitude(x)), x);
}
