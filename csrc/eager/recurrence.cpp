#include "eager/recurrence.h"

#include <torch/csrc/autograd/functions/utils.h>

#include <algorithm>
#include <bit>
#include <numeric>

namespace rnn_ext::eager {
namespace {

using Lists = std::array<at::TensorList, 5>;
using Forward = std::vector<Tensor>(const Tensor&, at::TensorList, at::TensorList, at::TensorList,
                                    at::TensorList, at::TensorList, const optional<Tensor>&,
                                    const optional<Tensor>&, const Tensor&, bool, std::int64_t,
                                    std::int64_t, std::int64_t);
using Backward = std::vector<Tensor>(at::TensorList, std::vector<bool>, const Tensor&,
                                     at::TensorList, at::TensorList, at::TensorList, at::TensorList,
                                     at::TensorList, const Tensor&, at::TensorList, at::TensorList,
                                     const optional<Tensor>&, const optional<Tensor>&,
                                     const Tensor&, bool, std::int64_t, std::vector<bool>);

// The arguments of an op other than tensors.
struct Settings {
  Recurrence layer;
  std::int64_t states;
  std::int64_t kept_states;
  std::int64_t kept_values;

  // The results for users: the output of a step is the first of its states.
  std::size_t first_result() const { return layer.is_step ? 1 : 0; }
  std::size_t end_of_results() const { return 1 + states + (layer.return_states ? states - 1 : 0); }
  bool is_result(std::size_t i) const { return i >= first_result() && i < end_of_results(); }
};

// The lists after input: initial states, weights, parameters, inputs and reset states.
Lists lists_of(at::TensorList tensors, const Counts& counts) {
  Lists lists;
  std::size_t first = 1;
  for (std::size_t i = 0; i < lists.size(); ++i) {
    lists[i] = tensors.slice(first, counts[i]);
    first += counts[i];
  }
  return lists;
}

// The tensors of a step as those of a sequence of one step.
variable_list as_sequence(const variable_list& tensors, const Counts& counts) {
  const Tensor& input = tensors[0];
  const std::int64_t batch = input.dim() == 2 ? input.size(0) : 1;
  const std::int64_t hidden_size = lists_of(tensors, counts)[1][1].size(1);
  const std::vector<std::int64_t> sizes[] = {
      {1, batch, hidden_size}, {}, {hidden_size}, {1, 1, batch, hidden_size}};
  variable_list expanded{input.expand({1, batch, input.size(-1)})};
  expanded.reserve(tensors.size());
  for (std::size_t i = 0; i < std::size(sizes); ++i) {
    for (std::int64_t k = 0; k < counts[i]; ++k) {
      const Tensor& t = tensors[expanded.size()];
      expanded.push_back(sizes[i].empty() ? t : t.expand(sizes[i]));
    }
  }
  return expanded;
}

variable_list tensors_of_op(const Recurrence& layer, const RecurrenceOperands& operands) {
  return layer.is_step ? as_sequence(operands.tensors, layer.counts) : operands.tensors;
}

// The gradient of `t` from that of its expanded tensor.
Tensor gradient_of(const Tensor& t, const Tensor& expanded) {
  return expanded.numel() == t.numel() ? expanded.view(t.sizes()) : at::sum_to(expanded, t.sizes());
}

variable_list run_forward(const Settings& settings, const RecurrenceOperands& operands,
                          const Tensor& program) {
  const auto& [layer, states, kept_states, kept_values] = settings;
  return without_autograd([&] {
    const variable_list tensors = tensors_of_op(layer, operands);
    const Lists lists = lists_of(tensors, layer.counts);
    return call_op<&direct::Kernels::recurrence_forward, Forward>(
        "rnn_ext::recurrence_forward", tensors[0], lists[0], lists[1], lists[2], lists[3], lists[4],
        operands.reset, operands.batch_sizes, program, layer.bidirectional, states, kept_states,
        kept_values);
  });
}

// `kept` are the output and the further results that forward saved.
variable_list run_backward(const variable_list& grads, const Settings& settings,
                           const RecurrenceOperands& operands, at::TensorList kept,
                           const Tensor& program, const std::vector<bool>& mask) {
  const auto& [layer, states, kept_states, _] = settings;
  // The states from 1 on: y is the output.
  const std::size_t sequences = std::popcount(static_cast<std::uint64_t>(kept_states) >> 1);
  return without_autograd([&] {
    variable_list given;
    std::vector<bool> flags(2 * states);
    for (std::size_t i = 0; i < grads.size(); ++i) {
      if (grads[i].defined()) {
        flags[settings.first_result() + i] = true;
        given.push_back(layer.is_step ? grads[i].expand(kept[0].sizes()) : grads[i]);
      }
    }
    const variable_list tensors = tensors_of_op(layer, operands);
    const Lists lists = lists_of(tensors, layer.counts);
    variable_list gradients =
        in_places(call_op<&direct::Kernels::recurrence_backward, Backward>(
                      "rnn_ext::recurrence_backward", at::TensorList(given), flags, tensors[0],
                      lists[0], lists[1], lists[2], lists[3], lists[4], kept[0],
                      kept.slice(1, sequences), kept.slice(1 + sequences), operands.reset,
                      operands.batch_sizes, program, layer.bidirectional, kept_states, mask),
                  mask);
    // The op returns a parameter's for each direction, and a reset state's for each batch row.
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      if (gradients[i].defined() && gradients[i].sizes() != operands.tensors[i].sizes()) {
        gradients[i] = gradient_of(operands.tensors[i], gradients[i]);
      }
    }
    return gradients;
  });
}

class RecurrenceBackward final : public LayerNode {
 public:
  RecurrenceBackward(const Settings& settings, const variable_list& tensors,
                     const CellProgram& cell)
      : LayerNode(torch::autograd::collect_next_edges(tensors), run_saved_backward, cell.program),
        settings_(settings),
        cell_(cell.cell) {}

