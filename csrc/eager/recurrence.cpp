#include "eager/recurrence.h"

#include <torch/csrc/autograd/functions/utils.h>

#include <algorithm>
#include <bit>
#include <numeric>

namespace rnn_ext::eager {
namespace {

using Lists = std::array<at::TensorList, 4>;
using Forward = std::vector<Tensor>(const Tensor&, at::TensorList, at::TensorList, at::TensorList,
                                    at::TensorList, const optional<Tensor>&, const Tensor&, bool,
                                    std::int64_t, std::int64_t, std::int64_t);
using Backward = std::vector<Tensor>(at::TensorList, std::vector<bool>, const Tensor&,
                                     at::TensorList, at::TensorList, at::TensorList, at::TensorList,
                                     const Tensor&, at::TensorList, at::TensorList,
                                     const optional<Tensor>&, const Tensor&, bool, std::int64_t,
                                     std::vector<bool>);

// The lists of initial states, weights, parameters and inputs, which follow input.
Lists lists_of(at::TensorList tensors, const std::int64_t* counts) {
  Lists lists;
  std::size_t first = 1;
  for (std::size_t i = 0; i < lists.size(); ++i) {
    lists[i] = tensors.slice(first, counts[i]);
    first += counts[i];
  }
  return lists;
}

// The states from 1 on in a set of bits: y is the output.
std::int64_t count_states(std::int64_t kept) {
  return std::popcount(static_cast<std::uint64_t>(kept) >> 1);
}

variable_list run_forward(const Recurrence& layer, const variable_list& tensors,
                          const optional<Tensor>& batch_sizes, const Tensor& program,
                          std::int64_t kept_states, std::int64_t kept_values) {
  const auto [initial, weights, parameters, inputs] = lists_of(tensors, layer.counts.data());
  return without_autograd(
      [&, &initial = initial, &weights = weights, &parameters = parameters, &inputs = inputs] {
        static const auto& forward = op<Forward>("rnn_ext::recurrence_forward");
        return forward.call(tensors[0], initial, weights, parameters, inputs, batch_sizes, program,
                            layer.bidirectional, layer.states, kept_states, kept_values);
      });
}

// settings are the counts of the lists, bidirectional, states and kept_states; `saved` are the
// operands, batch_sizes, the output, what forward kept, and the program.
variable_list run_backward(const variable_list& grads, const variable_list& saved,
                           const std::vector<std::int64_t>& settings,
                           const std::vector<bool>& mask) {
  const std::int64_t *counts = settings.data(), states = settings[5], kept_states = settings[6];
  const at::TensorList all(saved);
  const std::size_t operands = 1 + std::accumulate(counts, counts + 4, std::size_t{0});
  const auto lists = lists_of(all, counts);
  const at::TensorList kept = all.slice(operands + 2, all.size() - operands - 3);
  const std::size_t sequences = count_states(kept_states);

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
        in_places(backward.call(given, flags, saved[0], lists[0], lists[1], lists[2], lists[3],
                                saved[operands + 1], kept.slice(0, sequences),
                                kept.slice(sequences), if_defined(saved[operands]), saved.back(),
                                settings[4] != 0, kept_states, mask),
                  mask);
    const std::size_t first = 1 + counts[0] + counts[1];
    for (std::size_t i = first; i < first + counts[2]; ++i) {
      if (gradients[i].defined()) {
        gradients[i] = gradients[i].sum(0);  // over directions
      }
    }
    return gradients;
  });
}

class RecurrenceBackward final : public LayerNode {
 public:
  RecurrenceBackward(const Recurrence& layer, std::int64_t kept_states,
                     const variable_list& tensors, Tensor program,
                     std::shared_ptr<c10::SafePyObject> object)
      : LayerNode(torch::autograd::collect_next_edges(tensors), run_backward, std::move(program)),
        layer_(layer),
        kept_states_(kept_states),
        object_(std::move(object)) {}

  // `found` is what forward returned, its first results with this node as their history.
  void save_all(const variable_list& tensors, const optional<Tensor>& batch_sizes,
                const variable_list& found) {
    save(tensors);
    save(batch_sizes.value_or(Tensor()));
    save(found[0]);
    save(at::TensorList(found).slice(1 + layer_.states));
  }

  std::string name() const override { return "RecurrenceBackward"; }

 private:
  variable_list apply(variable_list&& grads) override {
    if (std::none_of(grads.begin(), grads.end(), [](const Tensor& t) { return t.defined(); })) {
      return variable_list(num_outputs());
    }
    const variable_list saved = unpack();
    if (is_followed(grads)) {
      const auto batch_sizes = saved.begin() + num_outputs();
      return higher_order_backward(grads, *object_, {saved.begin(), batch_sizes},
                                   if_defined(*batch_sizes), {batch_sizes + 1, saved.end() - 1},
                                   kept_states_, wanted());
    }
    return run_backward(grads, saved, settings(), wanted());
  }

  std::vector<std::int64_t> settings() const override {
    const auto& counts = layer_.counts;
    return {counts[0],     counts[1],   counts[2], counts[3], layer_.bidirectional,
            layer_.states, kept_states_};
  }

  const Recurrence layer_;
  const std::int64_t kept_states_;
  const std::shared_ptr<c10::SafePyObject> object_;
};

}  // namespace

variable_list run_recurrence(const Recurrence& layer, const variable_list& tensors,
                             const optional<Tensor>& batch_sizes, const Tensor& program,
                             const std::shared_ptr<c10::SafePyObject>& object) {
  if (!torch::autograd::compute_requires_grad(at::TensorList(tensors))) {
    return run_forward(layer, tensors, batch_sizes, program, layer.returned_states, 0);
  }
  const std::int64_t kept_states = layer.returned_states | layer.saved_states;
  variable_list found =
      run_forward(layer, tensors, batch_sizes, program, kept_states, layer.saved_values);
  variable_list results(found.begin(), found.begin() + layer.results);
  const auto node =
      c10::make_intrusive<RecurrenceBackward>(layer, kept_states, tensors, program, object);
  torch::autograd::set_history(results, node);
  node->save_all(tensors, batch_sizes, found);
  return results;
}

}  // namespace rnn_ext::eager
