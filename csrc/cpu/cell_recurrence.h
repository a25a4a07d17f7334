// A recurrence whose cell is a program: tasks, and what its two passes share.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/recurrence.h"

namespace rnn_ext::cpu {

// What a cell has beside the plain RNN's operands. In `problem`, weights and biases have a block of
// hidden_size rows for each gate, output has the states y, and hx the initial y.
template <class S>
struct CellOperands {
  const Program* program = nullptr;
  std::vector<Matrix<const S>> parameters;  // one row each; column stride 1 or 0
  std::vector<Sequence<const S>> inputs;    // column stride 1 or 0
  std::vector<Matrix<const S>> initial;     // of the states from 1 on; null: zeros
  std::vector<Sequence<S>> sequences;       // likewise, of all steps; null where not kept
  std::vector<Sequence<S>> saved;           // null where not wanted
};

template <class S>
struct CellForwardTask {
  Problem<S> problem;
  CellOperands<S> cell;
  std::vector<Matrix<S>> final_states;  // of all states; written
};

// The gradients of what a cell has beside: of the states from 1 on, coming in, and going out.
template <class S>
struct CellGradients {
  std::vector<Sequence<const S>> sequences;  // null: none; column stride 1 or 0
  std::vector<Matrix<const S>> final_states;

  std::vector<Matrix<S>> initial;     // null: not wanted
  std::vector<Matrix<S>> parameters;  // one row each
  std::vector<Sequence<S>> inputs;
};

template <class S>
struct CellBackwardTask {
  Problem<S> problem;
  CellOperands<S> cell;
  Gradients<S> gradients;
  CellGradients<S> cell_gradients;
};

template <class S, class O>
void run_cell_forward(const std::vector<CellForwardTask<S>>& tasks, const Kernels<S, O>& kernels,
                      int threads, ParallelFor parallel_for);
template <class S, class O>
void run_cell_backward(const std::vector<CellBackwardTask<S>>& tasks, const Kernels<S, O>& kernels,
                       int threads, ParallelFor parallel_for);

// The places in memory that instructions name, of a call: those of the program and, behind them,
// further ones that take a value as it is stored, or add one.
class Places {
 public:
  enum Extra { stored_state, outer_gradient, rounded_projection, rounded_recurrent };

  explicit Places(const Program& p)
      : stride_(std::max({p.gates, p.states, p.parameters, p.inputs, p.saved})) {}

  std::uint16_t of(Memory memory, int index) const {
    return static_cast<std::uint16_t>(static_cast<int>(memory) * stride_ + index);
  }
  std::uint16_t of(Extra extra, int index) const {
    return static_cast<std::uint16_t>((memory_names.size() + extra) * stride_ + index);
  }
  std::size_t count() const { return (memory_names.size() + 4) * stride_; }

 private:
  int stride_;
};

// The operands of a call at some step, by place.
template <class S>
class OperandTable {
 public:
  explicit OperandTable(const Program& p) : places_(p), operands_(places_.count()) {}

  template <class Place, class M>
  void set(Place place, int index, const M& m) {
    operands_[places_.of(place, index)] = Operand<S>::of(m);
  }
  const Operand<S>* data() const { return operands_.data(); }
  const Places& places() const { return places_; }

