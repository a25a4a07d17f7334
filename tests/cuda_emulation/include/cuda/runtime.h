// The emulated device: what csrc/cuda/runtime.h is for real ones. Its memory is the host's.
#pragma once

#include <cuda_runtime.h>

#include "common/tensors.h"
#include "emulation.h"

namespace rnn_ext::cuda {

inline void require_success(cudaError_t error, const char* what) {
  require(error == cudaSuccess, what, " failed: ", cudaGetErrorString(error));
}

class CurrentDevice {
 public:
  explicit CurrentDevice(const Device& device) {
    require(device.type == aoti_torch_device_type_cpu(),
            "the emulated device has the CPU's memory");
  }
  cudaStream_t stream() const { return nullptr; }
  Limits limits() const { return emulation::limits; }
};

}  // namespace rnn_ext::cuda
