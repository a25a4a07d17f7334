// Backpropagation through time for a whole sequence.
//
//   dz_t = (dy_t + W_hhᵀ dz_{t+1}) φ'(z_t)
//   dx_t = W_ihᵀ dz_t,  dW_ih = Σ dz_t x_tᵀ,  dW_hh = Σ dz_t h_{t-1}ᵀ,  db = Σ dz_t
//
// or, where tokens stand for x, dtable[k] = Σ dz_t over the rows whose token is k.
//
// The sequence is walked in chunks of steps, from the end. dz exists for two chunks at a time (the
// one at hand and the one before it, whose first step the recurrence goes on from); once a
// chunk's dz is complete, everything that is a product over many rows is done for all of it.
// Where values are stored in 16 bits, the recurrence's dz and all sums are kept in T and rounded
// once; products that take values as they are stored (O is S) take a rounded copy of dz.
#include <algorithm>
#include <cstring>
#include <functional>

#include "cpu/recurrence.h"

namespace rnn_ext::cpu {
namespace {

template <class S, class O>
class Backward {
  using T = Arithmetic<S>;
  static constexpr bool rounds_dz = !std::is_same_v<O, T>;  // for all but the recurrence

 public:
  Backward(const BackwardTask<S>& task, const Kernels<S, O>& kernels, const Plan&)
      : p_(task.problem),
        g_(task.gradients),
        kernels_(kernels),
        chunk_rows_(gradient_rows(p_.hidden_size)),
        weight_hh_(recurrent_size(kernels, p_, static_cast<bool>(g_.hx))) {
    const std::int64_t h = p_.hidden_size;
    const std::int64_t rows =
        std::min(std::max(chunk_rows_, p_.steps.batch), p_.steps.total_rows());
    if (g_.input && (rounds_dz || !reads_in_place(kernels, 1, p_.steps.total_rows()))) {
      weight_ih_ = Buffer<O>(packed_size(kernels, p_.input_size, h));
    }
    for (auto& dz : dz_) {
      dz = Buffer<T>(rows * h);
    }
    if (rounds_dz) {
      rounded_dz_ = Buffer<O>(rows * h);
    }
    joined_ = Buffer<T>(g_.output && g_.h_n ? p_.steps.batch * h : 0);
    gathered_ = Buffer<S>(g_.output && g_.output.column_stride != 1 ? p_.steps.batch * h : 0);
    if (is_widened<S>) {
      grad_hx_ = Buffer<T>(g_.hx ? p_.steps.batch * h : 0);
      grad_input_ = Buffer<T>(g_.input ? rows * p_.input_size : 0);
      grad_weight_ih_ = Buffer<T>(g_.weight_ih ? h * p_.input_size : 0);
      grad_weight_hh_ = Buffer<T>(g_.weight_hh ? h * h : 0);
      grad_bias_ = Buffer<T>(h);
    }
    if (g_.weight_ih || g_.weight_hh) {
      const std::int64_t tiles = (h + kernels.tile_rows - 1) / kernels.tile_rows;
      dz_tiles_ = Buffer<O>(tiles * kernels.tile_rows * filled(kernels, rows));
    }
    if (g_.weight_ih) {
      inputs_ = Buffer<O>(packed_size(kernels, p_.input_size, rows));
    }
    if (g_.weight_hh) {
      states_ = Buffer<O>(packed_size(kernels, h, rows));
      zeros_ = Buffer<S>(h);
      std::fill_n(zeros_.data(), h, S{});
    }
  }

  void run(const Team::Member& member, const StepShare& share) const {
    pack_weights(member);
    member.barrier();
    const T* later_dz = nullptr;  // of the step after the chunk's last, in processing order
    bool accumulate = false;
    int parity = 0;
    for (std::int64_t s = p_.steps.count - 1; s >= 0; parity ^= 1, accumulate = true) {
      const Chunk chunk = take_chunk(p_, s, -1, chunk_rows_);
      const Dz dz = dz_of(chunk, parity);
      for (const std::int64_t end = s - chunk.steps(); s > end; --s) {
        const std::int64_t t = p_.step(s);
        step(t, dz, later_dz, share);
        later_dz = dz.row(p_.steps.offset(t));
        share.group.barrier();
      }
      member.barrier();
      input_gradients(chunk, dz, member);
      pack_operands(chunk, dz, member);
      member.barrier();
      weight_gradients(chunk, dz, accumulate, member);
    }
    write_back_weights(member);
  }

 private:
  // The dz of one chunk: rows in time order, from row `first` of the sequence on; as the recurrence
  // takes them, and as the products over all of the chunk do.
  struct Dz {
    T* data;
    O* operand;
    std::int64_t first;
    std::int64_t stride;

