// A recurrence whose cell is a program: its tasks, and the code shared by both passes.
#pragma once

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>
#include <vector>

#include "cpu/recurrence.h"

namespace rnn_ext::cpu {

// The operands of a cell in addition to those of the plain RNN. In `problem`, weights and biases
// have a block of hidden_size rows for each gate, output has the states y, and hx the initial y.
template <class S>
struct CellOperands {
  const Program* program = nullptr;
  std::vector<Matrix<const S>> parameters;  // one row each; column stride 1 or 0
  std::vector<Sequence<const S>> inputs;    // column stride 1 or 0
  std::vector<Matrix<const S>> initial;     // of the states from 1 on; null: zeros
  std::vector<Sequence<S>> sequences;       // likewise, at all steps; null if not kept
  std::vector<Sequence<S>> saved;           // null if not requested
  Resets<S> resets;
};

template <class S>
struct CellForwardTask {
  Problem<S> problem;
  CellOperands<S> cell;
  std::vector<Matrix<S>> final_states;  // of all states; written
};

// The gradients of these: incoming ones of the states from 1 on, and the results.
template <class S>
struct CellGradients {
  std::vector<Sequence<const S>> sequences;  // null: none; column stride 1 or 0
  std::vector<Matrix<const S>> final_states;

  std::vector<Matrix<S>> initial;     // null: not requested
  std::vector<Matrix<S>> parameters;  // one row each
  std::vector<Sequence<S>> inputs;
  std::vector<Sequence<S>> reset_states;  // of all states; zeros at first; step stride 0: a sum
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

// plan_of for the gates and products of a cell.
template <class Task, class S, class O>
Plan cell_plan_of(const std::vector<Task>& tasks, bool independent, const Kernels<S, O>& kernels,
                  std::int64_t projected, std::int64_t row_products, int threads) {
  const Program& program = *tasks.front().cell.program;
  return plan_of(tasks, independent, kernels, projected, row_products, threads, program.gates,
                 static_cast<std::int64_t>(program.products.size()));
}

// The places in code: the program's slots, followed by its operands in memory. An operand may have
// a second place, to which a store writes the value as well, or which adds a value.
class Places {
 public:
  enum class Second {
    stored_state = static_cast<int>(Memory::next_state),
    outer_gradient = static_cast<int>(Memory::grad_next_state),
    rounded_projection = static_cast<int>(Memory::grad_projection),
    rounded_recurrent = static_cast<int>(Memory::grad_recurrent),
  };

  Places(const Program& p, int slots)
      : slots_(slots),
        stride_(std::max({p.gates, p.states, p.parameters, p.inputs, p.saved, p.passed})) {}

  std::uint16_t of(Memory memory, int index) const { return at(static_cast<int>(memory), index); }
  std::uint16_t of(Second second, int index) const {
    return at(static_cast<int>(memory_names.size()) + static_cast<int>(second), index);
  }
  int slots() const { return slots_; }
  std::size_t operands() const { return 2 * memory_names.size() * stride_; }

 private:
  std::uint16_t at(int kind, int index) const {
    return static_cast<std::uint16_t>(slots_ + kind * stride_ + index);
  }

  int slots_;
  int stride_;
};

// The matrix of a sequence that an operand uses at a step: that of the step, that of the step
// processed before, or alternately one of two.
enum class When { step, previous, turn, last_turn };

// The operands of a call at the current step, by place.
template <class S>
class OperandTable {
  using T = Arithmetic<S>;

 public:
  OperandTable(const Places& places, const Steps& steps)
      : places_(places),
        steps_(&steps),
        sources_(places.operands()),
        numbers_(places.operands(), unused) {}

  template <class Place, class U>
  void set(Place place, int index, const Sequence<U>& s, When when = When::step) {
    const bool is_packed = steps_->batch_offsets && when <= When::previous;
    set_source(place, index, Matrix<const U>{s.data, s.row_stride, s.column_stride}, when,
               is_packed ? s.row_stride : s.step_stride);
  }
  // The same matrix in all steps.
  template <class Place, class U>
  void set(Place place, int index, const Matrix<U>& m) {
    set_source(place, index, Matrix<const U>(m), When::turn, 0);
  }
  // Until the next move.
  template <class Place, class U>
  void put(Place place, int index, const Matrix<U>& m) {
    if (const std::uint16_t n = numbers_[number(place, index)]; n != unused) {
      operands_[n] = Operand<S>::of(m);
    }
  }

