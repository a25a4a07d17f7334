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

// What an op is called with beside tensors.
struct Settings {
  std::array<std::int64_t, 5> counts;
  bool bidirectional;
  std::int64_t states;
  std::int64_t kept_states;
  std::int64_t kept_values;
};

// The lists of initial states, weights, parameters, inputs and reset states, which follow input.
Lists lists_of(at::TensorList tensors, const std::array<std::int64_t, 5>& counts) {
  Lists lists;
  std::size_t first = 1;
  for (std::size_t i = 0; i < lists.size(); ++i) {
    lists[i] = tensors.slice(first, counts[i]);
    first += counts[i];
  }
  return lists;
}

variable_list run_forward(const Settings& settings, const RecurrenceOperands& operands,
                          const Tensor& program) {
  const Lists lists = lists_of(operands.tensors, settings.counts);
  return without_autograd([&] {
    static const auto& forward = op<Forward>("rnn_ext::recurrence_forward");
    return forward.call(operands.tensors[0], lists[0], lists[1], lists[2], lists[3], lists[4],
                        operands.reset, operands.batch_sizes, program, settings.bidirectional,
                        settings.states, settings.kept_states, settings.kept_values);
  });
}

// `kept` are the output and what forward kept beside it.
variable_list run_backward(const variable_list& grads, const Settings& settings,
                           const RecurrenceOperands& operands, at::TensorList kept,
                           const Tensor& program, const std::vector<bool>& mask) {
  const auto& [counts, bidirectional, states, kept_states, _] = settings;
  const Lists lists = lists_of(operands.tensors, counts);
  // The states from 1 on: y is the output.
  const std::size_t sequences = std::popcount(static_cast<std::uint64_t>(kept_states) >> 1);

  // Forward returned output, the final states, and the steps of some of the kept states.
  variable_list given(grads.begin(), grads.begin() + 1 + states);
  std::size_t next = 1 + states;
  for (std::int64_t s = 1; s < states; ++s) {
    const bool is_kept = kept_states >> s & 1;
    given.push_back(is_kept && next < grads.size() ? grads[next++] : Tensor());
  }
  std::vector<bool> flags;
  for (const Tensor& t : given) {
    flags.push_back(t.defined());
  }
  std::erase_if(given, [](const Tensor& t) { return !t.defined(); });
  return without_autograd([&] {
    static const auto& backward = op<Backward>("rnn_ext::recurrence_backward");
    variable_list gradients =
        in_places(backward.call(given, flags, operands.tensors[0], lists[0], lists[1], lists[2],
                                lists[3], lists[4], kept[0], kept.slice(1, sequences),
                                kept.slice(1 + sequences), operands.reset, operands.batch_sizes,
                                program, bidirectional, kept_states, mask),
                  mask);
    auto gradient = gradients.begin() + 1 + counts[0] + counts[1];
    for (std::int64_t i = 0; i < counts[2]; ++i, ++gradient) {
      if (gradient->defined()) {
        *gradient = gradient->sum(0);  // over directions
      }
    }
    gradient += counts[3];
    for (const Tensor& state : lists[4]) {
      if (gradient->defined() && state.size(-2) == 1) {
        *gradient = gradient->sum(-2, true);  // over batch rows
      }
      ++gradient;
    }
    return gradients;
  });
}

class RecurrenceBackward final : public LayerNode {
 public:
  RecurrenceBackward(const Settings& settings, const variable_list& tensors, Tensor program,
                     std::shared_ptr<c10::SafePyObject> object)
      : LayerNode(torch::autograd::collect_next_edges(tensors), run_saved_backward,
                  std::move(program)),
        settings_(settings),
        object_(std::move(object)) {}

  // `found` is what forward returned, `results` of them to the user.
  void save_all(const RecurrenceOperands& operands, const variable_list& found,
                std::size_t results) {
    save(operands.tensors);
    save(operands.reset.value_or(Tensor()));
    save(operands.batch_sizes.value_or(Tensor()));
    for (std::size_t i = 0; i < found.size(); ++i) {
      if (i == 0 || (i > static_cast<std::size_t>(settings_.states) && i < results)) {
        save_unchanged(found[i]);
      } else if (i >= results) {
        save(found[i]);
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
      return higher_order_backward(grads, *object_, operands_of(saved, settings_.counts), wanted());
    }
    return run_saved_backward(grads, saved, settings(), wanted());
  }

  static RecurrenceOperands operands_of(const variable_list& saved,
                                        const std::array<std::int64_t, 5>& counts) {
    const auto end = saved.begin() + std::accumulate(counts.begin(), counts.end(), 1);
    return {{saved.begin(), end}, if_defined(*end), if_defined(*(end + 1))};
  }

  static variable_list run_saved_backward(const variable_list& grads, const variable_list& saved,
                                          const std::vector<std::int64_t>& values,
                                          const std::vector<bool>& mask) {
    Settings settings;
    std::copy_n(values.begin(), settings.counts.size(), settings.counts.begin());
    settings.bidirectional = values[5] != 0;
    settings.states = values[6];
    settings.kept_states = values[7];
    settings.kept_values = values[8];
    const RecurrenceOperands operands = operands_of(saved, settings.counts);
    variable_list kept(saved.begin() + operands.tensors.size() + 2, saved.end() - 1);
    if (const bool is_changed = values[9] != 0; is_changed) {
      kept = run_forward(settings, operands, saved.back());
      kept.erase(kept.begin() + 1, kept.begin() + 1 + settings.states);
    }
    return run_backward(grads, settings, operands, kept, saved.back(), mask);
  }

  std::vector<std::int64_t> settings() const override {
    const auto& [counts, bidirectional, states, kept_states, kept_values] = settings_;
    std::vector<std::int64_t> values(counts.begin(), counts.end());
    values.insert(values.end(), {bidirectional, states, kept_states, kept_values, is_changed()});
    return values;
  }

  const Settings settings_;
  const std::shared_ptr<c10::SafePyObject> object_;
};

}  // namespace

variable_list run_recurrence(const Recurrence& layer, const RecurrenceOperands& operands,
                             const Tensor& program,
                             const std::shared_ptr<c10::SafePyObject>& object) {
  Settings settings{layer.counts, layer.bidirectional, layer.states, layer.returned_states, 0};
  if (!torch::autograd::compute_requires_grad(at::TensorList(operands.tensors))) {
    return run_forward(settings, operands, program);
  }
  settings.kept_states |= layer.saved_states;
  settings.kept_values = layer.saved_values;
  const variable_list found = run_forward(settings, operands, program);
  variable_list results(found.begin(), found.begin() + layer.results);
  const auto node =
      c10::make_intrusive<RecurrenceBackward>(settings, operands.tensors, program, object);
  torch::autograd::set_history(results, node);
  node->save_all(operands, found, layer.results);
  return results;
}

}  // namespace rnn_ext::eager
