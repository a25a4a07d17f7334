// Backpropagation through time for a whole sequence.
//
//   dz_t = (dy_t + W_hhᵀ dz_{t+1}) φ'(z_t)
//   dx_t = W_ihᵀ dz_t,  dW_ih = Σ dz_t x_tᵀ,  dW_hh = Σ dz_t h_{t-1}ᵀ,  db = Σ dz_t
//
// The sequence is walked in chunks of steps, from the end. dz exists for two chunks at a time (the
// one at hand and the one before it, whose first step the recurrence goes on from); once a
// chunk's dz is complete, everything that is a product over many rows is done for all of it.
#include <algorithm>
#include <cstring>

#include "cpu/recurrence.h"

namespace rnn_ext::cpu {
namespace {

template <class T>
class Backward {
 public:
  Backward(const BackwardTask<T>& task, const Kernels<T>& kernels, const Plan& plan)
      : p_(task.problem),
        g_(task.gradients),
        kernels_(kernels),
        plan_(plan),
        chunk_rows_(gradient_rows(p_.hidden_size)) {
    const std::int64_t h = p_.hidden_size;
    const std::int64_t rows =
        std::min(std::max(chunk_rows_, p_.steps.batch), p_.steps.total_rows());
    weight_hh_ = Buffer<T>(packed_size(kernels, h, h));
    for (auto& dz : dz_) {
      dz = Buffer<T>(rows * h);
    }
    seed_ = Buffer<T>(p_.steps.batch * h);
    if (g_.input) {
      weight_ih_ = Buffer<T>(packed_size(kernels, p_.input_size, h));
    }
    if (g_.weight_ih || g_.weight_hh) {
      const std::int64_t tiles = (h + kernels.tile_rows - 1) / kernels.tile_rows;
      dz_tiles_ = Buffer<T>(tiles * kernels.tile_rows * rows);
    }
    if (g_.weight_ih) {
      inputs_ = Buffer<T>(packed_size(kernels, p_.input_size, rows));
    }
    if (g_.weight_hh) {
      states_ = Buffer<T>(packed_size(kernels, h, rows));
      zeros_ = Buffer<T>(h);
      std::fill_n(zeros_.data(), h, T{0});
    }
  }

  void run(Team::Member& member) const {
    pack_weights(member);
    member.barrier();
    const auto share = StepShare::of(plan_, p_, kernels_, member);
    const T* later_dz = nullptr;  // of the step after the chunk's last, in processing order
    bool accumulate = false;
    int parity = 0;
    for (std::int64_t s = p_.steps.count - 1; s >= 0; parity ^= 1, accumulate = true) {
      const Chunk chunk = take_chunk(p_, s, -1, chunk_rows_);
      const Dz dz{dz_[parity].data(), p_.steps.offset(chunk.first), p_.hidden_size};
      for (const std::int64_t end = s - (chunk.last - chunk.first + 1); s > end; --s) {
        const std::int64_t t = p_.step(s);
        step(t, dz.row(p_.steps.offset(t)), later_dz, share);
        later_dz = dz.row(p_.steps.offset(t));
        if (share.meets) {
          member.barrier();
        }
      }
      member.barrier();
      input_gradients(chunk, dz, member);
      pack_operands(chunk, dz, member);
      member.barrier();
      weight_gradients(chunk, dz, accumulate, member);
    }
    member.barrier();
    if (member.is_leader() && g_.bias_ih && g_.bias_hh) {
      std::memcpy(g_.bias_hh, g_.bias_ih, p_.hidden_size * sizeof(T));
    }
  }

 private:
  // The dz of one chunk: rows in time order, from row `first` of the sequence on.
  struct Dz {
    T* data;
    std::int64_t first;
    std::int64_t stride;

    T* row(std::int64_t r) const { return data + (r - first) * stride; }
  };

  void pack_weights(const Team::Member& member) const {
    const auto pack = [&](Matrix<const T> w, std::int64_t count, T* panels) {
      const Range columns = column_share(kernels_, count, member);
      if (!columns.empty()) {
        const Matrix<const T> part{w.data + columns.begin * w.column_stride, w.row_stride,
                                   w.column_stride};
        kernels_.pack(part, columns.size(), p_.hidden_size, panels + columns.begin * p_.hidden_size,
                      p_.hidden_size, 0);
      }
    };
    pack(p_.weight_hh, p_.hidden_size, weight_hh_.data());
    if (weight_ih_.data()) {
      pack(p_.weight_ih, p_.input_size, weight_ih_.data());
    }
  }

