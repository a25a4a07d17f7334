// A call's tensors, checked, in the form that problems are cut from: what the drivers of all
// devices share. The checks keep memory safe; what a user did wrong is told at the functional
// border, in Python.
#pragma once

#include <optional>
#include <vector>

#include "common/views.h"

namespace rnn_ext {

// How steps lie in input and output: (T, B, ·), (N, ·) with the rows of each step, or one step
// (B, ·) with an hx (B, H).
enum class Layout { sequence, packed, step };

// Owns whatever had to be copied.
class Call {
 public:
  Call(const Tensor& input, const std::optional<Tensor>& hx, const std::vector<Tensor>& weights,
       const std::optional<Tensor>& batch_sizes, Nonlinearity nonlinearity, bool bidirectional,
       Layout layout)
      : dtype(dtype_of(input)),
        device(Device::of(input)),
        input_(with_unit_columns(input)),
        weights_(weights),
        nonlinearity_(nonlinearity),
        layout_(layout),
        directions(bidirectional ? 2 : 1) {
    require(with_type(dtype, [](auto) {}),
            "the kernels take float32, float64, bfloat16 and float16");
    per_direction = static_cast<std::int64_t>(weights.size()) / directions;
    require(static_cast<std::int64_t>(weights.size()) == per_direction * directions &&
                (per_direction == 2 || per_direction == 4),
            "expected 2 or 4 weights for each direction, got ", weights.size(), " in all");
    require(weights[1].dim() == 2, "weight_hh must be a matrix");
    hidden_size = weights[1].size(0);
    input_size = input.size(input.dim() - 1);
    if (hx) {
      hx_ = with_unit_columns(*hx);
      require(hx_->dim() == state_dims(), "hx must have ", state_dims(), " dimensions");
    }
    set_steps(batch_sizes);
    check();
  }

  template <class T>
  Problem<T> problem(const Tensor& output, std::int64_t direction) const {
    Problem<T> p;
    p.steps = steps;
    p.input_size = input_size;
    p.hidden_size = hidden_size;
    p.nonlinearity = nonlinearity_;
    p.reverse = direction == 1;
    p.input = view::sequence<const T>(input_);
    if (hx_) {
      p.hx = view::slice<const T>(*hx_, direction);
    }
    p.weight_ih = view::matrix<const T>(weight(direction, 0));
    p.weight_hh = view::matrix<const T>(weight(direction, 1));
    if (per_direction == 4) {
      p.bias_ih = view::row<const T>(weight(direction, 2));
      p.bias_hh = view::row<const T>(weight(direction, 3));
    }
    p.output = view::sequence<T>(output);
    p.output.data += direction * hidden_size;
    return p;
  }

  Tensor new_output() const { return new_sequence(directions * hidden_size); }
  Tensor new_input_gradient() const { return new_sequence(input_size); }
  Tensor new_state() const {
    return layout_ == Layout::step ? empty({steps.batch, hidden_size}, dtype, device)
                                   : empty({directions, steps.batch, hidden_size}, dtype, device);
  }
  const Tensor& weight(std::int64_t direction, std::int64_t i) const {
    return weights_[direction * per_direction + i];
  }
  const Tensor& input() const { return input_; }
  const std::optional<Tensor>& hx() const { return hx_; }
  void require_output(const Tensor& t, const char* name) const {
    require_like_input(t, name);
    if (layout_ == Layout::sequence) {
      require_sizes(t, name, {steps.count, steps.batch, directions * hidden_size});
    } else {
      require_sizes(t, name, {steps.total_rows(), directions * hidden_size});
    }
  }
  void require_states(const Tensor& output) const {
    require_output(output, "output");
    require(output.is_contiguous(), "output must be contiguous, as rnn_forward made it");
  }
  // What a backward call brings beside the operands of its forward.
  void check_backward(const Tensor& output, const std::optional<Tensor>& grad_output,
                      const std::optional<Tensor>& grad_h_n) const {
    require_states(output);
    if (grad_output) {
      require_output(*grad_output, "grad_output");
    }
    if (grad_h_n) {
      require_state(*grad_h_n, "grad_h_n");
    }
  }

