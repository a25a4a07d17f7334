// Calls from Python of layers and steps whose cell is a program.
#include <ATen/ExpandUtils.h>
#include <torch/csrc/PyInterpreter.h>

#include "eager/python.h"
#include "eager/recurrence.h"

namespace rnn_ext::eager {
namespace {

pybind11::handle python_backward;  // rnn_ext._core.recurrence._differentiable_backward

struct Names {
  PyObject* const definition = PyUnicode_InternFromString("_definition");
  PyObject* const signature = PyUnicode_InternFromString("signature");
  PyObject* const program = PyUnicode_InternFromString("program");
  PyObject* const kept_states = PyUnicode_InternFromString("kept_states");
  PyObject* const kept_values = PyUnicode_InternFromString("kept_values");
  PyObject* const products = PyUnicode_InternFromString("products");
  PyObject* const states = PyUnicode_InternFromString("states");
  PyObject* const parameters = PyUnicode_InternFromString("parameters");
  PyObject* const inputs = PyUnicode_InternFromString("inputs");
  PyObject* const input_size = PyUnicode_InternFromString("input_size");
  PyObject* const hidden_size = PyUnicode_InternFromString("hidden_size");
};

const Names& names() {
  static const Names& names = *new Names;
  return names;
}

pybind11::object attribute(pybind11::handle object, PyObject* name) {
  PyObject* const found = PyObject_GetAttr(object.ptr(), name);
  if (!found) {
    throw pybind11::error_already_set();
  }
  return pybind11::reinterpret_steal<pybind11::object>(found);
}

std::int64_t number_at(pybind11::handle object, PyObject* name) {
  return number_of(attribute(object, name).ptr());
}

// A rnn_ext._core.cells.cell.Cell.
class Cell {
 public:
  explicit Cell(PyObject* cell)
      : cell_(cell),
        definition_(attribute(cell, names().definition)),
        signature_(attribute(definition_, names().signature)) {}

  std::int64_t gates() const {
    std::int64_t gates = 0;
    for (const pybind11::handle product : signature(names().products)) {
      gates += number_of(product.ptr());
    }
    return gates;
  }
  std::int64_t states() const { return 1 + signature(names().states).size(); }
  pybind11::tuple parameters() const { return signature(names().parameters); }
  pybind11::tuple inputs() const { return signature(names().inputs); }

  CellProgram program() const {
    return {THPVariable_Unpack(attribute(definition_, names().program).ptr()), states(),
            number_at(definition_, names().kept_states),
            number_at(definition_, names().kept_values),
            std::make_shared<c10::SafePyObject>(Py_NewRef(cell_), getPyInterpreter())};
  }

 private:
  pybind11::tuple signature(PyObject* name) const { return attribute(signature_, name); }

  PyObject* cell_;
  pybind11::object definition_;
  pybind11::object signature_;
};

bool runs_on_kernels(const Tensor& t) { return is_dense_on_cpu(t) && has_kernels(t.scalar_type()); }

// Returns none if Python must handle a call with these tensors.
optional<variable_list> read_tensors(PyObject* const* objects, Py_ssize_t count) {
  if (is_watched()) {
    return std::nullopt;
  }
  variable_list tensors;
  tensors.reserve(count);
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!THPVariable_CheckExact(objects[i])) {
      return std::nullopt;
    }
    const Tensor& t = THPVariable_Unpack(objects[i]);
    const bool is_tokens = i == 0 && t.scalar_type() == at::kLong;
    if (!(is_tokens ? is_dense_on_cpu(t) : runs_on_kernels(t))) {
      return std::nullopt;
    }
    tensors.push_back(t);
  }
  return tensors;
}

variable_list run(const Recurrence& layer, const RecurrenceOperands& operands, const Cell& cell) {
  const CellProgram program = cell.program();
  const pybind11::gil_scoped_release without_gil;
  return run_recurrence(layer, operands, program);
}

// takes_tensors(*tensors) -> bool: whether run_recurrence runs a call with them.
PyObject* takes_tensors(PyObject*, PyObject* const* f, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  return PyBool_FromLong(read_tensors(f, count).has_value());
  END_HANDLE_TH_ERRORS
}

// run_recurrence(cell, tensors, reset, batch_sizes, counts, bidirectional, return_states) -> the
// results in a tuple; None if Python must run the call. The arguments are those of run_recurrence
// in recurrence.h.
PyObject* run_layer(PyObject*, PyObject* const* f, Py_ssize_t) {
  HANDLE_TH_ERRORS
  optional<variable_list> tensors =
      read_tensors(PySequence_Fast_ITEMS(f[1]), PyTuple_GET_SIZE(f[1]));
  if (!tensors || !is_exact_or_none(f[2]) || !is_exact_or_none(f[3])) {
    Py_RETURN_NONE;
  }
  Recurrence layer{{}, f[5] == Py_True, f[6] == Py_True, false};
  for (std::size_t i = 0; i < layer.counts.size(); ++i) {
    layer.counts[i] = number_of(PyTuple_GET_ITEM(f[4], i));
  }
  return wrap_all(
      run(layer, {*std::move(tensors), tensor_or_none(f[2]), tensor_or_none(f[3])}, Cell(f[0])));
  END_HANDLE_TH_ERRORS
}

