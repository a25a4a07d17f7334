// h_t = φ(W_ih x_t + b + W_hh h_{t-1}) for a whole sequence.
//
// There is no tensor for the pre-activation: the input projection of a chunk of steps is written
// to the memory of h_t. While the chunk is in cache, the recurrence adds W_hh h_{t-1} to it,
// applies φ and overwrites it. If values are stored in 16 bits, the chunk is in scratch memory;
// each h_t is rounded into the output, and the recurrence continues from the unrounded one.
#include <algorithm>
#include <cstring>

#include "cpu/packed_layer.h"
#include "cpu/projection.h"

namespace rnn_ext::cpu {
namespace {

template <class S, class O>
class Forward {
  using T = Arithmetic<S>;

 public:
  Forward(const ForwardTask<S>& task, const Kernels<S, O>& kernels, const Plan&)
      : p_(task.problem),
        h_n_(task.h_n),
        kernels_(kernels),
        packed_(task.packed, p_, kernels),
        projection_(p_, 1, Bias::sum, kernels, 0, packed_.weight_ih),
        weight_hh_(task.packed ? RecurrentWeight<S, O>(kernels, p_, p_.weight_hh.transposed(),
                                                       packed_.weight_hh, packed_.stored_hh)
                               : RecurrentWeight<S, O>(kernels, p_, p_.weight_hh.transposed(),
                                                       static_cast<bool>(p_.hx))),
        zeros_(p_.hx ? 0 : p_.hidden_size),
        from_zeros_(task.packed ? Buffer<T>::of(packed_.from_zeros)
                                : Buffer<T>(p_.hx ? 0 : p_.hidden_size)) {
    if (is_widened<S>) {
      states_ = Buffer<T>(projection_.buffered_rows() * p_.hidden_size);
      carried_ = Buffer<T>(p_.steps.batch * p_.hidden_size);
      hx_ = Buffer<T>(p_.hx ? p_.steps.batch * p_.hidden_size : 0);
    }
    std::fill_n(zeros_.data(), p_.hx ? 0 : p_.hidden_size, T{0});
  }

  void run(const Team::Member& member, StepShare& share) const {
    pack(column_share(kernels_, p_.hidden_size, member));
    const Matrix<const T> hx =
        p_.hx ? readable(kernels_, p_.hx, share.rows, share.columns, as_rows(hx_, p_.hidden_size))
              : Matrix<const T>{};
    member.barrier();
    Pass pass{*this, member, share, p_.hx ? hx : implied_state(), {}, {}};
    run_steps(p_.steps, p_.order(), projection_.chunk_rows(), share, pass);
  }

 private:
  // One member's loop over the steps.
  struct Pass {
    const Forward& f;
    const Team::Member& member;
    const StepShare& share;
    Matrix<const T> h0;
    Sequence<T> h;             // of the chunk
    Matrix<const T> previous;  // state

    void begin(const Chunk& chunk) {
      h = f.states(chunk, share);
      f.projection_.run(chunk, h, share, member);
    }

    void step(std::int64_t t, Range carried, Range starting, Range ending) {
      const Matrix<T> target = h.at(f.p_.steps, t);
      f.advance(target, carried, share.columns, previous);
      f.advance(target, starting, share.columns, h0);
      if (!ending.empty()) {
        f.kernels_.narrow(target.part(ending.begin, share.columns.begin), ending.size(),
                          share.columns.size(), f.h_n_.part(ending.begin, share.columns.begin));
      }
      previous = target;
    }

    void end(const Chunk& chunk, bool is_last) {
      f.store(chunk, h, share);
      if (is_widened<S> && !is_last) {
        previous = f.carry(f.p_.reverse ? chunk.first : chunk.last, previous, share);
        // Before that is read, and before the chunk's memory is reused.
        (f.projection_.keeps_rows() ? share.group : member).barrier();
      }
    }
  };

  // The memory of a chunk's states until they are stored.
  Sequence<T> states(const Chunk& chunk, const StepShare& share) const {
    if constexpr (is_widened<S>) {
      return projection_.in_scratch(states_, p_.hidden_size, chunk, share);
    } else {
      return p_.output;
    }
  }

  void pack(Range columns) const {
    projection_.pack(columns);
    for (std::int64_t c = columns.begin; c < columns.end && !packed_.weight_hh;
         c += kernels_.panel_columns) {
      prepare_recurrent(Range{c, c + kernels_.panel_columns}.below(columns.end));
    }
  }

  // A panel of W_hh: packs it, and without hx multiplies it by zeros while it is in cache.
  void prepare_recurrent(Range columns) const {
    weight_hh_.pack(columns);
    if (!p_.hx) {
      Product<S> product = weight_hh_.product(columns);
      product.rows = 1;
      product.inner = p_.hidden_size;
      product.a = zeros_.data();
      product.c = from_zeros_.data() + columns.begin;
      kernels_.product(product);
    }
  }

  // The zeros of a missing hx; none if its product can be left out. W_hh times zeros is NaN if W_hh
  // is not finite, and the result must show that.
  Matrix<const T> implied_state() const {
    const T* products = from_zeros_.data();
    const bool finite =
        std::all_of(products, products + p_.hidden_size, [](T x) { return x == T{0}; });
    return finite ? Matrix<const T>{} : Matrix<const T>{zeros_.data(), 0, 1};
  }

  // Writes a member's states of a chunk to the output.
  void store(const Chunk& chunk, const Sequence<T>& h, const StepShare& share) const {
    if (!is_widened<S>) {
      return;
    }
    if (projection_.keeps_rows()) {
      projection_.for_runs(chunk, share.rows, h, p_.output,
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
    Product<S> product = weight_hh_.product(columns);
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

  // Saves the state that the next chunk starts from.
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
  PackedLayer<S, O> packed_;
  Projection<S, O> projection_;
  RecurrentWeight<S, O> weight_hh_;
  Buffer<T> zeros_;
  Buffer<T> from_zeros_;  // W_hh times zeros
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
  const Plan plan = plan_of(tasks, true, kernels, p.input_size, 0, threads);
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
