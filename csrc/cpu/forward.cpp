// h_t = φ(W_ih x_t + b + W_hh h_{t-1}) for a whole sequence.
//
// The pre-activation never has a tensor of its own: the input projection of a chunk of steps is
// written where h_t will be, while the chunk is still in cache the recurrence adds W_hh h_{t-1}
// to it, applies φ and overwrites it. Both weights are packed once per call. Where values are
// stored in 16 bits, the chunk stands in scratch memory and each h_t is rounded into the output,
// while the recurrence goes on from the unrounded one.
#include <algorithm>
#include <cstring>

#include "cpu/recurrence.h"

namespace rnn_ext::cpu {
namespace {

template <class S>
class Forward {
  using T = Arithmetic<S>;

 public:
  Forward(const ForwardTask<S>& task, const Kernels<S>& kernels, const Plan& plan)
      : p_(task.problem),
        h_n_(task.h_n),
        kernels_(kernels),
        plan_(plan),
        gathers_(is_widened<S> || !p_.input.is_linear(p_.steps)),
        keeps_rows_(is_widened<S> && plan.split != Split::columns && !p_.steps.batch_sizes),
        chunk_rows_(
            projection_rows(gathers_ ? std::max(p_.hidden_size, p_.input_size) : p_.hidden_size)),
        weight_ih_(packed_size(kernels, p_.hidden_size, p_.input_size)),
        weight_hh_(packed_size(kernels, p_.hidden_size, p_.hidden_size)),
        bias_(p_.bias_ih || p_.bias_hh ? p_.hidden_size : 0),
        zeros_(p_.hx ? 0 : p_.hidden_size),
        from_zeros_(p_.hx ? 0 : p_.hidden_size) {
    const std::int64_t rows =
        std::min(std::max(chunk_rows_, p_.steps.batch), p_.steps.total_rows());
    if (gathers_) {
      input_ = Buffer<T>(rows * p_.input_size);
    }
    if (is_widened<S>) {
      states_ = Buffer<T>(rows * p_.hidden_size);
      carried_ = Buffer<T>(p_.steps.batch * p_.hidden_size);
      hx_ = Buffer<T>(p_.hx ? p_.steps.batch * p_.hidden_size : 0);
    }
    std::fill_n(zeros_.data(), p_.hx ? 0 : p_.hidden_size, T{0});
  }

  void run(Team::Member& member) const {
    pack(member);
    const auto share = StepShare::of(plan_, p_, kernels_, member);
    const Matrix<const T> hx =
        p_.hx ? readable(kernels_, p_.hx, share.rows, share.columns, as_rows(hx_, p_.hidden_size))
              : Matrix<const T>{};
    member.barrier();
    const Matrix<const T> h0 = p_.hx ? hx : implied_state();
    Matrix<const T> previous;
    for (std::int64_t s = 0; s < p_.steps.count;) {
      const Chunk chunk = take_chunk(p_, s, 1, chunk_rows_);
      project(chunk, share, member);
      for (const std::int64_t end = s + chunk.last - chunk.first + 1; s < end; ++s) {
        const std::int64_t t = p_.step(s);
        const Matrix<T> h = states(chunk, t, share);
        step(t, h, previous, h0, share);
        previous = h;
        if (share.meets) {
          member.barrier();
        }
      }
      store(chunk, share);
      if (is_widened<S> && s < p_.steps.count) {
        previous = carry(p_.step(s - 1), previous, share);
        member.barrier();  // before the chunk's memory is used again
      }
    }
  }

 private:
  // The states of step t. In scratch memory, a member that keeps to its batch rows has those of all
  // steps side by side, so that no core writes into another's cache.
  Matrix<T> states(const Chunk& chunk, std::int64_t t, const StepShare& share) const {
    if constexpr (!is_widened<S>) {
      return p_.output.at(p_.steps, t);
    }
    if (!keeps_rows_) {
      return as_rows(states_, p_.hidden_size)
          .part(p_.steps.offset(t) - p_.steps.offset(chunk.first), 0);
    }
    const std::int64_t at = own_rows(chunk, share).begin;
    return as_rows(states_, p_.hidden_size)
        .part(at + (t - chunk.first) * share.rows.size() - share.rows.begin, 0);
  }

  // The rows of a chunk's scratch memory that belong to a member.
  Range own_rows(const Chunk& chunk, const StepShare& share) const {
    const std::int64_t steps = chunk.last - chunk.first + 1;
    return {share.rows.begin * steps, share.rows.end * steps};
  }

