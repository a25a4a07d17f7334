// h_t = φ(W_ih x_t + b + W_hh h_{t-1}) for a whole sequence.
//
// The pre-activation never has a tensor of its own: the input projection of a chunk of steps is
// written where h_t will be, while the chunk is still in cache the recurrence adds W_hh h_{t-1}
// to it, applies φ and overwrites it. A weight is packed once per call, or read where it is if it
// is used too little for that. Where values are stored in 16 bits, the chunk stands in scratch
// memory and each h_t is rounded into the output, while the recurrence goes on from the unrounded
// one.
#include <algorithm>
#include <cstring>

#include "cpu/recurrence.h"

namespace rnn_ext::cpu {
namespace {

template <class S, class O>
class Forward {
  using T = Arithmetic<S>;
  static constexpr bool takes_stored = std::is_same_v<S, O>;  // the projection does
  // A W_ih of fewer values stays in a cache while it is packed for the whole call.
  static constexpr std::int64_t few_weights = std::int64_t{1} << 18;

 public:
  Forward(const ForwardTask<S>& task, const Kernels<S, O>& kernels, const Plan& plan)
      : p_(task.problem),
        h_n_(task.h_n),
        kernels_(kernels),
        packs_ih_(!p_.tokens &&
                  (!std::is_same_v<O, T> || !reads_in_place(kernels, 1, p_.steps.total_rows()))),
        projects_once_(packs_ih_ && p_.steps.total_rows() <= 4 * projection_rows(p_.hidden_size) &&
                       p_.hidden_size * p_.input_size >= few_weights),
        keeps_rows_(!p_.steps.batch_sizes && !projects_once_),
        gathers_(!takes_stored || !(keeps_rows_ || p_.input.is_linear(p_.steps))),
        chunk_rows_(projects_once_
                        ? p_.steps.total_rows()
                        : projection_rows(gathers_ ? std::max(p_.hidden_size, p_.input_size)
                                                   : p_.hidden_size)),
        weight_ih_(packs_ih_ ? packed_size(kernels,
                                           projects_once_ ? plan.threads * kernels.panel_columns
                                                          : p_.hidden_size,
                                           p_.input_size)
                             : 0),
        weight_hh_(recurrent_size(kernels, p_, static_cast<bool>(p_.hx))),
        bias_(p_.bias_ih || p_.bias_hh ? p_.hidden_size : 0),
        zeros_(p_.hx ? 0 : p_.hidden_size),
        from_zeros_(p_.hx ? 0 : p_.hidden_size) {
    const std::int64_t rows =
        std::min(std::max(chunk_rows_, p_.steps.batch), p_.steps.total_rows());
    if (gathers_) {
      input_ = Buffer<O>(rows * p_.input_size);
    }
    if (is_widened<S>) {
      states_ = Buffer<T>(rows * p_.hidden_size);
      carried_ = Buffer<T>(p_.steps.batch * p_.hidden_size);
      hx_ = Buffer<T>(p_.hx ? p_.steps.batch * p_.hidden_size : 0);
    }
    std::fill_n(zeros_.data(), p_.hx ? 0 : p_.hidden_size, T{0});
  }

  void run(const Team::Member& member, const StepShare& share) const {
    pack(member);
    const Matrix<const T> hx =
        p_.hx ? readable(kernels_, p_.hx, share.rows, share.columns, as_rows(hx_, p_.hidden_size))
              : Matrix<const T>{};
    member.barrier();
    const Matrix<const T> h0 = p_.hx ? hx : implied_state();
    Matrix<const T> previous;
    for (std::int64_t s = 0; s < p_.steps.count;) {
      const Chunk chunk = take_chunk(p_, s, 1, chunk_rows_);
      const Sequence<T> h = states(chunk, share);
      project(chunk, h, share, member);
      for (const std::int64_t end = s + chunk.steps(); s < end; ++s) {
        const std::int64_t t = p_.step(s);
        step(t, h.at(p_.steps, t), previous, h0, share);
        previous = h.at(p_.steps, t);
        share.group.barrier();
      }
      store(chunk, h, share);
      if (is_widened<S> && s < p_.steps.count) {
        previous = carry(p_.step(s - 1), previous, share);
        // Before that is read, and the chunk's memory used again.
        (keeps_rows_ ? share.group : member).barrier();
      }
    }
  }

