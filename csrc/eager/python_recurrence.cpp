// Calls from Python of layers and steps whose cell is a program.
#include <ATen/ExpandUtils.h>
#include <torch/csrc/PyInterpreter.h>

#include "eager/python.h"
#include "eager/recurrence.h"

namespace rnn_ext::eager {
namespace {

pybind11::handle python_backward;  // rnn_ext._core.recurrence_layer.differentiable_backward

struct Names {
  PyObject* const definition = PyUnicode_InternFromString("_definition");
  PyObject* const program = PyUnicode_InternFromString("program");
  PyObject* const kept_states = PyUnicode_InternFromString("kept_states");
  PyObject* const kept_values = PyUnicode_InternFromString("kept_values");
  PyObject* const gates = PyUnicode_InternFromString("gates");
  PyObject* const states = PyUnicode_InternFromString("states");
  PyObject* const parameters = PyUnicode_InternFromString("parameters");
  PyObject* const inputs = PyUnicode_InternFromString("inputs");
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
  explicit Cell(PyObject* cell) : cell_(cell) {}

  std::int64_t gates() const { return number_at(cell_, names().gates); }
  std::int64_t states() const { return 1 + tuple_at(names().states).size(); }
  pybind11::tuple parameters() const { return tuple_at(names().parameters); }
  pybind11::tuple inputs() const { return tuple_at(names().inputs); }

  CellProgram program() const {
    const pybind11::object definition = attribute(cell_, names().definition);
    return {THPVariable_Unpack(attribute(definition, names().program).ptr()), states(),
            number_at(definition, names().kept_states), number_at(definition, names().kept_values),
            std::make_shared<c10::SafePyObject>(Py_NewRef(cell_), getPyInterpreter())};
  }

 private:
  pybind11::tuple tuple_at(PyObject* name) const { return attribute(cell_, name); }

  PyObject* cell_;
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

// A module's call of one layer or one step, as its forward gets it. The objects are of any type.
struct ModuleCall {
  std::vector<PyObject*> weights;
  PyObject* input;
  PyObject* hx;
  PyObject* inputs = nullptr;  // a dict, or null if the module has no such arguments
  PyObject* reset = Py_None;
  PyObject* reset_state = Py_None;
  bool batch_first = false;
};

// Collects the tensors of a module's call. The functions return false if Python must handle it.
class CallTensors {
 public:
  CallTensors(bool is_step, bool batch_first) : is_step_(is_step), batch_first_(batch_first) {}

  // A tensor of these sizes.
  bool add(PyObject* object, at::IntArrayRef sizes) {
    if (!fits(object) || THPVariable_Unpack(object).sizes() != sizes) {
      return false;
    }
    tensors_.push_back(THPVariable_Unpack(object));
    return true;
  }
  // A tensor that broadcasts to these sizes, or a float. A layer gets it expanded.
  bool add_broadcast(PyObject* object, at::IntArrayRef sizes) {
    const bool is_number = object && PyFloat_CheckExact(object);
    if (!is_number && !fits(object)) {
      return false;
    }
    const Tensor t = is_number ? at::scalar_tensor(PyFloat_AS_DOUBLE(object), tensors_[0].options())
                               : THPVariable_Unpack(object);
    if (!at::is_expandable_to(t.sizes(), sizes)) {
      return false;
    }
    tensors_.push_back(is_step_ || t.sizes() == sizes ? t : t.expand(sizes));
    return true;
  }
  // States after a reset: of these sizes or for one row, for all steps or for each.
  bool add_reset_state(PyObject* object, std::int64_t steps, at::IntArrayRef sizes) {
    if (!fits(object)) {
      return false;
    }
    const Tensor& t = THPVariable_Unpack(object);
    if ((t.dim() != 3 && (t.dim() != 4 || t.size(0) != steps)) || t.size(-3) != sizes[0] ||
        (t.size(-2) != sizes[1] && t.size(-2) != 1) || t.size(-1) != sizes[2]) {
      return false;
    }
    tensors_.push_back(t);
    return true;
  }
  // Makes the last tensor time-major, if the module is batch first.
  void order_last() {
    if (batch_first_) {
      tensors_.back() = tensors_.back().transpose(-3, -2);
    }
  }
  variable_list take() && { return std::move(tensors_); }

 private:
  bool fits(PyObject* object) const {
    if (!object || !THPVariable_CheckExact(object)) {
      return false;
    }
    const Tensor& t = THPVariable_Unpack(object);
    return runs_on_kernels(t) && (tensors_.empty() || t.scalar_type() == tensors_[0].scalar_type());
  }

