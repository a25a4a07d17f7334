// Translates a call from torch tensors to problems and back. The checks here keep memory safe; what
// a user did wrong is told at the functional border, in Python.
#include "cpu/driver.h"

#include <torch/csrc/stable/ops.h>

#include <memory>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string_view>

#include "cpu/isa.h"
#include "cpu/recurrence.h"
#include "cpu/settings.h"

namespace rnn_ext::cpu {
namespace {

template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) {
    std::ostringstream text;
    text << "rnn_ext: ";
    (text << ... << parts);
    throw std::runtime_error(text.str());
  }
}

// A dtype or device as torch's C interface numbers it: to compare these numbers takes one call,
// where Tensor::scalar_type and Tensor::is_cpu take up to ten.
std::int32_t dtype_of(const Tensor& t) {
  std::int32_t dtype = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
  return dtype;
}

bool is_on_cpu(const Tensor& t) {
  std::int32_t type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  return type == aoti_torch_device_type_cpu();
}

// Calls f with the kernels for tensors of this dtype; false where there are none.
template <class F>
bool with_kernels(std::int32_t dtype, F&& f) {
  const KernelSet& set = kernels();
  if (dtype == aoti_torch_dtype_float32()) {
    f(set.f32);
  } else if (dtype == aoti_torch_dtype_float64()) {
    f(set.f64);
  } else if (dtype == aoti_torch_dtype_bfloat16()) {
    set.bf16_products ? f(*set.bf16_products) : f(set.bf16);
  } else if (dtype == aoti_torch_dtype_float16()) {
    f(set.f16);
  } else {
    return false;
  }
  return true;
}

// Torch's C interface tells of a failed allocation only that it failed.
Tensor empty(std::initializer_list<std::int64_t> sizes, std::int32_t dtype) {
  std::int64_t strides[3] = {};
  std::int64_t count = 1;
  for (auto i = static_cast<std::ptrdiff_t>(sizes.size()); i-- > 0;) {
    strides[i] = count;
    count *= std::max<std::int64_t>(1, sizes.begin()[i]);
  }
  AtenTensorHandle handle = nullptr;
  const auto code =
      aoti_torch_empty_strided(static_cast<std::int64_t>(sizes.size()), sizes.begin(), strides,
                               dtype, aoti_torch_device_type_cpu(), 0, &handle);
  require(code == TORCH_SUCCESS, "out of memory: could not allocate a tensor of ", count,
          " elements");
  return Tensor(handle);
}

void require_sizes(const Tensor& t, const char* name, std::initializer_list<std::int64_t> sizes) {
  const auto actual = t.sizes();
  require(actual.size() == sizes.size() && std::equal(sizes.begin(), sizes.end(), actual.begin()),
          name, " has an unexpected shape");
}

// Frees the string.
Nonlinearity take_nonlinearity(StringHandle handle) {
  const std::unique_ptr<StringOpaque, decltype(&torch_delete_string)> owner(handle,
                                                                            &torch_delete_string);
  const char* data = nullptr;
  std::size_t length = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  const std::string_view name(data, length);
  require(name == "tanh" || name == "relu", "nonlinearity must be 'tanh' or 'relu'");
  return name == "tanh" ? Nonlinearity::tanh : Nonlinearity::relu;
}

// How steps lie in input and output: (T, B, ·), (N, ·) with the rows of each step, or one step
// (B, ·) with an hx (B, H).
enum class Layout { sequence, packed, step };

