// The kernels of one ISA level. Included by kernels_<isa>.cpp inside that file's anonymous
// namespace and target pragma, after it has defined Vector<T>, tile_rows and tile_vectors. Must
// include nothing itself: a standard function instantiated under the pragma could replace, at link
// time, the one that the rest of the library uses.

#include "cpu/gemm.inl"
#include "cpu/pack.inl"
#include "cpu/tanh.inl"

template <class S>
constexpr Kernels<S> make_kernels() {
  using T = Arithmetic<S>;
  return {tile_vectors * Vector<T>::width,
          tile_rows,
          pack_transposed<S>,
          pack<S>,
          pack_tiles<T>,
          widen<S>,
          narrow<S>,
          product<S>,
          outer_product<T>,
          column_sums<T>};
}

constexpr KernelSet make_kernel_set(const char* name) {
  return {name, make_kernels<float>(), make_kernels<double>(), make_kernels<BFloat16>(),
          make_kernels<Half>()};
}
