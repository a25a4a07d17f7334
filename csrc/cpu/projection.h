// The input projection W_ih x_t + b of a chunk of steps, computed ahead of the recurrence.
//
// It is a product over many rows. The weight is packed once per call, or left unpacked if it is
// used too rarely to pay for packing. The weight has `gates` blocks of hidden_size rows, and the
// projection as many blocks of columns; or, for each tile of units, the columns of all gates side
// by side, in the layout of pack_gates: then a tile's product can start from it.
#pragma once

#include <algorithm>

#include "cpu/recurrence.h"

namespace rnn_ext::cpu {

enum class Bias { input, sum };  // the summand: b_ih, or b_ih + b_hh

template <class S, class O>
class Projection {
  using T = Arithmetic<S>;
  static constexpr bool takes_stored = std::is_same_v<S, O>;

 public:
  // tile_units: units of a tile, if its gates must be side by side. packed: W_ih, of one gate, if
  // the caller has packed it.
  Projection(const Problem<S>& problem, std::int64_t gates, Bias bias, const Kernels<S, O>& kernels,
             std::int64_t tile_units = 0, O* packed = nullptr)
      : p_(problem),
        gates_(gates),
        bias_kind_(bias),
        kernels_(kernels),
        projects_once_(!packed && !p_.tokens &&
                       !reads_in_place(kernels, 1, p_.steps.total_rows()) &&
                       p_.steps.total_rows() <= 4 * projection_rows(gates * p_.hidden_size) &&
                       is_used_once(1, gates * p_.hidden_size * p_.input_size)),
        packs_(!packed && !p_.tokens && !projects_once_ &&
               (!std::is_same_v<O, T> || !reads_in_place(kernels, 1, p_.steps.total_rows()))),
        tile_units_(std::is_same_v<O, T> && packs_ ? tile_units : 0),
        columns_(gates * (tile_units_ > 0 ? padded(p_.hidden_size) : p_.hidden_size)),
        keeps_rows_(!p_.steps.batch_sizes && !projects_once_),
        gathers_(!takes_stored || !(keeps_rows_ || p_.input.is_linear(p_.steps))),
        chunk_rows_(projects_once_
                        ? p_.steps.total_rows()
                        : projection_rows(gathers_ ? std::max(columns_, p_.input_size) : columns_)),
        panels_of_a_gate_(packed_size(kernels, p_.hidden_size, p_.input_size)),
        weight_(packed ? Buffer<O>::of(packed) : Buffer<O>(scratch_for_weight())),
        bias_(p_.bias_ih || (p_.bias_hh && bias == Bias::sum) ? columns_ : 0),
        input_(gathers_ ? buffered_rows() * p_.input_size : 0) {}

  std::int64_t columns() const { return columns_; }
  // Whether the gates of a tile of units are side by side.
  bool is_in_tiles() const { return tile_units_ > 0; }
  std::int64_t chunk_rows() const { return chunk_rows_; }
  // Rows of scratch memory that in_scratch() needs.
  std::int64_t buffered_rows() const {
    return std::min(std::max(chunk_rows_, p_.steps.batch), p_.steps.total_rows());
  }
  // Whether each group computes its own batch rows in all steps.
  bool keeps_rows() const { return keeps_rows_; }

  // Packs the weight and sums the biases: these columns of each gate.
  void pack(Range columns) const {
    if (columns.empty()) {
      return;
    }
    if (is_in_tiles()) {
      for_each_tile(columns, [&](Range units) {
        pack_tile(units);
        for (std::int64_t g = 0; bias_.data() && g < gates_; ++g) {
          pack_bias(g, units, bias_.data() + units.begin * gates_ + g * padded(units.size()));
        }
      });
      return;
    }
    for (std::int64_t g = 0; g < gates_; ++g) {
      if (packs_) {
        kernels_.pack_operand_transposed(p_.weight_ih.part(g * p_.hidden_size + columns.begin, 0),
                                         columns.size(), p_.input_size, panels(g, columns.begin));
      }
      if (bias_.data()) {
        pack_bias(g, columns, bias_.data() + g * p_.hidden_size + columns.begin);
      }
    }
  }

  // Writes the chunk's projection to u. Each member writes its rows and columns of the steps or, if
  // steps differ in rows, an even share of the chunk's rows.
  void run(const Chunk& chunk, const Sequence<T>& u, const StepShare& share,
           const Team::Member& member) const {
    if (p_.tokens) {
      look_up(chunk, u, share);
      if (p_.steps.batch_sizes && share.groups > 1) {
        member.barrier();  // other groups had some of these rows in the previous chunk
      }
      return;
    }
    const Sequence<const O> x = readable_input(chunk, share, member);
    if (keeps_rows_) {
      for_runs(chunk, share.rows, x, u, [&](std::int64_t rows, Matrix<const O> from, Matrix<T> to) {
        project_rows(rows, from, to, share.columns);
      });
      return;
    }
    const Matrix<const O> from = x.at(p_.steps, chunk.first);
    const Matrix<T> to = u.at(p_.steps, chunk.first);
    if (projects_once_) {
      multiply(chunk.rows, from, to, nullptr, column_share(kernels_, columns_, member));
    } else {
      const Range rows = Range::share(chunk.rows, 1, share.group_index, share.groups);
      project_rows(rows.size(), from.part(rows.begin, 0), to.part(rows.begin, 0), share.columns);
    }
    if (share.groups > 1 || (projects_once_ && gates_ > 1)) {
      member.barrier();
    }
  }

