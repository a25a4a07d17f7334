// The ops' kernels as functions: the autograd node calls them without torch's dispatcher, whose
// conversions take an eighth of a small call, and a fifth between other work.
//
// The node and the kernels are two modules of one build. `_C.direct_kernels` is a capsule with a
// pointer to this.
#pragma once

#include "cpu/cell_ops.h"
#include "cpu/driver.h"
#include "cpu/packed_ops.h"

namespace rnn_ext::cpu {

struct DirectKernels {
  decltype(&Ops<Driver>::rnn_forward) rnn_forward;
  decltype(&Ops<Driver>::rnn_backward) rnn_backward;
  decltype(&Ops<Driver>::cell_forward) cell_forward;
  decltype(&Ops<Driver>::cell_backward) cell_backward;
  decltype(&cpu::rnn_forward_packed) rnn_forward_packed;
  decltype(&cpu::recurrence_forward) recurrence_forward;
  decltype(&cpu::recurrence_backward) recurrence_backward;
};

extern const DirectKernels direct_kernels;

}  // namespace rnn_ext::cpu