  // Moves the operands that code uses to a step.
  void move_to(std::int64_t step, std::int64_t previous, int turn) {
    const std::int64_t positions[] = {position(step), position(previous), turn, 1 - turn};
    for (std::size_t n = 0; n < used_.size(); ++n) {
      const Source& source = sources_[used_[n]];
      operands_[n] = source.operand.moved(positions[static_cast<int>(source.when)] * source.stride);
    }
  }
  // Keeps the operands that code uses, and numbers its places anew: slots, then these operands.
  void use(std::vector<Instruction>& code) {
    const auto slots = static_cast<std::uint16_t>(places_.slots());
    for (Instruction& i : code) {
      for (std::uint16_t* const place : {&i.dst, &i.a, &i.b, &i.c}) {
        if (*place < slots) {
          continue;
        }
        std::uint16_t& n = numbers_[*place - slots];
        if (n == unused) {
          n = static_cast<std::uint16_t>(used_.size());
          used_.push_back(static_cast<std::uint16_t>(*place - slots));
        }
        *place = static_cast<std::uint16_t>(slots + n);
      }
    }
    operands_.resize(used_.size());
  }

  // Whether there is memory. Without it a store is omitted, and a load reads zeros.
  bool has(std::uint16_t place) const { return source(place).values || source(place).stored; }
  // Whether code can use it like a slot: it has the arithmetic type and column stride 1.
  bool is_in_place(std::uint16_t place) const {
    return source(place).values && source(place).column_stride == 1;
  }
  const Places& places() const { return places_; }
  const Operand<S>* data() const { return operands_.data(); }
  std::int64_t size() const { return static_cast<std::int64_t>(operands_.size()); }

 private:
  struct Source {
    Operand<S> operand;  // at position 0
    std::int64_t stride = 0;
    When when = When::turn;
  };

  template <class Place>
  std::size_t number(Place place, int index) const {
    return places_.of(place, index) - places_.slots();
  }
  template <class Place, class M>
  void set_source(Place place, int index, const M& m, When when, std::int64_t stride) {
    sources_[number(place, index)] = {Operand<S>::of(m), stride, when};
  }
  const Operand<S>& source(std::uint16_t place) const {
    return sources_[place - places_.slots()].operand;
  }
  std::int64_t position(std::int64_t t) const {
    return t >= 0 && t < steps_->count && steps_->batch_offsets ? steps_->batch_offsets[t] : t;
  }

  static constexpr std::uint16_t unused = 0xffff;

  Places places_;
  const Steps* steps_;
  std::vector<Source> sources_;
  std::vector<std::uint16_t> numbers_;  // of each source: its index in the next two, or unused
  std::vector<std::uint16_t> used_;
  std::vector<Operand<S>> operands_;  // at the current step
};

// Turns a program into the code that a call runs. It omits stores to absent memory, with everything
// that only they need. Memory that code can use like a slot needs no loads and stores: instructions
// read and write it. No place is written that another one reads in the same step, so the time of
// these accesses does not matter.
template <class S>
class Linker {
 public:
  explicit Linker(const OperandTable<S>& operands)
      : operands_(operands), places_(operands.places()) {
    std::iota(homes_.begin(), homes_.end(), 0);
  }

  std::vector<Instruction> link(const std::vector<Instruction>& program) {
    code_.reserve(2 * program.size());
    for (const Instruction& i : needed(program)) {
      if (i.operation == Operation::store) {
        store(i);
      } else if (i.operation == Operation::load) {
        load(i);
      } else if (i.operation == Operation::add && (is_zero(i.a) || is_zero(i.b))) {
        copy(i.dst, is_zero(i.a) ? i.b : i.a);
      } else {
        compute(i);
      }
    }
    return std::move(code_);
  }

 private:
  static constexpr std::uint16_t zero = 0xffff;  // the place of a value that is zero

