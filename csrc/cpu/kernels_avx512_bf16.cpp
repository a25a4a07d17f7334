// The kernels for AVX-512 with products of bfloat16 (Cooper Lake, Sapphire Rapids, Zen 4 and
// later): those of kernels_avx512.cpp, and products over many steps that take bfloat16 as stored,
// two terms at a time, at twice the rate of float. The instruction treats subnormal numbers as
// zeros and rounds after each of the two terms.
#if defined(__x86_64__)

#include <immintrin.h>

#include "cpu/kernels_common.h"

#if defined(__clang__)
#pragma clang attribute push(                                                     \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,fma"))), \
    apply_to = function)
#else
#pragma GCC push_options
// GCC mistakes the undefined operands inside its own intrinsics for ours (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,fma")
#endif

#include "common/cell.h"

namespace rnn_ext::cpu {
namespace {

#include "cpu/vector_avx512.h"

// 16 pairs of values.
struct Pairs {
  __m512bh v;

  static Pairs load(const BFloat16* p) {
    return {reinterpret_cast<__m512bh>(_mm512_loadu_si512(p))};
  }
  static Pairs broadcast(int pair) { return {reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair))}; }
};

inline Vector<float> multiply_add(Pairs a, Pairs b, Vector<float> c) {
  return {_mm512_dpbf16_ps(c.v, a.v, b.v)};
}

template <class O>
struct Terms {
  using Register = Pairs;
  static constexpr int count = 2;

  static Pairs broadcast(const BFloat16* a) {
    int pair;
    std::memcpy(&pair, a, sizeof(pair));
    return Pairs::broadcast(pair);
  }
  // For a pair of which only the first value exists.
  static Pairs broadcast_last(const BFloat16* a) { return Pairs::broadcast(a->bits); }
};

#include "cpu/tile.inl"

#include "cpu/functions.inl"
#include "cpu/pack_pairs.inl"

#include "cpu/gemm.inl"
#include "cpu/tanh.inl"

}  // namespace
}  // namespace rnn_ext::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

// Filled in when the library is loaded, on any machine, so this code must be baseline.
namespace rnn_ext::cpu {
namespace {

const Kernels<BFloat16, BFloat16> products = [] {
  const Kernels<BFloat16>& floats = avx512_kernels.bf16;
  return Kernels<BFloat16, BFloat16>{.panel_columns = floats.panel_columns,
                                     .tile_rows = floats.tile_rows,
                                     .terms = Terms<BFloat16>::count,
                                     .width = floats.width,
                                     .pack_transposed = floats.pack_transposed,
                                     .pack_operand_transposed = pack_pairs_transposed,
                                     .pack = floats.pack,
                                     .pack_operand = pack_pairs,
                                     .pack_gates = floats.pack_gates,
                                     .pack_stored = floats.pack_stored,
                                     .pack_tiles = pack_pair_tiles,
                                     .widen = floats.widen,
                                     .narrow = floats.narrow,
                                     .gather = copy_rows,
                                     .product = floats.product,
                                     .operand_product = product<BFloat16, BFloat16>,
                                     .outer_product = outer_product<BFloat16>,
                                     .column_sums = floats.column_sums,
                                     .run_program = floats.run_program};
}();

}  // namespace

const KernelSet avx512_bf16_kernels = [] {
  KernelSet set = avx512_kernels;
  set.name = "avx512_bf16";
  set.bf16_products = &products;
  return set;
}();

}  // namespace rnn_ext::cpu

#endif
