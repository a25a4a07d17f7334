// Translates a call from torch tensors to problems and back.
#include "cpu/driver.h"

#include <cstring>
#include <new>

#include "common/gradient_slots.h"
#include "cpu/isa.h"
#include "cpu/recurrence.h"
#include "cpu/settings.h"

namespace rnn_ext::cpu {
namespace {

// Calls f with the kernels for tensors of this dtype, which Call has checked.
template <class F>
void with_kernels(std::int32_t dtype, F&& f) {
  const KernelSet& set = kernels();
  if (dtype == aoti_torch_dtype_float32()) {
    f(set.f32);
  } else if (dtype == aoti_torch_dtype_float64()) {
    f(set.f64);
  } else if (dtype == aoti_torch_dtype_bfloat16()) {
    set.bf16_products ? f(*set.bf16_products) : f(set.bf16);
  } else {
    f(set.f16);
  }
}

int thread_limit() { return available_threads(static_cast<int>(torch::stable::get_num_threads())); }

// Runs f with scratch memory failures told in words.
template <class F>
void guarded(F&& f) {
  try {
    f();
  } catch (const std::bad_alloc&) {
    throw std::runtime_error("rnn_ext: out of memory: could not allocate scratch memory");
  }
}

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
