// The device that a call runs on: what the driver asks of torch and of the CUDA runtime beside
// launching kernels.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include "common/tensors.h"
#include "cuda/plan.h"

namespace rnn_ext::cuda {

// Throws where `error` is one, in words that name what failed.
void require_success(cudaError_t error, const char* what);

// What a plan needs to know of a device. Throws where the runtime cannot use it.
Limits limits_of(std::int32_t device_index);

// Makes a device the current one while it lives.
class CurrentDevice {
 public:
  explicit CurrentDevice(const Device& device);

  cudaStream_t stream() const { return stream_; }
  Limits limits() const;

 private:
  std::int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace rnn_ext::cuda