  void step(std::int64_t t, T* dz, const T* later_dz, const StepShare& share) const {
    const std::int64_t carried = std::min(p_.steps.rows_or_none(p_.next(t)), p_.steps.rows(t));
    const Range rows = share.rows.below(p_.steps.rows(t));
    retreat(t, rows.below(carried), share.columns, dz, later_dz);
    retreat(t, rows.from(carried), share.columns, dz, nullptr);
  }

  // dz for some rows of step t; later_dz null: their last step, where the gradient of h_n enters.
  void retreat(std::int64_t t, Range rows, Range columns, T* dz, const T* later_dz) const {
    if (rows.empty() || columns.empty()) {
      return;
    }
    const Matrix<const T> seed = gradient_seed(t, rows, columns, later_dz == nullptr);
    const Matrix<T> y = p_.output.at(p_.steps, t);
    Product<T> product;
    product.rows = rows.size();
    product.inner = later_dz ? p_.hidden_size : 0;
    product.columns = columns.size();
    product.a = later_dz ? later_dz + rows.begin * p_.hidden_size : nullptr;
    product.a_stride = p_.hidden_size;
    product.b = weight_hh_.data() + columns.begin * p_.hidden_size;
    product.init = seed ? seed.row(rows.begin) + columns.begin : nullptr;
    product.init_stride = seed.row_stride;
    product.c = dz + rows.begin * p_.hidden_size + columns.begin;
    product.c_stride = p_.hidden_size;
    product.finish =
        p_.nonlinearity == Nonlinearity::tanh ? Finish::chain_tanh : Finish::chain_relu;
    product.h = y.row(rows.begin) + columns.begin;
    product.h_stride = y.row_stride;
    kernels_.product(product);
  }

  // dy_t, plus the gradient of h_n where rows end; read in place where it can be, else brought
  // together in this member's part of seed_.
  Matrix<const T> gradient_seed(std::int64_t t, Range rows, Range columns, bool ending) const {
    const Matrix<const T> dy = g_.output ? g_.output.at(p_.steps, t) : Matrix<const T>{};
    const Matrix<const T> last = ending ? g_.h_n : Matrix<const T>{};
    if (!dy) {
      return last;
    }
    if (!last && dy.column_stride == 1) {
      return dy;
    }
    const Matrix<T> seed{seed_.data(), p_.hidden_size, 1};
    for (std::int64_t b = rows.begin; b < rows.end; ++b) {
      const T* source = dy.row(b);
      T* target = seed.row(b);
      for (std::int64_t c = columns.begin; c < columns.end; ++c) {
        target[c] = source[c * dy.column_stride] + (last ? last.row(b)[c] : T{0});
      }
    }
    return seed;
  }

