// Vectors for any 64-bit machine: 16 bytes through the compiler's vector extension (SSE2, NEON).
// Included inside the anonymous namespace of one translation unit.

template <class T>
struct Vector {
  using Int = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  typedef T Lanes __attribute__((vector_size(16)));
  typedef Int IntLanes __attribute__((vector_size(16)));
  static constexpr int width = 16 / sizeof(T);

  Lanes v;

  static Vector broadcast(T x) { return {Lanes{} + x}; }
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
    Vector r = broadcast(0);
    for (int i = 0; i < n; ++i) {
      r.v[i] = static_cast<T>(p[i]);
    }
    return r;
  }
  template <class S>
  void store(S* p, int n = width) const {
    for (int i = 0; i < n; ++i) {
      p[i] = S::from(v[i]);
    }
  }

  friend Vector operator+(Vector a, Vector b) { return {a.v + b.v}; }
  friend Vector operator-(Vector a, Vector b) { return {a.v - b.v}; }
  friend Vector operator*(Vector a, Vector b) { return {a.v * b.v}; }
  friend Vector operator/(Vector a, Vector b) { return {a.v / b.v}; }
  // One rounding where the machine has the instruction, two elsewhere.
  friend Vector multiply_add(Vector a, Vector b, Vector c) { return {a.v * b.v + c.v}; }

  friend Vector zero_where_not_positive(Vector value, Vector where) {
    return {(where.v <= Lanes{}) ? Lanes{} : value.v};
  }
  friend Vector at_most(Vector x, Vector bound) { return {(x.v > bound.v) ? bound.v : x.v}; }
  // a where x < bound, b elsewhere (NaN too).
  friend Vector first_where_below(Vector a, Vector b, Vector x, Vector bound) {
    return {(x.v < bound.v) ? a.v : b.v};
  }
  friend Vector magnitude(Vector x) { return {(Lanes)((IntLanes)x.v & ~sign_bit())}; }
  friend Vector with_sign_of(Vector x, Vector sign) {
    return {(Lanes)((IntLanes)x.v | ((IntLanes)sign.v & sign_bit()))};
  }
  // 2ⁿ where x = 1.5·2^(mantissa bits) + n.
  friend Vector power_of_two(Vector x) {
    constexpr int mantissa = std::numeric_limits<T>::digits - 1;
    constexpr Int one = sizeof(T) == 4 ? Int{0x3f800000} : static_cast<Int>(0x3ff0000000000000);
    return {(Lanes)(((IntLanes)x.v << mantissa) + one)};
  }

 private:
  static IntLanes sign_bit() { return IntLanes{} + std::numeric_limits<Int>::min(); }
};
