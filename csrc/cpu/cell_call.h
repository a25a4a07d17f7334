// The tensors of a call of a cell's ops (cell_ops.h): checked, and as the operands of its tasks.
#pragma once

#include <array>
#include <memory>
#include <span>

#include "cpu/cell_ops.h"
#include "cpu/cell_recurrence.h"
#include "cpu/dispatch.h"
#include "cpu/tokens.h"

namespace rnn_ext::cpu {

// Decoding takes as long as a short call, so a thread keeps the programs that it used last.
inline std::shared_ptr<const Program> decoded(std::span<const std::int64_t> values) {
  struct Entry {
    std::vector<std::int64_t> values;
    std::shared_ptr<const Program> program;
  };
  static thread_local std::array<Entry, 4> recent;
  static thread_local std::size_t oldest = 0;
  for (const Entry& e : recent) {
    if (e.program && std::ranges::equal(e.values, values)) {
      return e.program;
    }
  }
  Entry e{{values.begin(), values.end()}, nullptr};
  e.program = std::make_shared<const Program>(e.values.data(), std::ssize(e.values));
  recent[oldest] = e;
  oldest = (oldest + 1) % recent.size();
  return e.program;
}

inline std::shared_ptr<const Program> program_of(const Tensor& t) {
  require(Device::of(t).type == aoti_torch_device_type_cpu() &&
              dtype_of(t) == aoti_torch_dtype_int64() && t.dim() == 1 && t.is_contiguous(),
          "program must be a contiguous 1-D int64 tensor on the CPU");
  return decoded({view::data<const std::int64_t>(t), static_cast<std::size_t>(t.numel())});
}

// The dtype of the input or, for tokens, of their table.
inline std::int32_t call_dtype(const Tensor& input, const std::vector<Tensor>& weights) {
  const std::int32_t dtype = dtype_of(input);
  return dtype == aoti_torch_dtype_int64() && !weights.empty() ? dtype_of(weights[0]) : dtype;
}

// The checked tensors of a call. Owns the copies that had to be made.
class CellCall {
 public:
  CellCall(const Tensor& input, const std::vector<Tensor>& initial,
           const std::vector<Tensor>& weights, const std::vector<Tensor>& parameters,
           const std::vector<Tensor>& inputs, const std::vector<Tensor>& reset_states,
           const std::optional<Tensor>& reset, const std::optional<Tensor>& batch_sizes,
           const Tensor& program, bool bidirectional)
      : decoded_program(program_of(program)),
        program(*decoded_program),
        dtype(call_dtype(input, weights)),
        device(Device::of(input)),
        directions(bidirectional ? 2 : 1),
        has_tokens(dtype_of(input) == aoti_torch_dtype_int64()),
        input_(with_unit_columns(input)) {
    require(with_type(dtype, [](auto) {}), text_of(Obstacle::dtype));
    require(input_.dim() + has_tokens == (batch_sizes ? 2 : 3), text_of(Obstacle::input_dims));
    set_steps(batch_sizes);
    input_size = has_tokens ? 0 : input_.size(input_.dim() - 1);
    keep_weights(weights);
    if (has_tokens) {
      require(dtype == aoti_torch_dtype_float32() || dtype == aoti_torch_dtype_float64(),
              "tokens go with float32 and float64");
      input_ = copy_of_tokens(input_, weights_[0].size(0));
    }
    const auto states = static_cast<std::size_t>(this->program.states);
    require(initial.empty() || initial.size() == states,
            "expected an initial tensor for each state");
    initial_.reserve(initial.size());
    for (const Tensor& t : initial) {
      initial_.push_back(with_unit_columns(
          checked(t, "an initial state", {directions, steps.batch, hidden_size})));
    }
    require(static_cast<int>(parameters.size()) == this->program.parameters,
            "expected a tensor for each parameter of the cell");
    parameters_.reserve(parameters.size());
    for (const Tensor& t : parameters) {
      parameters_.push_back(broadcastable(checked(t, "a parameter", {hidden_size})));
    }
    require(static_cast<int>(inputs.size()) == this->program.inputs,
            "expected a tensor for each input of the cell");
    for (const Tensor& t : inputs) {
      const Tensor& operand =
          steps.batch_sizes
              ? checked(t, "an input", {directions, rows(), hidden_size})
              : checked(t, "an input", {directions, steps.count, steps.batch, hidden_size});
      inputs_.push_back(broadcastable(operand));
    }
    keep_resets(reset_states, reset);
  }