  // A chunk in scratch memory, `columns` values a row. A group that computes its own batch rows has
  // those of all steps in one part of the memory, the same for all chunks: no group writes into
  // another's cache or waits for it.
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

  // Calls f(count, a, b) for these batch rows of a chunk in both sequences: once if they have one
  // stride, else for all steps of a batch row or all batch rows of a step, whichever are fewer
  // calls.
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

 private:
  std::int64_t scratch_for_weight() const {
    return !packs_ ? 0 : tile_units_ > 0 ? columns_ * p_.input_size : gates_ * panels_of_a_gate_;
  }
  std::int64_t padded(std::int64_t units) const {
    return (units + kernels_.width - 1) & -kernels_.width;
  }

  template <class F>
  void for_each_tile(Range columns, F f) const {
    for (std::int64_t c = columns.begin; c < columns.end; c += tile_units_) {
      f(Range{c, c + tile_units_}.below(columns.end));
    }
  }

  void pack_tile(Range units) const {
    if constexpr (std::is_same_v<O, T>) {
      kernels_.pack_gates(p_.weight_ih.part(units.begin, 0), gates_, p_.hidden_size, units.size(),
                          p_.input_size, weight_.from(units.begin * gates_ * p_.input_size));
    }
  }

  void pack_bias(std::int64_t gate, Range units, T* to) const {
    const auto value = [](Matrix<const S> bias, std::int64_t c) {
      return bias ? static_cast<T>(bias.data[c * bias.column_stride]) : T{0};
    };
    const Matrix<const S> second = bias_kind_ == Bias::sum ? p_.bias_hh : Matrix<const S>{};
    const std::int64_t first = gate * p_.hidden_size;
    for (std::int64_t c = units.begin; c < units.end; ++c) {
      *to++ = value(p_.bias_ih, first + c) + value(second, first + c);
    }
  }

  // The packed columns of a gate from `column` on; null if the weight is not packed.
  O* panels(std::int64_t gate, std::int64_t column) const {
    return weight_.from(gate * panels_of_a_gate_ + column * filled(kernels_, p_.input_size));
  }

  // From the table: a member's rows and columns, which no other member reads before the state is
  // complete.
  void look_up(const Chunk& chunk, const Sequence<T>& u, const StepShare& share) const {
    const Matrix<const T> bias{bias_.data(), 0, 1};
    const std::int64_t columns = share.columns.size();
    for (std::int64_t t = chunk.first; t <= chunk.last; ++t) {
      const Matrix<T> target = u.at(p_.steps, t);
      const Range rows = share.rows.below(p_.steps.rows(t));
      for (std::int64_t b = rows.begin; b < rows.end; ++b) {
        const std::int64_t token = p_.tokens[p_.steps.offset(t) + b];
        for (std::int64_t g = 0; g < gates_; ++g) {
          const std::int64_t column = g * p_.hidden_size + share.columns.begin;
          kernels_.widen(p_.table.part(token, column), 1, columns, target.part(b, column));
          if (bias) {
            kernels_.column_sums(bias.part(0, column), 1, columns, target.row(b) + column, true);
          }
        }
      }
    }
  }

  // These columns of every gate.
  void project_rows(std::int64_t rows, Matrix<const O> x, Matrix<T> u, Range columns) const {
    if (is_in_tiles()) {
      for_each_tile(columns, [&](Range units) {
        const std::int64_t first = units.begin * gates_;
        const std::int64_t last = first + (gates_ - 1) * padded(units.size()) + units.size();
        multiply(rows, x, u, weight_.from(first * p_.input_size), {first, last});
      });
      return;
    }
    for (std::int64_t g = 0; g < gates_; ++g) {
      const std::int64_t first = g * p_.hidden_size;
      multiply(rows, x, u, panels(g, columns.begin), {first + columns.begin, first + columns.end});
    }
  }

  // With the packed panels of these columns; null: with W_ih as it is.
  void multiply(std::int64_t rows, Matrix<const O> x, Matrix<T> u, const O* panels,
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
    product.c = u.data + columns.begin;
    product.c_stride = u.row_stride;
    kernels_.operand_product(product);
  }

  // The chunk's input; gathered if the kernels cannot read it in place.
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

  const Problem<S>& p_;
  std::int64_t gates_;
  Bias bias_kind_;
  const Kernels<S, O>& kernels_;
  bool projects_once_;  // all steps are one chunk, and W_ih is large and not packed
  bool packs_;
  std::int64_t tile_units_;  // 0: a block of columns for each gate
  std::int64_t columns_;     // of u
  bool keeps_rows_;
  bool gathers_;  // x is copied, into rows at one stride
  std::int64_t chunk_rows_;
  std::int64_t panels_of_a_gate_;
  Buffer<O> weight_;  // packed; without memory if it is not
  Buffer<T> bias_;
  Buffer<O> input_;
};

}  // namespace rnn_ext::cpu
