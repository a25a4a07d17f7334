// The kernels under the sanitizers, without Python and torch: every operand in an allocation of its
// own, so that an access beyond it is found; parity with a loop in fp64, so that the run counts.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "cuda/device.cuh"
#include "cuda/kernels.h"
#include "emulation.h"

namespace {

using namespace rnn_ext;
using namespace rnn_ext::cuda;

std::mt19937 engine{1};

template <class S>
std::vector<S> draw(std::int64_t count, double scale) {
  std::normal_distribution<float> normal;
  std::vector<S> values(count);
  for (S& value : values) {
    value = narrow<S>(static_cast<Arithmetic<S>>(normal(engine) * scale));
  }
  return values;
}

template <class S>
double wide(S x) {
  return static_cast<double>(widen(x));
}

// One direction of a layer over `batch_sizes`.
template <class S>
struct Case {
  std::int64_t hidden_size;
  std::vector<std::int64_t> batch_sizes;
  bool reverse;
  std::vector<std::int64_t> offsets;
  Steps steps;
  std::vector<S> weight, transposed, bias, hx, projected, states, h_n, grad_output, grad_h_n, dz,
      previous, grad_hx;

  Case(std::int64_t hidden_size, std::vector<std::int64_t> batch_sizes, bool reverse)
      : hidden_size(hidden_size), batch_sizes(std::move(batch_sizes)), reverse(reverse) {
    prepare();
  }

  void prepare() {
    std::int64_t total = 0;
    for (const std::int64_t rows : batch_sizes) {
      offsets.push_back(total);
      total += rows;
    }
    const auto count = static_cast<std::int64_t>(batch_sizes.size());
    const std::int64_t batch = batch_sizes.front();
    steps = {count, batch, batch_sizes.data(), offsets.data()};
    weight = draw<S>(hidden_size * hidden_size, 0.5 / std::sqrt(hidden_size));
    transposed = weight;
    for (std::int64_t i = 0; i < hidden_size * hidden_size; ++i) {
      transposed[i % hidden_size * hidden_size + i / hidden_size] = weight[i];
    }
    bias = draw<S>(hidden_size, 0.3);
    for (auto* values : {&hx, &h_n, &grad_h_n, &grad_hx}) {
      *values = draw<S>(batch * hidden_size, 1);
    }
    for (auto* values : {&projected, &grad_output, &dz, &previous}) {
      *values = draw<S>(total * hidden_size, 1);
    }
    states = projected;
  }

  Matrix<S> matrix(std::vector<S>& values) { return {values.data(), hidden_size, 1}; }
  Sequence<S> sequence(std::vector<S>& values) { return {values.data(), 0, hidden_size, 1}; }

  ForwardPass<S> forward() {
    return {{steps, reverse}, hidden_size, weight.data(),    matrix(bias),
            matrix(bias),     matrix(hx),  sequence(states), matrix(h_n)};
  }
  BackwardPass<S> backward() {
    const auto readable = [&](std::vector<S>& values) {
      return Sequence<const S>{values.data(), 0, hidden_size, 1};
    };
    return {{steps, !reverse},     hidden_size,      transposed.data(), readable(states),
            readable(grad_output), matrix(grad_h_n), sequence(dz),      matrix(grad_hx),
            sequence(previous),    matrix(hx)};
  }