// A call's tensors, checked, in the form that problems are cut from. Owns whatever had to be
// copied.
class Call {
 public:
  Call(const Tensor& input, const std::optional<Tensor>& hx, const std::vector<Tensor>& weights,
       const std::optional<Tensor>& batch_sizes, Nonlinearity nonlinearity, bool bidirectional,
       Layout layout)
      : dtype(dtype_of(input)),
        input_(with_unit_columns(input)),
        weights_(weights),
        nonlinearity_(nonlinearity),
        layout_(layout),
        directions(bidirectional ? 2 : 1) {
    require(with_kernels(dtype, [](const auto&) {}),
            "the CPU kernels take float32, float64, bfloat16 and float16");
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
    p.input = sequence<const T>(input_);
    if (hx_) {
      p.hx = slice<const T>(*hx_, direction);
    }
    p.weight_ih = matrix<const T>(weight(direction, 0));
    p.weight_hh = matrix<const T>(weight(direction, 1));
    if (per_direction == 4) {
      p.bias_ih = row<const T>(weight(direction, 2));
      p.bias_hh = row<const T>(weight(direction, 3));
    }
    p.output = sequence<T>(output);
    p.output.data += direction * hidden_size;
    return p;
  }

  Tensor new_output() const { return new_sequence(directions * hidden_size); }
  Tensor new_input_gradient() const { return new_sequence(input_size); }
  Tensor new_state() const {
    return layout_ == Layout::step ? empty({steps.batch, hidden_size}, dtype)
                                   : empty({directions, steps.batch, hidden_size}, dtype);
  }
  const Tensor& weight(std::int64_t direction, std::int64_t i) const {
    return weights_[direction * per_direction + i];
  }
  bool has_hx() const { return hx_.has_value(); }
  void require_output(const Tensor& t, const char* name) const {
    require(dtype_of(t) == dtype, name, " has another dtype than input");
    if (layout_ == Layout::sequence) {
      require_sizes(t, name, {steps.count, steps.batch, directions * hidden_size});
    } else {
      require_sizes(t, name, {steps.total_rows(), directions * hidden_size});
    }
  }
  void require_state(const Tensor& t, const char* name) const {
    require(is_on_cpu(t) && dtype_of(t) == dtype, name,
            " must be on the CPU and of the input's dtype");
    if (layout_ == Layout::step) {
      require_sizes(t, name, {steps.batch, hidden_size});
    } else {
      require_sizes(t, name, {directions, steps.batch, hidden_size});
    }
  }

  // Views of tensors as the kernels take them.
  template <class T>
  static T* data(const Tensor& t) {
    if constexpr (std::is_const_v<T>) {
      return static_cast<T*>(t.const_data_ptr());
    } else {
      return static_cast<T*>(t.mutable_data_ptr());
    }
  }
  template <class T>
  static Matrix<T> matrix(const Tensor& t) {
    return {data<T>(t), t.stride(0), t.stride(1)};
  }
  template <class T>
  static Matrix<T> row(const Tensor& t) {
    return {data<T>(t), 0, t.stride(0)};
  }
  // The states of a direction: of (D, B, H) its part, of (B, H) all.
  template <class T>
  static Matrix<T> slice(const Tensor& t, std::int64_t direction) {
    return t.dim() == 2
               ? Matrix<T>{data<T>(t), t.stride(0), column_stride(t)}
               : Matrix<T>{data<T>(t) + direction * t.stride(0), t.stride(1), column_stride(t)};
  }
  // A batch of one has no row stride of its own: its steps may lie as rows do.
  template <class T>
  static Sequence<T> sequence(const Tensor& t) {
    return t.dim() == 2 ? Sequence<T>{data<T>(t), 0, t.stride(0), column_stride(t)}
                        : Sequence<T>{data<T>(t), t.stride(0), t.stride(t.size(1) == 1 ? 0 : 1),
                                      column_stride(t)};
  }
  // The stride of a dimension of size 1 can be any number.
  static std::int64_t column_stride(const Tensor& t) {
    const std::int64_t last = t.dim() - 1;
    return t.size(last) == 1 ? 1 : t.stride(last);
  }

  static Tensor with_unit_columns(const Tensor& t) {
    return column_stride(t) == 1 ? t : torch::stable::contiguous(t);
  }

  const std::int32_t dtype;
  Steps steps;
  std::int64_t input_size = 0;
  std::int64_t hidden_size = 0;

