// Selects the kernels for a call.
#pragma once

#include <new>

#include "common/call.h"
#include "cpu/isa.h"
#include "cpu/settings.h"

namespace rnn_ext::cpu {

// Calls f with the kernels for tensors of this dtype, which Call has checked.
template <class F>
void with_kernels(std::int32_t dtype, F&& f) {
  const KernelSet& set = kernels();
  if (dtype == aoti_torch_dtype_float32()) {
    f(set.f32);
  } else if (dtype == aoti_torch_dtype_float64()) {
    f(set.f64);
  } else if (dtype == aoti_torch_dtype_bfloat16()) {
    set.bf16_products ? f(*set.bf16_products) : f(set.bf16);
  } else {
    f(set.f16);
  }
}

inline int thread_limit() {
  return available_threads(static_cast<int>(torch::stable::get_num_threads()));
}

// Runs f; a failed allocation of scratch memory becomes an error with a message.
template <class F>
void guarded(F&& f) {
  try {
    f();
  } catch (const std::bad_alloc&) {
    throw std::runtime_error("rnn_ext: out of memory: could not allocate scratch memory");
  }
}

}  // namespace rnn_ext::cpu
