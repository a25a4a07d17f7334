// Copies host values to device memory as arguments of kernels.
#include <algorithm>

#include "cuda/rules.cuh"

namespace rnn_ext::cuda {

// Half of the bytes that every device accepts as arguments of a kernel.
constexpr int chunk_values = 256;

struct Chunk {
  std::int64_t values[chunk_values];
};

__global__ void store(const __grid_constant__ Chunk chunk, int count, std::int64_t* target) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < count) {
    target[i] = chunk.values[i];
  }
}

cudaError_t upload(std::span<const std::int64_t> values, std::int64_t* target,
                   cudaStream_t stream) {
  for (std::size_t start = 0; start < values.size(); start += chunk_values) {
    const auto part =
        values.subspan(start, std::min<std::size_t>(chunk_values, values.size() - start));
    Chunk chunk{};
    std::copy(part.begin(), part.end(), chunk.values);
    const cudaError_t error = launch(store, dim3(1), chunk_values, 0, stream, chunk,
                                     static_cast<int>(part.size()), target + start);
    if (error != cudaSuccess) {
      return error;
    }
  }
  return cudaSuccess;
}

}  // namespace rnn_ext::cuda
