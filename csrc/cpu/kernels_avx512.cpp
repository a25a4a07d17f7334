// The kernels for AVX-512 (F, DQ, BW, VL: Skylake-X, Zen 4 and later).
#if defined(__x86_64__)

#include <immintrin.h>

#include "cpu/kernels_common.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
// GCC mistakes the undefined operands inside its own intrinsics for ours (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma")
#endif

#include "common/cell.h"

namespace rnn_ext::cpu {
namespace {

#include "cpu/vector_avx512.h"

#include "cpu/kernels.inl"

}  // namespace

constinit const KernelSet avx512_kernels = make_kernel_set("avx512");

}  // namespace rnn_ext::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
