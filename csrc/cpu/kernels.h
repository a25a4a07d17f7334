// A kernel set. There is one for each ISA level; all are compiled from kernels.inl, and isa.cpp
// picks one at run time. A set has kernels for each type S that values are stored in; they compute
// in T = Arithmetic<S>. The recurrence takes its operands in T. Products over the rows of many
// steps take theirs in O, which is T, or S if the machine multiplies stored values directly.
//
// Reproducibility is decided here: the sum over an inner dimension is cut into blocks of
// `reduction_block` terms, each block is one chain of fused multiply-adds, and blocks are added in
// order. This depends only on the inner length, so a row's result has the same bits for every tile,
// thread and batch.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/problem.h"
#include "common/program.h"

namespace rnn_ext::cpu {

inline constexpr std::int64_t reduction_block = 256;

// The maximum of rows of a product with B in 16 bits.
inline constexpr std::int64_t most_rows_of_stored_b = 3;

// The maximum of row tiles for which B is read in place. For more, a block of it is packed first.
inline constexpr std::int64_t most_tiles_in_place = 2;

// The function of the cell that is applied after a product.
enum class Finish { none, activate, chain };

// C[r, c] = finish(init[r, c] + Σ_k A[r, k] B[k, c] + seed[r, c]). B is packed in column panels
// or not packed, which pays for few rows, and for a B that is used once.
template <class S, class O = Arithmetic<S>>
struct Product {
  using T = Arithmetic<S>;

  std::int64_t rows = 0;
  std::int64_t inner = 0;
  std::int64_t columns = 0;
  const O* a = nullptr;
  std::int64_t a_stride = 0;
  const O* b = nullptr;          // the panel of column 0; null: use unpacked
  Matrix<const S> unpacked;      // B as it is
  const S* b_stored = nullptr;   // instead of b, from pack_stored; only where O is T
  const T* init = nullptr;       // null: zero
  std::int64_t init_stride = 0;  // 0: one row for all
  T* c = nullptr;
  std::int64_t c_stride = 0;
  Finish finish = Finish::none;
  Nonlinearity nonlinearity = Nonlinearity::tanh;
  const S* seed = nullptr;  // null: zero
  std::int64_t seed_stride = 0;
  const S* h = nullptr;  // the step's own output, for `chain`
  std::int64_t h_stride = 0;
  S* stored = nullptr;  // a copy of C, rounded to S; null for none, and always if S is T
  std::int64_t stored_stride = 0;
};

// G[m, n] (+)= Σ_r A[r, m] B[r, n], A packed in row tiles, B in column panels.
template <class O>
struct OuterProduct {
  using T = Arithmetic<O>;

  std::int64_t inner = 0;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  const O* a = nullptr;
  const O* b = nullptr;
  T* g = nullptr;
  std::int64_t g_stride = 0;
  bool accumulate = false;
};

// The memory of a place: the values of a step, from its first row and unit.
template <class S>
struct Operand {
  using T = Arithmetic<S>;

  const T* values = nullptr;  // one of the two; neither: absent
  const S* stored = nullptr;
  std::int64_t row_stride = 0;
  std::int64_t column_stride = 1;  // 1, or of a load 0

  static Operand of(Matrix<const T> m) { return {m.data, nullptr, m.row_stride, m.column_stride}; }
  static Operand of(Matrix<const S> m)
    requires(!std::is_same_v<S, T>)
  {
    return {nullptr, m.data, m.row_stride, m.column_stride};
  }
  Operand moved(std::int64_t offset) const {
    return {values ? values + offset : nullptr, stored ? stored + offset : nullptr, row_stride,
            column_stride};
  }
};

// What a place has on a tile: the value of its first row and unit, at column stride 1.
template <class T>
struct TileValues {
  T* data;
  std::int64_t row_stride;
};

// Code to run on a tile of rows and units. Its dst, a, b and c are places: the slots, followed by
// the operands. A load reads any operand and a store writes any; the other instructions use
// operands like slots, so these hold T at column stride 1.
template <class S>
struct ProgramTile {
  using T = Arithmetic<S>;

