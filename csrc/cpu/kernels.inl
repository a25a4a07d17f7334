// The kernels of one ISA level. Included by kernels_<isa>.cpp inside that file's anonymous
// namespace and target pragma, after it has defined Vector<T>, tile_rows, tile_vectors and
// panels_for_one_row. Must not include anything: a standard function instantiated under the pragma
// could replace, at link time, the one that the rest of the library uses.

// A multiply-add takes one term of a sum.
template <class O>
struct Terms {
  using Register = Vector<O>;
  static constexpr int count = 1;

  static Register broadcast(const O* a) { return Register::broadcast(*a); }
};

#include "cpu/tile.inl"

#include "cpu/in_place.inl"

#include "cpu/stored_panels.inl"

#include "cpu/arithmetic.inl"
#include "cpu/functions.inl"
#include "cpu/pack.inl"

#include "cpu/gemm.inl"
#include "cpu/tanh.inl"

#include "cpu/program.inl"

template <class S>
constexpr Kernels<S> make_kernels() {
  using T = Arithmetic<S>;
  return {.panel_columns = tile_vectors * Vector<T>::width,
          .tile_rows = tile_rows,
          .terms = Terms<T>::count,
          .width = Vector<T>::width,
          .pack_transposed = pack_transposed<S>,
          .pack_operand_transposed = pack_transposed<S>,
          .pack = pack<S>,
          .pack_operand = pack<S>,
          .pack_gates = pack_gates<S>,
          .pack_stored = pack_stored_of<S>(),
          .pack_tiles = pack_tiles<T>,
          .widen = widen<S, T>,
          .narrow = narrow<S>,
          .gather = widen<S, T>,
          .product = product<S, T>,
          .operand_product = product<S, T>,
          .outer_product = outer_product<T>,
          .column_sums = column_sums<T>,
          .run_program = run_program<S>};
}

constexpr KernelSet make_kernel_set(const char* name) {
  return {name, make_kernels<float>(), make_kernels<double>(), make_kernels<BFloat16>(),
          make_kernels<Half>()};
}
