// The ops: schemas and registration. Their fake kernels and autograd are in rnn_ext/ops.py.
//
// One call covers one layer in all its directions over the whole sequence. input is (T, B, I), or
// packed (N, I) with batch_sizes; hx is (D, B, H); weights are weight_ih, weight_hh and, where the
// layer has them, bias_ih, bias_hh for each direction; output is (T, B, D·H) or (N, D·H).
// rnn_backward returns the gradients that output_mask asks for, in the order input, hx, weights.
//
// The ops with an underscore have no autograd: rnn_ext/autograd.py calls them, which spares a small
// call the way through torch's. Those of the cell do one step, (B, I) and (B, H) to (B, H).
#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu/driver.h"

STABLE_TORCH_LIBRARY(rnn_ext, m) {
  const std::string forward =
      "(Tensor input, Tensor? hx, Tensor[] weights, Tensor? batch_sizes, "
      "str nonlinearity, bool bidirectional) -> (Tensor output, Tensor h_n)";
  const std::string backward =
      "(Tensor? grad_output, Tensor? grad_h_n, Tensor input, Tensor? hx, "
      "Tensor[] weights, Tensor output, Tensor? batch_sizes, str nonlinearity, "
      "bool bidirectional, bool[] output_mask) -> Tensor[]";
  m.def(("rnn_forward" + forward).c_str());
  m.def(("_rnn_forward" + forward).c_str());
  m.def(("rnn_backward" + backward).c_str());
  m.def(("_rnn_backward" + backward).c_str());
  m.def("_cell_forward(Tensor input, Tensor? hx, Tensor[] weights, str nonlinearity) -> Tensor");
  m.def(
      "_cell_backward(Tensor grad_output, Tensor input, Tensor? hx, Tensor[] weights, "
      "Tensor output, str nonlinearity, bool[] output_mask) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(rnn_ext, CPU, m) {
  m.impl("rnn_forward", TORCH_BOX(&rnn_ext::cpu::rnn_forward));
  m.impl("_rnn_forward", TORCH_BOX(&rnn_ext::cpu::rnn_forward));
  m.impl("rnn_backward", TORCH_BOX(&rnn_ext::cpu::rnn_backward));
  m.impl("_rnn_backward", TORCH_BOX(&rnn_ext::cpu::rnn_backward));
  m.impl("_cell_forward", TORCH_BOX(&rnn_ext::cpu::cell_forward));
  m.impl("_cell_backward", TORCH_BOX(&rnn_ext::cpu::cell_backward));
}
