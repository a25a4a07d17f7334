// The Python module rnn_ext._C: what the package asks of the binary beside the ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>

#include "cpu/isa.h"
#include "cpu/plan.h"
#include "cpu/team.h"

namespace py = pybind11;

extern const char* const source_digest;

namespace {

#if defined(__clang__)
constexpr const char* compiler = "clang " __clang_version__;
#else
constexpr const char* compiler = "gcc " __VERSION__;
#endif

py::dict build_info() {
  py::dict info;
  info["version"] = RNN_EXT_VERSION;
  info["compiler"] = compiler;
  info["isa_compiled"] = rnn_ext::cpu::compiled_isas();
  info["isa"] = rnn_ext::cpu::kernels().name;
  info["cuda_archs"] = py::none();
  info["torch_built"] = RNN_EXT_TORCH_BUILT;
  return info;
}

// (split, threads) of a call on this many torch threads.
py::tuple plan(std::int64_t steps, std::int64_t batch, std::int64_t input_size,
               std::int64_t hidden_size, bool is_double, int torch_threads) {
  using namespace rnn_ext::cpu;
  const KernelSet& set = kernels();
  const Plan chosen = make_plan({steps, batch, input_size, hidden_size, is_double ? 8 : 4,
                                 is_double ? set.f64.panel_columns : set.f32.panel_columns,
                                 is_double ? set.f64.tile_rows : set.f32.tile_rows},
                                available_threads(torch_threads));
  return py::make_tuple(name(chosen.split), chosen.threads);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  try {
    const char* cap = std::getenv("RNN_EXT_ISA");
    rnn_ext::cpu::cap_isa(cap && *cap ? cap : rnn_ext::cpu::compiled_isas().back());
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(std::string("RNN_EXT_ISA=") + error.what());
  }
  m.attr("source_digest") = source_digest;
  m.def("build_info", &build_info);
  m.def("isa", [] { return rnn_ext::cpu::kernels().name; });
  m.def("isa_available", &rnn_ext::cpu::available_isas);
  m.def("set_isa", &rnn_ext::cpu::cap_isa, py::arg("name"));
  m.def("set_pool_is_concurrent", &rnn_ext::cpu::set_pool_is_concurrent, py::arg("concurrent"));
  m.def("plan", &plan, py::arg("steps"), py::arg("batch"), py::arg("input_size"),
        py::arg("hidden_size"), py::arg("is_double"), py::arg("torch_threads"));
}
