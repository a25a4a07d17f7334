// Eager calls from Python: checks arguments of any type, and runs the layer if the kernels support
// them. rnn_ext/_core/autograd.py is the same in Python, which takes twice as long for a small
// step. torch's C++ API has no stable ABI, so this folder is a separate module, built for one torch
// release and loaded only with it (rnn_ext/_extension.py).
#include "eager/python.h"

#include <torch/csrc/autograd/functions/utils.h>

#include "common/supports.h"
#include "eager/layer.h"

extern const char* const source_digest;

namespace rnn_ext::eager {
namespace {

pybind11::handle python_backward;  // rnn_ext._core.autograd.higher_order_backward

// A call's tensors other than weights; none if Python must handle the call, such as one with an
// argument of another type than torch.Tensor and Parameter, since a subclass may override
// operations.
optional<Operands> read_operands(PyObject* input, PyObject* hx, PyObject* batch_sizes) {
  if (is_watched() || !THPVariable_CheckExact(input) || !is_exact_or_none(hx) ||
      !is_exact_or_none(batch_sizes)) {
    return std::nullopt;
  }
  return Operands{
      THPVariable_Unpack(input), tensor_or_none(hx), tensor_or_none(batch_sizes), {}, {}};
}

// Adds the weights at(0), at(1)…; false if one is not a plain tensor.
template <class At>
bool add_weights(Operands& operands, Py_ssize_t count, At&& at) {
  operands.weights.reserve(count);
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* const weight = at(i);
    if (!weight || !THPVariable_CheckExact(weight)) {
      return false;
    }
    operands.weights.push_back(THPVariable_Unpack(weight));
  }
  return true;
}

Traits traits_of(const Tensor& t) {
  return {static_cast<std::int32_t>(t.scalar_type()), static_cast<std::int32_t>(t.device().type()),
          t.device().index(), static_cast<std::size_t>(t.dim()), t.sizes().data()};
}

bool supports(const Operands& operands, Layout layout, const Stack& stack) {
  const auto& [input, hx, batch_sizes, weights, _] = operands;
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

// A module's attributes about its weights; borrowed, of any type, null if missing.
struct Claims {
  PyObject *num_layers, *bidirectional, *bias, *training, *input_size, *hidden_size;
};

// Whether this file runs the call: the kernels support it, and the module's attributes are true.
bool takes_call(const Operands& operands, bool is_step, const Claims& claims) {
  const auto& [input, hx, batch_sizes, weights, _] = operands;
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

variable_list run(const Operands& operands, Settings settings) {
  const pybind11::gil_scoped_release without_gil;
  return run_layer(operands, settings);
}

// The tensors of (input, hx, weights, batch_sizes), the first fields of rnn_ext._core.call.Call.
optional<Operands> read_call(PyObject* const* f) {
  optional<Operands> operands = read_operands(f[0], f[1], f[3]);
  if (!operands || !PyList_CheckExact(f[2]) ||
      !add_weights(*operands, PyList_GET_SIZE(f[2]),
                   [&](Py_ssize_t i) { return PyList_GET_ITEM(f[2], i); })) {
    return std::nullopt;
  }
  return operands;
}

// takes(*call) -> bool, for the fields of rnn_ext._core.call.Call in their order.
PyObject* takes(PyObject*, PyObject* const* f, Py_ssize_t) {
  HANDLE_TH_ERRORS
  const optional<Operands> operands = read_call(f);
  return PyBool_FromLong(
      operands && takes_call(*operands, f[4] == Py_True, {f[6], f[7], f[8], f[9], f[10], f[11]}));
  END_HANDLE_TH_ERRORS
}

// Adds the packed weights of a module with one layer, if it keeps them (rnn_ext.freeze).
void add_packed(Operands& operands, const Module& module) {
  static PyObject* const names[] = {PyUnicode_InternFromString("packed_l0"),
                                    PyUnicode_InternFromString("packed_l0_reverse")};
  if (torch::autograd::compute_requires_grad(operands.input, operands.hx,
                                             at::TensorList(operands.weights))) {
    return;
  }
  for (PyObject* const name : names) {
    if (PyObject* const packed = module.buffer(name); packed && THPVariable_Check(packed)) {
      operands.packed.push_back(THPVariable_Unpack(packed));
    }
  }
}

bool is_text(PyObject* object, const char* text) {
  return object && PyUnicode_Check(object) && PyUnicode_CompareWithASCIIString(object, text) == 0;
}

// run(input, hx, weights, batch_sizes, is_step, nonlinearity, bidirectional) -> (output, h_n), or
// the next state for a step. Runs one layer of a call for which `takes` is true.
PyObject* run_call(PyObject*, PyObject* const* f, Py_ssize_t) {
  HANDLE_TH_ERRORS
  return wrap(run(read_call(f).value(), {f[4] == Py_True, is_text(f[5], "relu"), f[6] == Py_True}));
  END_HANDLE_TH_ERRORS
}

// run_rnn(module, input, hx) -> (output, h_n) for batched input and one layer; None if
// rnn_ext._core.dispatch must choose the path.
PyObject* run_rnn(PyObject*, PyObject* const* f, Py_ssize_t) {
  HANDLE_TH_ERRORS
  static PyObject* const mode_name = PyUnicode_InternFromString("mode");
  const ModuleNames& name = module_names();
  const Module module(f[0]);
  const optional<std::vector<PyObject*>> weights = weights_of_one_layer(module);
  PyObject* const mode = module.get(mode_name);
  PyObject* const batch_first = module.get(name.batch_first);
  const bool is_relu = is_text(mode, "RNN_RELU");
  const Claims claims{module.get(name.num_layers), module.get(name.bidirectional),
                      module.get(name.bias),       module.get(name.training),
                      module.get(name.input_size), module.get(name.hidden_size)};
  optional<Operands> operands = read_operands(f[1], f[2], Py_None);
  if (!operands || operands->input.dim() != 3 || at::autocast::is_autocast_enabled(at::kCPU) ||
      !(is_relu || is_text(mode, "RNN_TANH")) || !is_flag(batch_first) || !weights ||
      !add_weights(*operands, weights->size(), [&](Py_ssize_t i) { return (*weights)[i]; })) {
    Py_RETURN_NONE;
  }
  if (batch_first == Py_True) {
    operands->input = operands->input.transpose(0, 1);
  }
  if (!takes_call(*operands, false, claims)) {
    Py_RETURN_NONE;
  }
  add_packed(*operands, module);
  variable_list results = run(*operands, {false, is_relu, claims.bidirectional == Py_True});
  if (batch_first == Py_True) {
    to_batch_first(results[0]);
  }
  return wrap(std::move(results));
  END_HANDLE_TH_ERRORS
}

// run_cell(module, input, hx) -> the next state for batched input; None as above.
PyObject* run_cell(PyObject*, PyObject* const* f, Py_ssize_t) {
  HANDLE_TH_ERRORS
  static PyObject* const nonlinearity_name = PyUnicode_InternFromString("nonlinearity");
  static PyObject* const one = PyLong_FromLong(1);
  const ModuleNames& name = module_names();
  const Module module(f[0]);
  PyObject* const nonlinearity = module.get(nonlinearity_name);
  const bool is_relu = is_text(nonlinearity, "relu");
  const int weights = step_weights().count(module);
  const Claims claims{one,
                      Py_False,
                      weights == 4 ? Py_True : Py_False,
                      Py_True,
                      module.get(name.input_size),
                      module.get(name.hidden_size)};
  optional<Operands> operands = read_operands(f[1], f[2], Py_None);
  if (!operands || operands->input.dim() != 2 || at::autocast::is_autocast_enabled(at::kCPU) ||
      !(is_relu || is_text(nonlinearity, "tanh")) ||
      !add_weights(*operands, weights,
                   [&](Py_ssize_t i) { return module.parameter(step_weights().names[i]); }) ||
      !takes_call(*operands, true, claims)) {
    Py_RETURN_NONE;
  }
  return wrap(run(*operands, {true, is_relu, false}));
  END_HANDLE_TH_ERRORS
}

PyMethodDef methods[] = {
    method("takes", takes),       method("run", run_call),        method("run_rnn", run_rnn),
    method("run_cell", run_cell), {nullptr, nullptr, 0, nullptr},
};

}  // namespace

variable_list higher_order_backward(const variable_list& grads, const Operands& operands,
                                    const optional<Tensor>& output, Settings settings,
                                    const std::vector<bool>& mask) {
  const pybind11::gil_scoped_acquire gil;
  const pybind11::object found = python_backward(
      if_defined(grads[0]), settings.step ? std::nullopt : if_defined(grads[1]), operands.input,
      operands.hx, operands.weights, output, operands.batch_sizes, name_of(settings.nonlinearity()),
      settings.bidirectional, settings.step, mask);
  return gradients_of(found);
}

}  // namespace rnn_ext::eager

// The module's name contains the torch release for which it is built.
PYBIND11_MODULE(RNN_EXT_NODE_MODULE, m) {
  PyModule_AddFunctions(m.ptr(), rnn_ext::eager::methods);
  m.def("set_higher_order_backward",
        [](pybind11::object function) { rnn_ext::eager::python_backward = function.release(); });
  m.attr("source_digest") = source_digest;
  m.def("set_direct_kernels", [](const pybind11::capsule& kernels) {
    rnn_ext::eager::direct::kernels = kernels.get_pointer<const rnn_ext::eager::direct::Kernels>();
  });
  rnn_ext::eager::define_recurrence(m);
}