 private:
  Tensor new_sequence(std::int64_t features) const {
    return layout_ == Layout::sequence ? empty({steps.count, steps.batch, features}, dtype)
                                       : empty({steps.total_rows(), features}, dtype);
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
    require(hx_.has_value(), "packed input needs hx");
    require(is_on_cpu(*batch_sizes) && batch_sizes->dim() == 1 &&
                dtype_of(*batch_sizes) == aoti_torch_dtype_int64(),
            "batch_sizes must be a 1-D int64 tensor on the CPU");
    batch_sizes_ = torch::stable::contiguous(*batch_sizes);
    steps.count = batch_sizes_->numel();
    steps.batch = hx_->size(1);
    steps.batch_sizes = data<const std::int64_t>(*batch_sizes_);
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

  void check() const {
    if (hx_) {
      require_state(*hx_, "hx");
    }
    for (const Tensor& w : weights_) {
      require(is_on_cpu(w) && dtype_of(w) == dtype,
              "weights must be on the CPU and of the input's dtype");
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

int thread_limit() { return available_threads(static_cast<int>(torch::stable::get_num_threads())); }

// Runs f with scratch memory failures told in words.
template <class F>
void guarded(F&& f) {
  try {
    f();
  } catch (const std::bad_alloc&) {
    throw std::runtime_error("rnn_ext: out of memory: could not allocate scratch memory");
  }
}

void zero(const Tensor& t) {
  std::memset(t.mutable_data_ptr(), 0, static_cast<std::size_t>(t.numel()) * t.element_size());
}

// h_n may be the output itself, where that is one step.
void forward(const Call& call, const Tensor& output, const Tensor& h_n) {
  if (output.numel() == 0) {
    return;
  }
  with_kernels(call.dtype, [&]<class T, class O>(const Kernels<T, O>& kernels) {
    guarded([&] {
      std::vector<ForwardTask<T>> tasks;
      for (std::int64_t d = 0; d < call.directions; ++d) {
        tasks.push_back({call.problem<T>(output, d), Call::slice<T>(h_n, d)});
      }
      run_forward(tasks, kernels, thread_limit(), torch_parallel_for);
    });
  });
}

// The gradients of input, hx and each weight that output_mask asks for, in this order.
std::vector<Tensor> backward(const Call& call, const std::optional<Tensor>& grad_output,
                             const std::optional<Tensor>& grad_h_n,
                             const std::vector<Tensor>& weights, const Tensor& output,
                             const std::vector<bool>& output_mask) {
  call.require_output(output, "output");
  require(output.is_contiguous(), "output must be contiguous, as rnn_forward made it");
  require(output_mask.size() == 2 + weights.size(),
          "output_mask needs a flag for input, hx and each weight");
  require(!output_mask[1] || call.has_hx(), "there is no hx to compute a gradient for");
  if (grad_output) {
    call.require_output(*grad_output, "grad_output");
  }
  std::optional<Tensor> h_n_gradient;
  if (grad_h_n) {
    call.require_state(*grad_h_n, "grad_h_n");
    h_n_gradient = Call::with_unit_columns(*grad_h_n);
  }

  // One slot for input, hx and each weight, filled where wanted.
  std::vector<std::optional<Tensor>> slots(output_mask.size());
  if (output_mask[0]) {
    slots[0] = call.new_input_gradient();
  }
  if (output_mask[1]) {
    slots[1] = call.new_state();
  }
  for (std::size_t i = 2; i < slots.size(); ++i) {
    if (output_mask[i]) {
      const auto sizes = weights[i - 2].sizes();
      slots[i] = sizes.size() == 2 ? empty({sizes[0], sizes[1]}, call.dtype)
                                   : empty({sizes[0]}, call.dtype);
    }
  }

  if (output.numel() > 0) {
    with_kernels(call.dtype, [&]<class T, class O>(const Kernels<T, O>& kernels) {
      guarded([&] {
        std::vector<BackwardTask<T>> tasks;
        for (std::int64_t d = 0; d < call.directions; ++d) {
          Gradients<T> g;
          if (grad_output) {
            g.output = Call::sequence<const T>(*grad_output);
            g.output.data += d * call.hidden_size * g.output.column_stride;
          }
          if (h_n_gradient) {
            g.h_n = Call::slice<const T>(*h_n_gradient, d);
          }
          if (slots[0]) {
            g.input = Call::sequence<T>(*slots[0]);
            g.add_to_input = d > 0;
          }
          if (slots[1]) {
            g.hx = Call::slice<T>(*slots[1], d);
          }
          const auto slot = [&](std::int64_t i) -> const std::optional<Tensor>& {
            return slots[2 + d * call.per_direction + i];
          };
          if (slot(0)) {
            g.weight_ih = Call::matrix<T>(*slot(0));
          }
          if (slot(1)) {
            g.weight_hh = Call::matrix<T>(*slot(1));
          }
          if (call.per_direction == 4) {
            g.bias_ih = slot(2) ? Call::row<T>(*slot(2)) : Matrix<T>{};
            g.bias_hh = slot(3) ? Call::row<T>(*slot(3)) : Matrix<T>{};
          }
          tasks.push_back({call.problem<T>(output, d), g});
        }
        run_backward(tasks, kernels, thread_limit(), torch_parallel_for);
      });
    });
  }

  std::vector<Tensor> gradients;
  gradients.reserve(slots.size());
  for (auto& slot : slots) {
    if (slot) {
      if (output.numel() == 0) {
        zero(*slot);
      }
      gradients.push_back(std::move(*slot));
    }
  }
  return gradients;
}

}  // namespace

std::tuple<Tensor, Tensor> rnn_forward(const Tensor& input, const std::optional<Tensor>& hx,
                                       const std::vector<Tensor>& weights,
                                       const std::optional<Tensor>& batch_sizes,
                                       StringHandle nonlinearity, bool bidirectional) {
  const Call call(input, hx, weights, batch_sizes, take_nonlinearity(nonlinearity), bidirectional,
                  batch_sizes ? Layout::packed : Layout::sequence);
  require(call.steps.count > 0, "expected at least one time step");
  Tensor output = call.new_output();
  Tensor h_n = call.new_state();
  forward(call, output, h_n);
  return {std::move(output), std::move(h_n)};
}

std::vector<Tensor> rnn_backward(const std::optional<Tensor>& grad_output,
                                 const std::optional<Tensor>& grad_h_n, const Tensor& input,
                                 const std::optional<Tensor>& hx,
                                 const std::vector<Tensor>& weights, const Tensor& output,
                                 const std::optional<Tensor>& batch_sizes,
                                 StringHandle nonlinearity, bool bidirectional,
                                 const std::vector<bool>& output_mask) {
  const Call call(input, hx, weights, batch_sizes, take_nonlinearity(nonlinearity), bidirectional,
                  batch_sizes ? Layout::packed : Layout::sequence);
  return backward(call, grad_output, grad_h_n, weights, output, output_mask);
}

Tensor cell_forward(const Tensor& input, const std::optional<Tensor>& hx,
                    const std::vector<Tensor>& weights, StringHandle nonlinearity) {
  const Call call(input, hx, weights, std::nullopt, take_nonlinearity(nonlinearity), false,
                  Layout::step);
  Tensor output = call.new_output();
  forward(call, output, output);
  return output;
}

std::vector<Tensor> cell_backward(const Tensor& grad_output, const Tensor& input,
                                  const std::optional<Tensor>& hx,
                                  const std::vector<Tensor>& weights, const Tensor& output,
                                  StringHandle nonlinearity, const std::vector<bool>& output_mask) {
  const Call call(input, hx, weights, std::nullopt, take_nonlinearity(nonlinearity), false,
                  Layout::step);
  return backward(call, grad_output, std::nullopt, weights, output, output_mask);
}

}  // namespace rnn_ext::cpu
