// The part of the CUDA model that our kernels use, on the host: stands in for CUDA's own header of
// this name when a host compiler compiles the shipped .cu files.
//
// A launch runs block after block on the calling thread. The threads of a block are fibers that run
// one at a time, each to its next barrier; shared memory starts as NaN. What this cannot show:
// memory ordering between threads that run at once, occupancy, speed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
};

extern dim3 threadIdx;
extern dim3 blockIdx;

// All threads of the block have to meet at the same place in the source.
void __syncthreads(std::source_location place = std::source_location::current());

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorLaunchFailure };
const char* cudaGetErrorString(cudaError_t error);

struct CUstream_st;
using cudaStream_t = CUstream_st*;

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace emulation {

using Kernel = const void*;

cudaError_t allow_shared_bytes(Kernel kernel, int bytes);
cudaError_t launch(Kernel kernel, const cudaLaunchConfig_t& config,
                   const std::function<void()>& thread);

}  // namespace emulation

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int value) {
  return emulation::allow_shared_bytes(reinterpret_cast<emulation::Kernel>(kernel), value);
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<Parameters...> copies(arguments...);
  return emulation::launch(reinterpret_cast<emulation::Kernel>(kernel), *config,
                           [&] { std::apply(kernel, copies); });
}
