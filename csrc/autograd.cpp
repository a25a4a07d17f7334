// The eager call on the CPU: checks it, runs it and records the node for backward, in C++.
//
// rnn_ext/autograd.py has the same in Python, at twice the time of a small step. torch's C++ API
// has no stable ABI, so this file is a module of its own, built for one torch release and loaded
// under that one alone (rnn_ext/_extension.py). Kernels are reached through their ops.
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/utils/pybind.h>

#include "common/supports.h"

namespace rnn_ext {
namespace {

using at::Tensor;
using std::optional;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* nonlinearities[] = {"tanh", "relu"};

template <class Signature>
const c10::TypedOperatorHandle<Signature>& op(const char* name) {
  return *new c10::TypedOperatorHandle<Signature>(
      c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>());
}

using Outputs = std::tuple<Tensor, Tensor>;
using Forward = Outputs(const Tensor&, const optional<Tensor>&, at::TensorList,
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

// What stays the same over a call and its backward.
struct Settings {
  bool step;  // of a cell
  bool relu;
  bool bidirectional;

  explicit Settings(std::int64_t bits) : step(bits & 1), relu(bits & 2), bidirectional(bits & 4) {}
  Settings(bool step, bool relu, bool bidirectional)
      : step(step), relu(relu), bidirectional(bidirectional) {}
  std::int64_t bits() const { return step | relu << 1 | bidirectional << 2; }
  const char* nonlinearity() const { return nonlinearities[relu]; }
};

struct Operands {
  Tensor input;
  optional<Tensor> hx;
  optional<Tensor> batch_sizes;
  std::vector<Tensor> weights;
};

// (output, h_n), or the next state alone for a step.
variable_list run_forward(const Operands& operands, Settings settings) {
  const auto& [input, hx, batch_sizes, weights] = operands;
  if (settings.step) {
    static const auto& cell_forward = op<CellForward>("rnn_ext::_cell_forward");
    return {cell_forward.call(input, hx, weights, settings.nonlinearity())};
  }
  static const auto& rnn_forward = op<Forward>("rnn_ext::_rnn_forward");
  auto [output, h_n] = rnn_forward.call(input, hx, weights, batch_sizes, settings.nonlinearity(),
                                        settings.bidirectional);
  return {std::move(output), std::move(h_n)};
}

optional<Tensor> if_defined(const Tensor& t) { return t.defined() ? optional(t) : std::nullopt; }

// Runs f. An error's type does not cross the ops' C interface, so that of out of memory is
// restored.
template <class F>
auto with_memory_errors(F&& f) {
  try {
    return f();
  } catch (const std::runtime_error& error) {
    const std::string_view text = error.what();
    TORCH_CHECK_WITH(OutOfMemoryError, !text.starts_with("rnn_ext: out of memory"), text);
    throw;
  }
}

// rnn_ext.autograd.higher_order_backward, for what is to be differentiated again or is under vmap.
pybind11::handle higher_order_backward;

variable_list run_backward(const variable_list& grads, const Operands& operands,
                           const Tensor& output, Settings settings, std::vector<bool> mask) {
  const auto& [input, hx, batch_sizes, weights] = operands;
  std::vector<Tensor> found;
  if (settings.step) {
    static const auto& cell_backward = op<CellBackward>("rnn_ext::_cell_backward");
    found = cell_backward.call(grads[0], input, hx, weights, output, settings.nonlinearity(), mask);
  } else {
    static const auto& rnn_backward = op<Backward>("rnn_ext::_rnn_backward");
    found =
        rnn_backward.call(if_defined(grads[0]), if_defined(grads[1]), input, hx, weights, output,
                          batch_sizes, settings.nonlinearity(), settings.bidirectional, mask);
  }
  variable_list gradients(mask.size());
  auto next = found.begin();
  for (std::size_t i = 0; i < mask.size(); ++i) {
    if (mask[i]) {
      gradients[i] = std::move(*next++);
    }
  }
  return gradients;
}

bool is_functorch_active() {
  return c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

bool is_followed(const variable_list& grads) {
  return at::GradMode::is_enabled() || is_functorch_active() ||
         std::any_of(grads.begin(), grads.end(), [](const Tensor& t) {
           return t.defined() && t.key_set().has(c10::DispatchKey::Batched);
         });
}

// The backward node of a layer, or of one step of a cell.
class RNNLayer : public torch::autograd::Function<RNNLayer> {
 public:
  // The tensors stand one by one in the arguments, since torch collects its edges from there.
  static variable_list forward(AutogradContext* ctx, const Tensor& input,
                               const optional<Tensor>& hx, at::TensorList weights,
                               const optional<Tensor>& batch_sizes, Settings settings) {
    const Operands operands{input, hx, batch_sizes, weights.vec()};
    variable_list outputs = run_forward(operands, settings);
    const Tensor& output = outputs[0];
    // The output may be changed in place before backward, as nn.RNN allows: what is saved is its
    // data under a version of its own, so that torch does not complain, and an empty tensor that
    // shares the output's version, which tells of the change.
    variable_list saved{input, hx.value_or(Tensor()), batch_sizes.value_or(Tensor()),
                        output.variable_data()};
    saved.insert(saved.end(), weights.begin(), weights.end());
    ctx->save_for_backward(std::move(saved));
    static const Tensor& empty = *new Tensor(at::empty({0}));
    ctx->saved_data["version"] = Tensor(empty.unsafeGetTensorImpl()->shallow_copy_and_detach(
        torch::autograd::impl::version_counter(output), true));
    ctx->saved_data["settings"] = settings.bits();
    ctx->set_materialize_grads(settings.step);
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Settings settings(ctx->saved_data["settings"].toInt());
    const bool is_changed = ctx->saved_data["version"].toTensor()._version() != 0;
    const Operands operands{
        saved[0], if_defined(saved[1]), if_defined(saved[2]), {saved.begin() + 4, saved.end()}};
    std::vector<bool> mask{ctx->needs_input_grad(0), operands.hx && ctx->needs_input_grad(1)};
    const std::size_t first_weight = operands.hx ? 2 : 1;
    for (std::size_t i = 0; i < operands.weights.size(); ++i) {
      mask.push_back(ctx->needs_input_grad(first_weight + i));
    }
    variable_list gradients;
    if (is_followed(grads)) {
      gradients = backward_in_python(grads, operands, saved[3], is_changed, settings, mask);
    } else {
      const Tensor output = is_changed ? run_forward(operands, settings)[0] : saved[3];
      gradients = run_backward(grads, operands, output, settings, mask);
    }
    // One for each argument of forward, the weights being several.
    if (!operands.hx) {
      gradients[1] = Tensor();
    }
    gradients.resize(gradients.size() + 2);  // batch_sizes and settings
    return gradients;
  }

 private:
  static variable_list backward_in_python(const variable_list& grads, const Operands& operands,
                                          Tensor output, bool is_changed, Settings settings,
                                          const std::vector<bool>& mask) {
    if (!is_changed) {
      // As this node's output, through which second derivatives pass on.
      output = torch::autograd::make_variable(
          output, torch::autograd::Edge(torch::autograd::get_current_node(), 0));
    }
    const pybind11::gil_scoped_acquire gil;
    const pybind11::object found = higher_order_backward(
        if_defined(grads[0]), settings.step ? std::nullopt : if_defined(grads[1]), operands.input,
        operands.hx, operands.weights, is_changed ? std::nullopt : optional(output),
        operands.batch_sizes, settings.nonlinearity(), settings.bidirectional, settings.step, mask);
    variable_list gradients;
    for (const pybind11::handle gradient : found) {
      gradients.push_back(gradient.is_none() ? Tensor() : gradient.cast<Tensor>());
    }
    return gradients;
  }
};

bool is_exact_or_none(PyObject* object) {
  return object == Py_None || THPVariable_CheckExact(object);
}

optional<Tensor> tensor_or_none(PyObject* object) {
  return object == Py_None ? std::nullopt : optional(THPVariable_Unpack(object));
}

// A call's arguments as Python has them; borrowed.
struct Arguments {
  PyObject* input;
  PyObject* hx;
  PyObject* weights;  // a list
  PyObject* batch_sizes;

  // Whether all of them are torch.Tensor or Parameter: subclasses have a say in Python.
  bool are_exact() const {
    if (!THPVariable_CheckExact(input) || !is_exact_or_none(hx) || !is_exact_or_none(batch_sizes) ||
        !PyList_CheckExact(weights)) {
      return false;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(weights); ++i) {
      if (!THPVariable_CheckExact(PyList_GET_ITEM(weights, i))) {
        return false;
      }
    }
    return true;
  }

  Operands read() const {
    Operands operands{
        THPVariable_Unpack(input), tensor_or_none(hx), tensor_or_none(batch_sizes), {}};
    const Py_ssize_t count = PyList_GET_SIZE(weights);
    operands.weights.reserve(count);
    for (Py_ssize_t i = 0; i < count; ++i) {
      operands.weights.push_back(THPVariable_Unpack(PyList_GET_ITEM(weights, i)));
    }
    return operands;
  }
};

// Whether graph capture, a transform or a mode is active that the Python side takes care of.
bool is_watched() {
  return is_functorch_active() || torch::jit::tracer::isTracing() ||
         torch::autograd::ForwardADLevel::try_get_by_idx(0) ||
         at::impl::torch_function_mode_enabled();
}

bool is_dense_on_cpu(const Tensor& t) {
  constexpr c10::DispatchKeySet wrappers{
      c10::DispatchKey::FuncTorchGradWrapper, c10::DispatchKey::FuncTorchBatched,
      c10::DispatchKey::Batched, c10::DispatchKey::Python, c10::DispatchKey::Functionalize};
  return t.key_set().has(c10::DispatchKey::CPU) && !t.key_set().has_any(wrappers);
}

bool has_kernels(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 ||
         dtype == at::kHalf;
}

Traits traits_of(const Tensor& t) {
  return {static_cast<std::int32_t>(t.scalar_type()), static_cast<std::int32_t>(t.device().type()),
          t.device().index(), static_cast<std::size_t>(t.dim()), t.sizes().data()};
}

bool supports(const Operands& operands, Layout layout, const Stack& stack) {
  const auto& [input, hx, batch_sizes, weights] = operands;
  BatchSizes sizes;
  if (batch_sizes) {
    if (batch_sizes->dim() != 1 || batch_sizes->scalar_type() != at::kLong ||
        !batch_sizes->is_contiguous()) {
      return false;
    }
    sizes = {batch_sizes->const_data_ptr<std::int64_t>(), batch_sizes->numel()};
  }
  const Traits hx_traits = hx ? traits_of(*hx) : Traits{};
  return find_obstacle(stack, layout, has_kernels(input.scalar_type()), traits_of(input),
                       hx ? &hx_traits : nullptr, sizes,
                       [&](std::int64_t i) { return traits_of(weights[i]); }) == Obstacle::none;
}

// An int, or -1 for one that is too large and for what is none.
std::int64_t number_of(PyObject* object) {
  int overflows = 0;
  return object && PyLong_CheckExact(object) ? PyLong_AsLongLongAndOverflow(object, &overflows)
                                             : -1;
}

bool is_flag(PyObject* object) { return object && PyBool_Check(object); }

// What a module says of its weights; borrowed, of any type, null where it says nothing.
struct Claims {
  PyObject *num_layers, *bidirectional, *bias, *training, *input_size, *hidden_size;
};

// Whether this file runs the call: the kernels support it, and what the module claims is true.
bool takes_call(const Operands& operands, bool is_step, const Claims& claims) {
  const auto& [input, hx, batch_sizes, weights] = operands;
  if (!is_flag(claims.bidirectional) || !is_flag(claims.bias) || !is_flag(claims.training)) {
    return false;
  }
  const Layout layout = is_step ? Layout::step : batch_sizes ? Layout::packed : Layout::sequence;
  const Stack stack{number_of(claims.num_layers), claims.bidirectional == Py_True ? 2 : 1,
                    static_cast<std::int64_t>(weights.size())};
  return is_dense_on_cpu(input) && (!hx || is_dense_on_cpu(*hx)) &&
         (!batch_sizes || (hx && is_dense_on_cpu(*batch_sizes))) &&
         std::all_of(weights.begin(), weights.end(), is_dense_on_cpu) &&
         supports(operands, layout, stack) &&
         stack.per_direction() == (claims.bias == Py_True ? 4 : 2) &&
         number_of(claims.hidden_size) == weights[0].size(0) &&
         number_of(claims.input_size) == weights[0].size(1);
}

variable_list run_layer(const Operands& operands, Settings settings) {
  const pybind11::gil_scoped_release without_gil;
  const auto& [input, hx, batch_sizes, weights] = operands;
  const bool needs_node = at::GradMode::is_enabled() &&
                          (input.requires_grad() || (hx && hx->requires_grad()) ||
                           std::any_of(weights.begin(), weights.end(),
                                       [](const Tensor& t) { return t.requires_grad(); }));
  return with_memory_errors([&] {
    return needs_node ? RNNLayer::apply(input, hx, at::TensorList(weights), batch_sizes, settings)
                      : run_forward(operands, settings);
  });
}

PyObject* wrap(variable_list results) {
  if (results.size() == 1) {
    return THPVariable_Wrap(std::move(results[0]));
  }
  pybind11::tuple wrapped(2);
  PyTuple_SET_ITEM(wrapped.ptr(), 0, THPVariable_Wrap(std::move(results[0])));
  PyTuple_SET_ITEM(wrapped.ptr(), 1, THPVariable_Wrap(std::move(results[1])));
  return wrapped.release().ptr();
}

// takes(*call) -> bool, for the fields of rnn_ext.call.Call in their order.
PyObject* takes(PyObject*, PyObject* const* f, Py_ssize_t) {
  HANDLE_TH_ERRORS
  const Arguments arguments{f[0], f[1], f[2], f[3]};
  return PyBool_FromLong(
      !is_watched() && arguments.are_exact() &&
      takes_call(arguments.read(), f[4] == Py_True, {f[6], f[7], f[8], f[9], f[10], f[11]}));
  END_HANDLE_TH_ERRORS
}

bool is_text(PyObject* object, const char* text) {
  return object && PyUnicode_Check(object) && PyUnicode_CompareWithASCIIString(object, text) == 0;
}

// run(input, hx, weights, batch_sizes, is_step, nonlinearity, bidirectional) -> (output, h_n), or
// the next state for a step. One layer that `takes` takes.
PyObject* run(PyObject*, PyObject* const* f, Py_ssize_t) {
  HANDLE_TH_ERRORS
  return wrap(run_layer(Arguments{f[0], f[1], f[2], f[3]}.read(),
                        {f[4] == Py_True, is_text(f[5], "relu"), f[6] == Py_True}));
  END_HANDLE_TH_ERRORS
}

// A module's own attributes; borrowed.
class Module {
 public:
  explicit Module(pybind11::handle module) : attributes_(module.attr("__dict__")) {}

  // Null where a subclass computes the attribute.
  PyObject* get(PyObject* name) const { return PyDict_GetItem(attributes_.ptr(), name); }
  // The parameter; None where it is none, null where a parametrization computes it.
  PyObject* parameter(PyObject* name) const {
    static PyObject* const parameters = PyUnicode_InternFromString("_parameters");
    PyObject* const found = get(parameters);
    return found ? PyDict_GetItem(found, name) : nullptr;
  }
  // Reads plain parameters; false where one is not.
  bool read(PyObject* const* names, Py_ssize_t count, std::vector<Tensor>& weights) const {
    for (Py_ssize_t i = 0; i < count; ++i) {
      PyObject* const weight = parameter(names[i]);
      if (!weight || !THPVariable_CheckExact(weight)) {
        return false;
      }
      weights.push_back(THPVariable_Unpack(weight));
    }
    return true;
  }

 private:
  pybind11::dict attributes_;
};

struct Names {
  PyObject* const weights = PyUnicode_InternFromString("_flat_weights_names");
  PyObject* const mode = PyUnicode_InternFromString("mode");
  PyObject* const nonlinearity = PyUnicode_InternFromString("nonlinearity");
  PyObject* const num_layers = PyUnicode_InternFromString("num_layers");
  PyObject* const bidirectional = PyUnicode_InternFromString("bidirectional");
  PyObject* const bias = PyUnicode_InternFromString("bias");
  PyObject* const training = PyUnicode_InternFromString("training");
  PyObject* const input_size = PyUnicode_InternFromString("input_size");
  PyObject* const hidden_size = PyUnicode_InternFromString("hidden_size");
  PyObject* const proj_size = PyUnicode_InternFromString("proj_size");
  PyObject* const batch_first = PyUnicode_InternFromString("batch_first");
  PyObject* const cell_weights[4] = {
      PyUnicode_InternFromString("weight_ih"), PyUnicode_InternFromString("weight_hh"),
      PyUnicode_InternFromString("bias_ih"), PyUnicode_InternFromString("bias_hh")};
};

const Names& names() {
  static const Names& names = *new Names;
  return names;
}

// Whether a module's forward may come here: (input, hx) are plain, and no transform has a say.
bool is_plain(PyObject* input, PyObject* hx, std::int64_t dims) {
  return THPVariable_CheckExact(input) && is_exact_or_none(hx) &&
         THPVariable_Unpack(input).dim() == dims && !is_watched() &&
         !at::autocast::is_autocast_enabled(at::kCPU);
}

// run_rnn(module, input, hx) -> (output, h_n) for batched input and one layer; None where
// rnn_ext.dispatch has to find a path.
PyObject* run_rnn(PyObject*, PyObject* const* f, Py_ssize_t) {
  HANDLE_TH_ERRORS
  const Names& name = names();
  const Module module(f[0]);
  PyObject* const weights = module.get(name.weights);
  PyObject* const mode = module.get(name.mode);
  PyObject* const batch_first = module.get(name.batch_first);
  const bool is_relu = is_text(mode, "RNN_RELU");
  const Claims claims{module.get(name.num_layers), module.get(name.bidirectional),
                      module.get(name.bias),       module.get(name.training),
                      module.get(name.input_size), module.get(name.hidden_size)};
  if (!is_plain(f[1], f[2], 3) || !(is_relu || is_text(mode, "RNN_TANH")) ||
      number_of(claims.num_layers) != 1 || number_of(module.get(name.proj_size)) != 0 ||
      !is_flag(batch_first) || !weights || !PyList_CheckExact(weights)) {
    Py_RETURN_NONE;
  }
  Operands operands{THPVariable_Unpack(f[1]), tensor_or_none(f[2]), {}, {}};
  const bool transposes = batch_first == Py_True;
  if (transposes) {
    operands.input = operands.input.transpose(0, 1);
  }
  if (!module.read(PySequence_Fast_ITEMS(weights), PyList_GET_SIZE(weights), operands.weights) ||
      !takes_call(operands, false, claims)) {
    Py_RETURN_NONE;
  }
  variable_list results = run_layer(operands, {false, is_relu, claims.bidirectional == Py_True});
  if (transposes) {
    results[0] = results[0].transpose(0, 1);
  }
  return wrap(std::move(results));
  END_HANDLE_TH_ERRORS
}

// run_cell(module, input, hx) -> the next state for batched input; None as above.
PyObject* run_cell(PyObject*, PyObject* const* f, Py_ssize_t) {
  HANDLE_TH_ERRORS
  const Names& name = names();
  const Module module(f[0]);
  static PyObject* const one = PyLong_FromLong(1);
  PyObject* const nonlinearity = module.get(name.nonlinearity);
  const bool is_relu = is_text(nonlinearity, "relu");
  // nn.RNNCell has no other word on its biases than what they are.
  const bool has_biases = module.parameter(name.cell_weights[2]) != Py_None ||
                          module.parameter(name.cell_weights[3]) != Py_None;
  const Claims claims{one,
                      Py_False,
                      has_biases ? Py_True : Py_False,
                      Py_True,
                      module.get(name.input_size),
                      module.get(name.hidden_size)};
  if (!is_plain(f[1], f[2], 2) || !(is_relu || is_text(nonlinearity, "tanh"))) {
    Py_RETURN_NONE;
  }
  Operands operands{THPVariable_Unpack(f[1]), tensor_or_none(f[2]), {}, {}};
  if (!module.read(name.cell_weights, has_biases ? 4 : 2, operands.weights) ||
      !takes_call(operands, true, claims)) {
    Py_RETURN_NONE;
  }
  return wrap(run_layer(operands, {true, is_relu, false}));
  END_HANDLE_TH_ERRORS
}

using FastCall = PyObject*(PyObject*, PyObject* const*, Py_ssize_t);

PyMethodDef method(const char* name, FastCall* function) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)),
          METH_FASTCALL, nullptr};
}

PyMethodDef methods[] = {
    method("takes", takes),         method("run", run),
    method("run_rnn", run_rnn),     method("run_cell", run_cell),
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace
}  // namespace rnn_ext

// Named after the torch release that it is built for.
PYBIND11_MODULE(RNN_EXT_NODE_MODULE, m) {
  PyModule_AddFunctions(m.ptr(), rnn_ext::methods);
  m.def("set_higher_order_backward",
        [](pybind11::object function) { rnn_ext::higher_order_backward = function.release(); });
}
