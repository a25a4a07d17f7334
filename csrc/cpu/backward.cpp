// Backpropagation through time for a whole sequence.
//
//   dz_t = (dy_t + W_hhᵀ dz_{t+1}) φ'(z_t)
//
// and the gradients that follow from dz (reductions.h).
//
// The sequence is processed in chunks of steps, from the end. dz exists for two chunks at a time:
// the current and the previous one, from whose first step the recurrence continues. When a chunk's
// dz is complete, all products over many rows are computed for it. If values are stored in 16 bits,
// the recurrence's dz is kept in T.
#include <algorithm>
#include <functional>

#include "cpu/recurrent_weight.h"
#include "cpu/reductions.h"

namespace rnn_ext::cpu {
namespace {

template <class S, class O>
class Backward {
  using T = Arithmetic<S>;
  using Rows = RowGradients<T, O>;
  static constexpr bool rounds_dz = !std::is_same_v<O, T>;  // for all but the recurrence

 public:
  Backward(const BackwardTask<S>& task, const Kernels<S, O>& kernels, const Plan&)
      : p_(task.problem),
        g_(task.gradients),
        kernels_(kernels),
        chunk_rows_(gradient_rows(p_.hidden_size)),
        rows_(std::min(std::max(chunk_rows_, p_.steps.batch), p_.steps.total_rows())),
        weight_hh_(kernels, p_, p_.weight_hh, static_cast<bool>(g_.hx)),
        dz_{Buffer<T>(rows_ * p_.hidden_size), Buffer<T>(rows_ * p_.hidden_size)},
        rounded_dz_(rounds_dz ? rows_ * p_.hidden_size : 0),
        joined_(g_.output && g_.h_n ? p_.steps.batch * p_.hidden_size : 0),
        gathered_(g_.output && g_.output.column_stride != 1 ? p_.steps.batch * p_.hidden_size : 0),
        reductions_(p_, g_, {1}, false, rows_, kernels) {}

  void run(const Team::Member& member, StepShare& share) const {
    weight_hh_.pack(column_share(kernels_, p_.hidden_size, member));
    reductions_.pack(member);
    member.barrier();
    Pass pass{*this, member, share};
    run_steps(p_.steps, p_.order().reversed(), chunk_rows_, share, pass);
    reductions_.finish(member);
  }

 private:
  // One member's loop over the steps.
  struct Pass {
    const Backward& b;
    const Team::Member& member;
    const StepShare& share;
    int parity = 0;
    std::int64_t first = 0;      // row of the current chunk
    Rows dz = {};                // of the chunk
    Matrix<const T> later = {};  // dz of the previous step
    bool accumulate = false;

    void begin(const Chunk& chunk) {
      first = b.p_.steps.offset(chunk.first);
      dz = b.dz_of(parity);
    }

    void step(std::int64_t t, Range carried, Range ending, Range) {
      const Rows target = dz.from(b.p_.steps.offset(t) - first);
      b.retreat(t, carried, share.columns, target, later);
      b.retreat(t, ending, share.columns, target, {});
      later = target.values;
    }

    void end(const Chunk& chunk, bool) {
      member.barrier();
      b.reductions_.initial_gradient(chunk, dz, false, member,
                                     [&](Range columns) { return b.weight_hh_.product(columns); });
      b.reductions_.run(chunk, dz, dz, {}, accumulate, member);
      parity ^= 1;
      accumulate = true;
    }
  };

  Rows dz_of(int parity) const {
    const Matrix<T> values = as_rows(dz_[parity], p_.hidden_size);
    if constexpr (rounds_dz) {
      return {values, as_rows(rounded_dz_, p_.hidden_size)};
    } else {
      return {values, values};
    }
  }

  // dz for some rows of step t; `later` null: their last step, where the gradient of h_n enters.
  void retreat(std::int64_t t, Range rows, Range columns, const Rows& dz,
               Matrix<const T> later) const {
    if (rows.empty() || columns.empty()) {
      return;
    }
    const Matrix<const S> h = p_.output.at(p_.steps, t);
    Product<S> product = weight_hh_.product(columns);
    product.rows = rows.size();
    product.inner = later ? p_.hidden_size : 0;
    product.a = later ? later.row(rows.begin) : nullptr;
    product.a_stride = later.row_stride;
    product.c = dz.values.row(rows.begin) + columns.begin;
    product.c_stride = dz.values.row_stride;
    if constexpr (rounds_dz) {
      product.stored = dz.operand.row(rows.begin) + columns.begin;
      product.stored_stride = dz.operand.row_stride;
    }
    product.finish = Finish::chain;
    product.nonlinearity = p_.nonlinearity;
    product.h = h.row(rows.begin) + columns.begin;
    product.h_stride = h.row_stride;
    add_seed(product, t, rows, columns, !later);
    kernels_.product(product);
  }