  template <class S>
  Problem<S> problem(const Tensor& output, std::int64_t direction) const {
    Problem<S> p;
    p.steps = steps;
    p.input_size = input_size;
    p.hidden_size = hidden_size;
    p.reverse = direction == 1;
    if (!initial_.empty()) {
      p.hx = view::slice<const S>(initial_[0], direction);
    }
    rnn_ext::set_weights(p, &weights_[direction * per_direction], per_direction);
    if (has_tokens) {
      p.tokens = view::data<const std::int64_t>(input_);
      p.table = std::exchange(p.weight_ih, {});
    } else {
      p.input = view::sequence<const S>(input_);
    }
    p.output = sequence<S>(output, direction);
    return p;
  }

  // The program's further operands. `sequences` are those of the states in `kept`, in their order.
  template <class S>
  CellOperands<S> operands(const std::vector<Tensor>& sequences, std::uint64_t kept,
                           const std::vector<Tensor>& saved, std::int64_t direction) const {
    CellOperands<S> cell;
    cell.program = &program;
    for (const Tensor& t : parameters_) {
      cell.parameters.push_back({view::data<const S>(t), 0, view::column_stride(t)});
    }
    for (const Tensor& t : inputs_) {
      cell.inputs.push_back(of_direction<const S>(t, direction));
    }
    std::size_t next = 0;
    for (int s = 1; s < program.states; ++s) {
      cell.initial.push_back(initial_.empty() ? Matrix<const S>{}
                                              : view::slice<const S>(initial_[s], direction));
      const bool has = kept >> s & 1;
      cell.sequences.push_back(has ? sequence<S>(sequences[next++], direction) : Sequence<S>{});
    }
    for (int i = 0; i < program.saved; ++i) {
      cell.saved.push_back(saved.empty() ? Sequence<S>{} : sequence<S>(saved[i], direction));
    }
    if (reset_) {
      cell.resets.flags = view::matrix<const std::uint8_t>(*reset_);
      for (int s = 0; s < program.states; ++s) {
        cell.resets.states.push_back(reset_states_.empty()
                                         ? Sequence<const S>{zeros<S>(), 0, 0, 1}
                                         : reset_state<const S>(reset_states_[s], direction));
      }
    }
    return cell;
  }

  // A direction's columns of a sequence.
  template <class S>
  Sequence<S> sequence(const Tensor& t, std::int64_t direction) const {
    Sequence<S> s = view::sequence<S>(t);
    s.data += direction * hidden_size * s.column_stride;
    return s;
  }

  // A direction's part of a tensor (D, T, B, H), or packed (D, N, H).
  template <class S>
  Sequence<S> of_direction(const Tensor& t, std::int64_t direction) const {
    S* const data = view::data<S>(t) + direction * t.stride(0);
    return t.dim() == 3 ? Sequence<S>{data, 0, t.stride(1), view::column_stride(t)}
                        : Sequence<S>{data, t.stride(1), t.stride(2), view::column_stride(t)};
  }
  // A direction's part of (T, D, B, H), or of (D, B, H) for all steps; B may be 1 for all rows.
  template <class S>
  Sequence<S> reset_state(const Tensor& t, std::int64_t direction) const {
    const std::int64_t first = t.dim() - 3;
    return {view::data<S>(t) + direction * t.stride(first), first == 1 ? t.stride(0) : 0,
            t.size(first + 1) == 1 ? 0 : t.stride(first + 1), view::column_stride(t)};
  }

  std::int64_t rows() const { return steps.total_rows(); }
  Tensor new_tensor(std::initializer_list<std::int64_t> sizes) const {
    return empty(sizes, dtype, device);
  }
  Tensor new_sequence(std::int64_t features) const {
    return steps.batch_sizes ? new_tensor({rows(), features})
                             : new_tensor({steps.count, steps.batch, features});
  }
  Tensor new_states() const { return new_sequence(directions * hidden_size); }
  Tensor new_state() const { return new_tensor({directions, steps.batch, hidden_size}); }

