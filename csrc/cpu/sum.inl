// Reading at the rate of the memory: enough chains that no addition waits for another.
template <class T>
T sum(const T* values, std::int64_t count, std::int64_t times) {
  using V = Vector<T>;
  constexpr int chains = 8;
  V sums[chains];
#pragma GCC unroll 8
  for (V& chain : sums) {
    chain = V::broadcast(0);
  }
  for (std::int64_t pass = 0; pass < times; ++pass) {
    for (const T* at = values; at < values + count; at += chains * V::width) {
#pragma GCC unroll 8
      for (int j = 0; j < chains; ++j) {
        sums[j] = sums[j] + V::load(at + j * V::width);
      }
    }
  }
  T total = 0;
  for (const V& chain : sums) {
    T lanes[V::width];
    chain.store(lanes);
    for (const T lane : lanes) {
      total += lane;
    }
  }
  return total;
}