    T* row(std::int64_t r) const { return data + (r - first) * stride; }
    O* operand_row(std::int64_t r) const { return operand + (r - first) * stride; }
  };

  Dz dz_of(const Chunk& chunk, int parity) const {
    T* const data = dz_[parity].data();
    const std::int64_t first = p_.steps.offset(chunk.first);
    if constexpr (rounds_dz) {
      return {data, rounded_dz_.data(), first, p_.hidden_size};
    } else {
      return {data, data, first, p_.hidden_size};
    }
  }

  void pack_weights(const Team::Member& member) const {
    const Range states = column_share(kernels_, p_.hidden_size, member);
    if (weight_hh_.data() && !states.empty()) {
      kernels_.pack(p_.weight_hh.part(0, states.begin), states.size(), p_.hidden_size,
                    weight_hh_.data() + states.begin * p_.hidden_size, p_.hidden_size, 0);
    }
    const Range inputs = column_share(kernels_, p_.input_size, member);
    if (weight_ih_.data() && !inputs.empty()) {
      kernels_.pack_operand(p_.weight_ih.part(0, inputs.begin), inputs.size(), p_.hidden_size,
                            weight_ih_.data() + inputs.begin * filled(kernels_, p_.hidden_size),
                            p_.hidden_size, 0);
    }
  }

  // A product by these columns of W_hh.
  Product<S> recurrent_product(Range columns) const {
    const T* panels = weight_hh_.from(columns.begin * p_.hidden_size);
    return product_by(p_.weight_hh, columns, panels);
  }

  void step(std::int64_t t, const Dz& dz, const T* later_dz, const StepShare& share) const {
    const std::int64_t carried = std::min(p_.steps.rows_or_none(p_.next(t)), p_.steps.rows(t));
    const Range rows = share.rows.below(p_.steps.rows(t));
    retreat(t, rows.below(carried), share.columns, dz, later_dz);
    retreat(t, rows.from(carried), share.columns, dz, nullptr);
  }

  // dz for some rows of step t; later_dz null: their last step, where the gradient of h_n enters.
  void retreat(std::int64_t t, Range rows, Range columns, const Dz& dz, const T* later_dz) const {
    if (rows.empty() || columns.empty()) {
      return;
    }
    const Matrix<const S> h = p_.output.at(p_.steps, t);
    const std::int64_t first = p_.steps.offset(t) + rows.begin;
    Product<S> product = recurrent_product(columns);
    product.rows = rows.size();
    product.inner = later_dz ? p_.hidden_size : 0;
    product.a = later_dz ? later_dz + rows.begin * p_.hidden_size : nullptr;
    product.a_stride = p_.hidden_size;
    product.c = dz.row(first) + columns.begin;
    product.c_stride = p_.hidden_size;
    if constexpr (rounds_dz) {
      product.stored = dz.operand_row(first) + columns.begin;
      product.stored_stride = p_.hidden_size;
    }
    product.finish = Finish::chain;
    product.nonlinearity = p_.nonlinearity;
    product.h = h.row(rows.begin) + columns.begin;
    product.h_stride = h.row_stride;
    add_seed(product, t, rows, columns, later_dz == nullptr);
    kernels_.product(product);
  }