  // dx of the chunk, and dhx of the rows that start in it.
  void input_gradients(const Chunk& chunk, const Dz& dz, const Team::Member& member) const {
    if (g_.input) {
      const Range rows = member.share(chunk.rows);
      const Matrix<T> dx = g_.input.at(p_.steps, chunk.first);
      Product<T> product;
      product.rows = rows.size();
      product.inner = p_.hidden_size;
      product.columns = p_.input_size;
      product.a = dz.data + rows.begin * p_.hidden_size;
      product.a_stride = p_.hidden_size;
      product.b = weight_ih_.data();
      product.c = dx.row(rows.begin);
      product.c_stride = dx.row_stride;
      product.init = g_.add_to_input ? product.c : nullptr;
      product.init_stride = product.c_stride;
      kernels_.product(product);
    }
    if (!g_.hx) {
      return;
    }
    const Range columns = column_share(kernels_, p_.hidden_size, member);
    for (std::int64_t t = chunk.first; t <= chunk.last && !columns.empty(); ++t) {
      const Range rows = starting_rows(t);
      if (rows.empty()) {
        continue;
      }
      Product<T> product;
      product.rows = rows.size();
      product.inner = p_.hidden_size;
      product.columns = columns.size();
      product.a = dz.row(p_.steps.offset(t) + rows.begin);
      product.a_stride = p_.hidden_size;
      product.b = weight_hh_.data() + columns.begin * p_.hidden_size;
      product.c = g_.hx.row(rows.begin) + columns.begin;
      product.c_stride = g_.hx.row_stride;
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
    const Range rows = member.share(chunk.rows);
    if (g_.weight_ih) {
      const PanelWriter writer{kernels_, inputs_.data(), p_.input_size, chunk.rows, rows};
      if (p_.input.is_linear(p_.steps)) {
        writer.write(p_.input.at(p_.steps, chunk.first), 0, chunk.rows);
      } else {
        for (std::int64_t t = chunk.first; t <= chunk.last; ++t) {
          writer.write(p_.input.at(p_.steps, t), p_.steps.offset(t) - dz.first, p_.steps.rows(t));
        }
      }
    }
    if (g_.weight_hh) {
      pack_states(chunk, dz,
                  PanelWriter{kernels_, states_.data(), p_.hidden_size, chunk.rows, rows});
    }
    if (dz_tiles_.data()) {
      const Range columns = member.share(p_.hidden_size, kernels_.tile_rows);
      kernels_.pack_tiles({dz.data + columns.begin, p_.hidden_size, 1}, columns.size(), chunk.rows,
                          dz_tiles_.data() + columns.begin * chunk.rows);
    }
  }

  // Packs an operand of `inner` rows that comes in pieces; of these, the rows in `share`.
  struct PanelWriter {
    const Kernels<T>& kernels;
    T* panels;
    std::int64_t columns;
    std::int64_t inner;
    Range share;

    // Rows [at, at + count) of the operand are those of `source`.
    void write(Matrix<const T> source, std::int64_t at, std::int64_t count) const {
      const Range rows = Range{at, at + count}.from(share.begin).below(share.end);
      if (!rows.empty()) {
        kernels.pack({source.row(rows.begin - at), source.row_stride, 1}, columns, rows.size(),
                     panels, inner, rows.begin);
      }
    }
  };

  void pack_states(const Chunk& chunk, const Dz& dz, const PanelWriter& writer) const {
    const Matrix<const T> hx = p_.hx ? p_.hx : Matrix<const T>{zeros_.data(), 0, 1};
    const std::int64_t lead = p_.reverse ? 1 : -1;
    std::int64_t t = chunk.first;
    while (t <= chunk.last) {
      const std::int64_t at = p_.steps.offset(t) - dz.first;
      const std::int64_t carried = std::min(p_.steps.rows_or_none(t + lead), p_.steps.rows(t));
      if (carried > 0) {
        // Steps of full batches lie one after the other, and so do the states before them.
        const std::int64_t end = p_.steps.batch_sizes ? t : last_with_previous(chunk);
        const Matrix<const T> h = p_.output.at(p_.steps, t + lead);
        writer.write(h, at, end > t ? (end - t + 1) * p_.steps.batch : carried);
        if (end > t) {
          t = end + 1;
          continue;
        }
      }
      const Range starting = starting_rows(t);
      writer.write({hx.row(starting.begin), hx.row_stride, 1}, at + carried, starting.size());
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
    const auto add = [&](Matrix<T> gradient, std::int64_t columns, const Buffer<T>& panels) {
      if (gradient) {
        OuterProduct<T> product;
        product.inner = chunk.rows;
        product.rows = rows.size();
        product.columns = columns;
        product.a = dz_tiles_.data() + rows.begin * chunk.rows;
        product.b = panels.data();
        product.g = gradient.row(rows.begin);
        product.g_stride = gradient.row_stride;
        product.accumulate = accumulate;
        kernels_.outer_product(product);
      }
    };
    add(g_.weight_ih, p_.input_size, inputs_);
    add(g_.weight_hh, p_.hidden_size, states_);
    if (T* bias = g_.bias_ih ? g_.bias_ih : g_.bias_hh) {
      kernels_.column_sums({dz.data + rows.begin, p_.hidden_size, 1}, chunk.rows, rows.size(),
                           bias + rows.begin, accumulate);
    }
  }

  const Problem<T>& p_;
  const Gradients<T>& g_;
  const Kernels<T>& kernels_;
  const Plan& plan_;
  std::int64_t chunk_rows_;
  Buffer<T> weight_hh_;
  Buffer<T> weight_ih_;
  Buffer<T> dz_[2];
  Buffer<T> seed_;
  Buffer<T> dz_tiles_;
  Buffer<T> inputs_;
  Buffer<T> states_;
  Buffer<T> zeros_;
};

}  // namespace

template <class T>
void run_backward(const std::vector<BackwardTask<T>>& tasks, const Kernels<T>& kernels, int threads,
                  ParallelFor parallel_for) {
  run_directions<Backward<T>>(tasks, kernels, threads, parallel_for);
}

template void run_backward(const std::vector<BackwardTask<float>>&, const Kernels<float>&, int,
                           ParallelFor);
template void run_backward(const std::vector<BackwardTask<double>>&, const Kernels<double>&, int,
                           ParallelFor);

}  // namespace rnn_ext::cpu