  // The program's instructions without stores to absent memory and the values only they need.
  std::vector<Instruction> needed(const std::vector<Instruction>& program) const {
    std::array<bool, Program::most_slots> is_read{};
    std::vector<Instruction> needed;
    needed.reserve(program.size());
    for (auto i = program.rbegin(); i != program.rend(); ++i) {
      const bool stores = i->operation == Operation::store;
      if (stores ? !operands_.has(first(*i)) && !operands_.has(second(*i)) : !is_read[i->dst]) {
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

  std::uint16_t first(const Instruction& i) const { return places_.of(i.memory(), i.c); }
  std::uint16_t second(const Instruction& i) const {
    return places_.of(static_cast<Places::Second>(i.memory()), i.c);
  }

  void load(const Instruction& i) {
    if (i.memory() == Memory::grad_yielded || (i.memory() == Memory::grad_next_state && i.c == 0)) {
      copy(i.dst, 0);  // the caller's product has left it there
    } else {
      load(i.dst, first(i));
    }
    if (operands_.has(second(i))) {
      const auto spare = static_cast<std::uint16_t>(places_.slots() - 1);
      load(spare, second(i));
      compute({Operation::add, i.dst, i.dst, spare});
    }
  }

  void load(std::uint16_t slot, std::uint16_t place) {
    homes_[slot] = slot;
    if (!operands_.has(place)) {
      homes_[slot] = zero;
    } else if (operands_.is_in_place(place)) {
      homes_[slot] = place;
    } else {
      code_.push_back({Operation::load, slot, place});
    }
  }

  void store(const Instruction& i) {
    for (const std::uint16_t place : {first(i), second(i)}) {
      if (operands_.is_in_place(place)) {
        move(i.a, place);
      } else if (operands_.has(place)) {
        code_.push_back({Operation::store, place, home(i.a)});
      }
    }
  }

  // Writes a slot's value to a place: the instruction that computes it writes there, or else a
  // copy.
  void move(std::uint16_t slot, std::uint16_t place) {
    const std::uint16_t from = home(slot);
    homes_[slot] = place;
    const auto writer = std::find_if(code_.rbegin(), code_.rend(),
                                     [&](const Instruction& i) { return i.dst == from; });
    if (from != slot || writer == code_.rend()) {
      code_.push_back({Operation::copy, place, from});
      return;
    }
    writer->dst = place;
    for (auto reader = code_.rbegin(); reader != writer; ++reader) {
      for (std::uint16_t* operand : {&reader->a, &reader->b, &reader->c}) {
        *operand = *operand == from ? place : *operand;
      }
    }
  }

  void copy(std::uint16_t dst, std::uint16_t a) {
    if (homes_[a] != a) {
      homes_[dst] = homes_[a];
    } else if (dst != a) {
      compute({Operation::copy, dst, a});
    }
  }

  void compute(Instruction i) {
    std::uint16_t* const operands[] = {&i.a, &i.b, &i.c};
    for (int k = 0; k < arity(i.operation); ++k) {
      *operands[k] = home(*operands[k]);
    }
    // Such as 1 - y·y, in the derivative of tanh. Nothing else reads the overwritten product.
    if (i.operation == Operation::affine && i.x == -1 && i.a == i.dst && !code_.empty() &&
        code_.back().operation == Operation::mul && code_.back().dst == i.a) {
      const Instruction& mul = code_.back();
      i = {Operation::subtract_product, i.dst, mul.a, mul.b, 0, 0, i.y};
      code_.pop_back();
    }
    code_.push_back(i);
    homes_[i.dst] = i.dst;
  }

  bool is_zero(std::uint16_t slot) const { return homes_[slot] == zero; }

  // The place of a slot's value: the slot, or memory.
  std::uint16_t home(std::uint16_t slot) {
    if (is_zero(slot)) {
      compute({Operation::constant, slot});
    }
    return homes_[slot];
  }

  const OperandTable<S>& operands_;
  const Places& places_;
  std::array<std::uint16_t, Program::most_slots + 1> homes_;  // the place of each slot's value
  std::vector<Instruction> code_;
};

// The places of h and of the result if code multiplies the product, in slot 0, by 1 - h·h: this is
// the derivative of a plain RNN, which a product computes at its end (Finish::chain). Its forward
// code, tanh, is as fast after the product.
struct Chain {
  std::uint16_t h = 0;
  std::uint16_t result = 0;  // 0: the code is other code

  static Chain of(const std::vector<Instruction>& code, std::int64_t slots) {
    if (code.size() != 2) {
      return {};
    }
    const Instruction &first = code[0], &second = code[1];
    const bool subtracts = first.operation == Operation::subtract_product && first.y == 1 &&
                           first.a == first.b && first.a >= slots;
    const bool multiplies =
        second.operation == Operation::mul && second.dst >= slots &&
        ((second.a == 0 && second.b == first.dst) || (second.b == 0 && second.a == first.dst));
    return subtracts && multiplies ? Chain{first.a, second.dst} : Chain{};
  }
};

// Runs code on tiles of rows and units, after products that write their results to its slots.
template <class S, class O>
class TileRunner {
  using T = Arithmetic<S>;

 public:
  // gates: products per unit; rows: the most of a step.
  TileRunner(const Kernels<S, O>& kernels, std::int64_t gates, std::int64_t slot_count,
             std::int64_t rows, const Plan& plan)
      : kernels_(kernels),
        slot_count_(slot_count),
        units_(units(kernels, gates, rows, plan)),
        most_rows_(std::min(rows, rows_in_cache())),
        threads_(plan.threads),
        slots_(plan.threads * slots_size()) {
    std::fill_n(slots_.data(), plan.threads * slots_size(), T{0});
  }

  // Sets the program and operands of the following runs.
  void link(const std::vector<Instruction>& program, OperandTable<S>& operands) {
    code_ = Linker<S>(operands).link(program);
    operands.use(code_);
    operand_count_ = operands.size();
    values_ = Buffer<TileValues<T>>(threads_ * places());
    chain_ = Chain::of(code_, slot_count_);
  }

  // The units of a tile: their columns fill a panel, or several if there are few rows, since the
  // more vectors an instruction processes, the less its dispatch and its latency count. With
  // several groups, members pack other columns than they run: no tile may then cross the shares'
  // cuts.
  static std::int64_t units(const Kernels<S, O>& kernels, std::int64_t gates, std::int64_t rows,
                            const Plan& plan) {
    const std::int64_t vectors = plan.groups == 1 ? 8 : 1;
    const std::int64_t of_panel =
        std::max<std::int64_t>(1, kernels.panel_columns / kernels.width / gates);
    return std::max<std::int64_t>(1, vectors / (of_panel * rows)) * of_panel * kernels.width;
  }
  std::int64_t units() const { return units_; }
  // In whole vectors.
  std::int64_t padded(std::int64_t units) const {
    return (units + kernels_.width - 1) & -kernels_.width;
  }
  // The values of a tile's slots for one row.
  std::int64_t row_size(std::int64_t units) const { return slot_count_ * padded(units); }

  // For each tile of these rows and columns: multiply(rows, units), which computes `product`, and
  // then the code; or both at once if that is possible, and `at_once`.
  template <class Multiply>
  void run(Product<S>& product, Range rows, Range columns, const OperandTable<S>& operands,
           const Team::Member& member, Multiply multiply, bool at_once = true) const {
    product.finish = at_once && chain_.result ? Finish::chain : Finish::none;
    for_each_tile(rows, columns, member, [&](Range r, Range units, T* slots) {
      product.rows = r.size();
      if (product.finish == Finish::chain) {
        set_chain(product, operands, r, units);
        multiply(r, units);
        return;
      }
      product.c = slots;
      product.c_stride = row_size(units.size());
      multiply(r, units);
      kernels_.run_program({code_.data(), static_cast<std::int64_t>(code_.size()), operands.data(),
                            operand_count_, values_.data() + member.rank() * places(), slots,
                            slot_count_, r.begin, units.begin, r.size(), units.size()});
    });
  }
  // f(rows, units, slots) for each of them.
  template <class F>
  void for_each_tile(Range rows, Range columns, const Team::Member& member, F f) const {
    T* const slots = slots_.data() + member.rank() * slots_size();
    for (std::int64_t c = columns.begin; c < columns.end; c += units_) {
      const Range units = Range{c, c + units_}.below(columns.end);
      for (std::int64_t row = rows.begin; row < rows.end; row += most_rows_) {
        const Range r = Range{row, row + most_rows_}.below(rows.end);
        f(r, units, slots);
      }
    }
  }

 private:
  // The rows whose slots the first-level cache takes.
  std::int64_t rows_in_cache() const {
    constexpr std::int64_t bytes = 16 << 10;
    const std::int64_t fit = bytes / (row_size(units_) * static_cast<std::int64_t>(sizeof(T)));
    return std::max<std::int64_t>(1, fit / kernels_.tile_rows) * kernels_.tile_rows;
  }
  std::int64_t slots_size() const { return most_rows_ * row_size(units_); }
  std::int64_t places() const { return slot_count_ + operand_count_; }

  void set_chain(Product<S>& product, const OperandTable<S>& operands, Range rows,
                 Range units) const {
    const auto at = [&](std::uint16_t place) {
      const Operand<S>& o = operands.data()[place - slot_count_];
      return Matrix<const T>{o.values, o.row_stride, 1}.part(rows.begin, units.begin);
    };
    if constexpr (!is_widened<S>) {  // otherwise the code has loads and stores
      const Matrix<const T> h = at(chain_.h), result = at(chain_.result);
      product.h = h.data;
      product.h_stride = h.row_stride;
      product.c = const_cast<T*>(result.data);
      product.c_stride = result.row_stride;
    }
  }

  const Kernels<S, O>& kernels_;
  std::int64_t slot_count_;
  std::int64_t units_;
  std::int64_t most_rows_;
  std::int64_t threads_;
  std::int64_t operand_count_ = 0;
  std::vector<Instruction> code_;
  Chain chain_;
  Buffer<TileValues<T>> values_;  // of each member
  Buffer<T> slots_;               // of each member
};

}  // namespace rnn_ext::cpu