  // Adds dy_t, and the gradient of h_n where rows end.
  void add_seed(Product<S>& product, std::int64_t t, Range rows, Range columns, bool ending) const {
    const Matrix<const S> dy = g_.output ? g_.output.at(p_.steps, t) : Matrix<const S>{};
    const Matrix<const S> last = ending ? g_.h_n : Matrix<const S>{};
    if (dy && last) {
      // Nothing is multiplied where rows end, so that the order of this sum is that of any other.
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

  // dx of the chunk, and dhx of the rows that start in it.
  void input_gradients(const Chunk& chunk, const Dz& dz, const Team::Member& member) const {
    if (g_.input) {
      const Range rows = member.share(chunk.rows);
      const Matrix<S> target = g_.input.at(p_.steps, chunk.first);
      const Matrix<T> dx = writable(target, as_rows(grad_input_, p_.input_size));
      const O* panels = weight_ih_.data();
      Product<S, O> product = product_by(p_.weight_ih, {0, p_.input_size}, panels);
      product.rows = rows.size();
      product.inner = p_.hidden_size;
      product.a = dz.operand + rows.begin * p_.hidden_size;
      product.a_stride = p_.hidden_size;
      product.c = dx.row(rows.begin);
      product.c_stride = dx.row_stride;
      if constexpr (is_widened<S>) {
        product.stored = target.row(rows.begin);
        product.stored_stride = target.row_stride;
        product.seed = g_.add_to_input ? product.stored : nullptr;
        product.seed_stride = target.row_stride;
      } else {
        product.init = g_.add_to_input ? product.c : nullptr;
        product.init_stride = product.c_stride;
      }
      kernels_.operand_product(product);
    }
    if (!g_.hx) {
      return;
    }
    const Range columns = column_share(kernels_, p_.hidden_size, member);
    const Matrix<T> dhx = writable(g_.hx, as_rows(grad_hx_, p_.hidden_size));
    for (std::int64_t t = chunk.first; t <= chunk.last && !columns.empty(); ++t) {
      const Range rows = starting_rows(t);
      if (rows.empty()) {
        continue;
      }
      Product<S> product = recurrent_product(columns);
      product.rows = rows.size();
      product.inner = p_.hidden_size;
      product.a = dz.row(p_.steps.offset(t) + rows.begin);
      product.a_stride = p_.hidden_size;
      product.c = dhx.row(rows.begin) + columns.begin;
      product.c_stride = dhx.row_stride;
      if (is_widened<S>) {
        product.stored = g_.hx.row(rows.begin) + columns.begin;
        product.stored_stride = g_.hx.row_stride;
      }
      kernels_.product(product);
    }
  }

  // The rows of step t that come from hx rather than from a step.
  Range starting_rows(std::int64_t t) const {
    return Range{0, p_.steps.rows(t)}.from(p_.steps.rows_or_none(p_.previous(t)));
  }

  // The chunk's x and h_{t-1} in panels, and dz in tiles: the operands of the weight gradients.
  // Panels are shared out by rows, since a narrow operand has but one of them.
  void pack_operands(const Chunk& chunk, const Dz& dz, const Team::Member& member) const {
    const Range rows = member.share(chunk.rows, kernels_.terms);
    if (g_.weight_ih) {
      for_linear_runs(p_.input, p_.steps, chunk, rows, [&](Range run, Matrix<const S> x) {
        kernels_.pack_operand(x, p_.input_size, run.size(), inputs_.data(), chunk.rows, run.begin);
      });
    }
    if (g_.weight_hh) {
      pack_states(chunk, dz, rows);
    }
    if (dz_tiles_.data()) {
      const Range columns = member.share(p_.hidden_size, kernels_.tile_rows);
      kernels_.pack_tiles({dz.operand + columns.begin, p_.hidden_size, 1}, columns.size(),
                          chunk.rows,
                          dz_tiles_.data() + columns.begin * filled(kernels_, chunk.rows));
    }
  }

  // Of the states before the chunk's steps, the rows in `share`.
  void pack_states(const Chunk& chunk, const Dz& dz, Range share) const {
    // Rows [at, at + count) of the operand are those of `source`.
    const auto write = [&](Matrix<const S> source, std::int64_t at, std::int64_t count) {
      const Range rows = Range{at, at + count}.from(share.begin).below(share.end);
      if (!rows.empty()) {
        kernels_.pack_operand(source.part(rows.begin - at, 0), p_.hidden_size, rows.size(),
                              states_.data(), chunk.rows, rows.begin);
      }
    };
    const Matrix<const S> hx = p_.hx ? p_.hx : Matrix<const S>{zeros_.data(), 0, 1};
    const std::int64_t lead = p_.reverse ? 1 : -1;
    std::int64_t t = chunk.first;
    while (t <= chunk.last) {
      const std::int64_t at = p_.steps.offset(t) - dz.first;
      const std::int64_t carried = std::min(p_.steps.rows_or_none(t + lead), p_.steps.rows(t));
      if (carried > 0) {
        // Steps of full batches lie one after the other, and so do the states before them.
        const std::int64_t end = p_.steps.batch_sizes ? t : last_with_previous(chunk);
        const Matrix<const S> h = p_.output.at(p_.steps, t + lead);
        write(h, at, end > t ? (end - t + 1) * p_.steps.batch : carried);
        if (end > t) {
          t = end + 1;
          continue;
        }
      }
      const Range starting = starting_rows(t);
      write(hx.part(starting.begin, 0), at + carried, starting.size());
      ++t;
    }
  }

  std::int64_t last_with_previous(const Chunk& chunk) const {
    return p_.reverse ? std::min(chunk.last, p_.steps.count - 2) : chunk.last;
  }

  // A member owns rows of dW, so that each element is summed by one thread in one order.
  void weight_gradients(const Chunk& chunk, const Dz& dz, bool accumulate,
                        const Team::Member& member) const {
    const Range rows = member.share(p_.hidden_size, kernels_.tile_rows);
    if (rows.empty()) {
      return;
    }
    const auto add = [&](Matrix<T> gradient, std::int64_t columns, const Buffer<O>& panels) {
      if (gradient) {
        OuterProduct<O> product;
        product.inner = chunk.rows;
        product.rows = rows.size();
        product.columns = columns;
        product.a = dz_tiles_.data() + rows.begin * filled(kernels_, chunk.rows);
        product.b = panels.data();
        product.g = gradient.row(rows.begin);
        product.g_stride = gradient.row_stride;
        product.accumulate = accumulate;
        kernels_.outer_product(product);
      }
    };
    add(sums_ih(), p_.input_size, inputs_);
    add(sums_hh(), p_.hidden_size, states_);
    if (const Matrix<T> bias = bias_sums()) {
      kernels_.column_sums({dz.data + rows.begin, p_.hidden_size, 1}, chunk.rows, rows.size(),
                           bias.data + rows.begin, accumulate);
    }
    if constexpr (!is_widened<S>) {
      add_to_table(chunk, dz, rows);
    }
  }

  // Of the table's gradient the columns that a member owns, in order of the chunk's rows.
  void add_to_table(const Chunk& chunk, const Dz& dz, Range columns) const {
    for (std::int64_t r = 0; g_.table && r < chunk.rows; ++r) {
      const std::int64_t row = dz.first + r;
      kernels_.column_sums({dz.row(row) + columns.begin, p_.hidden_size, 1}, 1, columns.size(),
                           g_.table.row(p_.tokens[row]) + columns.begin, true);
    }
  }

  // Where the weight gradients are added up.
  Matrix<T> sums_ih() const {
    return writable(g_.weight_ih, as_rows(grad_weight_ih_, p_.input_size));
  }
  Matrix<T> sums_hh() const {
    return writable(g_.weight_hh, as_rows(grad_weight_hh_, p_.hidden_size));
  }
  Matrix<T> bias_sums() const {
    const Matrix<S> target = g_.bias_ih ? g_.bias_ih : g_.bias_hh;
    return target ? writable(target, as_rows(grad_bias_, p_.hidden_size)) : Matrix<T>{};
  }

  // Brings a member's rows of the sums to where they belong.
  void write_back_weights(const Team::Member& member) const {
    const Range rows = member.share(p_.hidden_size, kernels_.tile_rows);
    if (g_.weight_ih) {
      write_back(kernels_, sums_ih(), g_.weight_ih, rows, {0, p_.input_size});
    }
    if (g_.weight_hh) {
      write_back(kernels_, sums_hh(), g_.weight_hh, rows, {0, p_.hidden_size});
    }
    const Matrix<S> first = g_.bias_ih ? g_.bias_ih : g_.bias_hh;
    if (first) {
      write_back(kernels_, bias_sums(), first, {0, 1}, rows);
    }
    if (g_.bias_ih && g_.bias_hh && !rows.empty()) {
      std::memcpy(g_.bias_hh.data + rows.begin, g_.bias_ih.data + rows.begin,
                  rows.size() * sizeof(S));
    }
  }

  const Problem<S>& p_;
  const Gradients<S>& g_;
  const Kernels<S, O>& kernels_;
  std::int64_t chunk_rows_;
  Buffer<T> weight_hh_;  // packed; without memory where the weight is read in place
  Buffer<O> weight_ih_;  // likewise, and where no gradient of the input is wanted
  Buffer<T> dz_[2];
  Buffer<O> rounded_dz_;
  Buffer<T> joined_;
  Buffer<S> gathered_;
  Buffer<O> dz_tiles_;
  Buffer<O> inputs_;
  Buffer<O> states_;
  Buffer<S> zeros_;
  Buffer<T> grad_hx_;
  Buffer<T> grad_input_;
  Buffer<T> grad_weight_ih_;
  Buffer<T> grad_weight_hh_;
  Buffer<T> grad_bias_;
};

// Columns of what is multiplied by the dz of all rows.
template <class S>
std::int64_t row_products(const BackwardTask<S>& task) {
  const auto& [p, g] = task;
  return (g.input ? p.input_size : 0) + (g.weight_ih ? p.input_size : 0) +
         (g.weight_hh ? p.hidden_size : 0);
}

// Whether two directions that run at once give the dx that one after the other do, to the bit: if
// its sums are single chains, and not rounded between the directions. The second then has memory of
// its own, which has to be small.
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
  const Plan plan =
      plan_of(tasks, !dx || can_add_up_dx(p), kernels, 0, row_products(tasks.front()), threads);
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
