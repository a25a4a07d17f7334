// The kernels for any 64-bit machine.
#include "common/cell.h"
#include "cpu/kernels_common.h"

namespace rnn_ext::cpu {
namespace {

// 8 accumulators fit into 16 vector registers together with B and the broadcast.
constexpr int tile_rows = 4;
constexpr int tile_vectors = 2;

#include "cpu/vector_generic.h"

#include "cpu/kernels.inl"

}  // namespace

constinit const KernelSet generic_kernels = make_kernel_set("generic");

}  // namespace rnn_ext::cpu
