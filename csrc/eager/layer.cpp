#include "eager/layer.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <algorithm>

namespace rnn_ext::eager {
namespace {

using torch::autograd::SavedVariable;
using torch::dynamo::autograd::PackedArgs;

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

// Returns a gradient for each element of `mask`, undefined where that is false. `output` is
// undefined if it was changed in place: the layer runs again.
variable_list run_backward(const variable_list& grads, const Operands& operands,
                           const Tensor& output, Settings settings, const std::vector<bool>& mask) {
  const auto& [input, hx, batch_sizes, weights] = operands;
  const Tensor states = output.defined() ? output : run_forward(operands, settings)[0];
  std::vector<Tensor> found = without_autograd([&] {
    if (settings.step) {
      static const auto& cell_backward = op<CellBackward>("rnn_ext::_cell_backward");
      return cell_backward.call(grads[0], input, hx, weights, states, settings.nonlinearity(),
                                mask);
    }
    static const auto& rnn_backward = op<Backward>("rnn_ext::_rnn_backward");
    return rnn_backward.call(if_defined(grads[0]), if_defined(grads[1]), input, hx, weights, states,
                             batch_sizes, settings.nonlinearity(), settings.bidirectional, mask);
  });
  variable_list gradients(mask.size());
  auto next = found.begin();
  for (std::size_t i = 0; i < mask.size(); ++i) {
    if (mask[i]) {
      gradients[i] = std::move(*next++);
    }
  }
  return gradients;
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

// What a node saves, in this order: input, hx, batch_sizes, output, weights.
Operands operands_of(const variable_list& saved) {
  return {saved[0], if_defined(saved[1]), if_defined(saved[2]), {saved.begin() + 4, saved.end()}};
}

// A backward that compiled autograd has recorded; RNNBackward::apply_with_saved packs `args`.
variable_list run_compiled(const variable_list& grads, const std::vector<c10::IValue>& args) {
  PackedArgs packed(args);
  const auto saved = packed.unpack<variable_list>();
  const auto flags = packed.unpack<std::vector<bool>>();
  const auto mask = packed.unpack<std::vector<bool>>();
  const bool is_changed = flags[3];
  return run_backward(grads, operands_of(saved), is_changed ? Tensor() : saved[3],
                      {flags[0], flags[1], flags[2]}, mask);
}

// A small call takes 15 microseconds longer under torch::autograd::Function, which this replaces.
class RNNBackward final : public torch::autograd::Node {
 public:
  RNNBackward(const Operands& operands, const Tensor& output, Settings settings)
      : Node(torch::autograd::collect_next_edges(operands.input, operands.hx, operands.weights)),
        settings_(settings),
        version_(torch::autograd::impl::version_counter(output)),
        saved_version_(version_.current_version()) {
    saved_.reserve(4 + operands.weights.size());
    saved_.emplace_back(operands.input, false);
    saved_.emplace_back(operands.hx, false);
    saved_.emplace_back(operands.batch_sizes, false);
    // The output may be changed in place before backward, as nn.RNN allows. Torch would refuse such
    // a saved tensor, so that this saves the data under another version; version_ shows a change.
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

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(saved_, false);
    for (const bool flag : flags()) {
      args.collect(flag);
    }
  }

  // Records run_compiled in the graph of compiled autograd.
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    swap.before(saved_);
    PackedArgs packed;
    packed.pack(unpack());
    packed.pack(flags());
    packed.pack(wanted());
    swap.after(saved_);
    std::vector<at::TypePtr> schema;
    for (const c10::IValue& value : packed.vec()) {
      schema.push_back(value.type());
    }
    const auto metadata = torch::dynamo::autograd::
        IValuePacker<std::vector<optional<torch::autograd::InputMetadata>>>::pack(
            torch::dynamo::autograd::get_input_metadata(next_edges()));
    const auto& python = torch::dynamo::autograd::getPyCompilerInterface();
    PyObject* const compiler = swap.get_py_compiler();
    const std::string function =
        python->bind_function(compiler, name(), run_compiled, schema, true, false);
    return python->call_function(compiler, "apply_functional", function, grads, packed.vec(),
                                 metadata);
  }

 private:
  variable_list apply(variable_list&& grads) override {
    if (std::none_of(grads.begin(), grads.end(), [](const Tensor& t) { return t.defined(); })) {
      return variable_list(num_outputs());
    }
    const variable_list saved = unpack();
    const Operands operands = operands_of(saved);
    if (is_followed(grads)) {
      // With the output as this node's, through which second derivatives pass on.
      return higher_order_backward(
          grads, operands,
          is_changed() ? std::nullopt
                       : optional(torch::autograd::make_variable(saved[3], {getptr(), 0})),
          settings_, wanted());
    }
    return run_backward(grads, operands, is_changed() ? Tensor() : saved[3], settings_, wanted());
  }

  variable_list unpack() {
    const std::lock_guard lock(mutex_);
    variable_list tensors;
    tensors.reserve(saved_.size());
    for (const SavedVariable& saved : saved_) {
      tensors.push_back(saved.unpack());
    }
    return tensors;
  }

  bool is_changed() const { return version_.current_version() != saved_version_; }
  std::vector<bool> flags() const {
    return {settings_.step, settings_.relu, settings_.bidirectional, is_changed()};
  }
  // Whether the gradient of each edge is wanted.
  std::vector<bool> wanted() const {
    std::vector<bool> mask(num_outputs());
    for (std::size_t i = 0; i < mask.size(); ++i) {
      mask[i] = task_should_compute_output(i);
    }
    return mask;
  }

  const Settings settings_;
  const c10::VariableVersion version_;  // of the output
  const std::uint32_t saved_version_;
  std::vector<SavedVariable> saved_;
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