// Collects the tensors of a step. The functions return false if Python must handle the call.
class StepTensors {
 public:
  // A tensor of these sizes.
  bool add(PyObject* object, at::IntArrayRef sizes) {
    return is_tensor(object) && take(THPVariable_Unpack(object), sizes, false);
  }
  // A tensor that broadcasts to these sizes, or a float.
  bool add_broadcast(PyObject* object, at::IntArrayRef sizes) {
    if (object && PyFloat_CheckExact(object)) {
      tensors_.push_back(at::scalar_tensor(PyFloat_AS_DOUBLE(object), tensors_[0].options()));
      return true;
    }
    return is_tensor(object) && take(THPVariable_Unpack(object), sizes, true);
  }
  variable_list take() && { return std::move(tensors_); }

 private:
  static bool is_tensor(PyObject* object) { return object && THPVariable_CheckExact(object); }
  bool take(const Tensor& t, at::IntArrayRef sizes, bool broadcasts) {
    if (!runs_on_kernels(t) ||
        (!tensors_.empty() && t.scalar_type() != tensors_[0].scalar_type()) ||
        !(broadcasts ? at::is_expandable_to(t.sizes(), sizes) : t.sizes() == sizes)) {
      return false;
    }
    tensors_.push_back(t);
    return true;
  }

  variable_list tensors_;
};

// The states in `hx`: a tensor, or a tuple or list of them; empty for None.
optional<std::vector<PyObject*>> read_states(PyObject* hx, std::int64_t count) {
  if (hx == Py_None) {
    return std::vector<PyObject*>{};
  }
  if (count == 1) {
    return std::vector{hx};
  }
  if ((!PyTuple_CheckExact(hx) && !PyList_CheckExact(hx)) ||
      PySequence_Fast_GET_SIZE(hx) != count) {
    return std::nullopt;
  }
  PyObject** const items = PySequence_Fast_ITEMS(hx);
  return std::vector<PyObject*>(items, items + count);
}

// run_step(module, cell, input, hx, inputs) -> the next state, or states in a tuple; None if Python
// must check or run the call.
PyObject* run_step(PyObject*, PyObject* const* f, Py_ssize_t) {
  HANDLE_TH_ERRORS
  if (is_watched() || at::autocast::is_autocast_enabled(at::kCPU) ||
      !THPVariable_CheckExact(f[2])) {
    Py_RETURN_NONE;
  }
  const Module module(f[0]);
  const Cell cell(f[1]);
  const std::int64_t input_size = number_of(module.get(names().input_size));
  const std::int64_t hidden_size = number_of(module.get(names().hidden_size));
  const std::int64_t columns = cell.gates() * hidden_size;
  const optional<std::vector<PyObject*>> states = read_states(f[3], cell.states());
  std::vector<std::int64_t> sizes = THPVariable_Unpack(f[2]).sizes().vec();
  if (!states || sizes.empty() || sizes.size() > 2) {
    Py_RETURN_NONE;
  }
  StepTensors tensors;
  sizes.back() = input_size;
  bool fits = tensors.add(f[2], sizes);
  sizes.back() = hidden_size;
  for (PyObject* const state : *states) {
    fits = fits && tensors.add(state, sizes);
  }
  const int weights = step_weights().count(module);
  const std::vector<std::int64_t> weight_sizes[] = {
      {columns, input_size}, {columns, hidden_size}, {columns}, {columns}};
  for (int i = 0; i < weights; ++i) {
    fits = fits && tensors.add(module.parameter(step_weights().names[i]), weight_sizes[i]);
  }
  const pybind11::tuple parameters = cell.parameters(), inputs = cell.inputs();
  for (const pybind11::handle name : parameters) {
    PyObject* const parameter = module.parameter(name.ptr());
    fits = fits &&
           tensors.add_broadcast(parameter ? parameter : module.buffer(name.ptr()), {hidden_size});
  }
  fits = fits && PyDict_Size(f[4]) == static_cast<Py_ssize_t>(inputs.size());
  for (const pybind11::handle name : inputs) {
    fits = fits && tensors.add_broadcast(PyDict_GetItem(f[4], name.ptr()), sizes);
  }
  if (!fits) {
    Py_RETURN_NONE;
  }
  const auto count = [](const auto& list) { return static_cast<std::int64_t>(list.size()); };
  const Recurrence layer{
      {count(*states), weights, count(parameters), count(inputs), 0}, false, false, true};
  return wrap(run(layer, {std::move(tensors).take(), {}, {}}, cell));
  END_HANDLE_TH_ERRORS
}

PyMethodDef methods[] = {
    method("takes_tensors", takes_tensors),
    method("run_recurrence", run_layer),
    method("run_step", run_step),
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

variable_list higher_order_backward(const variable_list& grads, const c10::SafePyObject& cell,
                                    const Recurrence& layer, const RecurrenceOperands& operands,
                                    const std::vector<bool>& mask) {
  const pybind11::gil_scoped_acquire gil;
  std::vector<optional<Tensor>> given;
  for (const Tensor& t : grads) {
    given.push_back(if_defined(t));
  }
  const auto [counts, bidirectional, return_states, is_step] = layer;
  return gradients_of(python_backward(
      pybind11::handle(cell.ptr(getPyInterpreter())),
      pybind11::make_tuple(counts, bidirectional, return_states, is_step),
      pybind11::make_tuple(operands.reset, operands.batch_sizes), operands.tensors, given, mask));
}

void define_recurrence(pybind11::module_& m) {
  PyModule_AddFunctions(m.ptr(), methods);
  m.def("set_recurrence_backward",
        [](pybind11::object function) { python_backward = function.release(); });
}

}  // namespace rnn_ext::eager
