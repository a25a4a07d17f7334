// The device of a call: the driver's calls of torch and of the CUDA runtime, except for launches.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include "common/tensors.h"
#include "cuda/plan.h"

namespace rnn_ext::cuda {

// Throws if `error` is an error; the message names what failed.
void require_success(cudaError_t error, const char* what);

// The limits of a device that a plan depends on. Throws if the runtime cannot use the device.
Limits limits_of(std::int32_t device_index);

// Makes a device the current one until the scope ends.
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
