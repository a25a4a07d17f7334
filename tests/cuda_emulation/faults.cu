// Kernels with faults that the emulation has to report.
#include <cuda_runtime.h>

#include <cmath>
#include <string_view>

namespace rnn_ext::cuda {

extern __shared__ __align__(16) unsigned char shared_bytes[];

}  // namespace rnn_ext::cuda

namespace {

constexpr int shared_size = 64;

__global__ void divergent() {
  if (threadIdx.x == 0) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void early_exit() {
  if (threadIdx.x > 0) {
    __syncthreads();
  }
}

__global__ void beyond_shared() { rnn_ext::cuda::shared_bytes[shared_size] = 0; }

__global__ void is_nan(bool* result) {
  const auto* const values = reinterpret_cast<const float*>(rnn_ext::cuda::shared_bytes);
  *result = std::isnan(values[0]) && std::isnan(values[shared_size / sizeof(float) - 1]);
}

template <class... Parameters, class... Arguments>
cudaError_t launch(std::size_t shared, void (*kernel)(Parameters...), Arguments... arguments) {
  const cudaLaunchConfig_t config{{1, 1, 1}, {2, 1, 1}, shared, nullptr};
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace

extern "C" {

const char* emulation_run_fault(const char* name) {
  const std::string_view fault = name;
  return cudaGetErrorString(fault == "divergent"       ? launch(shared_size, divergent)
                            : fault == "early_exit"    ? launch(shared_size, early_exit)
                            : fault == "beyond_shared" ? launch(shared_size, beyond_shared)
                                                       : launch(64 << 10, divergent));
}

bool emulation_fresh_shared_memory_is_nan() {
  bool result = false;
  return launch(shared_size, is_nan, &result) == cudaSuccess && result;
}
}