 private:
  // Where a chunk's states stand until they are stored.
  Sequence<T> states(const Chunk& chunk, const StepShare& share) const {
    if constexpr (is_widened<S>) {
      return in_scratch(states_, p_.hidden_size, chunk, share);
    } else {
      return p_.output;
    }
  }

  // A chunk in scratch memory of `columns` values a row. A group that keeps to its batch rows has
  // those of all steps side by side, in a part that is its own through all chunks: none writes into
  // another's cache, or has to wait for it.
  template <class U>
  Sequence<U> in_scratch(const Buffer<U>& buffer, std::int64_t columns, const Chunk& chunk,
                         const StepShare& share) const {
    if (!keeps_rows_) {
      return {buffer.data() - p_.steps.offset(chunk.first) * columns, p_.steps.batch * columns,
              columns, 1};
    }
    const std::int64_t steps =
        std::clamp<std::int64_t>(chunk_rows_ / p_.steps.batch, 1, p_.steps.count);
    const std::int64_t own = share.rows.size();
    const std::int64_t first = chunk.first * own + share.rows.begin;
    return {buffer.data() + (share.rows.begin * steps - first) * columns, own * columns, columns,
            1};
  }

  void pack(const Team::Member& member) const {
    const Range columns = column_share(kernels_, p_.hidden_size, member);
    if (columns.empty()) {
      return;
    }
    if (packs_ih_ && !projects_once_) {
      kernels_.pack_operand_transposed(
          p_.weight_ih.part(columns.begin, 0), columns.size(), p_.input_size,
          weight_ih_.data() + columns.begin * filled(kernels_, p_.input_size));
    }
    for (std::int64_t c = columns.begin; c < columns.end; c += kernels_.panel_columns) {
      prepare_recurrent(Range{c, c + kernels_.panel_columns}.below(columns.end));
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

  // A panel of W_hh: packs it, and without hx multiplies it by zeros while it is in cache.
  void prepare_recurrent(Range columns) const {
    if (weight_hh_.data()) {
      kernels_.pack_transposed(p_.weight_hh.part(columns.begin, 0), columns.size(), p_.hidden_size,
                               weight_hh_.data() + columns.begin * p_.hidden_size);
    }
    if (!p_.hx) {
      Product<S> product = recurrent_product(columns);
      product.rows = 1;
      product.inner = p_.hidden_size;
      product.a = zeros_.data();
      product.c = from_zeros_.data() + columns.begin;
      kernels_.product(product);
    }
  }

  // A product by these columns of W_hhᵀ.
  Product<S> recurrent_product(Range columns) const {
    const T* panels = weight_hh_.from(columns.begin * p_.hidden_size);
    return product_by(p_.weight_hh.transposed(), columns, panels);
  }

  // What stands for a missing hx: nothing where its product can be left out. It means zeros, but
  // W_hh times zeros is NaN where W_hh is not finite, and that has to show.
  Matrix<const T> implied_state() const {
    const T* products = from_zeros_.data();
    const bool finite =
        std::all_of(products, products + p_.hidden_size, [](T x) { return x == T{0}; });
    return finite ? Matrix<const T>{} : Matrix<const T>{zeros_.data(), 0, 1};
  }

  // Writes W_ih x + b for the chunk where its states will be: each member for its rows and columns
  // of the steps or, where these differ in rows, for an even share of the chunk's.
  void project(const Chunk& chunk, const Sequence<T>& h, const StepShare& share,
               const Team::Member& member) const {
    if (p_.tokens) {
      look_up(chunk, h, share);
      return;
    }
    const Sequence<const O> x = readable_input(chunk, share, member);
    const O* panels = weight_ih_.from(share.columns.begin * filled(kernels_, p_.input_size));
    if (keeps_rows_) {
      for_runs(chunk, share.rows, x, h, [&](std::int64_t rows, Matrix<const O> from, Matrix<T> to) {
        project_rows(rows, from, to, panels, share.columns);
      });
      return;
    }
    const Matrix<const O> from = x.at(p_.steps, chunk.first);
    const Matrix<T> to = h.at(p_.steps, chunk.first);
    if (projects_once_) {
      project_panels(chunk.rows, from, to, member);
    } else {
      const Range rows = Range::share(chunk.rows, 1, share.group_index, share.groups);
      project_rows(rows.size(), from.part(rows.begin, 0), to.part(rows.begin, 0), panels,
                   share.columns);
    }
    if (share.groups > 1) {
      member.barrier();
    }
  }

  // The same from the table: a member's rows and columns, which nobody else reads before the state
  // is there.
  void look_up(const Chunk& chunk, const Sequence<T>& h, const StepShare& share) const {
    for (std::int64_t t = chunk.first; t <= chunk.last; ++t) {
      const Matrix<T> target = h.at(p_.steps, t);
      for (std::int64_t b = share.rows.begin; b < share.rows.end; ++b) {
        const std::int64_t token = p_.tokens[p_.steps.offset(t) + b];
        kernels_.widen(p_.table.part(token, share.columns.begin), 1, share.columns.size(),
                       target.part(b, share.columns.begin));
      }
    }
  }

  // A panel of W_ih at a time, which is packed, used and forgotten: a packed copy of all of it
  // would be written to memory and read again for this one use.
  void project_panels(std::int64_t rows, Matrix<const O> x, Matrix<T> h,
                      const Team::Member& member) const {
    const Range own = column_share(kernels_, p_.hidden_size, member);
    O* const panel = weight_ih_.data() + member.rank() * packed_size(kernels_, 1, p_.input_size);
    for (std::int64_t c = own.begin; c < own.end; c += kernels_.panel_columns) {
      const Range columns = Range{c, c + kernels_.panel_columns}.below(own.end);
      kernels_.pack_operand_transposed(p_.weight_ih.part(c, 0), columns.size(), p_.input_size,
                                       panel);
      project_rows(rows, x, h, panel, columns);
    }
  }

  // For some rows, with the packed panels of these columns; null: with W_ih in place.
  void project_rows(std::int64_t rows, Matrix<const O> x, Matrix<T> h, const O* panels,
                    Range columns) const {
    if (rows <= 0 || columns.empty()) {
      return;
    }
    Product<S, O> product = product_by(p_.weight_ih.transposed(), columns, panels);
    product.rows = rows;
    product.inner = p_.input_size;
    product.a = x.data;
    product.a_stride = x.row_stride;
    product.init = bias_.data() ? bias_.data() + columns.begin : nullptr;
    product.c = h.data + columns.begin;
    product.c_stride = h.row_stride;
    kernels_.operand_product(product);
  }

  // The chunk's input; gathered where the kernels can't read it in place.
  Sequence<const O> readable_input(const Chunk& chunk, const StepShare& share,
                                   const Team::Member& member) const {
    if constexpr (takes_stored) {
      if (!gathers_) {
        return p_.input;
      }
    }
    const Sequence<O> gathered = in_scratch(input_, p_.input_size, chunk, share);
    if (keeps_rows_) {
      // The members of a group divide the steps between them, or the rows if these are more.
      Chunk steps = chunk;
      Range rows = share.rows;
      if (const std::int64_t count = chunk.steps(); count >= rows.size()) {
        const Range own = share.group.share(count);
        steps = {chunk.first + own.begin, chunk.first + own.end - 1};
      } else {
        const Range own = share.group.share(rows.size());
        rows = {rows.begin + own.begin, rows.begin + own.end};
      }
      for_runs(steps, rows, p_.input, gathered,
               [&](std::int64_t count, Matrix<const S> x, Matrix<O> to) {
                 kernels_.gather(x, count, p_.input_size, to);
               });
      share.group.barrier();
    } else {
      for_linear_runs(p_.input, p_.steps, chunk, member.share(chunk.rows),
                      [&](Range rows, Matrix<const S> x) {
                        kernels_.gather(x, rows.size(), p_.input_size,
                                        as_rows(input_, p_.input_size).part(rows.begin, 0));
                      });
      member.barrier();
    }
    return {gathered.data, gathered.step_stride, gathered.row_stride, 1};
  }

  // Calls f(count, a, b) until these batch rows of a chunk have come, in both sequences: at once
  // where they lie at one stride, or else steps of a batch row or batch rows of a step at a time,
  // whichever makes fewer calls.
  template <class A, class B, class F>
  void for_runs(const Chunk& chunk, Range rows, const Sequence<A>& a, const Sequence<B>& b,
                F&& f) const {
    const std::int64_t steps = chunk.steps();
    const std::int64_t own = rows.size();
    const Matrix<A> first_a = a.at(p_.steps, chunk.first).part(rows.begin, 0);
    const Matrix<B> first_b = b.at(p_.steps, chunk.first).part(rows.begin, 0);
    if (steps == 1 ||
        (a.step_stride == own * a.row_stride && b.step_stride == own * b.row_stride)) {
      f(steps * own, first_a, first_b);
    } else if (own < steps) {
      for (std::int64_t r = 0; r < own; ++r) {
        f(steps, Matrix<A>{first_a.row(r), a.step_stride, a.column_stride},
          Matrix<B>{first_b.row(r), b.step_stride, b.column_stride});
      }
    } else {
      for (std::int64_t t = 0; t < steps; ++t) {
        f(own, Matrix<A>{first_a.data + t * a.step_stride, a.row_stride, a.column_stride},
          Matrix<B>{first_b.data + t * b.step_stride, b.row_stride, b.column_stride});
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
    if (!ending.empty()) {
      kernels_.narrow(h.part(ending.begin, share.columns.begin), ending.size(),
                      share.columns.size(), h_n_.part(ending.begin, share.columns.begin));
    }
  }

  // Brings a member's states of a chunk to the output.
  void store(const Chunk& chunk, const Sequence<T>& h, const StepShare& share) const {
    if (!is_widened<S>) {
      return;
    }
    if (keeps_rows_) {
      for_runs(chunk, share.rows, h, p_.output,
               [&](std::int64_t rows, Matrix<const T> own, Matrix<S> y) {
                 write_back(kernels_, own, y, {0, rows}, share.columns);
               });
      return;
    }
    for (std::int64_t t = chunk.first; t <= chunk.last; ++t) {
      write_back(kernels_, h.at(p_.steps, t), p_.output.at(p_.steps, t),
                 share.rows.below(p_.steps.rows(t)), share.columns);
    }
  }

  // h = φ(h + W_hh previous) for some rows of a step; previous null: zeros.
  void advance(Matrix<T> h, Range rows, Range columns, Matrix<const T> previous) const {
    if (rows.empty() || columns.empty()) {
      return;
    }
    Product<S> product = recurrent_product(columns);
    product.rows = rows.size();
    product.inner = previous ? p_.hidden_size : 0;
    product.a = previous ? previous.row(rows.begin) : nullptr;
    product.a_stride = previous.row_stride;
    product.c = h.row(rows.begin) + columns.begin;
    product.c_stride = h.row_stride;
    product.init = product.c;
    product.init_stride = product.c_stride;
    product.finish = Finish::activate;
    product.nonlinearity = p_.nonlinearity;
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
  const Kernels<S, O>& kernels_;
  bool packs_ih_;
  bool projects_once_;  // all steps are one chunk, and W_ih is large
  bool keeps_rows_;     // each group computes its own batch rows from first to last
  bool gathers_;        // x is copied, into rows at one stride
  std::int64_t chunk_rows_;
  Buffer<O> weight_ih_;  // packed; without memory where the weight is read in place
  Buffer<T> weight_hh_;  // likewise
  Buffer<T> bias_;
  Buffer<T> zeros_;
  Buffer<T> from_zeros_;  // W_hh times zeros
  Buffer<O> input_;
  Buffer<T> states_;
  Buffer<T> carried_;
  Buffer<T> hx_;
};

}  // namespace

template <class S, class O>
void run_forward(const std::vector<ForwardTask<S>>& tasks, const Kernels<S, O>& kernels,
                 int threads, ParallelFor parallel_for) {
  const Scratch::Scope scratch;
  const Problem<S>& p = tasks.front().problem;
  const Plan plan = plan_of(tasks, true, kernels, p.tokens ? 0 : p.input_size, 0, threads);
  run_directions<Forward<S, O>>(tasks, plan, kernels, parallel_for, [](const Team::Member&) {});
}

template void run_forward(const std::vector<ForwardTask<float>>&, const Kernels<float>&, int,
                          ParallelFor);
template void run_forward(const std::vector<ForwardTask<double>>&, const Kernels<double>&, int,
                          ParallelFor);
template void run_forward(const std::vector<ForwardTask<BFloat16>>&, const Kernels<BFloat16>&, int,
                          ParallelFor);
template void run_forward(const std::vector<ForwardTask<BFloat16>>&,
                          const Kernels<BFloat16, BFloat16>&, int, ParallelFor);
template void run_forward(const std::vector<ForwardTask<Half>>&, const Kernels<Half>&, int,
                          ParallelFor);

}  // namespace rnn_ext::cpu
