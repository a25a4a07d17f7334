#include "cpu/cell_ops.h"

#include "cpu/cell_call.h"

namespace rnn_ext::cpu {
namespace {

// The number of states from 1 on in a set of bits.
std::size_t count_kept(const Program& program, std::uint64_t kept) {
  std::size_t count = 0;
  for (int s = 1; s < program.states; ++s) {
    count += kept >> s & 1;
  }
  return count;
}

}  // namespace

std::vector<Tensor> recurrence_forward(
    const Tensor& input, const OptionalTensors& initial, const std::vector<Tensor>& weights,
    const OptionalTensors& parameters, const OptionalTensors& inputs,
    const OptionalTensors& reset_states, const std::optional<Tensor>& reset,
    const std::optional<Tensor>& batch_sizes, const Tensor& program, bool bidirectional,
    std::int64_t states, std::int64_t kept_states, std::int64_t kept_values) {
  const std::vector<Tensor> none;
  const auto list = [&](const OptionalTensors& t) -> const std::vector<Tensor>& {
    return t ? *t : none;
  };
  const CellCall call(input, list(initial), weights, list(parameters), list(inputs),
                      list(reset_states), reset, batch_sizes, program, bidirectional);
  require(states == call.program.states, "states must be as many as the cell's program has");
  require(kept_values == 0 || kept_values == call.program.saved,
          "kept_values must be 0, or as many as the cell's program keeps");
  const auto kept = static_cast<std::uint64_t>(kept_states);
  const Tensor output = call.new_states();
  std::vector<Tensor> finals, sequences, saved;
  for (int s = 0; s < call.program.states; ++s) {
    finals.push_back(call.new_state());
  }
  for (std::size_t i = 0; i < count_kept(call.program, kept); ++i) {
    sequences.push_back(call.new_states());
  }
  for (std::int64_t i = 0; i < kept_values; ++i) {
    saved.push_back(call.new_states());
  }
  if (output.numel() > 0) {
    with_kernels(call.dtype, [&]<class S, class O>(const Kernels<S, O>& kernels) {
      guarded([&] {
        std::vector<CellForwardTask<S>> tasks;
        for (std::int64_t d = 0; d < call.directions; ++d) {
          CellForwardTask<S> task{
              call.problem<S>(output, d), call.operands<S>(sequences, kept, saved, d), {}};
          for (const Tensor& t : finals) {
            task.final_states.push_back(view::slice<S>(t, d));
          }
          tasks.push_back(std::move(task));
        }
        run_cell_forward(tasks, kernels, thread_limit(), torch_parallel_for);
      });
    });
  }
  std::vector<Tensor> results{output};
  for (auto* list : {&finals, &sequences, &saved}) {
    results.insert(results.end(), list->begin(), list->end());
  }
  return results;
}

namespace {

// The incoming gradients, in the order of the flags in `given`.
class GivenGradients {
 public:
  GivenGradients(const CellCall& call, const std::vector<Tensor>& gradients,
                 const std::vector<bool>& given)
      : all_(given.size()), states_(call.program.states) {
    require(static_cast<int>(given.size()) == 2 * states_,
            "given needs a flag for output, each final state and each further state");
    std::size_t next = 0;
    for (int i = 0; i < 2 * states_; ++i) {
      if (given[i]) {
        require(next < gradients.size(), "gradients has too few tensors");
        const Tensor& t = gradients[next++];
        if (i >= 1 && i <= states_) {
          call.checked(t, "the gradient of a final state",
                       {call.directions, call.steps.batch, call.hidden_size});
          all_[i] = with_unit_columns(t);
        } else {
          all_[i] = CellCall::broadcastable(call.checked_states(t, "the gradient of a state"));
        }
      }
    }
    require(next == gradients.size(), "gradients has too many tensors");
  }

