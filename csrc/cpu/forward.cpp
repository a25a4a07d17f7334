// h_t = φ(W_ih x_t + b + W_hh h_{t-1}) for a whole sequence.
//
// The pre-activation never has a tensor of its own: the input projection of a chunk of steps is
// written where h_t will be, while the chunk is still in cache the recurrence adds W_hh h_{t-1}
// to it, applies φ and overwrites it. Both weights are packed once per call.
#include <algorithm>
#include <cstring>

#include "cpu/recurrence.h"

namespace rnn_ext::cpu {
namespace {

template <class T>
class Forward {
 public:
  Forward(const ForwardTask<T>& task, const Kernels<T>& kernels, const Plan& plan)
      : p_(task.problem),
        h_n_(task.h_n),
        kernels_(kernels),
        plan_(plan),
        chunk_rows_(projection_rows(p_.hidden_size)),
        weight_ih_(packed_size(kernels, p_.hidden_size, p_.input_size)),
        weight_hh_(packed_size(kernels, p_.hidden_size, p_.hidden_size)),
        bias_(p_.bias_ih || p_.bias_hh ? p_.hidden_size : 0),
        input_(p_.input.is_linear(p_.steps)
                   ? 0
                   : std::max(chunk_rows_, p_.steps.batch) * p_.input_size),
        zeros_(p_.hx ? 0 : p_.hidden_size),
        from_zeros_(p_.hx ? 0 : p_.hidden_size) {
    std::fill_n(zeros_.data(), p_.hx ? 0 : p_.hidden_size, T{0});
  }

  void run(Team::Member& member) const {
    pack(member);
    member.barrier();
    const Matrix<const T> h0 = initial_state();
    const auto share = StepShare::of(plan_, p_, kernels_, member);
    for (std::int64_t s = 0; s < p_.steps.count;) {
      const Chunk chunk = take_chunk(p_, s, 1, chunk_rows_);
      project(chunk, share, member);
      for (const std::int64_t end = s + chunk.last - chunk.first + 1; s < end; ++s) {
        step(p_.step(s), h0, share);
        if (share.meets) {
          member.barrier();
        }
      }
    }
  }

 private:
  void pack(const Team::Member& member) const {
    const Range columns = column_share(kernels_, p_.hidden_size, member);
    if (columns.empty()) {
      return;
    }
    const auto part = [&](Matrix<const T> w) {
      return Matrix<const T>{w.row(columns.begin), w.row_stride, w.column_stride};
    };
    kernels_.pack_transposed(part(p_.weight_ih), columns.size(), p_.input_size,
                             weight_ih_.data() + columns.begin * p_.input_size);
    kernels_.pack_transposed(part(p_.weight_hh), columns.size(), p_.hidden_size,
                             weight_hh_.data() + columns.begin * p_.hidden_size);
    if (!p_.hx) {
      Product<T> product;
      product.rows = 1;
      product.inner = p_.hidden_size;
      product.columns = columns.size();
      product.a = zeros_.data();
      product.b = weight_hh_.data() + columns.begin * p_.hidden_size;
      product.c = from_zeros_.data() + columns.begin;
      kernels_.product(product);
    }
    if (bias_.data()) {
      for (std::int64_t c = columns.begin; c < columns.end; ++c) {
        bias_.data()[c] = (p_.bias_ih ? p_.bias_ih.data[c * p_.bias_ih.column_stride] : T{0}) +
                          (p_.bias_hh ? p_.bias_hh.data[c * p_.bias_hh.column_stride] : T{0});
      }
    }
  }

  // hx, or null where its product can be left out: a missing hx means zeros, but W_hh times zeros
  // is NaN where W_hh is not finite, and that has to show.
  Matrix<const T> initial_state() const {
    if (p_.hx) {
      return p_.hx;
    }
    const T* products = from_zeros_.data();
    const bool finite =
        std::all_of(products, products + p_.hidden_size, [](T x) { return x == T{0}; });
    return finite ? Matrix<const T>{} : Matrix<const T>{zeros_.data(), 0, 1};
  }

