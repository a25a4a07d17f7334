// Who computes what: pure arithmetic, no memory, no threads.
//
// A step h_t = φ(z_t + h_{t-1} W_hhᵀ) can be shared out by batch rows, which never wait for each
// other, or by columns of h_t, where each thread keeps only its part of W_hh in its own cache but
// all must meet after every step. The model below counts the cycles of one step on the slowest
// thread; it decides time, never results.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/problem.h"

namespace rnn_ext::cpu {

enum class Split : std::uint16_t { serial, rows, columns };

// Indexed by Split.
inline constexpr const char* split_names[] = {"serial", "batch rows", "hidden columns"};

struct Plan {
  Split split = Split::serial;  // of a direction's steps
  // The two directions of a layer at the same time, on half of the threads each.
  bool directions_at_once = false;
  int threads = 1;
};

// What the plan needs to know of a call.
struct Shape {
  std::int64_t steps;
  std::int64_t batch;
  std::int64_t input_size;
  std::int64_t hidden_size;
  std::int64_t element_size;   // bytes
  std::int64_t panel_columns;  // of the kernel set
  std::int64_t tile_rows;
  bool independent_directions;  // there are two, and neither waits for what the other writes
};

namespace cost {

// Measured on Zen 4 (3.7 GHz, 32 KiB L1, 1 MiB L2 a core). What passes between cores costs up to
// eight times as much when they share no L3: 130 to 1000 cycles a barrier, 3000 to 8000 a team.
inline constexpr double fork_join_cycles = 6000;
inline constexpr double barrier_cycles = 800;
inline constexpr double line_from_core_cycles = 20;  // a cache line that another core wrote
inline constexpr double tile_cycles = 30;
inline constexpr double l1_bytes = 28 << 10;
inline constexpr double l2_bytes = 768 << 10;

// Cycles of a multiply-add with one line of B, and of fetching that line from where `bytes` live.
inline constexpr double multiply_add_cycles = 1;
inline double fetch_cycles(double bytes) {
  return bytes <= l1_bytes ? 1 : bytes <= l2_bytes ? 2 : 2.5;
}

// One step's product for `rows` rows and `panels` column panels.
inline double step_cycles(const Shape& s, double rows, double panels) {
  const double lines_per_panel = static_cast<double>(s.panel_columns * s.element_size) / 64;
  const double bytes =
      panels * static_cast<double>(s.panel_columns * s.hidden_size * s.element_size);
  const double tiles =
      (rows + static_cast<double>(s.tile_rows) - 1) / static_cast<double>(s.tile_rows);
  const double line =
      std::max(rows * multiply_add_cycles, std::max(1.0, tiles) * fetch_cycles(bytes));
  return panels *
         (line * lines_per_panel * static_cast<double>(s.hidden_size) + tiles * tile_cycles);
}

}  // namespace cost

// The best way to run one direction on `threads` threads, and its cycles but for those of calling
// the team together.
struct Choice {
  Split split;
  double cycles;
};

inline Choice choose_split(const Shape& s, int threads) {
  const auto ceil_div = [](std::int64_t a, std::int64_t b) {
    return static_cast<double>((a + b - 1) / b);
  };
  const double panels = ceil_div(s.hidden_size, s.panel_columns);
  const auto steps = static_cast<double>(s.steps);
  const double input_share = static_cast<double>(s.input_size) / static_cast<double>(s.hidden_size);
  const double projection =
      cost::step_cycles(s, static_cast<double>(s.batch), panels) * input_share;
  const double serial =
      steps * (cost::step_cycles(s, static_cast<double>(s.batch), panels) + projection);
  if (threads <= 1) {
    return {Split::serial, serial};
  }
  // Every thread packs a part of the weights; one that keeps to its rows needs all of them.
  const double foreign_lines =
      static_cast<double>((s.input_size + s.hidden_size) * s.hidden_size * s.element_size) / 64 *
      (threads - 1) / threads;
  const double rows =
      foreign_lines * cost::line_from_core_cycles +
      steps * (cost::step_cycles(s, ceil_div(s.batch, threads), panels) + projection / threads);
  const double column_panels = ceil_div(static_cast<std::int64_t>(panels), threads);
  const double columns =
      steps * (cost::step_cycles(s, static_cast<double>(s.batch), column_panels) +
               cost::barrier_cycles + projection / threads);
  if (serial <= std::min(rows, columns) + cost::fork_join_cycles) {
    return {Split::serial, serial};
  }
  return rows <= columns ? Choice{Split::rows, rows} : Choice{Split::columns, columns};
}

inline Plan make_plan(const Shape& s, int threads) {
  const Choice all = choose_split(s, threads);
  if (s.independent_directions && threads > 1) {
    const Choice half = choose_split(s, threads / 2);
    const double fork_join = all.split == Split::serial ? cost::fork_join_cycles : 0;
    if (half.cycles + fork_join < 2 * all.cycles) {
      return {half.split, true, half.split == Split::serial ? 2 : threads / 2 * 2};
    }
  }
  return {all.split, false, all.split == Split::serial ? 1 : threads};
}

// Rows whose input projection is computed just ahead of the steps that use them: few enough to stay
// in cache, enough to make the product efficient.
inline std::int64_t projection_rows(std::int64_t hidden_size) {
  return std::clamp<std::int64_t>(65536 / std::max<std::int64_t>(1, hidden_size), 64, 2048);
}

// Rows whose weight gradients are added up at a time: a multiple of the reduction block that
// depends on the hidden size alone, so that the order of summation does.
inline std::int64_t gradient_rows(std::int64_t hidden_size) {
  constexpr std::int64_t block = 256;
  return std::clamp<std::int64_t>(65536 / std::max<std::int64_t>(1, hidden_size) / block, 1, 8) *
         block;
}

// Tiles of rows that an unpacked weight is read for at most.
inline constexpr std::int64_t most_tiles_in_place = 2;

// The steps t of one chunk, in time order.
struct Chunk {
  std::int64_t first = 0;
  std::int64_t last = -1;  // inclusive
  std::int64_t rows = 0;
};

// The chunk that starts with the s-th step in processing order (forward: s counts up; backward:
// down) and takes as many further steps as keep it within `rows`, at least one.
template <class T>
Chunk take_chunk(const Problem<T>& p, std::int64_t s, std::int64_t direction, std::int64_t rows) {
  Chunk chunk;
  const std::int64_t start = p.step(s);
  std::int64_t t = start;
  chunk.rows = p.steps.rows(t);
  for (std::int64_t next = s + direction; next >= 0 && next < p.steps.count; next += direction) {
    const std::int64_t more = p.steps.rows(p.step(next));
    if (chunk.rows + more > rows) {
      break;
    }
    t = p.step(next);
    chunk.rows += more;
  }
  chunk.first = std::min(start, t);
  chunk.last = std::max(start, t);
  return chunk;
}

}  // namespace rnn_ext::cpu