  template <class S>
  Sequence<const S> sequence(const CellCall& call, int state, std::int64_t direction) const {
    const auto& t = all_[state == 0 ? 0 : states_ + state];
    return t ? call.sequence<const S>(*t, direction) : Sequence<const S>{};
  }
  template <class S>
  Matrix<const S> final_state(int state, std::int64_t direction) const {
    const auto& t = all_[1 + state];
    return t ? view::slice<const S>(*t, direction) : Matrix<const S>{};
  }

 private:
  std::vector<std::optional<Tensor>> all_;
  int states_;
};

}  // namespace

std::vector<Tensor> recurrence_backward(
    const std::vector<Tensor>& gradients, const std::vector<bool>& given, const Tensor& input,
    const std::vector<Tensor>& initial, const std::vector<Tensor>& weights,
    const std::vector<Tensor>& parameters, const std::vector<Tensor>& inputs,
    const std::vector<Tensor>& reset_states, const Tensor& output,
    const std::vector<Tensor>& sequences, const std::vector<Tensor>& saved,
    const std::optional<Tensor>& reset, const std::optional<Tensor>& batch_sizes,
    const Tensor& program, bool bidirectional, std::int64_t kept_states,
    const std::vector<bool>& output_mask) {
  const CellCall call(input, initial, weights, parameters, inputs, reset_states, reset, batch_sizes,
                      program, bidirectional);
  require(call.program.has_derivative(), "the cell has no derivative");
  const GivenGradients incoming(call, gradients, given);
  call.made_by_forward(output, "output");
  const auto kept = static_cast<std::uint64_t>(kept_states);
  require((kept & call.program.kept_states) == call.program.kept_states &&
              sequences.size() == count_kept(call.program, kept) &&
              static_cast<int>(saved.size()) == call.program.saved,
          "expected the states and values that the cell's program keeps");
  for (const auto* list : {&sequences, &saved}) {
    for (const Tensor& t : *list) {
      call.made_by_forward(t, "a kept value");
    }
  }

  // A slot for each possible result, filled if it is requested.
  const std::size_t first_weight = 1 + initial.size();
  const std::size_t first_parameter = first_weight + weights.size();
  const std::size_t first_input = first_parameter + parameters.size();
  const std::size_t first_reset = first_input + inputs.size();
  std::vector<std::optional<Tensor>> slots(first_reset + reset_states.size());
  require(output_mask.size() == slots.size(), "output_mask needs a flag for each operand");
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (!output_mask[i]) {
      continue;
    }
    if (i == 0) {
      require(!call.has_tokens, "tokens have no gradient");
      slots[i] = call.new_sequence(call.input_size);
    } else if (i < first_weight) {
      slots[i] = call.new_state();
    } else if (i < first_parameter) {
      const auto sizes = weights[i - first_weight].sizes();
      slots[i] =
          sizes.size() == 2 ? call.new_tensor({sizes[0], sizes[1]}) : call.new_tensor({sizes[0]});
      if (call.has_tokens && (i - first_weight) % call.per_direction == 0) {
        torch::stable::zero_(*slots[i]);  // rows of tokens that do not occur
      }
    } else if (i < first_input) {
      slots[i] = call.new_tensor({call.directions, call.hidden_size});
    } else if (i >= first_reset) {
      slots[i] = reset_states[i - first_reset].dim() == 3
                     ? call.new_state()
                     : call.new_tensor(
                           {call.steps.count, call.directions, call.steps.batch, call.hidden_size});
      torch::stable::zero_(*slots[i]);
    } else {
      slots[i] = call.steps.batch_sizes
                     ? call.new_tensor({call.directions, call.rows(), call.hidden_size})
                     : call.new_tensor(
                           {call.directions, call.steps.count, call.steps.batch, call.hidden_size});
    }
  }

