// The kernels for AVX-512 (F, DQ, BW, VL: Skylake-X, Zen 4 and later).
#if defined(__x86_64__)

#include <immintrin.h>

#include "cpu/kernels_common.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
// GCC takes the undefined operands inside its own intrinsics for ours (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma")
#endif

#include "common/cell.h"

namespace rnn_ext::cpu {
namespace {

// 24 accumulators of 32 registers.
constexpr int tile_rows = 6;
constexpr int tile_vectors = 4;

#include "cpu/vector_avx512.h"

// Transposes by interleaving rows i and i + n/2 in log2(n) rounds: each round is a perfect shuffle
// of the row list, after which every register holds one column.
template <class Register, int n, class Low, class High>
inline void interleave_rounds(Register (&r)[n], Low low, High high) {
  for (int round = 1; round < n; round *= 2) {
    Register s[n];
    for (int i = 0; i < n / 2; ++i) {
      s[2 * i] = low(r[i], r[i + n / 2]);
      s[2 * i + 1] = high(r[i], r[i + n / 2]);
    }
    for (int i = 0; i < n; ++i) {
      r[i] = s[i];
    }
  }
}

template <class S>
inline void transpose_block(const S* source, std::int64_t source_stride, float* target,
                            std::int64_t target_stride) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high =
      _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  __m512 r[16];
  for (int i = 0; i < 16; ++i) {
    r[i] = Vector<float>::load(source + i * source_stride).v;
  }
  interleave_rounds(
      r, [&](__m512 a, __m512 b) { return _mm512_permutex2var_ps(a, low, b); },
      [&](__m512 a, __m512 b) { return _mm512_permutex2var_ps(a, high, b); });
  for (int i = 0; i < 16; ++i) {
    _mm512_storeu_ps(target + i * target_stride, r[i]);
  }
}

inline void transpose_block(const double* source, std::int64_t source_stride, double* target,
                            std::int64_t target_stride) {
  const __m512i low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  const __m512i high = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
  __m512d r[8];
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm512_loadu_pd(source + i * source_stride);
  }
  interleave_rounds(
      r, [&](__m512d a, __m512d b) { return _mm512_permutex2var_pd(a, low, b); },
      [&](__m512d a, __m512d b) { return _mm512_permutex2var_pd(a, high, b); });
  for (int i = 0; i < 8; ++i) {
    _mm512_storeu_pd(target + i * target_stride, r[i]);
  }
}

#include "cpu/kernels.inl"

}  // namespace

const KernelSet avx512_kernels = make_kernel_set("avx512");

}  // namespace rnn_ext::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
