// Registration of the ops. Their fake kernels and autograd are in rnn_ext/ops.py.
#include "common/ops.h"

#include "cpu/driver.h"

STABLE_TORCH_LIBRARY(rnn_ext, m) { rnn_ext::define_ops(m); }

STABLE_TORCH_LIBRARY_IMPL(rnn_ext, CPU, m) { rnn_ext::implement_ops<rnn_ext::cpu::Driver>(m); }