  if (output.numel() > 0) {
    with_kernels(call.dtype, [&]<class S, class O>(const Kernels<S, O>& kernels) {
      guarded([&] {
        std::vector<CellBackwardTask<S>> tasks;
        for (std::int64_t d = 0; d < call.directions; ++d) {
          CellBackwardTask<S> task;
          task.problem = call.problem<S>(output, d);
          task.cell = call.operands<S>(sequences, kept, saved, d);
          Gradients<S>& g = task.gradients;
          CellGradients<S>& cell = task.cell_gradients;
          const auto state = [&](std::size_t i) {
            return i < first_weight && slots[i] ? view::slice<S>(*slots[i], d) : Matrix<S>{};
          };
          g.output = incoming.sequence<S>(call, 0, d);
          g.h_n = incoming.final_state<S>(0, d);
          g.hx = state(1);
          for (int s = 1; s < call.program.states; ++s) {
            cell.sequences.push_back(incoming.sequence<S>(call, s, d));
            cell.final_states.push_back(incoming.final_state<S>(s, d));
            cell.initial.push_back(state(1 + s));
          }
          if (slots[0]) {
            g.input = view::sequence<S>(*slots[0]);
            g.add_to_input = d > 0;
          }
          const auto weight = [&](std::int64_t i) -> const std::optional<Tensor>& {
            return slots[first_weight + d * call.per_direction + i];
          };
          const auto row = [&](std::int64_t i) {
            return i < call.per_direction && weight(i) ? view::row<S>(*weight(i)) : Matrix<S>{};
          };
          if (weight(0)) {
            (call.has_tokens ? g.table : g.weight_ih) = view::matrix<S>(*weight(0));
          }
          g.weight_hh = weight(1) ? view::matrix<S>(*weight(1)) : Matrix<S>{};
          g.bias_ih = row(2);
          g.bias_hh = row(3);
          for (std::size_t i = 0; i < parameters.size(); ++i) {
            const auto& slot = slots[first_parameter + i];
            cell.parameters.push_back(slot ? view::matrix<S>(*slot).part(d, 0) : Matrix<S>{});
          }
          for (std::size_t i = 0; i < inputs.size(); ++i) {
            const auto& slot = slots[first_input + i];
            cell.inputs.push_back(slot ? call.of_direction<S>(*slot, d) : Sequence<S>{});
          }
          for (int s = 0; s < call.program.states; ++s) {
            const bool is_wanted = !reset_states.empty() && slots[first_reset + s];
            cell.reset_states.push_back(is_wanted ? call.reset_state<S>(*slots[first_reset + s], d)
                                                  : Sequence<S>{});
          }
          tasks.push_back(std::move(task));
        }
        run_cell_backward(tasks, kernels, thread_limit(), torch_parallel_for);
      });
    });
  }
  std::vector<Tensor> results;
  for (const auto& slot : slots) {
    if (slot) {
      if (output.numel() == 0) {
        torch::stable::zero_(*const_cast<Tensor*>(&*slot));
      }
      results.push_back(*slot);
    }
  }
  return results;
}

void define_cell_ops(Library& m) {
  m.def(
      "recurrence_forward(Tensor input, Tensor[]? initial, Tensor[] weights, Tensor[]? parameters, "
      "Tensor[]? inputs, Tensor[]? reset_states, Tensor? reset, Tensor? batch_sizes, "
      "Tensor program, bool bidirectional, int states, int kept_states, int kept_values) "
      "-> Tensor[]");
  m.def(
      "recurrence_backward(Tensor[] gradients, bool[] given, Tensor input, Tensor[] initial, "
      "Tensor[] weights, Tensor[] parameters, Tensor[] inputs, Tensor[] reset_states, "
      "Tensor output, Tensor[] sequences, Tensor[] saved, Tensor? reset, Tensor? batch_sizes, "
      "Tensor program, bool bidirectional, int kept_states, bool[] output_mask) -> Tensor[]");
}

void implement_cell_ops(Library& m) {
  m.impl("recurrence_forward", TORCH_BOX(&Boxed<&recurrence_forward>::call));
  m.impl("recurrence_backward", TORCH_BOX(&Boxed<&recurrence_backward>::call));
}

}  // namespace rnn_ext::cpu
