// Checks the tensors of a call, and describes them as problems for the drivers of all devices. The
// checks keep memory safe; Python reports users' errors.
#pragma once

#include <optional>
#include <vector>

#include "common/supports.h"
#include "common/views.h"

namespace rnn_ext {

inline Traits traits_of(const Tensor& t) {
  const Device device = Device::of(t);
  const auto sizes = t.sizes();
  return {dtype_of(t), device.type, device.index, sizes.size(), sizes.data()};
}

// A copy, since the caller may change the tensor after the check.
inline std::vector<std::int64_t> read_batch_sizes(const Tensor& t) {
  require(Device::of(t).type == aoti_torch_device_type_cpu() && t.dim() == 1 &&
              dtype_of(t) == aoti_torch_dtype_int64(),
          "batch_sizes must be a 1-D int64 tensor on the CPU");
  const Tensor readable = torch::stable::contiguous(t);
  const auto* data = view::data<const std::int64_t>(readable);
  return {data, data + readable.numel()};
}

// Returns why the kernels do not support these tensors.
inline Obstacle obstacle_of(const Tensor& input, const std::optional<Tensor>& hx,
                            const std::vector<Tensor>& weights, const Stack& stack, Layout layout,
                            const BatchSizes& batch_sizes) {
  const Traits input_traits = traits_of(input);
  const Traits hx_traits = hx ? traits_of(*hx) : Traits{};
  return find_obstacle(stack, layout, with_type(input_traits.dtype, [](auto) {}), input_traits,
                       hx ? &hx_traits : nullptr, batch_sizes,
                       [&](std::int64_t i) { return traits_of(weights[i]); });
}

// Returns the time axis of packed input; `offsets` receives where each step starts.
inline Steps packed_steps(const std::vector<std::int64_t>& batch_sizes,
                          std::vector<std::int64_t>& offsets) {
  offsets.reserve(batch_sizes.size());
  std::int64_t total = 0;
  for (const std::int64_t size : batch_sizes) {
    offsets.push_back(total);
    total += size;
  }
  return {static_cast<std::int64_t>(batch_sizes.size()), batch_sizes.empty() ? 0 : batch_sizes[0],
          batch_sizes.data(), offsets.data()};
}

// The weights of one direction: weight_ih, weight_hh and, of 4, bias_ih and bias_hh.
template <class T>
void set_weights(Problem<T>& p, const Tensor* weights, std::int64_t count) {
  p.weight_ih = view::matrix<const T>(weights[0]);
  p.weight_hh = view::matrix<const T>(weights[1]);
  if (count == 4) {
    p.bias_ih = view::row<const T>(weights[2]);
    p.bias_hh = view::row<const T>(weights[3]);
  }
}

// Owns the copies of tensors that had to be copied.
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
    if (layout == Layout::packed) {
      batch_sizes_ = read_batch_sizes(*batch_sizes);
      steps.count = static_cast<std::int64_t>(batch_sizes_.size());
      steps.batch_sizes = batch_sizes_.data();
    }
    const Stack stack{1, directions, static_cast<std::int64_t>(weights.size())};
    const Obstacle obstacle =
        obstacle_of(input_, hx, weights, stack, layout, {steps.batch_sizes, steps.count});
    require(obstacle == Obstacle::none, text_of(obstacle));
    per_direction = stack.per_direction();
    hidden_size = weights[1].size(0);
    input_size = input_.size(input_.dim() - 1);
    if (hx) {
      hx_ = with_unit_columns(*hx);
    }
    set_steps();
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
    set_weights(p, &weight(direction, 0), per_direction);
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
  // The operands of a backward call in addition to those of its forward.
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

  void set_steps() {
    if (layout_ == Layout::packed) {
      steps = packed_steps(batch_sizes_, offsets_);
    } else {
      steps.count = layout_ == Layout::step ? 1 : input_.size(0);
      steps.batch = input_.size(input_.dim() - 2);
    }
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

  Tensor input_;
  std::optional<Tensor> hx_;
  const std::vector<Tensor>& weights_;
  std::vector<std::int64_t> batch_sizes_;
  std::vector<std::int64_t> offsets_;
  const Nonlinearity nonlinearity_;
  const Layout layout_;

 public:
  const std::int64_t directions;
  std::int64_t per_direction = 0;
};

}  // namespace rnn_ext