  void pack(const Team::Member& member) const {
    const Range columns = column_share(kernels_, p_.hidden_size, member);
    if (columns.empty()) {
      return;
    }
    kernels_.pack_transposed(p_.weight_ih.part(columns.begin, 0), columns.size(), p_.input_size,
                             weight_ih_.data() + columns.begin * p_.input_size);
    kernels_.pack_transposed(p_.weight_hh.part(columns.begin, 0), columns.size(), p_.hidden_size,
                             weight_hh_.data() + columns.begin * p_.hidden_size);
    if (!p_.hx) {
      Product<S> product;
      product.rows = 1;
      product.inner = p_.hidden_size;
      product.columns = columns.size();
      product.a = zeros_.data();
      product.b = weight_hh_.data() + columns.begin * p_.hidden_size;
      product.c = from_zeros_.data() + columns.begin;
      kernels_.product(product);
    }
    if (bias_.data()) {
      const auto value = [](Matrix<const S> bias, std::int64_t c) {
        return bias ? static_cast<T>(bias.data[c * bias.column_stride]) : T{0};
      };
      for (std::int64_t c = columns.begin; c < columns.end; ++c) {
        bias_.data()[c] = value(p_.bias_ih, c) + value(p_.bias_hh, c);
      }
    }
  }

  // What stands for a missing hx: nothing where its product can be left out. It means zeros, but
  // W_hh times zeros is NaN where W_hh is not finite, and that has to show.
  Matrix<const T> implied_state() const {
    const T* products = from_zeros_.data();
    const bool finite =
        std::all_of(products, products + p_.hidden_size, [](T x) { return x == T{0}; });
    return finite ? Matrix<const T>{} : Matrix<const T>{zeros_.data(), 0, 1};
  }

  // Writes W_ih x + b for the chunk where its states will be. A member that keeps its columns
  // through all steps projects those, for all rows; one that has gathered its batch rows, these;
  // otherwise the chunk's rows are shared out evenly, whichever batch row they belong to.
  void project(const Chunk& chunk, const StepShare& share, Team::Member& member) const {
    const Matrix<const T> x = linear_input(chunk, share, member);
    const Matrix<T> h =
        writable(p_.output.at(p_.steps, chunk.first), as_rows(states_, p_.hidden_size));
    const bool by_columns = plan_.split == Split::columns;
    const Range rows = by_columns    ? Range{0, chunk.rows}
                       : keeps_rows_ ? own_rows(chunk, share)
                                     : member.share(chunk.rows);
    const Range columns = share.columns;
    if (!rows.empty() && !columns.empty()) {
      Product<S> product;
      product.rows = rows.size();
      product.inner = p_.input_size;
      product.columns = columns.size();
      product.a = x.row(rows.begin);
      product.a_stride = x.row_stride;
      product.b = weight_ih_.data() + columns.begin * p_.input_size;
      product.init = bias_.data() ? bias_.data() + columns.begin : nullptr;
      product.c = h.row(rows.begin) + columns.begin;
      product.c_stride = h.row_stride;
      kernels_.product(product);
    }
    if (!by_columns && !keeps_rows_) {
      member.barrier();
    }
  }

  // The chunk's input rows at one stride and in T; gathered where they do not lie so.
  Matrix<const T> linear_input(const Chunk& chunk, const StepShare& share,
                               Team::Member& member) const {
    const Matrix<T> gathered = as_rows(input_, p_.input_size);
    if constexpr (!is_widened<S>) {
      if (!gathers_) {
        return p_.input.at(p_.steps, chunk.first);
      }
    }
    if (keeps_rows_) {
      for_own_runs(chunk, share, gathered, p_.input,
                   [&](std::int64_t rows, Matrix<T> own, Matrix<const S> x) {
                     kernels_.widen(x, rows, p_.input_size, own);
                   });
      return gathered;
    }
    for_linear_runs(p_.input, p_.steps, chunk, member.share(chunk.rows),
                    [&](Range rows, Matrix<const S> x) {
                      kernels_.widen(x, rows.size(), p_.input_size, gathered.part(rows.begin, 0));
                    });
    member.barrier();
    return gathered;
  }

  // Calls f(count, rows in scratch memory, the same rows of x) until all of a member's rows of a
  // chunk have come: steps of a batch row or batch rows of a step, whichever makes fewer calls.
  template <class U, class F>
  void for_own_runs(const Chunk& chunk, const StepShare& share, Matrix<T> scratch,
                    const Sequence<U>& x, F&& f) const {
    const std::int64_t steps = chunk.last - chunk.first + 1;
    const std::int64_t own = share.rows.size();
    const Matrix<T> mine = scratch.part(own_rows(chunk, share).begin, 0);
    const Matrix<U> first = x.at(p_.steps, chunk.first).part(share.rows.begin, 0);
    const bool over_time = own < steps;
    for (std::int64_t i = 0; i < (over_time ? own : steps); ++i) {
      if (over_time) {
        f(steps, Matrix<T>{mine.row(i), own * mine.row_stride, 1},
          Matrix<U>{first.row(i), x.step_stride, first.column_stride});
      } else {
        f(own, mine.part(i * own, 0),
          Matrix<U>{first.data + i * x.step_stride, first.row_stride, first.column_stride});
      }
    }
  }

