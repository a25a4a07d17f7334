// The whole sequence, forward and backward, on a team of threads: forward.cpp, backward.cpp and
// tangent.cpp. None sees torch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "common/problem.h"
#include "cpu/kernels.h"
#include "cpu/plan.h"
#include "cpu/scratch.h"
#include "cpu/settings.h"
#include "cpu/team.h"

namespace rnn_ext::cpu {

template <class S>
struct ForwardTask {
  Problem<S> problem;
  Matrix<S> h_n;                // (batch, hidden), written
  std::byte* packed = nullptr;  // the weights, as a PackedLayer; null: packed if that pays
};

template <class S>
struct BackwardTask {
  Problem<S> problem;
  Gradients<S> gradients;
};

template <class S>
struct TangentTask {
  Problem<S> problem;      // weight_hh is W, hx is y before the first step, output is h
  Sequence<const S> seed;  // column stride 1
  Sequence<S> tangent;     // linear, column stride 1; written
};

// Resets of batch rows: before a step that resets it, a row takes these states instead of those
// after the previous step, or of the initial ones.
template <class S>
struct Resets {
  Matrix<const std::uint8_t> flags;       // of each step, for each row; null: no resets
  std::vector<Sequence<const S>> states;  // column stride 1

  constexpr explicit operator bool() const { return static_cast<bool>(flags); }
  bool at(std::int64_t t, std::int64_t row) const { return *flags.part(t, row).data != 0; }
  bool any(std::int64_t t, Range rows) const {
    bool found = false;
    if (*this) {
      for_each(t, rows, [&](std::int64_t) { found = true; });
    }
    return found;
  }
  // Copies the states before step t, with those of its reset rows replaced by `given`.
  template <class U>
  void replace(std::int64_t t, Range rows, Range columns, Matrix<const U> before,
               Matrix<const S> given, Matrix<U> target) const {
    for (std::int64_t r = rows.begin; r < rows.end; ++r) {
      U* const to = target.row(r) + columns.begin;
      std::copy_n(before.row(r) + columns.begin, columns.size(), to);
      for (std::int64_t c = 0; at(t, r) && c < columns.size(); ++c) {
        to[c] = static_cast<U>(given.row(r)[columns.begin + c]);
      }
    }
  }
  // Calls f(row) for those of these rows that are reset at step t.
  template <class F>
  void for_each(std::int64_t t, Range rows, F&& f) const {
    for (std::int64_t r = rows.begin; r < rows.end; ++r) {
      if (at(t, r)) {
        f(r);
      }
    }
  }
};

// One task for each direction of a layer. All have the same steps, of at least one row each.
template <class S, class O>
void run_forward(const std::vector<ForwardTask<S>>& tasks, const Kernels<S, O>& kernels,
                 int threads, ParallelFor parallel_for);
template <class S, class O>
void run_backward(const std::vector<BackwardTask<S>>& tasks, const Kernels<S, O>& kernels,
                  int threads, ParallelFor parallel_for);
template <class S, class O>
void run_tangent(const std::vector<TangentTask<S>>& tasks, const Kernels<S, O>& kernels,
                 int threads, ParallelFor parallel_for);

// Values stored as S are computed in T = Arithmetic<S>. If the types differ, the kernels read and
// write copies in T, of one step or chunk, which stay in cache.
template <class S>
inline constexpr bool is_widened = !std::is_same_v<S, Arithmetic<S>>;

// Scratch memory as rows of `columns` values.
template <class T>
Matrix<T> as_rows(const Buffer<T>& buffer, std::int64_t columns) {
  return {buffer.data(), columns, 1};
}

// The operand that the kernels read for `m`: m itself if they can read it, or else `copy`, after
// writing its rows × columns.
template <class S, class O>
Matrix<const Arithmetic<S>> readable(const Kernels<S, O>& kernels, Matrix<const S> m, Range rows,
                                     Range columns, Matrix<Arithmetic<S>> copy) {
  if constexpr (!is_widened<S>) {
    if (m.column_stride == 1) {
      return m;
    }
  }
  kernels.widen(m.part(rows.begin, columns.begin), rows.size(), columns.size(),
                copy.part(rows.begin, columns.begin));
  return copy;
}

// The memory that the kernels write for `m`: m itself, or `copy`, which write_back copies to m.
template <class S>
Matrix<Arithmetic<S>> writable(Matrix<S> m, Matrix<Arithmetic<S>> copy) {
  if constexpr (is_widened<S>) {
    return copy;
  } else {
    return m;
  }
}

template <class S, class O>
void write_back(const Kernels<S, O>& kernels, Matrix<const Arithmetic<S>> written, Matrix<S> m,
                Range rows, Range columns) {
  if constexpr (is_widened<S>) {
    kernels.narrow(written.part(rows.begin, columns.begin), rows.size(), columns.size(),
                   m.part(rows.begin, columns.begin));
  }
}

// Calls f(rows, source) for each run of the rows in `share` of a chunk that have one stride in x.
// The first row of source is row rows.begin of the chunk.
template <class S, class F>
void for_linear_runs(const Sequence<const S>& x, const Steps& steps, const Chunk& chunk,
                     Range share, F&& f) {
  if (x.is_linear(steps)) {
    f(share, x.at(steps, chunk.first).part(share.begin, 0));
    return;
  }
  for (std::int64_t t = chunk.first, at = 0; t <= chunk.last; at += steps.rows(t), ++t) {
    const Range rows = Range{at, at + steps.rows(t)}.from(share.begin).below(share.end);
    if (!rows.empty()) {
      f(rows, x.at(steps, t).part(rows.begin - at, 0));
    }
  }
}

// The columns [0, count) of a packed operand that a member works on: whole panels.
template <class S, class O>
Range column_share(const Kernels<S, O>& kernels, std::int64_t count, const Team::Member& member) {
  return member.share(count, kernels.panel_columns);
}

// The inner dimension of operands packed in O.
template <class S, class O>
std::int64_t filled(const Kernels<S, O>& kernels, std::int64_t inner) {
  return (inner + kernels.terms - 1) / kernels.terms * kernels.terms;
}

template <class S, class O>
std::int64_t packed_size(const Kernels<S, O>& kernels, std::int64_t columns, std::int64_t inner) {
  return (columns + kernels.panel_columns - 1) / kernels.panel_columns * kernels.panel_columns *
         filled(kernels, inner);
}

// Whether a weight is left unpacked, because packing it costs more than it saves in this many
// products of `rows` rows.
template <class S, class O>
bool reads_in_place(const Kernels<S, O>& kernels, std::int64_t products, std::int64_t rows) {
  return products * ((rows + kernels.tile_rows - 1) / kernels.tile_rows) <= most_tiles_in_place;
}
// Whether it is left unpacked, because a packed copy would leave the caches before its only use.
inline bool is_used_once(std::int64_t products, std::int64_t values) {
  constexpr std::int64_t few = std::int64_t{1} << 16;
  return products <= 1 && values >= few;
}

// The rows of step t whose sequence starts there.
template <class S>
Range starting_rows(const Problem<S>& p, std::int64_t t) {
  return Range{0, p.steps.rows(t)}.from(p.steps.rows_or_none(p.order().previous(t)));
}

// A product with some columns of B: their packed panels or, without these, B in place.
template <class S, class O>
Product<S, O> product_by(Matrix<const S> b, Range columns, const O* panels) {
  Product<S, O> product;
  product.columns = columns.size();
  if (panels) {
    product.b = panels;
  } else {
    product.unpacked = b.part(0, columns.begin);
  }
  return product;
}

// The rows and columns of the steps that a member computes.
struct StepShare {
  Team::Member group;  // the members that share these rows and synchronize after each step
  int group_index;
  int groups;
  Range rows;  // of the current chunk; before the first one, of the batch
  Range columns;

