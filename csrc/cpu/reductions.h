// The gradients that are computed outside of the steps, mostly as products over the rows of many
// steps: those of the input, the initial state, the weights and the biases, from the gradients of
// the two products u = W_ih x + b_ih and v = W_hh y + b_hh.
//
//   dx_t = W_ihᵀ du_t,  dW_ih = Σ du_t x_tᵀ,  dW_hh = Σ dv_t y_{t-1}ᵀ,  db_ih = Σ du,  db_hh = Σ dv
//
// (with the operands of further products in a step instead of y_{t-1} for their rows of W_hh) or,
// with tokens instead of x, dtable[k] = Σ du_t over the rows whose token is k.
//
// If values are stored in 16 bits, all sums are computed in T and rounded once; products that take
// stored values (O is S) take a rounded copy of du and dv.
#pragma once

#include <algorithm>
#include <cstring>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "cpu/recurrence.h"

namespace rnn_ext::cpu {

// Columns of the operands that the gradients of all rows multiply, for each gate.
template <class S>
std::int64_t row_products(const Problem<S>& p, const Gradients<S>& g) {
  return (g.input ? p.input_size : 0) + (g.weight_ih ? p.input_size : 0) +
         (g.weight_hh ? p.hidden_size : 0);
}

// du or dv of a chunk's rows, in time order: for the recurrence, and for the products over the
// chunk.
template <class T, class O>
struct RowGradients {
  Matrix<T> values;
  Matrix<O> operand;

  RowGradients from(std::int64_t row) const { return {values.part(row, 0), operand.part(row, 0)}; }
};

template <class S, class O>
class Reductions {
  using T = Arithmetic<S>;

 public:
  using Rows = RowGradients<T, O>;

  // products: the gates of each product with W_hh in a step. is_split: du and dv differ.
  Reductions(const Problem<S>& problem, const Gradients<S>& gradients,
             const std::vector<int>& products, bool is_split, std::int64_t chunk_rows,
             const Kernels<S, O>& kernels, Resets<S> resets = {})
      : p_(problem),
        g_(gradients),
        resets_(std::move(resets)),
        columns_(std::accumulate(products.begin(), products.end(), std::int64_t{0}) *
                 problem.hidden_size),
        is_split_(is_split),
        kernels_(kernels) {
    const std::int64_t h = p_.hidden_size;
    const std::int64_t rows = p_.steps.total_rows();
    const bool is_unpacked = (std::is_same_v<O, T> && reads_in_place(kernels, 1, rows)) ||
                             (rows <= chunk_rows && is_used_once(1, columns_ * p_.input_size));
    if (g_.input && !is_unpacked) {
      weight_ih_ = Buffer<O>(packed_size(kernels, p_.input_size, columns_));
    }
    if (is_widened<S>) {
      grad_hx_ = Buffer<T>(g_.hx ? p_.steps.batch * h : 0);
      grad_input_ = Buffer<T>(g_.input ? chunk_rows * p_.input_size : 0);
      grad_weight_ih_ = Buffer<T>(g_.weight_ih ? columns_ * p_.input_size : 0);
      grad_weight_hh_ = Buffer<T>(g_.weight_hh ? columns_ * h : 0);
      for (auto& bias : grad_bias_) {
        bias = Buffer<T>(columns_);
      }
    }
    std::int64_t begin = 0, tiles = 0;
    for (const int gates : products) {
      const std::int64_t end = begin + gates * h;
      blocks_.push_back({{begin, end},
                         tiles * kernels.tile_rows,
                         Buffer<O>(g_.weight_hh ? packed_size(kernels, h, chunk_rows) : 0)});
      tiles += (end - begin + kernels.tile_rows - 1) / kernels.tile_rows;
      begin = end;
    }
    const std::int64_t tiles_size = tiles * kernels.tile_rows * filled(kernels, chunk_rows);
    if (g_.weight_hh || (g_.weight_ih && !is_split)) {
      dv_tiles_ = Buffer<O>(tiles_size);
    }
    if (g_.weight_ih) {
      du_tiles_ = is_split ? Buffer<O>(tiles_size) : dv_tiles_;
      inputs_ = Buffer<O>(packed_size(kernels, p_.input_size, chunk_rows));
    }
    if (g_.weight_hh) {
      zeros_ = Buffer<S>(h);
      std::fill_n(zeros_.data(), h, S{});
    }
  }

