// The gradients of the states that replace a row's states in the middle of a sequence.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/cell_recurrence.h"

namespace rnn_ext::cpu {

template <class S, class O>
class ResetGradients {
  using T = Arithmetic<S>;

 public:
  ResetGradients(const Problem<S>& problem, const CellOperands<S>& cell,
                 const CellGradients<S>& gradients, const Kernels<S, O>& kernels)
      : p_(problem), cell_(cell), gradients_(gradients), kernels_(kernels) {
    const std::int64_t size = p_.steps.batch * p_.hidden_size;
    for (int s = 0; s < cell_.program->states; ++s) {
      const std::int64_t sums = is_widened<S> ? steps(s) * size : 0;
      sums_.push_back(Buffer<T>(sums));
      std::fill_n(sums_[s].data(), sums, T{0});
    }
  }

  bool wants(int state) const { return static_cast<bool>(target(state)); }

  // Moves the gradients of the rows that step t resets out of a state's gradients, which are of
  // these rows and columns.
  void cut(int state, std::int64_t t, Range rows, Range columns, Matrix<T> gradients) const {
    const Sequence<T> sums = sums_of(state);
    cell_.resets.for_each(t, rows, [&](std::int64_t row) {
      T* const from = gradients.row(row - rows.begin);
      T* const to = sums ? sums.at(p_.steps, t).row(row) + columns.begin : nullptr;
      for (std::int64_t c = 0; c < columns.size() && to; ++c) {
        to[c] += from[c];
      }
      std::fill_n(from, columns.size(), T{0});
    });
  }

  // Copies a member's part of the sums to the results.
  void store(const StepShare& share) const {
    for (int s = 0; s < cell_.program->states && is_widened<S>; ++s) {
      for (std::int64_t t = 0; t < steps(s); ++t) {
        write_back(kernels_, sums_of(s).at(p_.steps, t), target(s).at(p_.steps, t), share.rows,
                   share.columns);
      }
    }
  }

 private:
  Sequence<S> target(int state) const {
    return cell_.resets ? gradients_.reset_states[state] : Sequence<S>{};
  }
  // The number of its steps: one for all steps, or one for each.
  std::int64_t steps(int state) const {
    const Sequence<S> wanted = target(state);
    return !wanted ? 0 : wanted.step_stride == 0 ? 1 : p_.steps.count;
  }

  // The memory for the sums of the gradients: their own, or copies in T.
  Sequence<T> sums_of(int state) const {
    const Sequence<S> wanted = target(state);
    if constexpr (is_widened<S>) {
      const std::int64_t step = wanted.step_stride ? p_.steps.batch * p_.hidden_size : 0;
      return {sums_[state].data(), step, p_.hidden_size, 1};
    } else {
      return wanted;
    }
  }

  const Problem<S>& p_;
  const CellOperands<S>& cell_;
  const CellGradients<S>& gradients_;
  const Kernels<S, O>& kernels_;
  std::vector<Buffer<T>> sums_;
};

}  // namespace rnn_ext::cpu
