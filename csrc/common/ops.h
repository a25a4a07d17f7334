// The ops of all devices: schemas, and kernels in terms of a device's driver.
//
// One call covers one layer in all its directions over the whole sequence. input is (T, B, I), or
// packed (N, I) with batch_sizes; hx is (D, B, H); weights are weight_ih, weight_hh and, where the
// layer has them, bias_ih, bias_hh for each direction; output is (T, B, D·H) or (N, D·H).
// rnn_backward returns the gradients that output_mask requests, in the order input, hx, weights.
//
// The ops with an underscore have no autograd formula: rnn_ext/_core/autograd.py calls them, which
// avoids torch's overhead in small calls. The cell's ops compute one step, from (B, I) and (B, H)
// to (B, H). rnn_ext/_core/derivatives.py computes all higher derivatives with _rnn_tangent, the
// recurrence y_t = φ'(z_t) (seed_t + W y_{t-1}) in a layer's directions or, with reverse, in the
// opposite ones; output is the layer's, initial is y before the first step, and matrices has one W
// per direction.
#pragma once

#include <algorithm>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>

#include "common/call.h"
#include "common/compat.h"

namespace rnn_ext {

inline void define_ops(Library& m) {
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
  m.def(
      "_rnn_tangent(Tensor seed, Tensor? initial, Tensor[] matrices, Tensor output, "
      "Tensor? batch_sizes, str nonlinearity, bool reverse) -> Tensor");
}

// How torch passes an argument of this type to a boxed kernel.
template <class T>
struct FromTorch {
  using Type = T;
  static T take(T value) { return std::forward<T>(value); }
};

// As a string, which the kernel owns: torch's own conversion to std::string leaks a copy.
template <>
struct FromTorch<Nonlinearity> {
  using Type = StringHandle;
  static Nonlinearity take(StringHandle handle) {
    const std::unique_ptr<StringOpaque, decltype(&torch_delete_string)> owner(handle,
                                                                              &torch_delete_string);
    const char* data = nullptr;
    std::size_t length = 0;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    const auto* const found = std::ranges::find(nonlinearity_names, std::string_view(data, length));
    require(found != std::end(nonlinearity_names), "nonlinearity must be 'tanh' or 'relu'");
    return static_cast<Nonlinearity>(found - nonlinearity_names);
  }
};

// A kernel as torch calls it, for TORCH_BOX.
template <auto op>
struct Boxed;

template <class Result, class... Arguments, Result (*op)(Arguments...)>
struct Boxed<op> {
  static Result call(typename FromTorch<Arguments>::Type... arguments) {
    return WithTorchsWords<op>::call(FromTorch<Arguments>::take(
        std::forward<typename FromTorch<Arguments>::Type>(arguments))...);
  }
};

// The call of an op on a layer, which may have packed input.
struct LayerCall : Call {
  LayerCall(const Tensor& input, const std::optional<Tensor>& hx,
            const std::vector<Tensor>& weights, const std::optional<Tensor>& batch_sizes,
            Nonlinearity nonlinearity, bool bidirectional)
      : Call(input, hx, weights, batch_sizes, nonlinearity, bidirectional,
             batch_sizes ? Layout::packed : Layout::sequence) {
    require(!batch_sizes || hx, "packed input needs hx");
  }
};

template <class Driver>
struct Ops {
  static std::tuple<Tensor, Tensor> rnn_forward(const Tensor& input,
                                                const std::optional<Tensor>& hx,
                                                const std::vector<Tensor>& weights,
                                                const std::optional<Tensor>& batch_sizes,
                                                Nonlinearity nonlinearity, bool bidirectional) {
    const LayerCall call(input, hx, weights, batch_sizes, nonlinearity, bidirectional);
    Tensor output = call.new_output();
    Tensor h_n = call.new_state();
    Driver::forward(call, output, h_n);
    return {std::move(output), std::move(h_n)};
  }

  static std::vector<Tensor> rnn_backward(const std::optional<Tensor>& grad_output,
                                          const std::optional<Tensor>& grad_h_n,
                                          const Tensor& input, const std::optional<Tensor>& hx,
                                          const std::vector<Tensor>& weights, const Tensor& output,
                                          const std::optional<Tensor>& batch_sizes,
                                          Nonlinearity nonlinearity, bool bidirectional,
                                          const std::vector<bool>& output_mask) {
    const LayerCall call(input, hx, weights, batch_sizes, nonlinearity, bidirectional);
    return Driver::backward(call, grad_output, grad_h_n, weights, output, output_mask);
  }

  static Tensor cell_forward(const Tensor& input, const std::optional<Tensor>& hx,
                             const std::vector<Tensor>& weights, Nonlinearity nonlinearity) {
    const Call call(input, hx, weights, std::nullopt, nonlinearity, false, Layout::step);
    Tensor output = call.new_output();
    Driver::forward(call, output, output);
    return output;
  }

  static std::vector<Tensor> cell_backward(const Tensor& grad_output, const Tensor& input,
                                           const std::optional<Tensor>& hx,
                                           const std::vector<Tensor>& weights, const Tensor& output,
                                           Nonlinearity nonlinearity,
                                           const std::vector<bool>& output_mask) {
    const Call call(input, hx, weights, std::nullopt, nonlinearity, false, Layout::step);
    return Driver::backward(call, grad_output, std::nullopt, weights, output, output_mask);
  }

  static Tensor rnn_tangent(const Tensor& seed, const std::optional<Tensor>& initial,
                            const std::vector<Tensor>& matrices, const Tensor& output,
                            const std::optional<Tensor>& batch_sizes, Nonlinearity nonlinearity,
                            bool reverse) {
    // The checks treat it as a layer whose input is the seed of one direction.
    std::vector<Tensor> weights;
    for (const Tensor& matrix : matrices) {
      weights.insert(weights.end(), 2, matrix);
    }
    require(matrices.size() == 1 || matrices.size() == 2, "expected one or two matrices");
    const std::int64_t last = seed.dim() - 1;
    require(last >= 1 && matrices[0].dim() == 2 && seed.size(last) >= matrices[0].size(0),
            "seed or matrices have an unexpected shape");
    const Tensor readable = with_unit_columns(seed);
    Tensor whole = readable;
    const Call call(torch::stable::narrow(whole, last, 0, matrices[0].size(0)), initial, weights,
                    batch_sizes, nonlinearity, matrices.size() == 2,
                    batch_sizes ? Layout::packed : Layout::sequence);
    call.require_output(readable, "seed");
    call.require_states(output);
    Tensor tangent = call.new_output();
    Driver::tangent(call, readable, output, tangent, reverse);
    return tangent;
  }
};

template <class Driver>
void implement_ops(Library& m) {
  using O = Ops<Driver>;
  m.impl("rnn_forward", TORCH_BOX(&Boxed<&O::rnn_forward>::call));
  m.impl("_rnn_forward", TORCH_BOX(&Boxed<&O::rnn_forward>::call));
  m.impl("rnn_backward", TORCH_BOX(&Boxed<&O::rnn_backward>::call));
  m.impl("_rnn_backward", TORCH_BOX(&Boxed<&O::rnn_backward>::call));
  m.impl("_cell_forward", TORCH_BOX(&Boxed<&O::cell_forward>::call));
  m.impl("_cell_backward", TORCH_BOX(&Boxed<&O::cell_backward>::call));
  m.impl("_rnn_tangent", TORCH_BOX(&Boxed<&O::rnn_tangent>::call));
}

}  // namespace rnn_ext