  const std::int32_t dtype;
  const Device device;
  Steps steps;
  std::int64_t input_size = 0;
  std::int64_t hidden_size = 0;

 private:
  Tensor new_sequence(std::int64_t features) const {
    return layout_ == Layout::sequence ? empty({steps.count, steps.batch, features}, dtype, device)
                                       : empty({steps.total_rows(), features}, dtype, device);
  }

  std::int64_t state_dims() const { return layout_ == Layout::step ? 2 : 3; }

  void set_steps(const std::optional<Tensor>& batch_sizes) {
    const std::int64_t dims = layout_ == Layout::sequence ? 3 : 2;
    require(input_.dim() == dims, "input must have ", dims, " dimensions");
    if (layout_ != Layout::packed) {
      steps.count = layout_ == Layout::step ? 1 : input_.size(0);
      steps.batch = input_.size(dims - 2);
      return;
    }
    require(Device::of(*batch_sizes).type == aoti_torch_device_type_cpu() &&
                batch_sizes->dim() == 1 && dtype_of(*batch_sizes) == aoti_torch_dtype_int64(),
            "batch_sizes must be a 1-D int64 tensor on the CPU");
    batch_sizes_ = torch::stable::contiguous(*batch_sizes);
    steps.count = batch_sizes_->numel();
    steps.batch_sizes = view::data<const std::int64_t>(*batch_sizes_);
    steps.batch = hx_ ? hx_->size(1) : steps.count > 0 ? steps.batch_sizes[0] : 0;
    offsets_.reserve(steps.count);
    std::int64_t total = 0;
    for (std::int64_t t = 0; t < steps.count; ++t) {
      const std::int64_t limit = t == 0 ? steps.batch : steps.batch_sizes[t - 1];
      require(steps.batch_sizes[t] > 0 && steps.batch_sizes[t] <= limit,
              "batch_sizes must be positive and must not increase");
      offsets_.push_back(total);
      total += steps.batch_sizes[t];
    }
    require(total == input_.size(0), "batch_sizes must add up to the rows of input");
    require(steps.count == 0 || steps.batch_sizes[0] == steps.batch,
            "batch_sizes[0] must equal the batch size of hx");
    steps.batch_offsets = offsets_.data();
  }

  void require_like_input(const Tensor& t, const char* name) const {
    require(Device::of(t) == device && dtype_of(t) == dtype, name,
            " must be on the input's device and of its dtype");
  }
  void require_state(const Tensor& t, const char* name) const {
    require_like_input(t, name);
    if (layout_ == Layout::step) {
      require_sizes(t, name, {steps.batch, hidden_size});
    } else {
      require_sizes(t, name, {directions, steps.batch, hidden_size});
    }
  }

  void check() const {
    if (hx_) {
      require_state(*hx_, "hx");
    }
    for (const Tensor& w : weights_) {
      require_like_input(w, "weights");
    }
    for (std::int64_t d = 0; d < directions; ++d) {
      require_sizes(weight(d, 0), "weight_ih", {hidden_size, input_size});
      require_sizes(weight(d, 1), "weight_hh", {hidden_size, hidden_size});
      for (std::int64_t i = 2; i < per_direction; ++i) {
        require_sizes(weight(d, i), "bias", {hidden_size});
      }
    }
  }

  Tensor input_;
  std::optional<Tensor> hx_;
  const std::vector<Tensor>& weights_;
  std::optional<Tensor> batch_sizes_;
  std::vector<std::int64_t> offsets_;
  const Nonlinearity nonlinearity_;
  const Layout layout_;

 public:
  const std::int64_t directions;
  std::int64_t per_direction = 0;
};

}  // namespace rnn_ext