  // `found` are the results of forward.
  void save_all(const RecurrenceOperands& operands, const variable_list& found) {
    save(operands.tensors);
    save(operands.reset.value_or(Tensor()));
    save(operands.batch_sizes.value_or(Tensor()));
    for (std::size_t i = 0; i < found.size(); ++i) {
      const bool is_final_state = i > 0 && i <= static_cast<std::size_t>(settings_.states);
      if (!is_final_state) {
        settings_.is_result(i) ? save_unchanged(found[i]) : save(found[i]);
      }
    }
  }

  std::string name() const override { return "RecurrenceBackward"; }

 private:
  variable_list apply(variable_list&& grads) override {
    if (std::none_of(grads.begin(), grads.end(), [](const Tensor& t) { return t.defined(); })) {
      return variable_list(num_outputs());
    }
    const variable_list saved = unpack();
    if (is_followed(grads)) {
      return higher_order_backward(grads, *cell_, settings_.layer,
                                   operands_of(saved, settings_.layer.counts), wanted());
    }
    return run_saved_backward(grads, saved, settings(), wanted());
  }

  static RecurrenceOperands operands_of(const variable_list& saved, const Counts& counts) {
    const auto end = saved.begin() + std::accumulate(counts.begin(), counts.end(), 1);
    return {{saved.begin(), end}, if_defined(*end), if_defined(*(end + 1))};
  }

  static variable_list run_saved_backward(const variable_list& grads, const variable_list& saved,
                                          const std::vector<std::int64_t>& values,
                                          const std::vector<bool>& mask) {
    Settings settings;
    Recurrence& layer = settings.layer;
    std::copy_n(values.begin(), layer.counts.size(), layer.counts.begin());
    layer.bidirectional = values[5] != 0;
    layer.return_states = values[6] != 0;
    layer.is_step = values[7] != 0;
    settings.states = values[8];
    settings.kept_states = values[9];
    settings.kept_values = values[10];
    const RecurrenceOperands operands = operands_of(saved, layer.counts);
    variable_list kept(saved.begin() + operands.tensors.size() + 2, saved.end() - 1);
    if (const bool is_changed = values[11] != 0; is_changed) {
      kept = run_forward(settings, operands, saved.back());
      kept.erase(kept.begin() + 1, kept.begin() + 1 + settings.states);
    }
    return run_backward(grads, settings, operands, kept, saved.back(), mask);
  }

  std::vector<std::int64_t> settings() const override {
    const auto& [layer, states, kept_states, kept_values] = settings_;
    std::vector<std::int64_t> values(layer.counts.begin(), layer.counts.end());
    values.insert(values.end(), {layer.bidirectional, layer.return_states, layer.is_step, states,
                                 kept_states, kept_values, is_changed()});
    return values;
  }

  const Settings settings_;
  const std::shared_ptr<c10::SafePyObject> cell_;
};

}  // namespace

variable_list run_recurrence(const Recurrence& layer, const RecurrenceOperands& operands,
                             const CellProgram& cell) {
  const std::int64_t returned = layer.return_states ? (std::int64_t{1} << cell.states) - 2 : 0;
  Settings settings{layer, cell.states, returned, 0};
  const bool is_recorded = torch::autograd::compute_requires_grad(at::TensorList(operands.tensors));
  if (is_recorded) {
    settings.kept_states |= cell.saved_states;
    settings.kept_values = cell.saved_values;
  }
  const variable_list found = run_forward(settings, operands, cell.program);
  variable_list results(found.begin() + settings.first_result(),
                        found.begin() + settings.end_of_results());
  if (layer.is_step) {
    std::vector<std::int64_t> sizes = operands.tensors[0].sizes().vec();
    sizes.back() = found[0].size(-1);
    const at::AutoDispatchBelowADInplaceOrView guard;
    for (Tensor& state : results) {
      state = state.view(sizes);
    }
  }
  if (is_recorded) {
    const auto node = c10::make_intrusive<RecurrenceBackward>(settings, operands.tensors, cell);
    torch::autograd::set_history(results, node);
    node->save_all(operands, found);
  }
  return results;
}

}  // namespace rnn_ext::eager
