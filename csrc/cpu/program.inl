// Runs a cell's program on a tile of rows and units: one `switch` for each instruction, which then
// goes over all vectors of the tile. Slots live in memory that stays in the first-level cache.

template <class T>
struct SlotVectors {
  T* slots;
  std::int64_t rows;
  std::int64_t vectors;
  std::int64_t row_stride;

  T* at(std::int64_t slot) const { return slots + slot * vectors * Vector<T>::width; }

  // f(offset) for each vector of a slot.
  template <class F>
  [[gnu::always_inline]] void for_each(F f) const {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t j = 0; j < vectors; ++j) {
        f(r * row_stride + j * Vector<T>::width);
      }
    }
  }

  template <class F>
  [[gnu::always_inline]] void map(const Instruction& i, F f) const {
    using V = Vector<T>;
    T* const dst = at(i.dst);
    const T* const a = at(i.a);
    const T* const b = at(i.b);
    const T* const c = at(i.c);
    for_each([&](std::int64_t offset) __attribute__((always_inline)) {
      if constexpr (std::is_invocable_v<F, V>) {
        f(V::load(a + offset)).store(dst + offset);
      } else if constexpr (std::is_invocable_v<F, V, V>) {
        f(V::load(a + offset), V::load(b + offset)).store(dst + offset);
      } else {
        f(V::load(a + offset), V::load(b + offset), V::load(c + offset)).store(dst + offset);
      }
    });
  }
};

template <class T>
[[gnu::noinline]] void run_instruction(const Instruction& i, const SlotVectors<T>& s) {
  using V = Vector<T>;
  const auto constant = [](double x) { return V::broadcast(static_cast<T>(x)); };
  switch (i.operation) {
    case Operation::constant:
      return s.for_each([&, dst = s.at(i.dst), x = constant(i.x)](std::int64_t offset) {
        x.store(dst + offset);
      });
    case Operation::affine:
      return s.map(i,
                   [x = constant(i.x), y = constant(i.y)](V a) { return multiply_add(a, x, y); });
    case Operation::neg:
      return s.map(i, [](V a) { return -a; });
    case Operation::abs:
      return s.map(i, [](V a) { return magnitude(a); });
    case Operation::sign:
      return s.map(i, [](V a) { return sign(a); });
    case Operation::floor:
      return s.map(i, [](V a) { return floor(a); });
    case Operation::ceil:
      return s.map(i, [](V a) { return ceil(a); });
    case Operation::round:
      return s.map(i, [](V a) { return round(a); });
    case Operation::trunc:
      return s.map(i, [](V a) { return trunc(a); });
    case Operation::sqrt:
      return s.map(i, [](V a) { return square_root(a); });
    case Operation::rsqrt:
      return s.map(i, [](V a) { return rsqrt(a); });
    case Operation::reciprocal:
      return s.map(i, [](V a) { return reciprocal(a); });
    case Operation::exp:
      return s.map(i, [](V a) { return exp(a); });
    case Operation::expm1:
      return s.map(i, [](V a) { return expm1(a); });
    case Operation::log:
      return s.map(i, [](V a) { return log(a); });
    case Operation::log1p:
      return s.map(i, [](V a) { return log1p(a); });
    case Operation::sin:
      return s.map(i, [](V a) { return sin(a); });
    case Operation::cos:
      return s.map(i, [](V a) { return cos(a); });
    case Operation::tanh:
      return s.map(i, [](V a) { return tanh(a); });
    case Operation::sigmoid:
      return s.map(i, [](V a) { return sigmoid(a); });
    case Operation::erf:
      return s.map(i, [](V a) { return erf(a); });
    case Operation::add:
      return s.map(i, [](V a, V b) { return a + b; });
    case Operation::sub:
      return s.map(i, [](V a, V b) { return a - b; });
    case Operation::mul:
      return s.map(i, [](V a, V b) { return a * b; });
    case Operation::div:
      return s.map(i, [](V a, V b) { return a / b; });
    case Operation::minimum:
      return s.map(i, [](V a, V b) { return minimum(a, b); });
    case Operation::maximum:
      return s.map(i, [](V a, V b) { return maximum(a, b); });
    case Operation::lt:
      return s.map(i, [](V a, V b) { return less(a, b); });
    case Operation::le:
      return s.map(i, [](V a, V b) { return less_equal(a, b); });
    case Operation::eq:
      return s.map(i, [](V a, V b) { return equal(a, b); });
    case Operation::ne:
      return s.map(i, [](V a, V b) { return not_equal(a, b); });
    case Operation::where:
      return s.map(i, [](V a, V b, V c) { return select(a, b, c); });
    case Operation::fma:
      return s.map(i, [](V a, V b, V c) { return multiply_add(a, b, c); });
    case Operation::load:
    case Operation::store:
    case Operation::load_add:
      return;  // not arithmetic: run_program
  }
}