  const Tensor& checked(const Tensor& t, const char* name,
                        std::initializer_list<std::int64_t> sizes) const {
    require(Device::of(t) == device && dtype_of(t) == dtype, name,
            " must be on the input's device and of its dtype");
    require_sizes(t, name, sizes);
    return t;
  }
  const Tensor& checked_states(const Tensor& t, const char* name) const {
    return steps.batch_sizes
               ? checked(t, name, {rows(), directions * hidden_size})
               : checked(t, name, {steps.count, steps.batch, directions * hidden_size});
  }
  const Tensor& made_by_forward(const Tensor& t, const char* name) const {
    require(checked_states(t, name).is_contiguous(), name,
            " must be contiguous, as recurrence_forward made it");
    return t;
  }
  // A load reads adjacent values, or one value for all.
  static Tensor broadcastable(const Tensor& t) {
    const std::int64_t stride = view::column_stride(t);
    return stride == 0 || stride == 1 ? t : torch::stable::contiguous(t);
  }
  const std::vector<Tensor>& initial() const { return initial_; }

  const std::shared_ptr<const Program> decoded_program;
  const Program& program;
  const std::int32_t dtype;
  const Device device;
  const std::int64_t directions;
  const bool has_tokens;
  Steps steps;
  std::int64_t input_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t per_direction = 0;

 private:
  void keep_resets(const std::vector<Tensor>& states, const std::optional<Tensor>& reset) {
    require(reset || states.empty(), "reset_states need reset");
    if (!reset) {
      return;
    }
    require(!steps.batch_sizes, "packed input cannot be reset");
    require(Device::of(*reset) == device && dtype_of(*reset) == aoti_torch_dtype_bool(),
            "reset must be bool and on the input's device");
    require_sizes(*reset, "reset", {steps.count, steps.batch});
    reset_ = *reset;
    require(states.empty() || static_cast<int>(states.size()) == program.states,
            "expected a reset state for each state");
    for (const Tensor& t : states) {
      const std::int64_t rows = t.dim() > 1 && t.size(t.dim() - 2) == 1 ? 1 : steps.batch;
      reset_states_.push_back(with_unit_columns(
          t.dim() == 4 ? checked(t, "a reset state", {steps.count, directions, rows, hidden_size})
                       : checked(t, "a reset state", {directions, rows, hidden_size})));
    }
    if (states.empty()) {
      zeros_.resize(hidden_size);
    }
  }

  // A state of zeros, in any dtype.
  template <class S>
  const S* zeros() const {
    static_assert(sizeof(S) <= sizeof(double));
    return reinterpret_cast<const S*>(zeros_.data());
  }

  void set_steps(const std::optional<Tensor>& batch_sizes) {
    if (!batch_sizes) {
      steps.count = input_.size(0);
      steps.batch = input_.size(1);
    } else {
      sizes_ = read_batch_sizes(*batch_sizes);
      const auto count = static_cast<std::int64_t>(sizes_.size());
      const Obstacle obstacle = BatchSizes{sizes_.data(), count}.find_obstacle(input_.size(0));
      require(obstacle == Obstacle::none, text_of(obstacle));
      steps = packed_steps(sizes_, offsets_);
    }
    require(steps.count > 0, text_of(Obstacle::no_steps));
  }

  void keep_weights(const std::vector<Tensor>& weights) {
    per_direction = static_cast<std::int64_t>(weights.size()) / directions;
    require((per_direction == 2 || per_direction == 4) &&
                per_direction * directions == static_cast<std::int64_t>(weights.size()),
            text_of(Obstacle::weight_count));
    require(weights[1].dim() == 2, text_of(Obstacle::weight_shape));
    hidden_size = weights[1].size(1);
    const std::int64_t columns = program.gates * hidden_size;
    weights_.reserve(weights.size());
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(weights.size()); ++i) {
      const std::int64_t place = i % per_direction;
      weights_.push_back(place == 0   ? input_weight(weights[i], columns)
                         : place == 1 ? checked(weights[i], "weight_hh", {columns, hidden_size})
                                      : checked(weights[i], "a bias", {columns}));
    }
  }

  // weight_ih, or a table with a row for each token.
  Tensor input_weight(const Tensor& t, std::int64_t columns) const {
    if (!has_tokens) {
      return checked(t, "weight_ih", {columns, input_size});
    }
    require(t.dim() == 2, "table must be a matrix");
    const std::int64_t rows = weights_.empty() ? t.size(0) : weights_[0].size(0);
    return checked(t, "table", {rows, columns});
  }

  Tensor input_;
  std::vector<Tensor> weights_;
  std::vector<Tensor> initial_;
  std::vector<Tensor> parameters_;
  std::vector<Tensor> inputs_;
  std::optional<Tensor> reset_;
  std::vector<Tensor> reset_states_;
  std::vector<double> zeros_;  // instead of reset_states_
  std::vector<std::int64_t> sizes_;
  std::vector<std::int64_t> offsets_;
};

}  // namespace rnn_ext::cpu