  const Instruction* code = nullptr;
  std::int64_t length = 0;
  const Operand<S>* operands = nullptr;
  std::int64_t operand_count = 0;
  TileValues<T>* values = nullptr;  // scratch, for each place
  T* slots = nullptr;               // for each row, of each slot `vectors` vectors
  std::int64_t slot_count = 0;
  std::int64_t row = 0;  // the tile's first row and unit
  std::int64_t unit = 0;
  std::int64_t rows = 0;
  std::int64_t units = 0;
};

template <class S, class O = Arithmetic<S>>
struct Kernels {
  using T = Arithmetic<S>;

  std::int64_t panel_columns;  // columns of a packed panel of B
  std::int64_t tile_rows;      // rows of a packed tile of A
  std::int64_t terms;          // packed operands in O have a multiple of this many for the sum
  std::int64_t width;          // values of T in a vector

  // Packs B for the products. A panel of B holds, for each k, the values of panel_columns columns
  // (the last panel: of its own columns, padded with zeros to whole vectors); panel p of B
  // starts at p · panel_columns · (inner dimension of B). In O, the values of `terms` successive
  // k are adjacent, and the inner dimension is padded to a multiple of that.
  //
  // All of B = Wᵀ, for W (columns, inner).
  void (*pack_transposed)(Matrix<const S> w, std::int64_t columns, std::int64_t inner, T* panels);
  void (*pack_operand_transposed)(Matrix<const S> w, std::int64_t columns, std::int64_t inner,
                                  O* panels);
  // Rows [at, at + rows) of B, which are those of W; B has `inner` rows in all.
  void (*pack)(Matrix<const S> w, std::int64_t columns, std::int64_t rows, T* panels,
               std::int64_t inner, std::int64_t at);
  void (*pack_operand)(Matrix<const S> w, std::int64_t columns, std::int64_t rows, O* panels,
                       std::int64_t inner, std::int64_t at);
  // The columns of B = Wᵀ that belong to `units` units of each gate, for W (gates·hidden, inner):
  // gate after gate, each padded with zeros to whole vectors.
  void (*pack_gates)(Matrix<const S> w, std::int64_t gates, std::int64_t hidden, std::int64_t units,
                     std::int64_t inner, T* panels);
  // B in S for products of at most most_rows_of_stored_b rows; its inner dimension is padded to an
  // even number. Null if these are not faster, and if S is T.
  void (*pack_stored)(Matrix<const S> b, std::int64_t columns, std::int64_t inner, S* panels);
  // A for OuterProduct: tile_rows values for each k, successive tiles tile_rows·inner apart.
  void (*pack_tiles)(Matrix<const O> a, std::int64_t rows, std::int64_t inner, O* tiles);

  // target[r, c] = source[r, c]; all column strides are 1, except the source's in widen and gather.
  void (*widen)(Matrix<const S> source, std::int64_t rows, std::int64_t columns, Matrix<T> target);
  void (*narrow)(Matrix<const T> source, std::int64_t rows, std::int64_t columns, Matrix<S> target);
  void (*gather)(Matrix<const S> source, std::int64_t rows, std::int64_t columns, Matrix<O> target);

  void (*product)(const Product<S>&);
  void (*operand_product)(const Product<S, O>&);
  void (*outer_product)(const OuterProduct<O>&);
  // sums[c] (+)= Σ_r a[r, c]
  void (*column_sums)(Matrix<const T> a, std::int64_t rows, std::int64_t columns, T* sums,
                      bool accumulate);
  void (*run_program)(const ProgramTile<S>&);
};

struct KernelSet {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
  Kernels<BFloat16> bf16;
  Kernels<Half> f16;
  // Null if the machine has no products of bfloat16.
  const Kernels<BFloat16, BFloat16>* bf16_products = nullptr;
};

extern const KernelSet generic_kernels;
#if defined(__x86_64__)
extern const KernelSet avx2_kernels;
extern const KernelSet avx512_kernels;
extern const KernelSet avx512_bf16_kernels;
#endif

}  // namespace rnn_ext::cpu
