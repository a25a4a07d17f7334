#include "cuda/runtime.h"

#include <dlfcn.h>

namespace rnn_ext::cuda {
namespace {

// Torch's current stream of a device. Only CUDA builds of torch have the symbol, so it is looked up
// in the loaded libraries: the same binary runs on the CPU builds.
cudaStream_t current_stream(std::int32_t device_index) {
  using GetStream = AOTITorchError (*)(std::int32_t, void**);
  static const auto get_stream = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library
               ? reinterpret_cast<GetStream>(dlsym(library, "aoti_torch_get_current_cuda_stream"))
               : nullptr;
  }();
  void* stream = nullptr;
  require(get_stream && get_stream(device_index, &stream) == TORCH_SUCCESS,
          "torch does not tell its current CUDA stream: is this a CUDA build of torch?");
  return static_cast<cudaStream_t>(stream);
}

std::int32_t index_on_cuda(const Device& device) {
  require(device.type == aoti_torch_device_type_cuda(),
          "input must be on a CUDA device, as another argument is");
  return device.index;
}

}  // namespace

void require_success(cudaError_t error, const char* what) {
  require(error == cudaSuccess, what, " failed: ", cudaGetErrorString(error));
}

CurrentDevice::CurrentDevice(const Device& device) : index_(index_on_cuda(device)), guard_(index_) {
  // The runtime in this binary is separate from torch's own copy.
  require_success(cudaSetDevice(index_), "choosing the CUDA device");
  stream_ = current_stream(index_);
}

Limits CurrentDevice::limits() const { return limits_of(index_); }

Limits limits_of(std::int32_t device_index) {
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    const cudaError_t error = cudaDeviceGetAttribute(&value, name, device_index);
    // A possible reason is a driver older than the runtime in this binary.
    require(error == cudaSuccess, "the CUDA kernels cannot run here: ", cudaGetErrorString(error));
    return value;
  };
  return {attribute(cudaDevAttrMultiProcessorCount),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          attribute(cudaDevAttrMaxRegistersPerBlock)};
}

}  // namespace rnn_ext::cuda