  // Writes W_ih x + b for the chunk where its output will be. A member that keeps its columns
  // through all steps projects those, for all rows; otherwise the chunk's rows are shared out
  // evenly, whichever batch row they belong to.
  void project(const Chunk& chunk, const StepShare& share, Team::Member& member) const {
    const Matrix<const T> x = linear_input(chunk, member);
    const Matrix<T> y = p_.output.at(p_.steps, chunk.first);
    const bool by_columns = plan_.split == Split::columns;
    const Range rows = by_columns ? Range{0, chunk.rows} : member.share(chunk.rows);
    const Range columns = share.columns;
    if (!rows.empty() && !columns.empty()) {
      Product<T> product;
      product.rows = rows.size();
      product.inner = p_.input_size;
      product.columns = columns.size();
      product.a = x.row(rows.begin);
      product.a_stride = x.row_stride;
      product.b = weight_ih_.data() + columns.begin * p_.input_size;
      product.init = bias_.data() ? bias_.data() + columns.begin : nullptr;
      product.c = y.row(rows.begin) + columns.begin;
      product.c_stride = y.row_stride;
      kernels_.product(product);
    }
    if (!by_columns) {
      member.barrier();
    }
  }

  // The chunk's input rows at one stride; gathered where they do not lie so.
  Matrix<const T> linear_input(const Chunk& chunk, Team::Member& member) const {
    if (!input_.data()) {
      return p_.input.at(p_.steps, chunk.first);
    }
    const Range steps = member.share(chunk.last - chunk.first + 1);
    for (std::int64_t i = steps.begin; i < steps.end; ++i) {
      const std::int64_t t = chunk.first + i;
      const Matrix<const T> x = p_.input.at(p_.steps, t);
      T* target =
          input_.data() + (p_.steps.offset(t) - p_.steps.offset(chunk.first)) * p_.input_size;
      for (std::int64_t b = 0; b < p_.steps.rows(t); ++b, target += p_.input_size) {
        std::memcpy(target, x.row(b), p_.input_size * sizeof(T));
      }
    }
    member.barrier();
    return {input_.data(), p_.input_size, 1};
  }

  void step(std::int64_t t, Matrix<const T> h0, const StepShare& share) const {
    const std::int64_t previous = p_.previous(t);
    const std::int64_t carried = p_.steps.rows_or_none(previous);
    const Range rows = share.rows.below(p_.steps.rows(t));
    if (carried > 0) {
      advance(t, rows.below(carried), share.columns, p_.output.at(p_.steps, previous));
    }
    advance(t, rows.from(carried), share.columns, h0);

    // Rows that the next step does not have end here.
    const Range ending = rows.from(p_.steps.rows_or_none(p_.next(t)));
    const Matrix<T> y = p_.output.at(p_.steps, t);
    for (std::int64_t b = ending.begin; b < ending.end; ++b) {
      std::memcpy(h_n_.row(b) + share.columns.begin, y.row(b) + share.columns.begin,
                  share.columns.size() * sizeof(T));
    }
  }

  // h_t = φ(z_t + W_hh h) for some rows; h null: zeros.
  void advance(std::int64_t t, Range rows, Range columns, Matrix<const T> h) const {
    if (rows.empty() || columns.empty()) {
      return;
    }
    const Matrix<T> y = p_.output.at(p_.steps, t);
    Product<T> product;
    product.rows = rows.size();
    product.inner = h ? p_.hidden_size : 0;
    product.columns = columns.size();
    product.a = h ? h.row(rows.begin) : nullptr;
    product.a_stride = h.row_stride;
    product.b = weight_hh_.data() + columns.begin * p_.hidden_size;
    product.c = y.row(rows.begin) + columns.begin;
    product.c_stride = y.row_stride;
    product.init = product.c;
    product.init_stride = product.c_stride;
    product.finish =
        p_.nonlinearity == Nonlinearity::tanh ? Finish::activate_tanh : Finish::activate_relu;
    kernels_.product(product);
  }

  const Problem<T>& p_;
  Matrix<T> h_n_;
  const Kernels<T>& kernels_;
  const Plan& plan_;
  std::int64_t chunk_rows_;
  Buffer<T> weight_ih_;
  Buffer<T> weight_hh_;
  Buffer<T> bias_;
  Buffer<T> input_;
  Buffer<T> zeros_;
  Buffer<T> from_zeros_;  // W_hh times zeros
};

}  // namespace

template <class T>
void run_forward(const std::vector<ForwardTask<T>>& tasks, const Kernels<T>& kernels, int threads,
                 ParallelFor parallel_for) {
  run_directions<Forward<T>>(tasks, kernels, threads, parallel_for);
}

template void run_forward(const std::vector<ForwardTask<float>>&, const Kernels<float>&, int,
                          ParallelFor);
template void run_forward(const std::vector<ForwardTask<double>>&, const Kernels<double>&, int,
                          ParallelFor);

}  // namespace rnn_ext::cpu
