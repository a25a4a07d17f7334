// The kernels for AVX2 with FMA and F16C.
#if defined(__x86_64__)

#include <immintrin.h>

#include "cpu/kernels_common.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "common/cell.h"

namespace rnn_ext::cpu {
namespace {

// 12 of 16 registers are accumulators.
constexpr int tile_rows = 6;
constexpr int tile_vectors = 2;
constexpr int panels_for_one_row = 1;

#include "cpu/vector_avx2.h"

#include "cpu/kernels.inl"

}  // namespace

constinit const KernelSet avx2_kernels = make_kernel_set("avx2");

}  // namespace rnn_ext::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
