// The kernels for any 64-bit machine.
#include "common/cell.h"
#include "cpu/kernels_common.h"

namespace rnn_ext::cpu {
namespace {

// 8 accumulators: what 16 vector registers hold beside B and the broadcast.
constexpr int tile_rows = 4;
constexpr int tile_vectors = 2;

#include "cpu/vector_generic.h"

template <class S, class T>
void transpose_block(const S* source, std::int64_t source_stride, T* target,
                     std::int64_t target_stride) {
  for (int r = 0; r < Vector<T>::width; ++r) {
    for (int c = 0; c < Vector<T>::width; ++c) {
      target[c * target_stride + r] = static_cast<T>(source[r * source_stride + c]);
    }
  }
}

#include "cpu/kernels.inl"

}  // namespace

const KernelSet generic_kernels = make_kernel_set("generic");

}  // namespace rnn_ext::cpu
