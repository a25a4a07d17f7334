#include "eager/layer.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <algorithm>

namespace rnn_ext::eager {
namespace {

using torch::autograd::SavedVariable;

template <class Signature>
const c10::TypedOperatorHandle<Signature>& op(const char* name) {
  return *new c10::TypedOperatorHandle<Signature>(
      c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>());
}

using Forward = std::tuple<Tensor, Tensor>(const Tensor&, const optional<Tensor>&, at::TensorList,
                                           const optional<Tensor>&, c10::string_view, bool);
using Backward = std::vector<Tensor>(const optional<Tensor>&, const optional<Tensor>&,
                                     const Tensor&, const optional<Tensor>&, at::TensorList,
                                     const Tensor&, const optional<Tensor>&, c10::string_view, bool,
                                     std::vector<bool>);
using CellForward = Tensor(const Tensor&, const optional<Tensor>&, at::TensorList,
                           c10::string_view);
using CellBackward = std::vector<Tensor>(const Tensor&, const Tensor&, const optional<Tensor>&,
                                         at::TensorList, const Tensor&, c10::string_view,
                                         std::vector<bool>);

// Runs f, which calls an op. An error's type does not cross the ops' C interface, so that of out of
// memory is restored.
template <class F>
auto without_autograd(F&& f) {
  const at::AutoDispatchBelowAutograd guard;
  try {
    return f();
  } catch (const std::runtime_error& error) {
    const std::string_view text = error.what();
    TORCH_CHECK_WITH(OutOfMemoryError, !text.starts_with("rnn_ext: out of memory"), text);
    throw;
  }
}

variable_list run_forward(const Operands& operands, Settings settings) {
  const auto& [input, hx, batch_sizes, weights] = operands;
  return without_autograd([&]() -> variable_list {
    if (settings.step) {
      static const auto& cell_forward = op<CellForward>("rnn_ext::_cell_forward");
      return {cell_forward.call(input, hx, weights, settings.nonlinearity())};
    }
    static const auto& rnn_forward = op<Forward>("rnn_ext::_rnn_forward");
    auto [output, h_n] = rnn_forward.call(input, hx, weights, batch_sizes, settings.nonlinearity(),
                                          settings.bidirectional);
    return {std::move(output), std::move(h_n)};
  });
}

optional<Tensor> if_defined(const Tensor& t) { return t.defined() ? optional(t) : std::nullopt; }

// The gradients that `mask` asks for.
std::vector<Tensor> run_backward(const variable_list& grads, const Operands& operands,
                                 const Tensor& output, Settings settings,
                                 const std::vector<bool>& mask) {
  const auto& [input, hx, batch_sizes, weights] = operands;
  return without_autograd([&] {
    if (settings.step) {
      static const auto& cell_backward = op<CellBackward>("rnn_ext::_cell_backward");
      return cell_backward.call(grads[0], input, hx, weights, output, settings.nonlinearity(),
                                mask);
    }
    static const auto& rnn_backward = op<Backward>("rnn_ext::_rnn_backward");
    return rnn_backward.call(if_defined(grads[0]), if_defined(grads[1]), input, hx, weights, output,
                             batch_sizes, settings.nonlinearity(), settings.bidirectional, mask);
  });
}

// Whether gradients of the gradients may be asked for.
bool is_followed(const variable_list& grads) {
  return at::GradMode::is_enabled() ||
         c10::impl::tls_is_dispatch_key_included(
             c10::DispatchKey::FuncTorchDynamicLayerFrontMode) ||
         std::any_of(grads.begin(), grads.end(), [](const Tensor& t) {
           return t.defined() && t.key_set().has(c10::DispatchKey::Batched);
         });
}

// torch::autograd::Function would do, and costs a small call some microseconds more.
class RNNBackward final : public torch::autograd::Node {
 public:
  RNNBackward(const Operands& operands, const Tensor& output, Settings settings)
      : Node(torch::autograd::collect_next_edges(operands.input, operands.hx, operands.weights)),
        settings_(settings),
        version_(torch::autograd::impl::version_counter(output)),
        saved_version_(version_.current_version()) {
    saved_.reserve(first_weight + operands.weights.size());
    saved_.emplace_back(operands.input, false);
    saved_.emplace_back(operands.hx, false);
    saved_.emplace_back(operands.batch_sizes, false);
    // The output may be changed in place before backward, as nn.RNN allows: its data is saved under
    // a version of its own, so that torch does not complain, and version_ tells of the change.
    saved_.emplace_back(output.variable_data(), false);
    for (const Tensor& weight : operands.weights) {
      saved_.emplace_back(weight, false);
    }
  }

  std::string name() const override { return "RNNBackward"; }

  void release_variables() override {
    const std::lock_guard lock(mutex_);
    for (SavedVariable& saved : saved_) {
      saved.reset_data();
    }
  }

 private:
  static constexpr std::size_t first_weight = 4;

  variable_list apply(variable_list&& grads) override {
    const std::size_t count = num_outputs();
    if (std::none_of(grads.begin(), grads.end(), [](const Tensor& t) { return t.defined(); })) {
      return variable_list(count);
    }
    const auto [operands, output] = unpack();
    std::vector<bool> mask(count);
    for (std::size_t i = 0; i < count; ++i) {
      mask[i] = task_should_compute_output(i);
    }
    const bool is_changed = version_.current_version() != saved_version_;
    if (is_followed(grads)) {
      // As this node's output, through which second derivatives pass on.
      return higher_order_backward(
          grads, operands,
          is_changed ? std::nullopt
                     : optional(torch::autograd::make_variable(output, {getptr(), 0})),
          settings_, mask);
    }
    std::vector<Tensor> found =
        run_backward(grads, operands, is_changed ? run_forward(operands, settings_)[0] : output,
                     settings_, mask);
    variable_list gradients(count);
    auto next = found.begin();
    for (std::size_t i = 0; i < count; ++i) {
      if (mask[i]) {
        gradients[i] = std::move(*next++);
      }
    }
    return gradients;
  }

  std::pair<Operands, Tensor> unpack() {
    const std::lock_guard lock(mutex_);
    Operands operands{
        saved_[0].unpack(), if_defined(saved_[1].unpack()), if_defined(saved_[2].unpack()), {}};
    operands.weights.reserve(saved_.size() - first_weight);
    for (std::size_t i = first_weight; i < saved_.size(); ++i) {
      operands.weights.push_back(saved_[i].unpack());
    }
    return {std::move(operands), saved_[3].unpack()};
  }

  const Settings settings_;
  const c10::VariableVersion version_;  // of the output
  const std::uint32_t saved_version_;
  std::vector<SavedVariable> saved_;  // input, hx, batch_sizes, output, weights
};

}  // namespace

variable_list run_layer(const Operands& operands, Settings settings) {
  variable_list results = run_forward(operands, settings);
  if (torch::autograd::compute_requires_grad(operands.input, operands.hx,
                                             at::TensorList(operands.weights))) {
    torch::autograd::set_history(results,
                                 c10::make_intrusive<RNNBackward>(operands, results[0], settings));
  }
  return results;
}

}  // namespace rnn_ext::eager
