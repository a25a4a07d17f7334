// torch.ops.rnn_ext_emulated.*: the CUDA driver on tensors in host memory; and, for ctypes, what
// the tests set and ask.
#include "common/ops.h"
#include "cuda/driver.h"
#include "emulation.h"

STABLE_TORCH_LIBRARY(rnn_ext_emulated, m) { rnn_ext::define_ops(m); }

STABLE_TORCH_LIBRARY_IMPL(rnn_ext_emulated, CPU, m) {
  rnn_ext::implement_ops<rnn_ext::cuda::Driver>(m);
}

extern "C" {

void emulation_set_order(int order) { emulation::order = static_cast<emulation::Order>(order); }

void emulation_set_limits(std::int64_t multiprocessors, std::int64_t shared_bytes) {
  emulation::limits = {multiprocessors, shared_bytes, 65536};
}

// The names of the kernels that were launched, a line each.
const char* emulation_launched() {
  static std::string text;
  text.clear();
  for (const std::string& name : emulation::launched()) {
    text += name + '\n';
  }
  return text.c_str();
}
}
