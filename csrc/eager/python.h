// Shared by the functions that Python calls.
#pragma once

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/utils/pybind.h>

#include "eager/node.h"

namespace rnn_ext::eager {

// Whether graph capture, a transform or a mode is active, which Python must handle.
inline bool is_watched() {
  return is_transformed() || torch::jit::tracer::isTracing() ||
         torch::autograd::ForwardADLevel::try_get_by_idx(0) ||
         at::impl::torch_function_mode_enabled();
}

inline bool is_exact_or_none(PyObject* object) {
  return object == Py_None || THPVariable_CheckExact(object);
}

inline optional<Tensor> tensor_or_none(PyObject* object) {
  return object == Py_None ? std::nullopt : optional(THPVariable_Unpack(object));
}

inline bool has_kernels(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 ||
         dtype == at::kHalf;
}

// Returns an int; -1 if it is too large, or no int.
inline std::int64_t number_of(PyObject* object) {
  int overflows = 0;
  return object && PyLong_CheckExact(object) ? PyLong_AsLongLongAndOverflow(object, &overflows)
                                             : -1;
}

// A module's own attributes; borrowed, null if a subclass or a parametrization computes them.
class Module {
 public:
  explicit Module(PyObject* module)
      : attributes_(
            pybind11::reinterpret_steal<pybind11::dict>(PyObject_GenericGetDict(module, nullptr))) {
  }

  PyObject* get(PyObject* name) const { return PyDict_GetItem(attributes_.ptr(), name); }
  // None if the module has set it to None.
  PyObject* parameter(PyObject* name) const {
    static PyObject* const parameters = PyUnicode_InternFromString("_parameters");
    return item(parameters, name);
  }
  PyObject* buffer(PyObject* name) const {
    static PyObject* const buffers = PyUnicode_InternFromString("_buffers");
    return item(buffers, name);
  }

 private:
  PyObject* item(PyObject* dict, PyObject* name) const {
    PyObject* const found = get(dict);
    return found ? PyDict_GetItem(found, name) : nullptr;
  }

  pybind11::dict attributes_;
};

// The attributes of modules that both files read.
struct ModuleNames {
  PyObject* const weights = PyUnicode_InternFromString("_flat_weights_names");
  PyObject* const assigned = PyUnicode_InternFromString("_flat_weights");
  PyObject* const num_layers = PyUnicode_InternFromString("num_layers");
  PyObject* const bidirectional = PyUnicode_InternFromString("bidirectional");
  PyObject* const bias = PyUnicode_InternFromString("bias");
  PyObject* const training = PyUnicode_InternFromString("training");
  PyObject* const input_size = PyUnicode_InternFromString("input_size");
  PyObject* const hidden_size = PyUnicode_InternFromString("hidden_size");
  PyObject* const proj_size = PyUnicode_InternFromString("proj_size");
  PyObject* const batch_first = PyUnicode_InternFromString("batch_first");
};

inline const ModuleNames& module_names() {
  static const ModuleNames& names = *new ModuleNames;
  return names;
}

inline bool is_flag(PyObject* object) { return object && PyBool_Check(object); }

// The weights of a module like nn.RNN with one layer and without projections; none if Python must
// look at the module.
inline optional<std::vector<PyObject*>> weights_of_one_layer(const Module& module) {
  const ModuleNames& name = module_names();
  PyObject* const names = module.get(name.weights);
  PyObject* const assigned = module.get(name.assigned);
  if (number_of(module.get(name.num_layers)) != 1 || number_of(module.get(name.proj_size)) != 0 ||
      !names || !PyList_CheckExact(names) || !assigned || !PyList_CheckExact(assigned) ||
      PyList_GET_SIZE(assigned) != PyList_GET_SIZE(names)) {
    return std::nullopt;
  }
  std::vector<PyObject*> weights;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(names); ++i) {
    weights.push_back(module.parameter(PyList_GET_ITEM(names, i)));
    if (weights.back() != PyList_GET_ITEM(assigned, i)) {
      return std::nullopt;
    }
  }
  return weights;
}

// Transposes in place, since nn.RNN does not return a view. The version stays the same, because the
// memory that backward saved does not change.
inline void to_batch_first(Tensor& output) {
  output.transpose_(0, 1);
  if (output.requires_grad()) {
    c10::VariableVersion version = torch::autograd::impl::version_counter(output);
    version.set_version(version.current_version() - 1);
  }
}

// The names of a step's weights, and whether it has biases, which only the weights of torch's
// modules show.
struct StepWeights {
  PyObject* const names[4] = {
      PyUnicode_InternFromString("weight_ih"), PyUnicode_InternFromString("weight_hh"),
      PyUnicode_InternFromString("bias_ih"), PyUnicode_InternFromString("bias_hh")};

  int count(const Module& module) const {
    return module.parameter(names[2]) == Py_None && module.parameter(names[3]) == Py_None ? 2 : 4;
  }
};

inline const StepWeights& step_weights() {
  static const StepWeights& weights = *new StepWeights;
  return weights;
}

inline PyObject* wrap_all(variable_list results) {
  pybind11::tuple wrapped(results.size());
  for (std::size_t i = 0; i < results.size(); ++i) {
    PyTuple_SET_ITEM(wrapped.ptr(), i, THPVariable_Wrap(std::move(results[i])));
  }
  return wrapped.release().ptr();
}

inline PyObject* wrap(variable_list results) {
  return results.size() == 1 ? THPVariable_Wrap(std::move(results[0]))
                             : wrap_all(std::move(results));
}

inline variable_list gradients_of(const pybind11::object& found) {
  variable_list gradients;
  for (const pybind11::handle gradient : found) {
    gradients.push_back(gradient.is_none() ? Tensor() : gradient.cast<Tensor>());
  }
  return gradients;
}

using FastCall = PyObject*(PyObject*, PyObject* const*, Py_ssize_t);

inline PyMethodDef method(const char* name, FastCall* function) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)),
          METH_FASTCALL, nullptr};
}

// Adds the functions of python_recurrence.cpp.
void define_recurrence(pybind11::module_& m);

}  // namespace rnn_ext::eager
