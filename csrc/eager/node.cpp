#include "eager/node.h"

#include <torch/csrc/dynamo/compiled_autograd.h>

#include <algorithm>

namespace rnn_ext::eager {

using torch::dynamo::autograd::PackedArgs;

variable_list in_places(std::vector<Tensor> found, const std::vector<bool>& mask) {
  variable_list gradients(mask.size());
  auto next = found.begin();
  for (std::size_t i = 0; i < mask.size(); ++i) {
    if (mask[i]) {
      gradients[i] = std::move(*next++);
    }
  }
  return gradients;
}

bool is_followed(const variable_list& grads) {
  return at::GradMode::is_enabled() || is_transformed() ||
         std::any_of(grads.begin(), grads.end(), [](const Tensor& t) {
           return t.defined() && t.key_set().has(c10::DispatchKey::Batched);
         });
}

void LayerNode::release_variables() {
  const std::lock_guard lock(mutex_);
  for (auto& saved : saved_) {
    saved.reset_data();
  }
}

variable_list LayerNode::unpack() {
  const std::lock_guard lock(mutex_);
  variable_list tensors;
  tensors.reserve(saved_.size() + 1);
  for (const auto& saved : saved_) {
    tensors.push_back(saved.unpack());
  }
  if (constant_.defined()) {
    tensors.push_back(constant_);
  }
  return tensors;
}

bool LayerNode::is_changed() const {
  return std::any_of(versions_.begin(), versions_.end(), [](const auto& version) {
    return version.first.current_version() != version.second;
  });
}

std::vector<bool> LayerNode::wanted() const {
  std::vector<bool> mask(num_outputs());
  for (std::size_t i = 0; i < mask.size(); ++i) {
    mask[i] = task_should_compute_output(i);
  }
  return mask;
}

void LayerNode::compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const {
  args.collect(saved_, false);
  args.collect(constant_);
  args.collect(settings());
}

variable_list LayerNode::apply_with_saved(const variable_list& grads,
                                          torch::dynamo::autograd::SwapSavedVariables& swap) {
  swap.before(saved_);
  swap.before(constant_);
  PackedArgs packed;
  packed.pack(unpack());
  packed.pack(settings());
  packed.pack(wanted());
  swap.after(constant_);
  swap.after(saved_);
  std::vector<at::TypePtr> schema;
  for (const c10::IValue& value : packed.vec()) {
    schema.push_back(value.type());
  }
  const auto run = [backward = backward_](const variable_list& grads,
                                          const std::vector<c10::IValue>& args) {
    PackedArgs packed(args);
    const auto saved = packed.unpack<variable_list>();
    const auto settings = packed.unpack<std::vector<std::int64_t>>();
    return backward(grads, saved, settings, packed.unpack<std::vector<bool>>());
  };
  const auto metadata =
      torch::dynamo::autograd::IValuePacker<std::vector<optional<torch::autograd::InputMetadata>>>::
          pack(torch::dynamo::autograd::get_input_metadata(next_edges()));
  const auto& python = torch::dynamo::autograd::getPyCompilerInterface();
  PyObject* const compiler = swap.get_py_compiler();
  const std::string function = python->bind_function(compiler, name(), run, schema, true, false);
  return python->call_function(compiler, "apply_functional", function, grads, packed.vec(),
                               metadata);
}

}  // namespace rnn_ext::eager
