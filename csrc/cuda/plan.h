// Which kernel runs a call, in which shape: pure arithmetic over the limits of a device.
//
// Persistent kernels keep all of W_hh in the registers and the shared memory of one block, which
// computes its batch rows in all time steps. They require that W_hh fits. Step kernels, one launch
// for each step, work for every size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace rnn_ext::cuda {

// The shape of a persistent kernel, for states of up to `columns` units.
//
// A thread holds the weights of `columns_per_thread` columns over a slice of the inner length:
// `inner_registers` of it in registers, `inner_shared` in shared memory. The slices' sums are added
// up through shared memory.
struct PersistentShape {
  int columns;
  int rows;  // batch rows of a block
  int threads;
  int columns_per_thread;
  int inner_registers;
  int inner_shared;

  constexpr int column_groups() const { return columns / columns_per_thread; }
  constexpr int slices() const { return threads / column_groups(); }
  constexpr int slice() const { return inner_registers + inner_shared; }
  // Values in shared memory: weights, states, and the slices' sums.
  constexpr int shared_weights() const { return threads * columns_per_thread * inner_shared; }
  constexpr int states() const { return rows * columns; }
  constexpr int partial_sums() const { return slices() * rows * columns; }
  constexpr int shared_values() const { return shared_weights() + states() + partial_sums(); }
};

// The shape of a step kernel: a block computes a tile of rows × columns of h_t. It reads the inner
// length in slabs, which `slices` groups of threads divide between them.
struct StepShape {
  int rows;
  int columns;
  int slab;
  int slices;

  static constexpr int threads = 256;
  static constexpr int rows_per_thread = 4;
  static constexpr int columns_per_thread = 4;
  constexpr int shared_values(int padding) const {
    const int slabs = (rows + columns) * (slab + padding);
    const int sums = slices * rows * columns;
    return slabs > sums ? slabs : sums;
  }
};

// In the order of preference: narrow before wide, few rows before many.
template <class T>
inline constexpr PersistentShape persistent_shapes[] = {
    {64, 1, 128, 2, 16, 0},  {64, 4, 128, 2, 16, 0},   {128, 1, 256, 4, 16, 0},
    {128, 4, 256, 4, 16, 0}, {256, 1, 256, 4, 32, 32}, {256, 4, 256, 4, 32, 32},
};
template <>
inline constexpr PersistentShape persistent_shapes<double>[] = {
    {64, 1, 128, 2, 16, 0},
    {64, 4, 128, 2, 16, 0},
    {128, 1, 256, 4, 16, 0},
    {128, 2, 256, 4, 16, 0},
};

// Small tiles keep many multiprocessors busy; large ones read less memory.
inline constexpr StepShape step_shapes[] = {{4, 16, 256, 64}, {16, 32, 64, 8}, {64, 64, 16, 1}};

// The limits of a device that a plan depends on.
struct Limits {
  std::int64_t multiprocessors;
  std::int64_t shared_bytes;  // the maximum of one block
  std::int64_t registers;     // of 32 bits; the maximum of one block
};

// The facts about a call that a plan depends on.
struct CallSizes {
  std::int64_t batch;
  std::int64_t hidden_size;
  std::int64_t directions;
};

enum class Regime { persistent, steps };

struct Plan {
  Regime regime = Regime::steps;
  int shape = 0;  // index into the regime's shapes
};

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Whether a block of this shape can run on the device. The compiler may give a persistent kernel
// all the registers that a block can have on the devices it compiles for.
template <class T>
constexpr bool fits(const PersistentShape& shape, const Limits& limits) {
  return shape.shared_values() * std::int64_t{sizeof(T)} <= limits.shared_bytes &&
         limits.registers >= 65536;
}

// T: the type of arithmetic.
template <class T>
constexpr Plan make_plan(const CallSizes& call, const Limits& limits) {
  Plan best;
  int columns = 0;
  for (int i = 0; const PersistentShape& shape : persistent_shapes<T>) {
    // Once each multiprocessor has a block, a block takes several rows.
    const bool is_wanted = columns == 0 ? call.hidden_size <= shape.columns
                                        : shape.columns == columns &&
                                              call.batch * call.directions > limits.multiprocessors;
    if (is_wanted && fits<T>(shape, limits)) {
      best = {Regime::persistent, i};
      columns = shape.columns;
    }
    ++i;
  }
  if (best.regime == Regime::steps) {
    const StepShape& large = step_shapes[2];
    const std::int64_t tiles = ceil_div(call.batch, large.rows) *
                               ceil_div(call.hidden_size, large.columns) * call.directions;
    // The additional rows of a taller tile would be empty.
    best.shape = call.batch <= step_shapes[0].rows ? 0 : tiles >= limits.multiprocessors ? 2 : 1;
  }
  return best;
}

}  // namespace rnn_ext::cuda
