// Runs a cell's code on a tile of rows and units: one `switch` for each instruction, which then
// processes all vectors of the tile. Slots are in memory that stays in the first-level cache.

template <class S>
class TileProgram {
  using T = Arithmetic<S>;
  using V = Vector<T>;

 public:
  explicit TileProgram(const ProgramTile<S>& tile) : tile_(tile) {
    const std::int64_t slot_size = (tile.units + V::width - 1) / V::width * V::width;
    Values* next = tile.values;
    for (std::int64_t s = 0; s < tile.slot_count; ++s) {
      *next++ = {tile.slots + s * slot_size, tile.slot_count * slot_size};
    }
    for (std::int64_t i = 0; i < tile.operand_count; ++i) {
      const Operand<S>& o = tile.operands[i];
      const std::int64_t first = tile.row * o.row_stride + tile.unit;
      *next++ = {o.values ? const_cast<T*>(o.values) + first : nullptr, o.row_stride};
    }
  }

  [[gnu::always_inline]] void run(const Instruction& i) const {
    const auto constant = [](double x) { return V::broadcast(static_cast<T>(x)); };
    switch (i.operation) {
      case Operation::load:
        return with_memory(i.a, [&](const auto* from, std::int64_t row, std::int64_t column) {
          const Values dst = at(i.dst);
          for_each([&](std::int64_t r, std::int64_t c, int present) {
            const auto* const p = from + r * row + c * column;
            const V value = column == 0 ? V::broadcast(static_cast<T>(*p)) : load(p, present);
            store(value, dst.data + r * dst.row_stride + c, present);
          });
        });
      case Operation::store:
        return with_memory(i.dst, [&]<class U>(const U* to, std::int64_t row, std::int64_t) {
          const Values a = at(i.a);
          for_each([&](std::int64_t r, std::int64_t c, int present) {
            store(load(a.data + r * a.row_stride + c, present), const_cast<U*>(to) + r * row + c,
                  present);
          });
        });
      case Operation::constant:
        return map(i, [x = constant(i.x)] { return x; });
      case Operation::affine:
        return map(i,
                   [x = constant(i.x), y = constant(i.y)](V a) { return multiply_add(a, x, y); });
      case Operation::copy:
        return map(i, [](V a) { return a; });
      case Operation::subtract_product:
        return map(i, [y = constant(i.y)](V a, V b) { return subtract_product(y, a, b); });
      case Operation::neg:
        return map(i, [](V a) { return -a; });
      case Operation::abs:
        return map(i, [](V a) { return magnitude(a); });
      case Operation::sign:
        return map(i, [](V a) { return sign(a); });
      case Operation::floor:
        return map(i, [](V a) { return floor(a); });
      case Operation::ceil:
        return map(i, [](V a) { return ceil(a); });
      case Operation::round:
        return map(i, [](V a) { return round(a); });
      case Operation::trunc:
        return map(i, [](V a) { return trunc(a); });
      case Operation::sqrt:
        return map(i, [](V a) { return square_root(a); });
      case Operation::rsqrt:
        return map(i, [](V a) { return rsqrt(a); });
      case Operation::reciprocal:
        return map(i, [](V a) { return reciprocal(a); });
      case Operation::exp:
        return map_apart(i, [](V a) { return exp(a); });
      case Operation::expm1:
        return map_apart(i, [](V a) { return expm1(a); });
      case Operation::log:
        return map_apart(i, [](V a) { return log(a); });
      case Operation::log1p:
        return map_apart(i, [](V a) { return log1p(a); });
      case Operation::sin:
        return map_apart(i, [](V a) { return sin(a); });
      case Operation::cos:
        return map_apart(i, [](V a) { return cos(a); });
      case Operation::tanh:
        return map_apart(i, [](V a) { return tanh(a); });
      case Operation::sigmoid:
        return map_apart(i, [](V a) { return sigmoid(a); });
      case Operation::erf:
        return map_apart(i, [](V a) { return erf(a); });
      case Operation::add:
        return map(i, [](V a, V b) { return a + b; });
      case Operation::sub:
        return map(i, [](V a, V b) { return a - b; });
      case Operation::mul:
        return map(i, [](V a, V b) { return a * b; });
      case Operation::div:
        return map(i, [](V a, V b) { return a / b; });
      case Operation::minimum:
        return map(i, [](V a, V b) { return minimum(a, b); });
      case Operation::maximum:
        return map(i, [](V a, V b) { return maximum(a, b); });
      case Operation::lt:
        return map(i, [](V a, V b) { return less(a, b); });
      case Operation::le:
        return map(i, [](V a, V b) { return less_equal(a, b); });
      case Operation::eq:
        return map(i, [](V a, V b) { return equal(a, b); });
      case Operation::ne:
        return map(i, [](V a, V b) { return not_equal(a, b); });
      case Operation::where:
        return map(i, [](V a, V b, V c) { return select(a, b, c); });
      case Operation::fma:
        return map(i, [](V a, V b, V c) { return multiply_add(a, b, c); });
      case Operation::fms:
        return map(i, [](V a, V b, V c) { return multiply_add(a, b, -c); });
      case Operation::fnma:
        return map(i, [](V a, V b, V c) { return subtract_product(c, a, b); });
      case Operation::product:
        return;  // only between phases
    }
  }

