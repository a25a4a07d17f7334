// The ops' CPU kernels: torch tensors in, torch tensors out. See ops.cpp for the schemas.
#pragma once

#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace rnn_ext::cpu {

using torch::stable::Tensor;

// The kernels own the string that arrives as `nonlinearity`: torch's own conversion to std::string
// never frees a copy that it makes.
std::tuple<Tensor, Tensor> rnn_forward(const Tensor& input, const std::optional<Tensor>& hx,
                                       const std::vector<Tensor>& weights,
                                       const std::optional<Tensor>& batch_sizes,
                                       StringHandle nonlinearity, bool bidirectional);

std::vector<Tensor> rnn_backward(const std::optional<Tensor>& grad_output,
                                 const std::optional<Tensor>& grad_h_n, const Tensor& input,
                                 const std::optional<Tensor>& hx,
                                 const std::vector<Tensor>& weights, const Tensor& output,
                                 const std::optional<Tensor>& batch_sizes,
                                 StringHandle nonlinearity, bool bidirectional,
                                 const std::vector<bool>& output_mask);

Tensor cell_forward(const Tensor& input, const std::optional<Tensor>& hx,
                    const std::vector<Tensor>& weights, StringHandle nonlinearity);

std::vector<Tensor> cell_backward(const Tensor& grad_output, const Tensor& input,
                                  const std::optional<Tensor>& hx,
                                  const std::vector<Tensor>& weights, const Tensor& output,
                                  StringHandle nonlinearity, const std::vector<bool>& output_mask);

}  // namespace rnn_ext::cpu
