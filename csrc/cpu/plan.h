// Divides a call between threads: pure arithmetic, no memory, no threads.
//
// The threads that share a step h_t = φ(z_t + h_{t-1} W_hhᵀ) form groups. Each group has some of
// the batch rows and never waits for another group within a chunk of steps. The rows of packed
// input are divided again for each chunk, because later steps have fewer. The members of a group
// share the columns of h_t: each keeps only its part of W_hh in its cache, but all meet after every
// step. The model below counts the cycles of the slowest thread; it affects time, never results.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "common/problem.h"
#include "cpu/ranges.h"

namespace rnn_ext::cpu {

struct Plan {
  std::uint16_t groups = 1;  // groups of a direction's threads; groups share the batch rows
  // The two directions of a layer at the same time, on half of the threads each.
  bool directions_at_once = false;
  int threads = 1;

  int threads_of_a_direction() const { return directions_at_once ? threads / 2 : threads; }
};

// The first two caches of a core, in bytes.
struct Caches {
  std::int64_t l1 = 32 << 10;
  std::int64_t l2 = 1 << 20;

  bool operator==(const Caches&) const = default;
};

// The properties of a call, and of the machine, on which a plan depends.
struct Shape {
  std::int64_t steps;
  std::int64_t batch;
  std::int64_t input_size;
  std::int64_t hidden_size;
  std::int64_t projected;     // columns of the product over many rows that is divided like steps: I
  std::int64_t row_products;  // of those that are divided evenly, in backward
  std::int64_t element_size;  // bytes
  std::int64_t panel_columns;  // of the kernel set
  std::int64_t tile_rows;
  bool independent_directions;  // there are two, and neither reads results of the other
  std::int64_t gates = 1;       // blocks of hidden_size columns that a step multiplies by
  std::int64_t products = 1;    // of these blocks in a step; a group meets after each
  Caches caches = {};

  bool operator==(const Shape&) const = default;
  std::int64_t panels() const { return (hidden_size + panel_columns - 1) / panel_columns; }
  // Cache lines of a row with so many columns.
  double lines(double columns) const {
    return std::ceil(columns * static_cast<double>(element_size) / 64);
  }
};

namespace cost {

// Measured on Zen 4 (3.7 GHz, 32 KiB L1, 1 MiB L2 a core) with two threads; each further thread
// adds one more transfer of the line that counts all of them. Transfers between cores take up to
// eight times as long if they share no L3: 130 to 1000 cycles per barrier, 3000 to 8000 per team.
inline double barrier_cycles(int members) { return members > 1 ? 400.0 * members : 0; }
inline double team_cycles(int threads) { return threads > 1 ? 5200 + barrier_cycles(threads) : 0; }
inline constexpr double line_from_core_cycles = 20;  // a cache line that another core wrote
inline constexpr double tile_cycles = 30;
inline constexpr double activation_cycles = 20;  // of a line's tanh

// Cycles of a multiply-add with one line of B, and of fetching that line from the memory that holds
// `bytes`, where a part of each cache is for other data.
inline constexpr double multiply_add_cycles = 1;
inline double fetch_cycles(const Caches& caches, double bytes) {
  return bytes <= 0.875 * static_cast<double>(caches.l1)  ? 1
         : bytes <= 0.75 * static_cast<double>(caches.l2) ? 2
                                                          : 2.5;
}

// A product of some rows and columns with all of the hidden units as inner dimension.
inline double product_cycles(const Shape& s, double rows, double columns) {
  const double panels = std::ceil(columns / static_cast<double>(s.panel_columns));
  const auto inner = static_cast<double>(s.gates * s.hidden_size);
  const double tiles = std::max(
      1.0, (rows + static_cast<double>(s.tile_rows) - 1) / static_cast<double>(s.tile_rows));
  const double bytes = columns * inner * static_cast<double>(s.element_size);
  const double line = std::max(rows * multiply_add_cycles, tiles * fetch_cycles(s.caches, bytes));
  return line * s.lines(columns) * inner + panels * tiles * tile_cycles;
}

inline double step_cycles(const Shape& s, double rows, double columns) {
  return product_cycles(s, rows, columns) *
             (1 + static_cast<double>(s.projected) / static_cast<double>(s.hidden_size)) +
         rows * s.lines(columns) * activation_cycles;
}

}  // namespace cost

// A way to run one direction.
struct Choice {
  int groups;
  int members;    // of each group
  double cycles;  // except for starting the team

