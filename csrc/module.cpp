// The Python module rnn_ext._C: the functions of the binary other than the ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/c/shim.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <cstdlib>
#include <numeric>
#include <optional>
#include <utility>

#include "common/program.h"
#include "common/supports.h"
#include "cpu/cores.h"
#include "cpu/direct.h"
#include "cpu/isa.h"
#include "cpu/scratch.h"
#include "cpu/settings.h"
#include "cuda/plan.h"
#if defined(RNN_EXT_CUDA_ARCHS)
#include "cuda/runtime.h"
#endif

namespace py = pybind11;

extern const char* const source_digest;

using rnn_ext::cpu::KernelSet;
using rnn_ext::cpu::Plan;

namespace {

using Shape = std::vector<std::int64_t>;

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
#if defined(RNN_EXT_CUDA_ARCHS)
  info["cuda_archs"] = py::str(RNN_EXT_CUDA_ARCHS).attr("split")();
#else
  info["cuda_archs"] = py::none();
#endif
  info["torch_built"] = RNN_EXT_TORCH_BUILT;
  return info;
}

// Returns (groups, whether the directions run at once, threads) of a forward call.
py::tuple plan(std::int64_t steps, std::int64_t batch, std::int64_t input_size,
               std::int64_t hidden_size, bool is_double, bool bidirectional, int threads,
               std::int64_t gates, std::int64_t products) {
  const KernelSet& set = rnn_ext::cpu::kernels();
  const Plan plan = rnn_ext::cpu::plan_for(
      {steps, batch, input_size, hidden_size, input_size, 0, is_double ? 8 : 4,
       is_double ? set.f64.panel_columns : set.f32.panel_columns,
       is_double ? set.f64.tile_rows : set.f32.tile_rows, bidirectional, gates, products},
      threads);
  return py::make_tuple(plan.groups, plan.directions_at_once, plan.threads);
}

// Returns the first row, and the one after the last, of each group in a chunk of packed steps.
std::vector<std::pair<std::int64_t, std::int64_t>> rows_of_groups(const Shape& batch_sizes,
                                                                  int groups) {
  const rnn_ext::Steps steps{static_cast<std::int64_t>(batch_sizes.size()), batch_sizes.at(0),
                             batch_sizes.data(), nullptr};
  const rnn_ext::cpu::Chunk chunk{
      0, steps.count - 1, std::accumulate(batch_sizes.begin(), batch_sizes.end(), std::int64_t{0})};
  std::vector<std::pair<std::int64_t, std::int64_t>> rows;
  for (int group = 0; group < groups; ++group) {
    const auto [begin, end] = rnn_ext::cpu::rows_of_group(steps, chunk, group, groups);
    rows.emplace_back(begin, end);
  }
  return rows;
}

// Returns why the kernels do not support tensors of these shapes and of one dtype; "" if they do,
// and for batch_sizes in an invalid order, which the kernels' op reports.
std::string find_obstacle(const Shape& input, const std::optional<Shape>& hx,
                          const std::vector<Shape>& weights,
                          const std::optional<Shape>& batch_sizes, bool is_step,
                          std::int64_t num_layers, std::int64_t directions, std::int64_t gates) {
  const auto traits_of = [](const Shape& s) {
    return rnn_ext::Traits{0, 0, 0, s.size(), s.data()};
  };
  const rnn_ext::Layout layout = is_step       ? rnn_ext::Layout::step
                                 : batch_sizes ? rnn_ext::Layout::packed
                                               : rnn_ext::Layout::sequence;
  rnn_ext::BatchSizes sizes;
  if (batch_sizes) {
    sizes = {batch_sizes->data(), static_cast<std::int64_t>(batch_sizes->size())};
  }
  const rnn_ext::Traits hx_traits = hx ? traits_of(*hx) : rnn_ext::Traits{};
  const rnn_ext::Obstacle obstacle = rnn_ext::find_obstacle(
      {num_layers, directions, static_cast<std::int64_t>(weights.size()), gates}, layout, true,
      traits_of(input), hx ? &hx_traits : nullptr, sizes,
      [&](std::int64_t i) { return traits_of(weights[i]); });
  return obstacle == rnn_ext::Obstacle::batch_sizes ? "" : rnn_ext::text_of(obstacle);
}

// Returns (multiprocessors, shared bytes, registers) of a CUDA device; throws if no kernel can run
// on it.
py::tuple cuda_limits([[maybe_unused]] int device) {
#if defined(RNN_EXT_CUDA_ARCHS)
  const rnn_ext::cuda::Limits limits = rnn_ext::cuda::limits_of(device);
  return py::make_tuple(limits.multiprocessors, limits.shared_bytes, limits.registers);
#else
  throw std::runtime_error("rnn_ext was built without CUDA kernels");
#endif
}