// f(memory, slot, present) for each vector of the tile: where it is in the operand's memory, its
// offset in a slot, and how many of its values the operand has.
template <class T, class U, class F>
[[gnu::always_inline]] inline void for_memory(const U* data, std::int64_t row_stride,
                                              std::int64_t column_stride, std::int64_t units,
                                              const SlotVectors<T>& s, F f) {
  constexpr std::int64_t width = Vector<T>::width;
  for (std::int64_t r = 0; r < s.rows; ++r) {
    const U* row = data + r * row_stride;
    for (std::int64_t j = 0; j < s.vectors; ++j) {
      f(row + j * width * column_stride, r * s.row_stride + j * width,
        static_cast<int>(std::min(width, units - j * width)));
    }
  }
}

template <class U, class T>
inline Vector<T> load_operand(const U* from, std::int64_t column_stride, int present, T*) {
  using V = Vector<T>;
  if (column_stride == 0) {
    return V::broadcast(static_cast<T>(*from));
  }
  return present == V::width ? V::load(from) : V::load(from, present);
}

template <class S>
void run_program(const ProgramTile<S>& tile) {
  using T = Arithmetic<S>;
  using V = Vector<T>;
  const std::int64_t vectors = (tile.units + V::width - 1) / V::width;
  const SlotVectors<T> s{tile.slots, tile.rows, vectors, tile.slot_count * vectors * V::width};
  // f(data, row stride, column stride) with the operand's memory, of either type.
  const auto with_memory = [&](const Instruction& i, auto f) {
    const Operand<S>& operand = tile.operands[i.c];
    const std::int64_t first = tile.row * operand.row_stride + tile.unit * operand.column_stride;
    if constexpr (!std::is_same_v<S, T>) {
      if (operand.stored) {
        return f(operand.stored + first, operand.row_stride, operand.column_stride);
      }
    }
    f(operand.values + first, operand.row_stride, operand.column_stride);
  };
  for (const Instruction* i = tile.code; i != tile.code + tile.length; ++i) {
    T* const dst = s.at(i->dst);
    T* const a = s.at(i->a);
    switch (i->operation) {
      case Operation::load:
        with_memory(*i, [&](const auto* data, std::int64_t row, std::int64_t column) {
          for_memory(data, row, column, tile.units, s,
                     [&](const auto* from, std::int64_t offset, int present) {
                       load_operand(from, column, present, dst).store(dst + offset);
                     });
        });
        break;
      case Operation::load_add:
        with_memory(*i, [&](const auto* data, std::int64_t row, std::int64_t column) {
          for_memory(data, row, column, tile.units, s,
                     [&](const auto* from, std::int64_t offset, int present) {
                       (V::load(a + offset) + load_operand(from, column, present, dst))
                           .store(dst + offset);
                     });
        });
        break;
      case Operation::store:
        with_memory(*i, [&]<class U>(const U* data, std::int64_t row, std::int64_t column) {
          for_memory(data, row, column, tile.units, s,
                     [&](const U* at, std::int64_t offset, int present) {
                       U* const to = const_cast<U*>(at);
                       const V value = V::load(a + offset);
                       present == V::width ? value.store(to) : value.store(to, present);
                     });
        });
        break;
      default:
        run_instruction(*i, s);
    }
  }
}