  int threads() const { return groups * members; }
};

inline Choice judge(const Shape& s, int groups, int members) {
  const auto ceil_div = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
  const auto hidden_size = static_cast<double>(s.hidden_size);
  // Of the thread with the most work.
  const std::int64_t rows = ceil_div(s.batch, groups);
  const std::int64_t panels = ceil_div(s.panels(), members);
  const std::int64_t columns = std::min(s.hidden_size, panels * s.panel_columns);
  // Every thread packs a part of the weights and uses those of its columns.
  const double weight_lines =
      static_cast<double>((s.input_size + s.hidden_size) * s.element_size) * hidden_size / 64;
  const double foreign_lines = weight_lines * (groups - 1) / (groups * members);
  const double row_products = cost::product_cycles(s, static_cast<double>(s.batch), hidden_size) *
                              static_cast<double>(s.row_products) / hidden_size /
                              (groups * members);
  const double step = cost::step_cycles(s, static_cast<double>(rows), static_cast<double>(columns));
  const double barriers = static_cast<double>(s.products) * cost::barrier_cycles(members);
  return {groups, members,
          foreign_lines * cost::line_from_core_cycles +
              static_cast<double>(s.steps) * (step + barriers + row_products)};
}

// The best way to run one direction on at most `threads` threads.
inline Choice choose(const Shape& s, int threads) {
  const auto total = [](const Choice& c) { return c.cycles + cost::team_cycles(c.threads()); };
  Choice best = judge(s, 1, 1);
  for (int members = 1; members <= std::min<std::int64_t>(threads, s.panels()); ++members) {
    for (int groups = members == 1 ? 2 : 1;
         groups <= std::min<std::int64_t>(threads / members, s.batch); ++groups) {
      const Choice choice = judge(s, groups, members);
      if (total(choice) < total(best)) {
        best = choice;
      }
    }
  }
  return best;
}

inline Plan make_plan(const Shape& s, int threads) {
  const auto plan = [](const Choice& c, bool directions_at_once) {
    return Plan{static_cast<std::uint16_t>(c.groups), directions_at_once,
                c.threads() * (directions_at_once ? 2 : 1)};
  };
  const Choice alone = judge(s, 1, 1);
  if (threads == 1 || alone.cycles <= cost::team_cycles(2)) {
    return plan(alone, false);  // no team, of any size, can be started in that time
  }
  const Choice all = choose(s, threads);
  if (s.independent_directions) {
    const Choice half = choose(s, threads / 2);
    if (half.cycles + cost::team_cycles(2 * half.threads()) <
        2 * (all.cycles + cost::team_cycles(all.threads()))) {
      return plan(half, true);
    }
  }
  return plan(all, false);
}

// Rows whose input projection is computed ahead of the steps that use them: few enough to stay in
// cache, enough for an efficient product.
inline std::int64_t projection_rows(std::int64_t hidden_size) {
  return std::clamp<std::int64_t>(65536 / std::max<std::int64_t>(1, hidden_size), 256, 2048);
}

// The maximum of rows whose weight gradients are summed at a time: a multiple of the reduction
// block. A chunk is whole steps, so the order of that sum depends on the batch, too, but never on
// the threads.
inline std::int64_t gradient_rows(std::int64_t hidden_size) {
  constexpr std::int64_t block = 256;
  return std::clamp<std::int64_t>(65536 / std::max<std::int64_t>(1, hidden_size) / block, 1, 8) *
         block;
}

// The steps t of one chunk, in time order.
struct Chunk {
  std::int64_t first = 0;
  std::int64_t last = -1;  // inclusive
  std::int64_t rows = 0;

  std::int64_t steps() const { return last - first + 1; }
};

// The chunk that starts with the s-th step of `order` and takes as many further steps as keep it
// within `rows`, at least one.
inline Chunk take_chunk(const Steps& steps, TimeOrder order, std::int64_t s, std::int64_t rows) {
  const std::int64_t start = order.step(s);
  std::int64_t t = start;
  std::int64_t total = steps.rows(t);
  while (++s < order.count && total + steps.rows(order.step(s)) <= rows) {
    t = order.step(s);
    total += steps.rows(t);
  }
  return {std::min(start, t), std::max(start, t), total};
}

// The rows of a chunk's steps that a group computes. All groups compute equally many, up to one row
// a step: in packed input the first rows are in more steps than the last ones.
inline Range rows_of_group(const Steps& steps, const Chunk& chunk, int group, int groups) {
  const auto cut = [&](std::int64_t work) {
    std::int64_t row = 0;
    for (std::int64_t t = chunk.last; t >= chunk.first && work > 0; --t) {
      const std::int64_t count = t - chunk.first + 1;  // steps that have all rows of step t
      const std::int64_t whole = std::min(work / count, steps.rows(t) - row);
      row += whole;
      work -= whole * count;
      if (row < steps.rows(t)) {
        break;
      }
    }
    return row;
  };
  return {cut(chunk.rows * group / groups), cut(chunk.rows * (group + 1) / groups)};
}

}  // namespace rnn_ext::cpu
