// The ops' CPU kernels: torch tensors in, torch tensors out. See ops.cpp for the schemas.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace rnn_ext::cpu {

using torch::stable::Tensor;

std::tuple<Tensor, Tensor> rnn_forward(Tensor input, std::optional<Tensor> hx,
                                       std::vector<Tensor> weights,
                                       std::optional<Tensor> batch_sizes, std::string nonlinearity,
                                       bool bidirectional);

std::vector<Tensor> rnn_backward(std::optional<Tensor> grad_output, std::optional<Tensor> grad_h_n,
                                 Tensor input, std::optional<Tensor> hx,
                                 std::vector<Tensor> weights, Tensor output,
                                 std::optional<Tensor> batch_sizes, std::string nonlinearity,
                                 bool bidirectional, std::vector<bool> output_mask);

}  // namespace rnn_ext::cpu
