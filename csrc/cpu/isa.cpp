#include "cpu/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace rnn_ext::cpu {
namespace {

#if defined(__x86_64__)
// Not every compiler knows its name.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
         __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512vl") != 0;
}
#endif

struct Level {
  const KernelSet& set;
  bool (*runs_here)();
};

const Level levels[] = {
    {generic_kernels, [] { return true; }},
#if defined(__x86_64__)
    {avx2_kernels,
     [] {
       return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 &&
              has_f16c();
     }},
    {avx512_kernels, has_avx512},
    {avx512_bf16_kernels, [] { return has_avx512() && __builtin_cpu_supports("avx512bf16") != 0; }},
#endif
};

// A name that another machine's build knows is a valid cap here too.
const char* const known_names[] = {"generic", "avx2", "avx512", "avx512_bf16"};

const KernelSet* best(const std::string& cap) {
  int limit = -1;
  std::string valid;
  for (const char* known : known_names) {
    valid += (valid.empty() ? "" : ", ") + std::string(known);
  }
  for (int i = 0; i < static_cast<int>(std::size(known_names)); ++i) {
    if (cap == known_names[i]) {
      limit = i;
    }
  }
  if (limit < 0) {
    throw std::invalid_argument("'" + cap + "' is not an ISA level; choose one of " + valid);
  }
  const KernelSet* chosen = nullptr;
  for (int i = 0; i <= limit && i < static_cast<int>(std::size(levels)); ++i) {
    if (levels[i].runs_here()) {
      chosen = &levels[i].set;
    }
  }
  return chosen;
}

std::atomic<const KernelSet*> current{nullptr};

}  // namespace

const KernelSet& kernels() { return *current.load(std::memory_order_relaxed); }

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const Level& level : levels) {
    names.emplace_back(level.set.name);
  }
  return names;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Level& level : levels) {
    if (level.runs_here()) {
      names.emplace_back(level.set.name);
    }
  }
  return names;
}

void cap_isa(const std::string& cap) { current.store(best(cap), std::memory_order_relaxed); }

}  // namespace rnn_ext::cpu
