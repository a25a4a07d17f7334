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

// 12 accumulators of 16 registers.
constexpr int tile_rows = 6;
constexpr int tile_vectors = 2;

#include "cpu/vector_avx2.h"

template <class S>
inline void transpose_block(const S* source, std::int64_t source_stride, float* target,
                            std::int64_t target_stride) {
  __m256 r[8], s[8];
  for (int i = 0; i < 8; ++i) {
    r[i] = Vector<float>::load(source + i * source_stride).v;
  }
  for (int i = 0; i < 4; ++i) {
    s[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    s[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      const __m256 low = s[4 * i + j], high = s[4 * i + 2 + j];
      r[4 * i + 2 * j] = _mm256_shuffle_ps(low, high, 0x44);
      r[4 * i + 2 * j + 1] = _mm256_shuffle_ps(low, high, 0xee);
    }
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(target + i * target_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(target + (i + 4) * target_stride,
                     _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}

inline void transpose_block(const double* source, std::int64_t source_stride, double* target,
                            std::int64_t target_stride) {
  __m256d r[4], s[4];
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_loadu_pd(source + i * source_stride);
  }
  for (int i = 0; i < 2; ++i) {
    s[2 * i] = _mm256_unpacklo_pd(r[2 * i], r[2 * i + 1]);
    s[2 * i + 1] = _mm256_unpackhi_pd(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    _mm256_storeu_pd(target + i * target_stride, _mm256_permute2f128_pd(s[i], s[i + 2], 0x20));
    _mm256_storeu_pd(target + (i + 2) * target_stride,
                     _mm256_permute2f128_pd(s[i], s[i + 2], 0x31));
  }
}

#include "cpu/kernels.inl"

}  // namespace

const KernelSet avx2_kernels = make_kernel_set("avx2");

}  // namespace rnn_ext::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