  void step(std::int64_t t, Matrix<T> h, Matrix<const T> previous, Matrix<const T> h0,
            const StepShare& share) const {
    const std::int64_t carried = p_.steps.rows_or_none(p_.previous(t));
    const Range rows = share.rows.below(p_.steps.rows(t));
    advance(h, rows.below(carried), share.columns, previous);
    advance(h, rows.from(carried), share.columns, h0);

    // Rows that the next step does not have end here.
    const Range ending = rows.from(p_.steps.rows_or_none(p_.next(t)));
    kernels_.narrow(h.part(ending.begin, share.columns.begin), ending.size(), share.columns.size(),
                    h_n_.part(ending.begin, share.columns.begin));
  }

  // Brings a member's states of a chunk to the output.
  void store(const Chunk& chunk, const StepShare& share) const {
    if (!is_widened<S>) {
      return;
    }
    if (keeps_rows_) {
      for_own_runs(chunk, share, as_rows(states_, p_.hidden_size), p_.output,
                   [&](std::int64_t rows, Matrix<T> own, Matrix<S> y) {
                     kernels_.narrow(own, rows, p_.hidden_size, y);
                   });
      return;
    }
    if (share.rows.size() == p_.steps.batch) {
      write_back(kernels_, as_rows(states_, p_.hidden_size), p_.output.at(p_.steps, chunk.first),
                 {0, chunk.rows}, share.columns);
      return;
    }
    for (std::int64_t t = chunk.first; t <= chunk.last; ++t) {
      write_back(kernels_, states(chunk, t, share), p_.output.at(p_.steps, t),
                 share.rows.below(p_.steps.rows(t)), share.columns);
    }
  }

  // h = φ(h + W_hh previous) for some rows of a step; previous null: zeros.
  void advance(Matrix<T> h, Range rows, Range columns, Matrix<const T> previous) const {
    if (rows.empty() || columns.empty()) {
      return;
    }
    Product<S> product;
    product.rows = rows.size();
    product.inner = previous ? p_.hidden_size : 0;
    product.columns = columns.size();
    product.a = previous ? previous.row(rows.begin) : nullptr;
    product.a_stride = previous.row_stride;
    product.b = weight_hh_.data() + columns.begin * p_.hidden_size;
    product.c = h.row(rows.begin) + columns.begin;
    product.c_stride = h.row_stride;
    product.init = product.c;
    product.init_stride = product.c_stride;
    product.finish =
        p_.nonlinearity == Nonlinearity::tanh ? Finish::activate_tanh : Finish::activate_relu;
    kernels_.product(product);
  }

  // Keeps aside the state that the next chunk starts from.
  Matrix<const T> carry(std::int64_t t, Matrix<const T> h, const StepShare& share) const {
    const Matrix<T> carried = as_rows(carried_, p_.hidden_size);
    const Range rows = share.rows.below(p_.steps.rows(t));
    for (std::int64_t b = rows.begin; b < rows.end; ++b) {
      std::memcpy(carried.row(b) + share.columns.begin, h.row(b) + share.columns.begin,
                  share.columns.size() * sizeof(T));
    }
    return carried;
  }

  const Problem<S>& p_;
  Matrix<S> h_n_;
  const Kernels<S>& kernels_;
  const Plan& plan_;
  bool gathers_;
  bool keeps_rows_;  // each member has the scratch memory of its own batch rows
  std::int64_t chunk_rows_;
  Buffer<T> weight_ih_;
  Buffer<T> weight_hh_;
  Buffer<T> bias_;
  Buffer<T> zeros_;
  Buffer<T> from_zeros_;  // W_hh times zeros
  Buffer<T> input_;
  Buffer<T> states_;
  Buffer<T> carried_;
  Buffer<T> hx_;
};

}  // namespace

template <class S>
void run_forward(const std::vector<ForwardTask<S>>& tasks, const Kernels<S>& kernels, int threads,
                 ParallelFor parallel_for) {
  run_directions<Forward<S>>(tasks, kernels, threads, parallel_for);
}

template void run_forward(const std::vector<ForwardTask<float>>&, const Kernels<float>&, int,
                          ParallelFor);
template void run_forward(const std::vector<ForwardTask<double>>&, const Kernels<double>&, int,
                          ParallelFor);
template void run_forward(const std::vector<ForwardTask<BFloat16>>&, const Kernels<BFloat16>&, int,
                          ParallelFor);
template void run_forward(const std::vector<ForwardTask<Half>>&, const Kernels<Half>&, int,
                          ParallelFor);

}  // namespace rnn_ext::cpu
