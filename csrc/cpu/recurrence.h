// The whole sequence, forward and backward, on a team of threads: forward.cpp and backward.cpp.
// Neither sees torch.
#pragma once

#include <vector>

#include "common/problem.h"
#include "cpu/kernels.h"
#include "cpu/plan.h"
#include "cpu/scratch.h"
#include "cpu/settings.h"
#include "cpu/team.h"

namespace rnn_ext::cpu {

template <class T>
struct ForwardTask {
  Problem<T> problem;
  Matrix<T> h_n;  // (batch, hidden), written
};

template <class T>
struct BackwardTask {
  Problem<T> problem;
  Gradients<T> gradients;
};

// One task for each direction of a layer. All have the same steps, of at least one row each.
template <class T>
void run_forward(const std::vector<ForwardTask<T>>& tasks, const Kernels<T>& kernels, int threads,
                 ParallelFor parallel_for);
template <class T>
void run_backward(const std::vector<BackwardTask<T>>& tasks, const Kernels<T>& kernels, int threads,
                  ParallelFor parallel_for);

// The columns [0, count) of a packed operand that a member works on: whole panels.
template <class T>
Range column_share(const Kernels<T>& kernels, std::int64_t count, const Team::Member& member) {
  return member.share(count, kernels.panel_columns);
}

template <class T>
std::int64_t packed_size(const Kernels<T>& kernels, std::int64_t columns, std::int64_t inner) {
  return (columns + kernels.panel_columns - 1) / kernels.panel_columns * kernels.panel_columns *
         inner;
}

// The rows and columns of every step that a member computes.
struct StepShare {
  Range rows;
  Range columns;
  bool meets;  // whether the members must meet after each step

  template <class T>
  static StepShare of(const Plan& plan, const Problem<T>& p, const Kernels<T>& kernels,
                      const Team::Member& member) {
    if (plan.split == Split::columns) {
      return {{0, p.steps.batch}, column_share(kernels, p.hidden_size, member), member.size() > 1};
    }
    return {member.share(p.steps.batch), {0, p.hidden_size}, false};
  }
};

// Runs the directions of a layer one after the other on one team. A Direction is built from a task,
// which takes its scratch memory, and then run by every member.
template <class Direction, class Task, class T>
void run_directions(const std::vector<Task>& tasks, const Kernels<T>& kernels, int threads,
                    ParallelFor parallel_for) {
  const Problem<T>& p = tasks.front().problem;
  const Plan plan = plan_for({p.steps.count, p.steps.batch, p.input_size, p.hidden_size, sizeof(T),
                              kernels.panel_columns, kernels.tile_rows},
                             threads);
  const Scratch::Scope scratch;
  std::vector<Direction> directions;
  directions.reserve(tasks.size());
  for (const Task& task : tasks) {
    directions.emplace_back(task, kernels, plan);
  }
  const auto body = [&](Team::Member member) {
    for (const Direction& direction : directions) {
      direction.run(member);
    }
  };
  Team::run(parallel_for, plan.threads, body);
}

}  // namespace rnn_ext::cpu
