// Registers the ops. Their fake kernels and autograd are in rnn_ext/_core/ops.py.
#include "common/ops.h"

#include "common/direct.h"
#include "cpu/cell_ops.h"
#include "cpu/driver.h"
#include "cpu/packed_ops.h"
#include "text/ops.h"
#if defined(RNN_EXT_CUDA_ARCHS)
#include "cuda/driver.h"
#endif

STABLE_TORCH_LIBRARY(rnn_ext, m) {
  rnn_ext::define_ops(m);
  rnn_ext::cpu::define_cell_ops(m);
  rnn_ext::cpu::define_packed_ops(m);
  rnn_ext::cpu::define_text_ops(m);
}

STABLE_TORCH_LIBRARY_IMPL(rnn_ext, CPU, m) {
  rnn_ext::implement_ops<rnn_ext::cpu::Driver>(m);
  rnn_ext::cpu::implement_cell_ops(m);
  rnn_ext::cpu::implement_packed_ops(m);
  rnn_ext::cpu::implement_text_ops(m);
}

namespace rnn_ext {

using OnCPU = Ops<cpu::Driver>;
const DirectKernels direct_kernels{
    .rnn_forward = &WithTorchsWords<&OnCPU::rnn_forward>::call,
    .rnn_forward_packed = &WithTorchsWords<&cpu::rnn_forward_packed>::call,
    .rnn_backward = &WithTorchsWords<&OnCPU::rnn_backward>::call,
    .cell_forward = &WithTorchsWords<&OnCPU::cell_forward>::call,
    .cell_backward = &WithTorchsWords<&OnCPU::cell_backward>::call,
    .recurrence_forward = &WithTorchsWords<&cpu::recurrence_forward>::call,
    .recurrence_backward = &WithTorchsWords<&cpu::recurrence_backward>::call,
};

}  // namespace rnn_ext

#if defined(RNN_EXT_CUDA_ARCHS)
STABLE_TORCH_LIBRARY_IMPL(rnn_ext, CUDA, m) { rnn_ext::implement_ops<rnn_ext::cuda::Driver>(m); }
#endif
