// Registers the ops. Their fake kernels and autograd are in rnn_ext/_core/ops.py.
#include "common/ops.h"

#include "cpu/direct.h"
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

namespace rnn_ext::cpu {

template <auto kernel>
constexpr auto direct = &WithTorchsWords<kernel>::call;

const DirectKernels direct_kernels{
    .rnn_forward = direct<&Ops<Driver>::rnn_forward>,
    .rnn_backward = direct<&Ops<Driver>::rnn_backward>,
    .cell_forward = direct<&Ops<Driver>::cell_forward>,
    .cell_backward = direct<&Ops<Driver>::cell_backward>,
    .rnn_forward_packed = direct<&rnn_forward_packed>,
    .recurrence_forward = direct<&recurrence_forward>,
    .recurrence_backward = direct<&recurrence_backward>,
};

}  // namespace rnn_ext::cpu

#if defined(RNN_EXT_CUDA_ARCHS)
STABLE_TORCH_LIBRARY_IMPL(rnn_ext, CUDA, m) { rnn_ext::implement_ops<rnn_ext::cuda::Driver>(m); }
#endif