  // Needs a barrier before the first run().
  void pack(const Team::Member& member) const {
    const Range inputs = column_share(kernels_, p_.input_size, member);
    if (weight_ih_.data() && !inputs.empty()) {
      kernels_.pack_operand(p_.weight_ih.part(0, inputs.begin), inputs.size(), columns_,
                            weight_ih_.data() + inputs.begin * filled(kernels_, columns_), columns_,
                            0);
    }
  }

  // Adds a chunk's contribution, after all of its du and dv, and all operands of further products
  // of its steps, are complete.
  void run(const Chunk& chunk, const Rows& du, const Rows& dv,
           std::span<const Buffer<S>> multiplied, bool accumulate,
           const Team::Member& member) const {
    input_gradient(chunk, du, member);
    pack_operands(chunk, du, dv, multiplied, member);
    member.barrier();
    for (const Block& block : blocks_) {
      weight_gradients(block, chunk, du, dv, accumulate, member);
    }
  }

  // The memory for the gradient of the initial state: its own, or a copy in T.
  Matrix<T> initial_target() const { return writable(g_.hx, as_rows(grad_hx_, p_.hidden_size)); }

  // Writes it for the rows that start in the chunk, or adds to it. by(columns) is a product with
  // these columns of W_hh.
  template <class ProductBy>
  void initial_gradient(const Chunk& chunk, const Rows& dv, bool adds, const Team::Member& member,
                        ProductBy by) const {
    if (!g_.hx) {
      return;
    }
    const Range columns = column_share(kernels_, p_.hidden_size, member);
    const Matrix<T> target = initial_target();
    for (std::int64_t t = chunk.first; t <= chunk.last && !columns.empty(); ++t) {
      const Range rows = starting_rows(p_, t);
      if (rows.empty()) {
        continue;
      }
      const Rows from = dv.from(p_.steps.offset(t) - p_.steps.offset(chunk.first));
      Product<S> product = by(columns);
      product.rows = rows.size();
      product.inner = blocks_.front().columns.size();
      product.a = from.values.row(rows.begin);
      product.a_stride = from.values.row_stride;
      product.c = target.row(rows.begin) + columns.begin;
      product.c_stride = target.row_stride;
      product.init = adds ? product.c : nullptr;
      product.init_stride = product.c_stride;
      if constexpr (is_widened<S>) {
        product.stored = g_.hx.row(rows.begin) + columns.begin;
        product.stored_stride = g_.hx.row_stride;
      }
      kernels_.product(product);
    }
  }

  // Copies a member's rows of the sums to the results.
  void finish(const Team::Member& member) const {
    for (const Block& block : blocks_) {
      finish(share(block, member));
    }
  }

 private:
  // A product with W_hh in a step.
  struct Block {
    Range columns;         // of du and dv
    std::int64_t tiles;    // its first column in packed tiles
    Buffer<O> multiplied;  // in panels
  };

  Range share(const Block& block, const Team::Member& member) const {
    const Range own = member.share(block.columns.size(), kernels_.tile_rows);
    return {block.columns.begin + own.begin, block.columns.begin + own.end};
  }
  // The first tile of these columns, which start with a tile of the block.
  O* tiles_at(const Buffer<O>& tiles, const Block& block, Range columns, const Chunk& chunk) const {
    const std::int64_t column = block.tiles + columns.begin - block.columns.begin;
    return tiles.data() + column * filled(kernels_, chunk.rows);
  }

  void finish(Range rows) const {
    if (g_.weight_ih) {
      write_back(kernels_, sums_ih(), g_.weight_ih, rows, {0, p_.input_size});
    }
    if (g_.weight_hh) {
      write_back(kernels_, sums_hh(), g_.weight_hh, rows, {0, p_.hidden_size});
    }
    const bool copies = g_.bias_ih && g_.bias_hh && !is_split_;
    if (g_.bias_ih) {
      write_back(kernels_, bias_sums(g_.bias_ih, 0), g_.bias_ih, {0, 1}, rows);
    }
    if (g_.bias_hh && !copies) {
      write_back(kernels_, bias_sums(g_.bias_hh, 1), g_.bias_hh, {0, 1}, rows);
    }
    if (copies && !rows.empty()) {
      std::memcpy(g_.bias_hh.data + rows.begin, g_.bias_ih.data + rows.begin,
                  rows.size() * sizeof(S));
    }
  }