// Returns (regime, columns, rows) of a CUDA call: its kernel and the shape of a block.
py::tuple cuda_plan(std::int64_t batch, std::int64_t hidden_size, std::int64_t directions,
                    bool is_double, std::int64_t multiprocessors, std::int64_t shared_bytes,
                    std::int64_t registers) {
  const rnn_ext::cuda::CallSizes call{batch, hidden_size, directions};
  const rnn_ext::cuda::Limits limits{multiprocessors, shared_bytes, registers};
  const auto describe = [&]<class T>(T) {
    const rnn_ext::cuda::Plan plan = rnn_ext::cuda::make_plan<T>(call, limits);
    const auto name = [&](const char* regime, const auto& shape) {
      return py::make_tuple(regime, shape.columns, shape.rows);
    };
    return plan.regime == rnn_ext::cuda::Regime::persistent
               ? name("persistent", rnn_ext::cuda::persistent_shapes<T>[plan.shape])
               : name("step", rnn_ext::cuda::step_shapes[plan.shape]);
  };
  return is_double ? describe(double{}) : describe(float{});
}

// Sets whether the process's malloc keeps freed memory. Returns whether it has such a setting.
bool keep_freed_memory([[maybe_unused]] bool keep) {
#if defined(__GLIBC__)
  // Large blocks come from the heap instead of pages of their own, and the heap never shrinks.
  constexpr int never = -1;
  if (keep) {
    return mallopt(M_MMAP_MAX, 0) != 0 && mallopt(M_TRIM_THRESHOLD, never) != 0;
  }
  // Without settings, glibc raises its thresholds up to these while it runs.
  constexpr int default_blocks = 65536;
  constexpr int threshold = 32 << 20;
  const bool is_set = mallopt(M_MMAP_MAX, default_blocks) != 0 &&
                      mallopt(M_MMAP_THRESHOLD, threshold) != 0 &&
                      mallopt(M_TRIM_THRESHOLD, 2 * threshold) != 0;
  malloc_trim(0);
  return is_set;
#else
  return false;
#endif
}

void force_plan(std::optional<std::uint16_t> groups, int threads, bool directions_at_once) {
  if (!groups) {
    rnn_ext::cpu::force_plan(std::nullopt);
    return;
  }
  if (*groups < 1 || threads < *groups) {
    throw std::invalid_argument("there is no such plan");
  }
  rnn_ext::cpu::force_plan(Plan{*groups, directions_at_once, threads});
}

}  // namespace

// All state is atomic or thread-local, so the module is safe in free-threaded Python.
PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  try {
    const char* cap = std::getenv("RNN_EXT_ISA");
    rnn_ext::cpu::cap_isa(cap && *cap ? cap : rnn_ext::cpu::compiled_isas().back());
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(std::string("RNN_EXT_ISA=") + error.what());
  }
  m.attr("source_digest") = source_digest;
  m.attr("direct_kernels") = py::capsule(&rnn_ext::cpu::direct_kernels);
  m.def("build_info", &build_info);
  m.def("find_obstacle", &find_obstacle, py::arg("input"), py::arg("hx"), py::arg("weights"),
        py::arg("batch_sizes"), py::arg("is_step"), py::arg("num_layers"), py::arg("directions"),
        py::arg("gates") = 1);
  m.def("program_operations", [] {
    return std::vector<std::string>(rnn_ext::operation_names.begin(),
                                    rnn_ext::operation_names.end());
  });
  m.def("program_operands", [] {
    return std::vector<std::string>(rnn_ext::memory_names.begin(), rnn_ext::memory_names.end());
  });
  m.def("isa", [] { return rnn_ext::cpu::kernels().name; });
  m.def("isa_available", &rnn_ext::cpu::available_isas);
  m.def("set_isa", &rnn_ext::cpu::cap_isa, py::arg("name"));
  m.def("set_pool_is_concurrent", &rnn_ext::cpu::set_pool_is_concurrent, py::arg("concurrent"));
  m.def("caches", [] {
    const rnn_ext::cpu::Caches& known = rnn_ext::cpu::caches();
    return std::pair{known.l1, known.l2};
  });
  m.def("force_plan", &force_plan, py::arg("groups"), py::arg("threads") = 1,
        py::arg("directions_at_once") = false);
  m.def("plan", &plan, py::arg("steps"), py::arg("batch"), py::arg("input_size"),
        py::arg("hidden_size"), py::arg("is_double"), py::arg("bidirectional"), py::arg("threads"),
        py::arg("gates") = 1, py::arg("products") = 1);
  m.def("rows_of_groups", &rows_of_groups, py::arg("batch_sizes"), py::arg("groups"));
  m.def("available_threads", &rnn_ext::cpu::available_threads, py::arg("torch_threads"));
  m.def("cpu_quota", &rnn_ext::cpu::cpu_quota, py::arg("root"));
  m.def("release_scratch", &rnn_ext::cpu::release_scratch);
  m.def("keep_freed_memory", &keep_freed_memory, py::arg("keep"));
  m.def("cuda_limits", &cuda_limits, py::arg("device"));
  m.def("cuda_plan", &cuda_plan, py::arg("batch"), py::arg("hidden_size"), py::arg("directions"),
        py::arg("is_double"), py::arg("multiprocessors"), py::arg("shared_bytes"),
        py::arg("registers"));
}
