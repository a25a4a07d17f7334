// The base of the autograd nodes in this folder.
#pragma once

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <mutex>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "eager/direct.h"

namespace rnn_ext::eager {

using torch::autograd::variable_list;

// Runs f, which calls an op, and restores the type of an out-of-memory error, which the ops' C
// interface does not pass.
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

// Returns a gradient for each element of `mask`: for true ones the next of `found`.
variable_list in_places(std::vector<Tensor> found, const std::vector<bool>& mask);

// Whether gradients of the gradients may be requested.
bool is_followed(const variable_list& grads);

// A node that saves tensors and that compiled autograd can record. It replaces
// torch::autograd::Function, with which a small call takes 15 microseconds longer.
class LayerNode : public torch::autograd::Node {
 public:
  void release_variables() override;
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override;
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override;

 protected:
  // Computes the requested gradients from saved tensors and settings().
  using Backward = variable_list (*)(const variable_list& grads, const variable_list& saved,
                                     const std::vector<std::int64_t>& settings,
                                     const std::vector<bool>& mask);

  // `constant`, if defined, is kept too, but hooks on saved tensors do not get it.
  LayerNode(torch::autograd::edge_list&& edges, Backward backward, Tensor constant = {})
      : Node(std::move(edges)), backward_(backward), constant_(std::move(constant)) {}

  void save(const Tensor& t) { saved_.emplace_back(t, false); }
  void save(at::TensorList tensors) {
    for (const Tensor& t : tensors) {
      save(t);
    }
  }
  // Saves a result that users may change in place before backward, as in torch's RNNs. Autograd
  // would raise an error for such a saved tensor, so this saves the data under another version.
  void save_unchanged(const Tensor& result) {
    save(result.variable_data());
    const auto& version = torch::autograd::impl::version_counter(result);
    versions_.emplace_back(version, version.current_version());
  }
  bool is_changed() const;
  // The saved tensors in their order, then the constant, if defined.
  variable_list unpack();
  // Whether the gradient of each edge is requested.
  std::vector<bool> wanted() const;

  // The values other than tensors on which the gradients depend.
  virtual std::vector<std::int64_t> settings() const = 0;

 private:
  const Backward backward_;
  Tensor constant_;
  std::vector<torch::autograd::SavedVariable> saved_;
  std::vector<std::pair<c10::VariableVersion, std::uint32_t>> versions_;
};

}  // namespace rnn_ext::eager
