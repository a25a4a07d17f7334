// The linear recurrence behind all higher derivatives,
//
//   y_t = φ'(z_t) (s_t + W y_{t-1}), with φ' in terms of the states h,
//
// for a whole sequence. With W = W_hh it computes the tangent of the states; s is then the
// contribution of the tangents of input, weights and hx. Backward in time and with W = W_hhᵀ it
// computes the gradient of the pre-activations; s is then the gradient of the output.
//
// Members share the steps as in the forward pass. If values are stored in 16 bits, the recurrence
// continues from the unrounded y of the previous step.
#include "cpu/recurrent_weight.h"

namespace rnn_ext::cpu {
namespace {

template <class S, class O>
class Tangent {
  using T = Arithmetic<S>;

 public:
  Tangent(const TangentTask<S>& task, const Kernels<S, O>& kernels, const Plan&)
      : p_(task.problem),
        seed_(task.seed),
        tangent_(task.tangent),
        kernels_(kernels),
        weight_hh_(kernels, p_, p_.weight_hh.transposed(), static_cast<bool>(p_.hx)) {
    if (is_widened<S>) {
      const std::int64_t states = p_.steps.batch * p_.hidden_size;
      hx_ = Buffer<T>(p_.hx ? states : 0);
      for (auto& step : steps_) {
        step = Buffer<T>(states);
      }
    }
  }

  void run(const Team::Member& member, StepShare& share) const {
    weight_hh_.pack(column_share(kernels_, p_.hidden_size, member));
    const Matrix<const T> first =
        p_.hx ? readable(kernels_, p_.hx, share.rows, share.columns, as_rows(hx_, p_.hidden_size))
              : Matrix<const T>{};
    member.barrier();
    Pass pass{*this, share, first};
    run_steps(p_.steps, p_.order(), p_.steps.total_rows(), share, pass);
  }

 private:
  // One member's loop over the steps.
  struct Pass {
    const Tangent& f;
    const StepShare& share;
    Matrix<const T> first;
    Matrix<const T> previous = {};
    int parity = 0;

    void begin(const Chunk&) {}
    void step(std::int64_t t, Range carried, Range starting, Range) {
      const Matrix<T> y =
          writable(f.tangent_.at(f.p_.steps, t), as_rows(f.steps_[parity], f.p_.hidden_size));
      f.advance(t, y, carried, share.columns, previous);
      f.advance(t, y, starting, share.columns, first);
      previous = y;
      parity ^= 1;
    }
    void end(const Chunk&, bool) {}
  };

  // y for some rows of step t; previous null: zeros.
  void advance(std::int64_t t, Matrix<T> y, Range rows, Range columns,
               Matrix<const T> previous) const {
    if (rows.empty() || columns.empty()) {
      return;
    }
    const auto at = [&](auto m) { return m.row(rows.begin) + columns.begin; };
    const Matrix<const S> h = p_.output.at(p_.steps, t);
    const Matrix<const S> seed = seed_.at(p_.steps, t);
    const Matrix<S> stored = tangent_.at(p_.steps, t);
    Product<S> product = weight_hh_.product(columns);
    product.rows = rows.size();
    product.inner = previous ? p_.hidden_size : 0;
    product.a = previous ? previous.row(rows.begin) : nullptr;
    product.a_stride = previous.row_stride;
    product.c = at(y);
    product.c_stride = y.row_stride;
    product.finish = Finish::chain;
    product.nonlinearity = p_.nonlinearity;
    product.seed = at(seed);
    product.seed_stride = seed.row_stride;
    product.h = at(h);
    product.h_stride = h.row_stride;
    if (is_widened<S>) {
      product.stored = at(stored);
      product.stored_stride = stored.row_stride;
    }
    kernels_.product(product);
  }

  const Problem<S>& p_;
  Sequence<const S> seed_;
  Sequence<S> tangent_;
  const Kernels<S, O>& kernels_;
  RecurrentWeight<S, O> weight_hh_;
  Buffer<T> hx_;
  Buffer<T> steps_[2];  // y of the current step and of the previous one
};

}  // namespace

template <class S, class O>
void run_tangent(const std::vector<TangentTask<S>>& tasks, const Kernels<S, O>& kernels,
                 int threads, ParallelFor parallel_for) {
  const Scratch::Scope scratch;
  const Plan plan = plan_of(tasks, true, kernels, 0, 0, threads);
  run_directions<Tangent<S, O>>(tasks, plan, kernels, parallel_for, [](const Team::Member&) {});
}

template void run_tangent(const std::vector<TangentTask<float>>&, const Kernels<float>&, int,
                          ParallelFor);
template void run_tangent(const std::vector<TangentTask<double>>&, const Kernels<double>&, int,
                          ParallelFor);
template void run_tangent(const std::vector<TangentTask<BFloat16>>&, const Kernels<BFloat16>&, int,
                          ParallelFor);
template void run_tangent(const std::vector<TangentTask<BFloat16>>&,
                          const Kernels<BFloat16, BFloat16>&, int, ParallelFor);
template void run_tangent(const std::vector<TangentTask<Half>>&, const Kernels<Half>&, int,
                          ParallelFor);

}  // namespace rnn_ext::cpu