 private:
  using Values = TileValues<T>;

  Values at(std::int64_t place) const { return tile_.values[place]; }

  // f(data, row stride, column stride) with the memory of a place, of either type.
  template <class F>
  [[gnu::always_inline]] void with_memory(std::int64_t place, F f) const {
    const Operand<S>& o = tile_.operands[place - tile_.slot_count];
    const std::int64_t first = tile_.row * o.row_stride + tile_.unit * o.column_stride;
    if constexpr (!std::is_same_v<S, T>) {
      if (o.stored) {
        return f(o.stored + first, o.row_stride, o.column_stride);
      }
    }
    f(o.values + first, o.row_stride, o.column_stride);
  }

  template <class U>
  static V load(const U* p, int present) {
    return present == V::width ? V::load(p) : V::load(p, present);
  }
  template <class U>
  static void store(V value, U* p, int present) {
    present == V::width ? value.store(p) : value.store(p, present);
  }

  // f(row, column, present) for each vector of the tile, of which the first `present` values exist.
  template <class F>
  [[gnu::always_inline]] void for_each(F f) const {
    const std::int64_t rows = tile_.rows, units = tile_.units;
    for (std::int64_t r = 0; r < rows; ++r) {
      std::int64_t c = 0;
      for (; c + V::width <= units; c += V::width) {
        f(r, c, V::width);
      }
      if (c < units) {
        f(r, c, static_cast<int>(units - c));
      }
    }
  }

  template <class F>
  [[gnu::always_inline]] void map(const Instruction& i, F f) const {
    const Values dst = at(i.dst), a = at(i.a), b = at(i.b), c = at(i.c);
    for_each([&](std::int64_t row, std::int64_t column, int present)
                 __attribute__((always_inline)) {
                   const auto value = [&](const Values& v) {
                     return load(v.data + row * v.row_stride + column, present);
                   };
                   T* const to = dst.data + row * dst.row_stride + column;
                   if constexpr (std::is_invocable_v<F>) {
                     store(f(), to, present);
                   } else if constexpr (std::is_invocable_v<F, V>) {
                     store(f(value(a)), to, present);
                   } else if constexpr (std::is_invocable_v<F, V, V>) {
                     store(f(value(a), value(b)), to, present);
                   } else {
                     store(f(value(a), value(b), value(c)), to, present);
                   }
                 });
  }

  // Not inlined: its many registers would be missing in the other instructions.
  template <class F>
  [[gnu::noinline]] void map_apart(const Instruction& i, F f) const {
    map(i, f);
  }

  const ProgramTile<S>& tile_;
};

template <class S>
void run_program(const ProgramTile<S>& tile) {
  const TileProgram<S> program(tile);
  for (const Instruction* i = tile.code; i != tile.code + tile.length; ++i) {
    program.run(*i);
  }
}