  const bool is_step_;
  const bool batch_first_;
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

bool is_reset(PyObject* object, at::IntArrayRef sizes) {
  return THPVariable_CheckExact(object) && is_dense_on_cpu(THPVariable_Unpack(object)) &&
         THPVariable_Unpack(object).scalar_type() == at::kBool &&
         THPVariable_Unpack(object).sizes() == sizes;
}

// Returns the call's operands, and sets the counts of `layer`; none if Python must check or run the
// call.
optional<RecurrenceOperands> read_call(const Module& module, const Cell& cell,
                                       const ModuleCall& call, Recurrence& layer) {
  const std::int64_t directions = layer.bidirectional ? 2 : 1;
  const std::size_t per_direction = call.weights.size() / directions;
  const optional<std::vector<PyObject*>> states = read_states(call.hx, cell.states());
  const optional<std::vector<PyObject*>> reset_states =
      read_states(call.reset_state, cell.states());
  if (is_watched() || at::autocast::is_autocast_enabled(at::kCPU) || !states || !reset_states ||
      !THPVariable_CheckExact(call.input) || (per_direction != 2 && per_direction != 4) ||
      call.weights.size() != per_direction * directions) {
    return std::nullopt;
  }
  std::vector<std::int64_t> sizes = THPVariable_Unpack(call.input).sizes().vec();
  if (layer.is_step ? sizes.empty() || sizes.size() > 2
                    : sizes.size() != 3 || sizes[0] == 0 || sizes[1] == 0) {
    return std::nullopt;
  }
  const std::int64_t input_size = number_of(module.get(module_names().input_size));
  const std::int64_t hidden_size = number_of(module.get(module_names().hidden_size));
  const std::int64_t columns = cell.gates() * hidden_size;
  const bool has_reset = call.reset != Py_None;
  if (has_reset ? !is_reset(call.reset, {sizes.data(), 2}) : !reset_states->empty()) {
    return std::nullopt;
  }

  CallTensors tensors(layer.is_step, call.batch_first);
  sizes.back() = input_size;
  bool fits = tensors.add(call.input, sizes);
  if (fits) {
    tensors.order_last();
  }
  sizes.back() = hidden_size;
  std::vector<std::int64_t> state_sizes = sizes;
  const std::int64_t steps = layer.is_step ? 1 : sizes[call.batch_first ? 1 : 0];
  if (!layer.is_step) {
    state_sizes = {directions, sizes[call.batch_first ? 0 : 1], hidden_size};
    sizes.insert(sizes.begin(), directions);
  }
  for (PyObject* const state : *states) {
    fits = fits && tensors.add(state, state_sizes);
  }
  const std::vector<std::int64_t> weight_sizes[] = {
      {columns, input_size}, {columns, hidden_size}, {columns}, {columns}};
  for (std::size_t i = 0; i < call.weights.size(); ++i) {
    fits = fits && tensors.add(call.weights[i], weight_sizes[i % per_direction]);
  }
  const pybind11::tuple parameters = cell.parameters(), operands = cell.inputs();
  for (const pybind11::handle name : parameters) {
    PyObject* const parameter = module.parameter(name.ptr());
    fits = fits &&
           tensors.add_broadcast(parameter ? parameter : module.buffer(name.ptr()), {hidden_size});
  }
  fits = fits &&
         (!call.inputs || PyDict_Size(call.inputs) == static_cast<Py_ssize_t>(operands.size()));
  for (const pybind11::handle name : operands) {
    fits = fits && tensors.add_broadcast(PyDict_GetItem(call.inputs, name.ptr()), sizes);
    if (fits && !layer.is_step) {
      tensors.order_last();
    }
  }
  for (PyObject* const state : *reset_states) {
    fits = fits && tensors.add_reset_state(state, steps, state_sizes);
  }
  if (!fits) {
    return std::nullopt;
  }
  const auto count = [](const auto& list) { return static_cast<std::int64_t>(list.size()); };
  layer.counts = {count(*states), count(call.weights), count(parameters), count(operands),
                  count(*reset_states)};
  optional<Tensor> reset = tensor_or_none(call.reset);
  if (reset && call.batch_first) {
    reset = reset->t();
  }
  return RecurrenceOperands{std::move(tensors).take(), reset, {}};
}

// run_step(module, cell, input, hx, inputs) -> the next state, or states in a tuple; None if Python
// must check or run the call.
PyObject* run_step(PyObject*, PyObject* const* f, Py_ssize_t) {
  HANDLE_TH_ERRORS
  const Module module(f[0]);
  const Cell cell(f[1]);
  ModuleCall call{{}, f[2], f[3], f[4]};
  for (int i = 0; i < step_weights().count(module); ++i) {
    call.weights.push_back(module.parameter(step_weights().names[i]));
  }
  Recurrence layer{{}, false, false, true};
  const optional<RecurrenceOperands> operands = read_call(module, cell, call, layer);
  if (!operands) {
    Py_RETURN_NONE;
  }
  return wrap(run(layer, *operands, cell));
  END_HANDLE_TH_ERRORS
}

// Runs the one layer of a module that has `bidirectional` and `batch_first`; none as above.
optional<variable_list> run_sequence(const Module& module, const Cell& cell, ModuleCall call,
                                     bool return_states) {
  PyObject* const bidirectional = module.get(module_names().bidirectional);
  PyObject* const batch_first = module.get(module_names().batch_first);
  if (!is_flag(bidirectional) || !is_flag(batch_first)) {
    return std::nullopt;
  }
  call.batch_first = batch_first == Py_True;
  Recurrence layer{{}, bidirectional == Py_True, return_states, false};
  const optional<RecurrenceOperands> operands = read_call(module, cell, call, layer);
  if (!operands) {
    return std::nullopt;
  }
  variable_list results = run(layer, *operands, cell);
  for (std::size_t i = 0; call.batch_first && i < results.size(); ++i) {
    const bool is_final_state = i > 0 && i <= static_cast<std::size_t>(cell.states());
    if (!is_final_state) {
      to_batch_first(results[i]);
    }
  }
  return results;
}

// run_recurrent(module, cell, weight_names, input, hx, inputs, reset, reset_state, return_states)
// -> the results of a module with one layer in a tuple; None as above.
PyObject* run_recurrent(PyObject*, PyObject* const* f, Py_ssize_t) {
  HANDLE_TH_ERRORS
  if (PyList_GET_SIZE(f[2]) != 1 || !PyBool_Check(f[8])) {
    Py_RETURN_NONE;
  }
  const Module module(f[0]);
  ModuleCall call{{}, f[3], f[4], f[5], f[6], f[7]};
  PyObject* const weights = PyList_GET_ITEM(f[2], 0);
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(weights); ++i) {
    call.weights.push_back(module.parameter(PyList_GET_ITEM(weights, i)));
  }
  optional<variable_list> results =
      run_sequence(module, Cell(f[1]), std::move(call), f[8] == Py_True);
  if (!results) {
    Py_RETURN_NONE;
  }
  return wrap_all(*std::move(results));
  END_HANDLE_TH_ERRORS
}

// run_gated(module, cell, input, hx, reset, reset_state) -> (output, h_n), or (output, (h_n, c_n))
// for a cell with two states, of a module like torch's with one layer; None as above.
PyObject* run_gated(PyObject*, PyObject* const* f, Py_ssize_t) {
  HANDLE_TH_ERRORS
  const Module module(f[0]);
  const ModuleNames& name = module_names();
  optional<std::vector<PyObject*>> weights = weights_of_one_layer(module);
  if (!weights || !is_flag(module.get(name.bias)) || !is_flag(module.get(name.training))) {
    Py_RETURN_NONE;
  }
  const bool has_bias = module.get(name.bias) == Py_True;
  const std::size_t directions = module.get(name.bidirectional) == Py_True ? 2 : 1;
  if (weights->size() != (has_bias ? 4 : 2) * directions) {
    Py_RETURN_NONE;
  }
  ModuleCall call{*std::move(weights), f[2], f[3], nullptr, f[4], f[5]};
  optional<variable_list> results = run_sequence(module, Cell(f[1]), std::move(call), false);
  if (!results) {
    Py_RETURN_NONE;
  }
  PyObject* const output = THPVariable_Wrap(std::move(results->front()));
  results->erase(results->begin());
  return pybind11::make_tuple(
             pybind11::reinterpret_steal<pybind11::object>(output),
             pybind11::reinterpret_steal<pybind11::object>(wrap(*std::move(results))))
      .release()
      .ptr();
  END_HANDLE_TH_ERRORS
}

PyMethodDef methods[] = {
    method("takes_tensors", takes_tensors), method("run_recurrence", run_layer),
    method("run_step", run_step),           method("run_recurrent", run_recurrent),
    method("run_gated", run_gated),         {nullptr, nullptr, 0, nullptr},
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