  template <class S, class O>
  static StepShare of(const Plan& plan, const Problem<S>& p, const Kernels<S, O>& kernels,
                      const Team::Member& member, Barrier* barriers) {
    const int groups = std::min<int>(plan.groups, member.size());
    const auto [group, index] =
        groups > 1 ? member.in_parts(groups, barriers) : std::pair{member, 0};
    return {group, index, groups, Range::share(p.steps.batch, 1, index, groups),
            column_share(kernels, p.hidden_size, group)};
  }
};

// Runs a member's part of every step, in this order and in chunks of at most `chunk_rows` rows:
// pass.begin(chunk); pass.step(t, carried, starting, ending) for each step, with the member's rows
// that the previous step has too, those whose sequence starts here, and those (of both)
// whose sequence ends here; pass.end(chunk, is_last). The members of a group synchronize after each
// step. In packed input a chunk's rows may be other groups' in the next one: all members have to
// synchronize between two chunks.
template <class Pass>
void run_steps(const Steps& steps, TimeOrder order, std::int64_t chunk_rows, StepShare& share,
               Pass& pass) {
  for (std::int64_t s = 0; s < order.count;) {
    const Chunk chunk = take_chunk(steps, order, s, chunk_rows);
    if (share.groups > 1) {
      share.rows = rows_of_group(steps, chunk, share.group_index, share.groups);
    }
    pass.begin(chunk);
    for (const std::int64_t end = s + chunk.steps(); s < end; ++s) {
      const std::int64_t t = order.step(s);
      const Range rows = share.rows.below(steps.rows(t));
      const std::int64_t carried = steps.rows_or_none(order.previous(t));
      pass.step(t, rows.below(carried), rows.from(carried),
                rows.from(steps.rows_or_none(order.next(t))));
      share.group.barrier();
    }
    pass.end(chunk, s == order.count);
  }
}

// The plan for a layer's directions, which are independent if neither reads what the other writes.
template <class Task, class S, class O>
Plan plan_of(const std::vector<Task>& tasks, bool independent, const Kernels<S, O>& kernels,
             std::int64_t projected, std::int64_t row_products, int threads, std::int64_t gates = 1,
             std::int64_t products = 1) {
  const Problem<S>& p = tasks.front().problem;
  return plan_for({p.steps.count, p.steps.batch, p.input_size, p.hidden_size, projected,
                   row_products, sizeof(Arithmetic<S>), kernels.panel_columns, kernels.tile_rows,
                   independent && tasks.size() == 2, gates, products},
                  threads);
}

// Runs these directions of a layer on one team, then finish(member). A Direction is built from a
// task, which takes its scratch memory, and then run by every member of its team, each for its
// share of the steps.
template <class Direction, class Task, class S, class O, class Finish>
void run_on_a_team(std::span<const Task> tasks, const Plan& plan, const Kernels<S, O>& kernels,
                   ParallelFor parallel_for, Finish finish) {
  const Scratch::Scope scratch;
  std::vector<Direction> directions;
  directions.reserve(tasks.size());
  for (const Task& task : tasks) {
    directions.emplace_back(task, kernels, plan);
  }
  std::vector<Barrier> halves(plan.directions_at_once ? 2 : 0);
  const bool meet_in_groups = plan.groups > 1 && plan.groups < plan.threads_of_a_direction();
  std::vector<Barrier> groups(meet_in_groups ? 2 * plan.groups : 0);
  const auto run = [&](std::size_t direction, const Team::Member& member, int half) {
    Barrier* const barriers = meet_in_groups ? &groups[half * plan.groups] : nullptr;
    StepShare share = StepShare::of(plan, tasks[direction].problem, kernels, member, barriers);
    directions[direction].run(member, share);
  };
  const auto body = [&](const Team::Member& member) {
    if (plan.directions_at_once && member.size() > 1) {
      const auto [own, half] = member.in_parts(2, halves.data());
      run(half, own, half);
    } else {
      for (std::size_t direction = 0; direction < tasks.size(); ++direction) {
        run(direction, member, 0);
      }
    }
    finish(member);
  };
  Team::run(parallel_for, plan.threads, body);
}

// Runs the directions of a layer: at once, or one after the other in the same scratch memory.
template <class Direction, class Task, class S, class O, class Finish>
void run_directions(const std::vector<Task>& tasks, const Plan& plan, const Kernels<S, O>& kernels,
                    ParallelFor parallel_for, Finish finish) {
  const std::span<const Task> all(tasks);
  if (plan.directions_at_once) {
    run_on_a_team<Direction>(all, plan, kernels, parallel_for, finish);
    return;
  }
  for (std::size_t direction = 0; direction < all.size(); ++direction) {
    run_on_a_team<Direction>(all.subspan(direction, 1), plan, kernels, parallel_for, finish);
  }
}

}  // namespace rnn_ext::cpu
