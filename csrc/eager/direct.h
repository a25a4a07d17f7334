// Calls of the ops from the autograd node: of their CPU kernels where nobody observes the ops.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <c10/core/impl/PythonDispatcherTLS.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/inductor/aoti_torch/utils.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "cpu/direct.h"

namespace rnn_ext::eager {

using at::Tensor;
using std::optional;

// A tensor of torch's own class on the CPU, which no transform wraps.
inline bool is_dense_on_cpu(const Tensor& t) {
  constexpr c10::DispatchKeySet wrappers{
      c10::DispatchKey::FuncTorchGradWrapper, c10::DispatchKey::FuncTorchBatched,
      c10::DispatchKey::Batched, c10::DispatchKey::Python, c10::DispatchKey::Functionalize};
  return t.key_set().has(c10::DispatchKey::CPU) && !t.key_set().has_any(wrappers);
}

// Whether a transform of torch.func is active.
inline bool is_transformed() {
  return c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

namespace direct {

using Kernels = cpu::DirectKernels;

inline const Kernels* kernels = nullptr;  // set once, while the module is imported

// Whether torch has to see an op: a profiler, a mode or a transform is active.
inline bool is_observed() {
  return at::hasCallbacks() || c10::impl::TorchDispatchModeTLS::any_modes_set() ||
         c10::impl::PythonDispatcherTLS::get_state() || is_transformed();
}

// An argument that has one type everywhere.
template <class T>
concept Plain = std::is_arithmetic_v<T> || std::is_same_v<T, std::vector<bool>> ||
                std::is_same_v<T, Nonlinearity>;

// Whether a kernel can read an argument: the dispatcher materializes some views before it.
inline bool is_readable(const Tensor& t) {
  constexpr c10::DispatchKeySet lazy{c10::DispatchKey::Conjugate, c10::DispatchKey::Negative,
                                     c10::DispatchKey::ZeroTensor};
  return t.defined() && is_dense_on_cpu(t) && !t.key_set().has_any(lazy);
}
inline bool is_readable(const optional<Tensor>& t) { return !t || is_readable(*t); }
inline bool is_readable(at::TensorList list) {
  return std::all_of(list.begin(), list.end(), [](const Tensor& t) { return is_readable(t); });
}
template <Plain T>
bool is_readable(const T&) {
  return true;
}

// Arguments and results as the kernels have them, and back.
inline rnn_ext::Tensor to_kernel(const Tensor& t) {
  return rnn_ext::Tensor(torch::aot_inductor::new_tensor_handle(Tensor(t)));
}
inline optional<rnn_ext::Tensor> to_kernel(const optional<Tensor>& t) {
  return t ? optional(to_kernel(*t)) : std::nullopt;
}
inline std::vector<rnn_ext::Tensor> to_kernel(at::TensorList list) {
  std::vector<rnn_ext::Tensor> tensors;
  tensors.reserve(list.size());
  for (const Tensor& t : list) {
    tensors.push_back(to_kernel(t));
  }
  return tensors;
}
template <Plain T>
const T& to_kernel(const T& value) {
  return value;
}
inline Tensor from_kernel(const rnn_ext::Tensor& t) {
  return *torch::aot_inductor::tensor_handle_to_tensor_pointer(t.get());
}
inline std::tuple<Tensor, Tensor> from_kernel(
    const std::tuple<rnn_ext::Tensor, rnn_ext::Tensor>& pair) {
  return {from_kernel(std::get<0>(pair)), from_kernel(std::get<1>(pair))};
}
inline std::vector<Tensor> from_kernel(const std::vector<rnn_ext::Tensor>& list) {
  std::vector<Tensor> tensors;
  tensors.reserve(list.size());
  for (const rnn_ext::Tensor& t : list) {
    tensors.push_back(from_kernel(t));
  }
  return tensors;
}

// An argument as the op has it.
template <class T>
const T& to_op(const T& value) {
  return value;
}
inline c10::string_view to_op(Nonlinearity nonlinearity) { return name_of(nonlinearity); }

}  // namespace direct

// Calls the kernel, or the op of this name and signature.
template <auto kernel, class Signature, class... Arguments>
auto call_op(const char* name, const Arguments&... arguments) {
  if (direct::kernels && !direct::is_observed() && (direct::is_readable(arguments) && ...)) {
    return direct::from_kernel((direct::kernels->*kernel)(direct::to_kernel(arguments)...));
  }
  static const auto& op = *new c10::TypedOperatorHandle<Signature>(
      c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>());
  return op.call(direct::to_op(arguments)...);
}

}  // namespace rnn_ext::eager