  void input_gradient(const Chunk& chunk, const Rows& du, const Team::Member& member) const {
    if (!g_.input) {
      return;
    }
    // Members divide a large unpacked weight, since a member's cache does not hold all of it.
    const bool divides_columns =
        !weight_ih_.data() && p_.input_size >= member.size() * kernels_.panel_columns;
    const Range rows = divides_columns ? Range{0, chunk.rows} : member.share(chunk.rows);
    const Range columns =
        divides_columns ? column_share(kernels_, p_.input_size, member) : Range{0, p_.input_size};
    const Matrix<S> target = g_.input.at(p_.steps, chunk.first).part(rows.begin, columns.begin);
    const Matrix<T> dx =
        writable(target, as_rows(grad_input_, p_.input_size).part(rows.begin, columns.begin));
    Product<S, O> product =
        product_by(p_.weight_ih, columns, static_cast<const O*>(weight_ih_.data()));
    product.rows = rows.size();
    product.inner = columns_;
    product.a = du.operand.row(rows.begin);
    product.a_stride = du.operand.row_stride;
    product.c = dx.data;
    product.c_stride = dx.row_stride;
    if constexpr (is_widened<S>) {
      product.stored = target.data;
      product.stored_stride = target.row_stride;
      product.seed = g_.add_to_input ? product.stored : nullptr;
      product.seed_stride = target.row_stride;
    } else {
      product.init = g_.add_to_input ? product.c : nullptr;
      product.init_stride = product.c_stride;
    }
    kernels_.operand_product(product);
  }

  // Packs the operands of the weight gradients: the chunk's x and the operands of W_hh in panels,
  // du and dv in tiles. Members divide panels by rows, since a narrow operand has only one panel.
  void pack_operands(const Chunk& chunk, const Rows& du, const Rows& dv,
                     std::span<const Buffer<S>> multiplied, const Team::Member& member) const {
    const Range rows = member.share(chunk.rows, kernels_.terms);
    if (g_.weight_ih) {
      for_linear_runs(p_.input, p_.steps, chunk, rows, [&](Range run, Matrix<const S> x) {
        kernels_.pack_operand(x, p_.input_size, run.size(), inputs_.data(), chunk.rows, run.begin);
      });
    }
    if (g_.weight_hh) {
      pack_states(chunk, rows);
      for (std::size_t i = 0; i < multiplied.size(); ++i) {
        const Matrix<const S> source = as_rows(multiplied[i], p_.hidden_size);
        kernels_.pack_operand(source.part(rows.begin, 0), p_.hidden_size, rows.size(),
                              blocks_[1 + i].multiplied.data(), chunk.rows, rows.begin);
      }
    }
    const auto pack = [&](const Rows& gradients, const Buffer<O>& tiles) {
      for (const Block& block : blocks_) {
        const Range columns = share(block, member);
        kernels_.pack_tiles(gradients.operand.part(0, columns.begin), columns.size(), chunk.rows,
                            tiles_at(tiles, block, columns, chunk));
      }
    };
    if (dv_tiles_.data()) {
      pack(dv, dv_tiles_);
    }
    if (is_split_ && du_tiles_.data()) {
      pack(du, du_tiles_);
    }
  }

  // Packs the rows in `share` of the states before the chunk's steps.
  void pack_states(const Chunk& chunk, Range share) const {
    // Rows [at, at + count) of the operand are those of `source`.
    const auto write = [&](Matrix<const S> source, std::int64_t at, std::int64_t count) {
      const Range rows = Range{at, at + count}.from(share.begin).below(share.end);
      if (!rows.empty()) {
        kernels_.pack_operand(source.part(rows.begin - at, 0), p_.hidden_size, rows.size(),
                              blocks_.front().multiplied.data(), chunk.rows, rows.begin);
      }
    };
    const TimeOrder order = p_.order();
    const Matrix<const S> hx = p_.hx ? p_.hx : Matrix<const S>{zeros_.data(), 0, 1};
    std::int64_t t = chunk.first;
    while (t <= chunk.last) {
      const std::int64_t at = p_.steps.offset(t) - p_.steps.offset(chunk.first);
      const std::int64_t before = order.previous(t);
      const std::int64_t carried = std::min(p_.steps.rows_or_none(before), p_.steps.rows(t));
      if (carried > 0) {
        // Steps of full batches are consecutive in memory, and so are the states before them.
        const std::int64_t end = p_.steps.batch_sizes ? t : last_with_previous(chunk);
        const Matrix<const S> h = p_.output.at(p_.steps, before);
        write(h, at, end > t ? (end - t + 1) * p_.steps.batch : carried);
        if (end > t) {
          t = end + 1;
          continue;
        }
      }
      write(hx.part(carried, 0), at + carried, p_.steps.rows(t) - carried);
      ++t;
    }
    for (t = chunk.first; resets_ && t <= chunk.last; ++t) {
      const std::int64_t at = p_.steps.offset(t) - p_.steps.offset(chunk.first);
      resets_.for_each(t, {0, p_.steps.batch}, [&](std::int64_t row) {
        write(resets_.states[0].at(p_.steps, t).part(row, 0), at + row, 1);
      });
    }
  }

