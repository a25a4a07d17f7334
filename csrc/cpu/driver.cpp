// Translates a call from torch tensors to problems and back.
#include "cpu/driver.h"

#include <cstring>

#include "common/gradient_slots.h"
#include "cpu/dispatch.h"
#include "cpu/recurrence.h"

namespace rnn_ext::cpu {
namespace {

void zero(const Tensor& t) {
  std::memset(t.mutable_data_ptr(), 0, static_cast<std::size_t>(t.numel()) * t.element_size());
}

}  // namespace

void Driver::forward(const Call& call, const Tensor& output, const Tensor& h_n) {
  if (output.numel() == 0) {
    return;
  }
  with_kernels(call.dtype, [&]<class T, class O>(const Kernels<T, O>& kernels) {
    guarded([&] {
      std::vector<ForwardTask<T>> tasks;
      for (std::int64_t d = 0; d < call.directions; ++d) {
        tasks.push_back({call.problem<T>(output, d), view::slice<T>(h_n, d)});
      }
      run_forward(tasks, kernels, thread_limit(), torch_parallel_for);
    });
  });
}

std::vector<Tensor> Driver::backward(const Call& call, const std::optional<Tensor>& grad_output,
                                     const std::optional<Tensor>& grad_h_n,
                                     const std::vector<Tensor>& weights, const Tensor& output,
                                     const std::vector<bool>& output_mask) {
  call.check_backward(output, grad_output, grad_h_n);
  std::optional<Tensor> h_n_gradient;
  if (grad_h_n) {
    h_n_gradient = with_unit_columns(*grad_h_n);
  }
  GradientSlots slots(call, weights, output_mask);
  if (output.numel() > 0) {
    with_kernels(call.dtype, [&]<class T, class O>(const Kernels<T, O>& kernels) {
      guarded([&] {
        std::vector<BackwardTask<T>> tasks;
        for (std::int64_t d = 0; d < call.directions; ++d) {
          Gradients<T> g;
          if (grad_output) {
            g.output = view::sequence<const T>(*grad_output);
            g.output.data += d * call.hidden_size * g.output.column_stride;
          }
          if (h_n_gradient) {
            g.h_n = view::slice<const T>(*h_n_gradient, d);
          }
          if (slots.input()) {
            g.input = view::sequence<T>(*slots.input());
            g.add_to_input = d > 0;
          }
          if (slots.hx()) {
            g.hx = view::slice<T>(*slots.hx(), d);
          }
          if (const auto& slot = slots.weight(d, 0)) {
            g.weight_ih = view::matrix<T>(*slot);
          }
          if (const auto& slot = slots.weight(d, 1)) {
            g.weight_hh = view::matrix<T>(*slot);
          }
          if (call.per_direction == 4) {
            const auto row = [&](std::int64_t i) {
              const auto& slot = slots.weight(d, i);
              return slot ? view::row<T>(*slot) : Matrix<T>{};
            };
            g.bias_ih = row(2);
            g.bias_hh = row(3);
          }
          tasks.push_back({call.problem<T>(output, d), g});
        }
        run_backward(tasks, kernels, thread_limit(), torch_parallel_for);
      });
    });
  }

  std::vector<Tensor> gradients = slots.take();
  if (output.numel() == 0) {
    for (const Tensor& gradient : gradients) {
      zero(gradient);
    }
  }
  return gradients;
}

void Driver::tangent(const Call& call, const Tensor& seed, const Tensor& output,
                     const Tensor& tangent, bool reverse) {
  if (tangent.numel() == 0) {
    return;
  }
  with_kernels(call.dtype, [&]<class T, class O>(const Kernels<T, O>& kernels) {
    guarded([&] {
      std::vector<TangentTask<T>> tasks;
      for (std::int64_t d = 0; d < call.directions; ++d) {
        TangentTask<T> task{call.problem<T>(output, d), view::sequence<const T>(seed),
                            view::sequence<T>(tangent)};
        task.problem.reverse = task.problem.reverse != reverse;
        task.seed.data += d * call.hidden_size;
        task.tangent.data += d * call.hidden_size;
        tasks.push_back(task);
      }
      run_tangent(tasks, kernels, thread_limit(), torch_parallel_for);
    });
  });
}

}  // namespace rnn_ext::cpu