  // Adds dy_t, and the gradient of h_n where rows end.
  void add_seed(Product<S>& product, std::int64_t t, Range rows, Range columns, bool ending) const {
    const Matrix<const S> dy = g_.output ? g_.output.at(p_.steps, t) : Matrix<const S>{};
    const Matrix<const S> last = ending ? g_.h_n : Matrix<const S>{};
    if (dy && last) {
      // Rows that end skip the product, so that the order of this sum is the same as for any other.
      const Matrix<T> sum = as_rows(joined_, p_.hidden_size);
      for (std::int64_t b = rows.begin; b < rows.end; ++b) {
        const S *const from_dy = dy.row(b), *const from_last = last.row(b);
        T* const to = sum.row(b);
        for (std::int64_t c = columns.begin; c < columns.end; ++c) {
          to[c] = static_cast<T>(from_dy[c * dy.column_stride]) + static_cast<T>(from_last[c]);
        }
      }
      product.init = sum.row(rows.begin) + columns.begin;
      product.init_stride = sum.row_stride;
    } else if (dy || last) {
      const Matrix<const S> seed = in_unit_columns(dy ? dy : last, rows, columns);
      product.seed = seed.row(rows.begin) + columns.begin;
      product.seed_stride = seed.row_stride;
    }
  }

  // `m`, or a copy of these elements in this member's part of gathered_.
  Matrix<const S> in_unit_columns(Matrix<const S> m, Range rows, Range columns) const {
    if (m.column_stride == 1) {
      return m;
    }
    const Matrix<S> copy = as_rows(gathered_, p_.hidden_size);
    for (std::int64_t b = rows.begin; b < rows.end; ++b) {
      const S* const from = m.row(b);
      S* const to = copy.row(b);
      for (std::int64_t c = columns.begin; c < columns.end; ++c) {
        to[c] = from[c * m.column_stride];
      }
    }
    return copy;
  }

  const Problem<S>& p_;
  const Gradients<S>& g_;
  const Kernels<S, O>& kernels_;
  std::int64_t chunk_rows_;
  std::int64_t rows_;  // maximum of a chunk
  RecurrentWeight<S, O> weight_hh_;
  Buffer<T> dz_[2];
  Buffer<O> rounded_dz_;
  Buffer<T> joined_;
  Buffer<S> gathered_;
  Reductions<S, O> reductions_;
};

// Whether two directions that run at once give the same bits of dx as one after the other: if its
// sums are single chains, and not rounded between the directions. The second direction then has its
// own memory for dx, which has to be small.
template <class S>
bool can_add_up_dx(const Problem<S>& p) {
  constexpr std::int64_t most = std::int64_t{1} << 20;
  return !is_widened<S> && p.hidden_size <= reduction_block &&
         p.steps.total_rows() * p.input_size <= most;
}

}  // namespace

template <class S, class O>
void run_backward(const std::vector<BackwardTask<S>>& tasks, const Kernels<S, O>& kernels,
                  int threads, ParallelFor parallel_for) {
  const Scratch::Scope scratch;
  const Problem<S>& p = tasks.front().problem;
  const Sequence<S>& dx = tasks.front().gradients.input;
  const Plan plan = plan_of(tasks, !dx || can_add_up_dx(p), kernels, 0,
                            row_products(p, tasks.front().gradients), threads);
  if (!plan.directions_at_once || !dx) {
    run_directions<Backward<S, O>>(tasks, plan, kernels, parallel_for, [](const Team::Member&) {});
    return;
  }
  std::vector<BackwardTask<S>> apart = tasks;
  const std::int64_t count = p.steps.total_rows() * p.input_size;
  const Buffer<S> second(count);
  apart[1].gradients.input = {second.data(), p.steps.batch * p.input_size, p.input_size};
  apart[1].gradients.add_to_input = false;
  run_directions<Backward<S, O>>(
      apart, plan, kernels, parallel_for, [&](const Team::Member& member) {
        member.barrier();
        const Range share = member.share(count);
        if constexpr (!is_widened<S>) {
          std::transform(dx.data + share.begin, dx.data + share.end, second.data() + share.begin,
                         dx.data + share.begin, std::plus<S>());
        }
      });
}

template void run_backward(const std::vector<BackwardTask<float>>&, const Kernels<float>&, int,
                           ParallelFor);
template void run_backward(const std::vector<BackwardTask<double>>&, const Kernels<double>&, int,
                           ParallelFor);
template void run_backward(const std::vector<BackwardTask<BFloat16>>&, const Kernels<BFloat16>&,
                           int, ParallelFor);
template void run_backward(const std::vector<BackwardTask<BFloat16>>&,
                           const Kernels<BFloat16, BFloat16>&, int, ParallelFor);
template void run_backward(const std::vector<BackwardTask<Half>>&, const Kernels<Half>&, int,
                           ParallelFor);

}  // namespace rnn_ext::cpu