 private:
  Places places_;
  std::vector<Operand<S>> operands_;
};

// The code that a call runs: the program's, of which stores to absent memory are left out with all
// that only they need. `present` says of each place whether it is there.
inline std::vector<Instruction> link(const std::vector<Instruction>& program, const Places& places,
                                     const std::vector<bool>& present) {
  std::vector<Instruction> code;
  const auto add_store = [&](Instruction i, std::uint16_t place) {
    if (present[place]) {
      i.c = place;
      code.push_back(i);
    }
  };
  for (Instruction i : program) {
    const std::uint16_t index = i.c;
    if (i.operation == Operation::store) {
      add_store(i, places.of(i.memory(), index));
      if (i.memory() == Memory::next_state) {
        add_store(i, places.of(Places::stored_state, index));
      } else if (i.memory() == Memory::grad_projection) {
        add_store(i, places.of(Places::rounded_projection, index));
      } else if (i.memory() == Memory::grad_recurrent) {
        add_store(i, places.of(Places::rounded_recurrent, index));
      }
    } else if (i.operation == Operation::load) {
      i.c = places.of(i.memory(), index);
      if (i.memory() == Memory::grad_next_state && index == 0) {
        i.operation = Operation::load_add;  // to what the product left in slot 0
      }
      code.push_back(i);
      const std::uint16_t outer = places.of(Places::outer_gradient, index);
      if (i.memory() == Memory::grad_next_state && present[outer]) {
        i.operation = Operation::load_add;
        i.a = i.dst;
        i.c = outer;
        code.push_back(i);
      }
    } else {
      code.push_back(i);
    }
  }
  // Backward through the code, with the slots that something later reads.
  std::array<bool, Program::most_slots> is_read{};
  std::vector<Instruction> needed;
  for (auto i = code.rbegin(); i != code.rend(); ++i) {
    const bool stores = i->operation == Operation::store;
    if (!stores && !is_read[i->dst]) {
      continue;
    }
    if (!stores) {
      is_read[i->dst] = false;
    }
    const std::uint16_t slots[] = {i->a, i->b, i->c};
    for (int k = 0; k < arity(i->operation); ++k) {
      is_read[slots[k]] = true;
    }
    needed.push_back(*i);
  }
  std::reverse(needed.begin(), needed.end());
  return needed;
}

// Runs code on tiles of rows and units, behind products that leave their results in its slots.
template <class S, class O>
class TileRunner {
  using T = Arithmetic<S>;

 public:
  // gates: products per unit.
  TileRunner(const Kernels<S, O>& kernels, std::int64_t gates, std::int64_t slot_count,
             std::vector<Instruction> code, int threads)
      : kernels_(kernels),
        slot_count_(slot_count),
        units_(std::max<std::int64_t>(1, kernels.panel_columns / kernels.width / gates) *
               kernels.width),
        code_(std::move(code)),
        slots_(threads * slots_size()) {
    std::fill_n(slots_.data(), threads * slots_size(), T{0});
  }

  // The units of a tile, as many as a panel has columns for, and these filled up to whole vectors.
  std::int64_t units() const { return units_; }
  std::int64_t padded(std::int64_t units) const {
    return (units + kernels_.width - 1) / kernels_.width * kernels_.width;
  }
  // The values of a tile's slots for one row.
  std::int64_t row_size(std::int64_t units) const { return slot_count_ * padded(units); }

  // For each tile of these rows and columns: multiply(rows, units, slots), then the code.
  template <class Multiply>
  void run(Range rows, Range columns, const OperandTable<S>& operands, const Team::Member& member,
           Multiply multiply) const {
    T* const slots = slots_.data() + member.rank() * slots_size();
    for (std::int64_t c = columns.begin; c < columns.end; c += units_) {
      const Range units = Range{c, c + units_}.below(columns.end);
      for (std::int64_t row = rows.begin; row < rows.end; row += most_rows()) {
        const Range r = Range{row, row + most_rows()}.below(rows.end);
        multiply(r, units, slots);
        kernels_.run_program({code_.data(), static_cast<std::int64_t>(code_.size()),
                              operands.data(), slots, slot_count_, r.begin, units.begin, r.size(),
                              units.size()});
      }
    }
  }

 private:
  // The rows whose slots the first-level cache takes.
  std::int64_t most_rows() const {
    constexpr std::int64_t bytes = 16 << 10;
    const std::int64_t fit = bytes / (row_size(units_) * static_cast<std::int64_t>(sizeof(T)));
    return std::max<std::int64_t>(1, fit / kernels_.tile_rows) * kernels_.tile_rows;
  }
  std::int64_t slots_size() const { return most_rows() * row_size(units_); }

  const Kernels<S, O>& kernels_;
  std::int64_t slot_count_;
  std::int64_t units_;
  std::vector<Instruction> code_;
  Buffer<T> slots_;  // of each member
};

}  // namespace rnn_ext::cpu