  std::int64_t last_with_previous(const Chunk& chunk) const {
    return p_.reverse ? std::min(chunk.last, p_.steps.count - 2) : chunk.last;
  }

  // A member owns rows of dW, so that each element is summed by one thread in one order.
  void weight_gradients(const Block& block, const Chunk& chunk, const Rows& du, const Rows& dv,
                        bool accumulate, const Team::Member& member) const {
    const Range rows = share(block, member);
    if (rows.empty()) {
      return;
    }
    const auto add = [&](Matrix<T> gradient, std::int64_t columns, const Buffer<O>& tiles,
                         const Buffer<O>& panels) {
      if (gradient) {
        OuterProduct<O> product;
        product.inner = chunk.rows;
        product.rows = rows.size();
        product.columns = columns;
        product.a = tiles_at(tiles, block, rows, chunk);
        product.b = panels.data();
        product.g = gradient.row(rows.begin);
        product.g_stride = gradient.row_stride;
        product.accumulate = accumulate;
        kernels_.outer_product(product);
      }
    };
    add(sums_ih(), p_.input_size, du_tiles_, inputs_);
    add(sums_hh(), p_.hidden_size, dv_tiles_, block.multiplied);
    const auto add_rows = [&](const Rows& gradients, Matrix<T> sums) {
      kernels_.column_sums(gradients.values.part(0, rows.begin), chunk.rows, rows.size(),
                           sums.data + rows.begin, accumulate);
    };
    if (g_.bias_ih) {
      add_rows(du, bias_sums(g_.bias_ih, 0));
    }
    if (g_.bias_hh && (is_split_ || !g_.bias_ih)) {
      add_rows(dv, bias_sums(g_.bias_hh, 1));
    }
    if constexpr (!is_widened<S>) {
      add_to_table(chunk, du, rows);
    }
  }

  // Adds a member's columns of the table's gradient, in the order of the chunk's rows.
  void add_to_table(const Chunk& chunk, const Rows& du, Range columns) const {
    for (std::int64_t r = 0; g_.table && r < chunk.rows; ++r) {
      const std::int64_t token = p_.tokens[p_.steps.offset(chunk.first) + r];
      kernels_.column_sums(du.values.part(r, columns.begin), 1, columns.size(),
                           g_.table.row(token) + columns.begin, true);
    }
  }

  // The memory for the sums of the weight gradients.
  Matrix<T> sums_ih() const {
    return writable(g_.weight_ih, as_rows(grad_weight_ih_, p_.input_size));
  }
  Matrix<T> sums_hh() const {
    return writable(g_.weight_hh, as_rows(grad_weight_hh_, p_.hidden_size));
  }
  Matrix<T> bias_sums(Matrix<S> target, int which) const {
    return writable(target, as_rows(grad_bias_[which], columns_));
  }

  const Problem<S>& p_;
  const Gradients<S>& g_;
  Resets<S> resets_;
  std::int64_t columns_;  // of u and of v
  bool is_split_;
  const Kernels<S, O>& kernels_;
  Buffer<O> weight_ih_;  // packed; without memory if it is not, or not needed
  Buffer<O> du_tiles_;   // the memory of dv_tiles_ if these are the same
  Buffer<O> dv_tiles_;
  Buffer<O> inputs_;
  std::vector<Block> blocks_;
  Buffer<S> zeros_;
  Buffer<T> grad_hx_;
  Buffer<T> grad_input_;
  Buffer<T> grad_weight_ih_;
  Buffer<T> grad_weight_hh_;
  Buffer<T> grad_bias_[2];
};

}  // namespace rnn_ext::cpu