  // The largest difference from the recurrence in fp64, forward and backward, of states in [-1, 1].
  double error() const {
    double worst = 0;
    const auto compare = [&](S actual, double expected) {
      const double difference = std::abs(wide(actual) - expected);
      worst = difference <= worst ? worst : difference;  // NaN counts
    };
    const PassOrder order{steps, reverse};
    std::vector<double> h(hidden_size), dh(hidden_size);
    for (std::int64_t r = 0; r < steps.batch; ++r) {
      const auto at = [&](std::int64_t t) { return (offsets[t] + r) * hidden_size; };
      std::vector<std::int64_t> own;
      for (std::int64_t i = 0; i < steps.count; ++i) {
        if (r < steps.rows(order.time(i))) {
          own.push_back(order.time(i));
        }
      }
      for (std::int64_t c = 0; c < hidden_size; ++c) {
        h[c] = wide(hx[r * hidden_size + c]);
      }
      for (const std::int64_t t : own) {
        const std::vector<double> before = h;
        for (std::int64_t c = 0; c < hidden_size; ++c) {
          double z = wide(projected[at(t) + c]) + 2 * wide(bias[c]);
          for (std::int64_t k = 0; k < hidden_size; ++k) {
            z += wide(weight[c * hidden_size + k]) * before[k];
          }
          h[c] = std::tanh(z);
          compare(states[at(t) + c], h[c]);
          compare(previous[at(t) + c], before[c]);
        }
      }
      for (std::int64_t c = 0; c < hidden_size; ++c) {
        compare(h_n[r * hidden_size + c], h[c]);
        dh[c] = wide(grad_h_n[r * hidden_size + c]);
      }
      std::reverse(own.begin(), own.end());
      for (const std::int64_t t : own) {
        std::vector<double> d(hidden_size);
        for (std::int64_t c = 0; c < hidden_size; ++c) {
          const double state = wide(states[at(t) + c]);
          d[c] = (dh[c] + wide(grad_output[at(t) + c])) * (1 - state * state);
          compare(dz[at(t) + c], d[c]);
        }
        for (std::int64_t k = 0; k < hidden_size; ++k) {
          dh[k] = 0;
          for (std::int64_t c = 0; c < hidden_size; ++c) {
            dh[k] += wide(weight[c * hidden_size + k]) * d[c];
          }
        }
      }
      for (std::int64_t c = 0; c < hidden_size; ++c) {
        compare(grad_hx[r * hidden_size + c], dh[c]);
      }
    }
    return worst;
  }
};

template <class S>
bool passes(std::int64_t hidden_size, const Plan& plan, double tolerance) {
  const auto sizes = std::vector<std::int64_t>{5, 5, 3, 1};
  Case<S> cases[] = {{hidden_size, sizes, false}, {hidden_size, sizes, true}};
  std::vector<ForwardPass<S>> forward;
  std::vector<BackwardPass<S>> backward;
  for (auto& c : cases) {
    forward.push_back(c.forward());
    backward.push_back(c.backward());
  }
  const auto run = [&]<class Pass>(const std::vector<Pass>& directions) {
    const std::span<const Pass> span(directions);
    return plan.regime == Regime::persistent
               ? run_persistent(plan, Nonlinearity::tanh, span, nullptr)
               : run_steps(plan, Nonlinearity::tanh, span, nullptr);
  };
  const bool ran = run(forward) == cudaSuccess && run(backward) == cudaSuccess;
  const double error = std::max(cases[0].error(), cases[1].error());
  const bool is_right = ran && error <= tolerance;
  if (!is_right) {
    std::printf("regime %d, shape %d, hidden size %d: off by %g\n", static_cast<int>(plan.regime),
                plan.shape, static_cast<int>(hidden_size), error);
  }
  return is_right;
}

// Every kernel of a storage type.
template <class S>
int failures(int& count, double tolerance) {
  int failed = 0;
  const auto check = [&](std::int64_t hidden_size, Plan plan) {
    ++count;
    failed += !passes<S>(hidden_size, plan, tolerance);
  };
  for (int i = 0; const PersistentShape& shape : persistent_shapes<Arithmetic<S>>) {
    check(shape.columns - 3, {Regime::persistent, i++});
  }
  for (int i = 0; i < static_cast<int>(std::size(step_shapes)); ++i) {
    check(70, {Regime::steps, i});
  }
  return failed;
}

}  // namespace

int main() {
  int count = 0;
  int failed = 0;
  for (const auto order : {emulation::Order::identity, emulation::Order::shuffled}) {
    emulation::order = order;
    // Absolute, of values up to about 5 that went through a dozen roundings of their type.
    failed += failures<float>(count, 1e-5) + failures<double>(count, 1e-13) +
              failures<Half>(count, 0.02) + failures<BFloat16>(count, 0.15);
  }
  std::printf("%d cases passed, %d failed\n", count - failed, failed);
  return failed;
}
