// What a kernel set offers. One set exists per ISA level; all are compiled from kernels.inl, and
// isa.cpp picks one at run time. A set has kernels for each type S that values are stored in; they
// compute in T = Arithmetic<S>, and packing, widening and narrowing convert between the two.
//
// Reproducibility is decided here: the sum over an inner dimension is cut into blocks of
// `reduction_block` terms, each block is one chain of fused multiply-adds, and blocks are added in
// order. This depends on nothing but the inner length, so a row's result is the same bits
// whatever tile, thread or batch computed it.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/problem.h"

namespace rnn_ext::cpu {

inline constexpr std::int64_t reduction_block = 256;

enum class Finish {
  none,
  activate_tanh,
  activate_relu,
  chain_tanh,
  chain_relu,
};

// C[r, c] = finish(init[r, c] + Σ_k A[r, k] B[k, c] + seed[r, c]), B packed in column panels.
template <class S>
struct Product {
  using T = Arithmetic<S>;

  std::int64_t rows = 0;
  std::int64_t inner = 0;
  std::int64_t columns = 0;
  const T* a = nullptr;
  std::int64_t a_stride = 0;
  const T* b = nullptr;          // the panel of column 0
  const T* init = nullptr;       // null: zero
  std::int64_t init_stride = 0;  // 0: one row for all
  T* c = nullptr;
  std::int64_t c_stride = 0;
  Finish finish = Finish::none;
  const S* seed = nullptr;  // null: zero
  std::int64_t seed_stride = 0;
  const S* h = nullptr;  // what chain_* needs: the step's own output
  std::int64_t h_stride = 0;
  S* stored = nullptr;  // where C goes too, rounded to S; null, and always where S is T: nowhere
  std::int64_t stored_stride = 0;
};

// G[m, n] (+)= Σ_r A[r, m] B[r, n], A packed in row tiles, B in column panels.
template <class T>
struct OuterProduct {
  std::int64_t inner = 0;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  const T* a = nullptr;
  const T* b = nullptr;
  T* g = nullptr;
  std::int64_t g_stride = 0;
  bool accumulate = false;
};

template <class S>
struct Kernels {
  using T = Arithmetic<S>;

  std::int64_t panel_columns;  // columns of a packed panel of B
  std::int64_t tile_rows;      // rows of a packed tile of A

  // Packs B for the products. A panel of B holds, for each k, the values of panel_columns columns
  // (of the last panel: of its own columns, filled up with zeros to whole vectors); panel p of B
  // starts at p · panel_columns · (inner dimension of B).
  //
  // All of B = Wᵀ, for W (columns, inner).
  void (*pack_transposed)(Matrix<const S> w, std::int64_t columns, std::int64_t inner, T* panels);
  // Rows [at, at + rows) of B, which are those of W; B has `inner` rows in all.
  void (*pack)(Matrix<const S> w, std::int64_t columns, std::int64_t rows, T* panels,
               std::int64_t inner, std::int64_t at);
  // A for OuterProduct: tile_rows values for each k, successive tiles tile_rows·inner apart.
  void (*pack_tiles)(Matrix<const T> a, std::int64_t rows, std::int64_t inner, T* tiles);

  // target[r, c] = source[r, c]; all column strides are 1 but the source's of widen.
  void (*widen)(Matrix<const S> source, std::int64_t rows, std::int64_t columns, Matrix<T> target);
  void (*narrow)(Matrix<const T> source, std::int64_t rows, std::int64_t columns, Matrix<S> target);

  void (*product)(const Product<S>&);
  void (*outer_product)(const OuterProduct<T>&);
  // sums[c] (+)= Σ_r a[r, c]
  void (*column_sums)(Matrix<const T> a, std::int64_t rows, std::int64_t columns, T* sums,
                      bool accumulate);
};

struct KernelSet {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
  Kernels<BFloat16> bf16;
  Kernels<Half> f16;

  template <class S>
  const Kernels<S>& of() const {
    if constexpr (std::is_same_v<S, float>) {
      return f32;
    } else if constexpr (std::is_same_v<S, double>) {
      return f64;
    } else if constexpr (std::is_same_v<S, BFloat16>) {
      return bf16;
    } else {
      return f16;
    }
  }
};

extern const KernelSet generic_kernels;
#if defined(__x86_64__)
extern const KernelSet avx2_kernels;
extern const KernelSet avx512_kernels;
#endif

}  // namespace rnn_ext::cpu
