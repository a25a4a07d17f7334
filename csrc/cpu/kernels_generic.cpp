// The kernels for any 64-bit machine.
#include "common/cell.h"
#include "cpu/kernels_common.h"

namespace rnn_ext::cpu {
namespace {

#if defined(__aarch64__)
// 20 of 32 vector registers are accumulators, and 12 in a tile of one row.
constexpr int tile_rows = 5;
constexpr int tile_vectors = 4;
constexpr int panels_for_one_row = 3;
#else
// 8 accumulators fit into 16 vector registers together with B and the broadcast.
constexpr int tile_rows = 4;
constexpr int tile_vectors = 2;
constexpr int panels_for_one_row = 1;
#endif

#include "cpu/vector_generic.h"

#include "cpu/kernels.inl"

}  // namespace

constinit const KernelSet generic_kernels = make_kernel_set("generic");

}  // namespace rnn_ext::cpu
