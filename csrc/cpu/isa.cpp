#include "cpu/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <atomic>
#include <iterator>
#include <stdexcept>
#include <string_view>

namespace rnn_ext::cpu {
namespace {

#if defined(__x86_64__)
// The features of the processor whose registers the operating system saves. __builtin_cpu_supports
// would need the compiler's run-time library, which some distributions of clang lack.
struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;

  static Registers of_cpuid(unsigned leaf, unsigned subleaf) {
    Registers r;
    __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
    return r;
  }
};

bool has_all(unsigned value, unsigned bits) { return (value & bits) == bits; }

bool saves_state(unsigned components) {
  if (!has_all(Registers::of_cpuid(1, 0).c, bit_OSXSAVE)) {
    return false;
  }
  unsigned low = 0, high = 0;
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return has_all(low, components);
}

bool has_avx2() {
  constexpr unsigned xmm_and_ymm = 0x6;
  return has_all(Registers::of_cpuid(1, 0).c, bit_FMA | bit_F16C) &&
         has_all(Registers::of_cpuid(7, 0).b, bit_AVX2) && saves_state(xmm_and_ymm);
}

bool has_avx512() {
  constexpr unsigned xmm_to_zmm_and_masks = 0xe6;
  return has_avx2() &&
         has_all(Registers::of_cpuid(7, 0).b,
                 bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL) &&
         saves_state(xmm_to_zmm_and_masks);
}

bool has_avx512_bf16() {
  return has_avx512() && has_all(Registers::of_cpuid(7, 1).a, bit_AVX512BF16);
}
#endif

struct Level {
  const KernelSet& set;
  bool (*runs_here)();
};

const Level levels[] = {
    {generic_kernels, [] { return true; }},
#if defined(__x86_64__)
    {avx2_kernels, has_avx2},
    {avx512_kernels, has_avx512},
    {avx512_bf16_kernels, has_avx512_bf16},
#endif
};

// From the lowest level up. The name of a level in another machine's build is a valid cap here,
// too.
constexpr std::string_view known_names[] = {"generic", "avx2", "avx512", "avx512_bf16"};

const KernelSet* best(const std::string& cap) {
  const auto position = [](std::string_view name) { return std::ranges::find(known_names, name); };
  const auto* const limit = position(cap);
  if (limit == std::end(known_names)) {
    std::string valid;
    for (const std::string_view known : known_names) {
      valid.append(valid.empty() ? "" : ", ").append(known);
    }
    throw std::invalid_argument("'" + cap + "' is not an ISA level; choose one of " + valid);
  }
  const KernelSet* chosen = nullptr;
  for (const Level& level : levels) {
    if (position(level.set.name) <= limit && level.runs_here()) {
      chosen = &level.set;
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
