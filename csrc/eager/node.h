// What the autograd nodes of this folder have in common.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <mutex>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace rnn_ext::eager {

using at::Tensor;
using std::optional;
using torch::autograd::variable_list;

template <class Signature>
const c10::TypedOperatorHandle<Signature>& op(const char* name) {
  return *new c10::TypedOperatorHandle<Signature>(
      c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>());
}

// Runs f, which calls an op. An error's type does not cross the ops' C interface, so that of out of
// memory is restored.
template <class F>
auto without_autograd(F&& f) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  try {
    return f();
  } catch (const std::runtime_error& error) {
    const std::string_view text = error.what();
    TORCH_CHECK_WITH(OutOfMemoryError, !text.starts_with("rnn_ext: out of memory"), text);
    throw;
  }
}

inline optional<Tensor> if_defined(const Tensor& t) {
  return t.defined() ? optional(t) : std::nullopt;
}

// Returns one gradient for each element of `mask`, in `found` for those that are true.
variable_list in_places(std::vector<Tensor> found, const std::vector<bool>& mask);

// Whether gradients of the gradients may be asked for.
bool is_followed(const variable_list& grads);

// A node that saves tensors, and that compiled autograd can record. A small call takes 15
// microseconds longer under torch::autograd::Function, which this replaces.
class LayerNode : public torch::autograd::Node {
 public:
  void release_variables() override;
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override;
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override;

 protected:
  // Computes gradients from saved tensors, settings(), and which gradients are wanted.
  using Backward = variable_list (*)(const variable_list& grads, const variable_list& saved,
                                     const std::vector<std::int64_t>& settings,
                                     const std::vector<bool>& mask);

  // `constant`, where it is defined, is kept unseen by hooks on saved tensors.
  LayerNode(torch::autograd::edge_list&& edges, Backward backward, Tensor constant = {})
      : Node(std::move(edges)), backward_(backward), constant_(std::move(constant)) {}

  void save(const Tensor& t) { saved_.emplace_back(t, false); }
  void save(at::TensorList tensors) {
    for (const Tensor& t : tensors) {
      save(t);
    }
  }
  // Saves a result that may be changed in place before backward, as torch's RNNs allow. Torch would
  // refuse such a saved tensor, so this saves the data under another version.
  void save_unchanged(const Tensor& result) {
    save(result.variable_data());
    const auto& version = torch::autograd::impl::version_counter(result);
    versions_.emplace_back(version, version.current_version());
  }
  bool is_changed() const;
  // The saved tensors in their order, then the constant where it is defined.
  variable_list unpack();
  // Whether the gradient of each edge is wanted.
  std::vector<bool> wanted() const;

  // What the gradients depend on beside tensors.
  virtual std::vector<std::int64_t> settings() const = 0;

 private:
  const Backward backward_;
  Tensor constant_;
  std::vector<torch::autograd::SavedVariable> saved_;
  std::vector<std::pair<c10::VariableVersion, std::uint32_t>> versions_;
};

}  // namespace rnn_ext::eager
