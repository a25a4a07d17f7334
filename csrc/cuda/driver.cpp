// Translates a call from torch tensors to passes over time and back. Products over all steps are
// torch's matrix products: the input projection, dx and the weight gradients.
#include "cuda/driver.h"

#include <array>

#include "common/compat.h"
#include "common/gradient_slots.h"
#include "cuda/kernels.h"
#include "cuda/runtime.h"

namespace rnn_ext::cuda {
namespace {

// a · b, written to `target`.
void multiply(const Tensor& a, const Tensor& b, const Tensor& target) {
  std::array<StableIValue, 3> stack{boxed::from(a), boxed::from(b), boxed::from(target)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  boxed::to<Tensor>(stack[0]);
}

Tensor narrowed(Tensor t, std::int64_t dim, std::int64_t start, std::int64_t length) {
  return torch::stable::narrow(t, dim, start, length);
}

Tensor transposed(const Tensor& matrix) { return torch::stable::transpose(matrix, 0, 1); }

// The rows of all steps as one matrix.
Tensor flat(const Tensor& sequence) {
  return sequence.dim() == 2 ? sequence : torch::stable::flatten(sequence, 0, 1);
}

// The states of one direction as a matrix.
Tensor states_of(const Tensor& states, std::int64_t d) {
  return states.dim() == 2 ? states : flat(narrowed(states, 0, d, 1));
}

// The sum over the first dimension, written to `target`.
void sum_rows(const Tensor& t, Tensor& target) {
  const std::int64_t rows = 0;
  torch::stable::sum_out(target, t, torch::headeronly::IntHeaderOnlyArrayRef(&rows, 1));
}

// W_ih of all directions, stacked by rows.
Tensor stacked_weights_ih(const Call& call) {
  if (call.directions == 1) {
    return call.weight(0, 0);
  }
  Tensor stacked =
      empty({call.directions * call.hidden_size, call.input_size}, call.dtype, call.device);
  for (std::int64_t d = 0; d < call.directions; ++d) {
    Tensor part = narrowed(stacked, 0, d * call.hidden_size, call.hidden_size);
    torch::stable::copy_(part, call.weight(d, 0));
  }
  return stacked;
}

// A call on its device: its time axis in device memory, the plan, and everything else that must
// live until the kernels are launched. (Memory that is freed then goes to later work on the same
// stream.)
class Execution {
 public:
  explicit Execution(const Call& call) : call_(call), current_(call.device), steps_(call.steps) {
    if (!call.steps.batch_sizes) {
      return;
    }
    const std::int64_t count = call.steps.count;
    const auto on_device = [&](const std::int64_t* values) {
      keep(empty({count}, aoti_torch_dtype_int64(), call.device));
      auto* const target = view::data<std::int64_t>(kept_.back());
      require_success(upload({values, static_cast<std::size_t>(count)}, target, current_.stream()),
                      "bringing batch_sizes to the CUDA device");
      return target;
    };
    steps_.batch_sizes = on_device(call.steps.batch_sizes);
    steps_.batch_offsets = on_device(call.steps.batch_offsets);
  }

  PassOrder order(bool descends) const { return {steps_, descends}; }

  template <class S>
  const S* contiguous(const Tensor& t) {
    keep(torch::stable::contiguous(t));
    return view::data<const S>(kept_.back());
  }

  template <class S, class Pass>
  void run(Nonlinearity nonlinearity, const std::vector<Pass>& passes) const {
    const CallSizes sizes{call_.steps.batch, call_.hidden_size, call_.directions};
    const Plan plan = make_plan<Arithmetic<S>>(sizes, current_.limits());
    const std::span<const Pass> span(passes);
    require_success(plan.regime == Regime::persistent
                        ? run_persistent(plan, nonlinearity, span, current_.stream())
                        : run_steps(plan, nonlinearity, span, current_.stream()),
                    "launching a CUDA kernel");
  }

 private:
  void keep(Tensor t) { kept_.push_back(std::move(t)); }

  const Call& call_;
  CurrentDevice current_;
  Steps steps_;
  std::vector<Tensor> kept_;
};

template <class S>
void run_forward(const Call& call, const Tensor& output, const Tensor& h_n) {
  Execution execution(call);
  multiply(flat(call.input()), transposed(stacked_weights_ih(call)), flat(output));
  std::vector<ForwardPass<S>> passes;
  Nonlinearity nonlinearity{};
  for (std::int64_t d = 0; d < call.directions; ++d) {
    const Problem<S> problem = call.problem<S>(output, d);
    nonlinearity = problem.nonlinearity;
    ForwardPass<S> pass;
    pass.order = execution.order(problem.reverse);
    pass.hidden_size = call.hidden_size;
    pass.weight = execution.contiguous<S>(call.weight(d, 1));
    pass.bias_ih = problem.bias_ih;
    pass.bias_hh = problem.bias_hh;
    pass.hx = problem.hx;
    pass.states = problem.output;
    pass.h_n = view::slice<S>(h_n, d);
    passes.push_back(pass);
  }
  execution.run<S>(nonlinearity, passes);
}

// The tensors of a BackwardPass, all directions in each.
struct Recurrence {
  std::vector<Tensor> matrices = {};
  bool reverse = false;  // each direction in the opposite time order
  Tensor output;
  std::optional<Tensor> grad_output;
  std::optional<Tensor> grad_h_n = std::nullopt;
  Tensor dz;
  std::optional<Tensor> previous = std::nullopt;
  std::optional<Tensor> grad_hx = std::nullopt;
};

template <class S>
void run_recurrence(const Call& call, const Recurrence& tensors) {
  Execution execution(call);
  std::vector<BackwardPass<S>> passes;
  Nonlinearity nonlinearity{};
  for (std::int64_t d = 0; d < call.directions; ++d) {
    const Problem<S> problem = call.problem<S>(tensors.output, d);
    nonlinearity = problem.nonlinearity;
    const auto part = [&]<class T>(Sequence<T> sequence) {
      sequence.data += d * call.hidden_size * sequence.column_stride;
      return sequence;
    };
    BackwardPass<S> pass;
    pass.order = execution.order(problem.reverse != tensors.reverse);
    pass.hidden_size = call.hidden_size;
    pass.weight = execution.contiguous<S>(tensors.matrices[d]);
    pass.states = {problem.output.data, problem.output.step_stride, problem.output.row_stride, 1};
    if (tensors.grad_output) {
      pass.grad_output = part(view::sequence<const S>(*tensors.grad_output));
    }
    if (tensors.grad_h_n) {
      pass.grad_h_n = view::slice<const S>(*tensors.grad_h_n, d);
    }
    pass.dz = part(view::sequence<S>(tensors.dz));
    if (tensors.previous) {
      pass.previous = part(view::sequence<S>(*tensors.previous));
      pass.hx = problem.hx;
    }
    if (tensors.grad_hx) {
      pass.grad_hx = view::slice<S>(*tensors.grad_hx, d);
    }
    passes.push_back(pass);
  }
  execution.run<S>(nonlinearity, passes);
}

// The columns of one direction, of the rows of all steps.
Tensor part(const Call& call, const Tensor& sequences, std::int64_t d) {
  return narrowed(flat(sequences), 1, d * call.hidden_size, call.hidden_size);
}

// Σ_t dz_tᵀ h_{t-1}, written to `target`. If all steps have the same rows, the h_{t-1} are rows of
// output, except for those of hx.
void gradient_of_weight_hh(const Call& call, std::int64_t d, const Tensor& dz, const Tensor& output,
                           const std::optional<Tensor>& previous, Tensor& target) {
  const Tensor own = part(call, dz, d);
  if (previous) {
    multiply(transposed(own), part(call, *previous, d), target);
    return;
  }
  const std::int64_t batch = call.steps.batch;
  const std::int64_t rest = (call.steps.count - 1) * batch;
  const bool reverse = d == 1;
  const auto add_rest = [&](const Tensor& to) {
    multiply(transposed(narrowed(own, 0, reverse ? 0 : batch, rest)),
             narrowed(part(call, output, d), 0, reverse ? batch : 0, rest), to);
  };
  const auto add_first = [&](const Tensor& to) {
    multiply(transposed(narrowed(own, 0, reverse ? rest : 0, batch)), states_of(*call.hx(), d), to);
  };
  if (!call.hx()) {
    add_rest(target);  // zero rows: zeros
  } else if (rest == 0) {
    add_first(target);
  } else {
    const Tensor both = empty({2, call.hidden_size, call.hidden_size}, call.dtype, call.device);
    add_rest(flat(narrowed(both, 0, 0, 1)));
    add_first(flat(narrowed(both, 0, 1, 1)));
    sum_rows(both, target);
  }
}

void weight_gradients(const Call& call, std::int64_t d, const Tensor& dz, const Tensor& output,
                      const std::optional<Tensor>& previous, GradientSlots& slots) {
  if (const auto& slot = slots.weight(d, 0)) {
    multiply(transposed(part(call, dz, d)), flat(call.input()), *slot);
  }
  if (auto& slot = slots.weight(d, 1)) {
    gradient_of_weight_hh(call, d, dz, output, previous, *slot);
  }
  // Both biases have the same gradient.
  const Tensor* sum = nullptr;
  for (std::int64_t i = 2; i < call.per_direction; ++i) {
    auto& slot = slots.weight(d, i);
    if (slot && sum) {
      torch::stable::copy_(*slot, *sum);
    } else if (slot) {
      sum_rows(part(call, dz, d), *slot);
      sum = &*slot;
    }
  }
}

}  // namespace

void Driver::forward(const Call& call, const Tensor& output, const Tensor& h_n) {
  if (output.numel() > 0) {
    with_type(call.dtype, [&](auto zero) { run_forward<decltype(zero)>(call, output, h_n); });
  }
}

std::vector<Tensor> Driver::backward(const Call& call, const std::optional<Tensor>& grad_output,
                                     const std::optional<Tensor>& grad_h_n,
                                     const std::vector<Tensor>& weights, const Tensor& output,
                                     const std::vector<bool>& output_mask) {
  call.check_backward(output, grad_output, grad_h_n);
  GradientSlots slots(call, weights, output_mask);
  if (output.numel() == 0) {
    std::vector<Tensor> gradients = slots.take();
    for (Tensor& gradient : gradients) {
      torch::stable::zero_(gradient);
    }
    return gradients;
  }

  Recurrence recurrence{.reverse = true,
                        .output = output,
                        .grad_output = grad_output,
                        .dz = call.new_output(),
                        .grad_hx = slots.hx()};
  for (std::int64_t d = 0; d < call.directions; ++d) {
    recurrence.matrices.push_back(transposed(call.weight(d, 1)));
  }
  if (grad_h_n) {
    recurrence.grad_h_n = with_unit_columns(*grad_h_n);
  }
  // If steps differ in length, no view contains the previous states.
  if (call.steps.batch_sizes &&
      (slots.weight(0, 1) || (call.directions == 2 && slots.weight(1, 1)))) {
    recurrence.previous = call.new_output();
  }
  with_type(call.dtype, [&](auto zero) { run_recurrence<decltype(zero)>(call, recurrence); });
  if (slots.input()) {
    multiply(flat(recurrence.dz), stacked_weights_ih(call), flat(*slots.input()));
  }
  for (std::int64_t d = 0; d < call.directions; ++d) {
    weight_gradients(call, d, recurrence.dz, output, recurrence.previous, slots);
  }
  return slots.take();
}

void Driver::tangent(const Call& call, const Tensor& seed, const Tensor& output,
                     const Tensor& tangent, bool reverse) {
  if (tangent.numel() == 0) {
    return;
  }
  Recurrence recurrence{.reverse = reverse, .output = output, .grad_output = seed, .dz = tangent};
  if (call.hx()) {
    recurrence.grad_h_n = call.new_state();
  }
  for (std::int64_t d = 0; d < call.directions; ++d) {
    const Tensor& matrix = call.weight(d, 1);
    recurrence.matrices.push_back(matrix);
    if (call.hx()) {
      multiply(states_of(*call.hx(), d), transposed(matrix), states_of(*recurrence.grad_h_n, d));
    }
  }
  with_type(call.dtype, [&](auto zero) { run_recurrence<decltype(zero)>(call, recurrence); });
}

}  // namespace rnn_ext::cuda
