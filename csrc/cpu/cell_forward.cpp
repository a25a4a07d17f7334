// The states of a recurrence whose cell is a program, for a whole sequence.
//
// A step multiplies y_{t-1} by the columns of W_hh that belong to a block of units, of all gates
// together, into slots, and runs the cell's program on them while they are in the first-level
// cache. The input projection of a chunk of steps is computed ahead of them, into scratch memory.
//
// A state stands in its tensor where it has one that holds the arithmetic type, or else in two
// buffers in turns: other threads still read the last y while the next is written. With resets all
// states stand in such buffers, where those of a row are replaced before the step that resets it.
#include "cpu/cell_recurrence.h"
#include "cpu/projection.h"

namespace rnn_ext::cpu {
namespace {

template <class S, class O>
class CellForward {
  using T = Arithmetic<S>;

 public:
  CellForward(const CellForwardTask<S>& task, const Kernels<S, O>& kernels, const Plan& plan)
      : p_(task.problem),
        cell_(task.cell),
        program_(*task.cell.program),
        final_states_(task.final_states),
        kernels_(kernels),
        columns_(program_.gates * p_.hidden_size),
        projection_(p_, program_.gates, program_.merged ? Bias::sum : Bias::input, kernels, plan),
        starts_from_projection_(program_.merged && program_.gates == 1),
        places_(program_, program_.forward_slots),
        operands_(places_, p_.steps),
        tiles_(kernels, program_.gates, places_.slots(), plan.threads),
        padded_(program_.gates * tiles_.padded(p_.hidden_size)),
        weight_hh_(
            reads_in_place(kernels, p_.steps.count, p_.steps.batch) ? 0 : padded_ * p_.hidden_size),
        bias_hh_(!program_.merged && p_.bias_hh ? padded_ : 0),
        projected_(projection_.buffered_rows() * columns_),
        zeros_(p_.hidden_size) {
    std::fill_n(zeros_.data(), p_.hidden_size, T{0});
    const std::int64_t size = p_.steps.batch * p_.hidden_size;
    for (int s = 0; s < program_.states; ++s) {
      initial_.push_back(Buffer<T>(is_widened<S> && given_initial(s) ? size : 0));
      states_.push_back(Buffer<T>(is_in_place(s) ? 0 : 2 * size));
    }
    set_operands();
    tiles_.link(program_.forward, operands_);
  }

  void run(const Team::Member& member, const StepShare& share) const {
    pack(column_share(kernels_, p_.hidden_size, member));
    for (int s = 0; s < program_.states; ++s) {
      if (given_initial(s)) {
        readable(kernels_, given_initial(s), share.rows, share.columns, initial_copy(s));
      }
    }
    if (cell_.resets) {
      start_in_turn(share);
    }
    member.barrier();
    Pass pass{*this, member, share, operands_};
    run_steps(p_.steps, p_.order(), projection_.chunk_rows(), share, pass);
  }

 private:
  // One member's way through the steps.
  struct Pass {
    const CellForward& f;
    const Team::Member& member;
    const StepShare& share;
    OperandTable<S> operands;
    Sequence<T> projected = {};  // of the chunk
    Product<S> product = {};     // what the products of all steps have in common
    std::int64_t previous = -1;  // step
    int turn = 0;

    void begin(const Chunk& chunk) {
      projected = f.projection_.in_scratch(f.projected_, f.columns_, chunk, share);
      f.projection_.run(chunk, projected, share, member);
      f.set_projection(operands, projected);
    }

    void step(std::int64_t t, Range carried, Range starting, Range ending) {
      const Matrix<const T> u = projected.at(f.p_.steps, t);
      if (f.cell_.resets && carried.empty()) {
        std::swap(carried, starting);
      }
      if (!carried.empty()) {
        operands.move_to(t, previous, turn);
        f.advance(carried, share.columns, u, f.state(0, previous, 1 - turn), operands, member,
                  product);
      }
      if (!starting.empty()) {
        operands.move_to(t, previous, turn);
        for (int s = 0; s < f.program_.states; ++s) {
          operands.put(Memory::state, s, f.initial(s));
        }
        f.advance(starting, share.columns, u, f.initial(0), operands, member, product);
      }
      if (!ending.empty()) {
        for (int s = 0; s < f.program_.states; ++s) {
          f.kernels_.narrow(f.state(s, t, turn).part(ending.begin, share.columns.begin),
                            ending.size(), share.columns.size(),
                            f.final_states_[s].part(ending.begin, share.columns.begin));
        }
      }
      if (const std::int64_t next = f.p_.order().next(t);
          f.cell_.resets && f.p_.steps.rows_or_none(next) > 0) {
        f.reset(next, share, turn);
      }
      previous = t;
      turn ^= 1;
    }

    void end(const Chunk&, bool is_last) {
      if (!is_last && !f.projection_.keeps_rows()) {
        member.barrier();  // before the chunk's memory is used again
      }
    }
  };

  void set_operands() {
    for (int i = 0; i < program_.parameters; ++i) {
      operands_.set(Memory::parameter, i, cell_.parameters[i]);
    }
    for (int i = 0; i < program_.inputs; ++i) {
      operands_.set(Memory::input, i, cell_.inputs[i]);
    }
    for (int i = 0; i < program_.saved; ++i) {
      operands_.set(Memory::saved, i, cell_.saved[i]);
    }
    for (int s = 0; s < program_.states; ++s) {
      if (is_in_place(s)) {
        operands_.set(Memory::state, s, sequence(s), When::previous);
        operands_.set(Memory::next_state, s, sequence(s));
      } else {
        operands_.set(Memory::state, s, in_turns(s), When::last_turn);
        operands_.set(Memory::next_state, s, in_turns(s), When::turn);
        operands_.set(Places::Second::stored_state, s, sequence(s));
      }
    }
    set_projection(operands_, {projected_.data(), 0, columns_, 1});
  }
  void set_projection(OperandTable<S>& operands, const Sequence<T>& projected) const {
    for (int g = 0; g < program_.gates && !starts_from_projection_; ++g) {
      Sequence<T> u = projected;
      u.data += g * p_.hidden_size;
      operands.set(Memory::projection, g, u);
    }
  }

  // All steps of a state, where the call keeps them.
  Sequence<S> sequence(int state) const {
    return state == 0 ? p_.output : cell_.sequences[state - 1];
  }

  // Whether a state stands where the call keeps it.
  bool is_in_place(int state) const { return !is_widened<S> && !cell_.resets && sequence(state); }

  // The last two steps of a state that does not.
  Sequence<T> in_turns(int state) const {
    return {states_[state].data(), p_.steps.batch * p_.hidden_size, p_.hidden_size, 1};
  }

  // A state after step t.
  Matrix<const T> state(int state, std::int64_t t, int turn) const {
    if constexpr (!is_widened<S>) {
      if (is_in_place(state)) {
        return sequence(state).at(p_.steps, t);
      }
    }
    return in_turn(state, turn);
  }
  Matrix<T> in_turn(int state, int turn) const {
    return as_rows(states_[state], p_.hidden_size).part(turn * p_.steps.batch, 0);
  }

  // With resets, the first step goes on from states in turn as all others do.
  void start_in_turn(const StepShare& share) const {
    for (int s = 0; s < program_.states; ++s) {
      for (std::int64_t r = share.rows.begin; r < share.rows.end; ++r) {
        std::copy_n(initial(s).row(r) + share.columns.begin, share.columns.size(),
                    in_turn(s, 1).row(r) + share.columns.begin);
      }
    }
    reset(p_.order().step(0), share, 1);
  }
  // Replaces the states of this turn, from which step t starts, in the rows that it resets.
  void reset(std::int64_t t, const StepShare& share, int turn) const {
    cell_.resets.for_each(t, share.rows, [&](std::int64_t row) {
      for (int s = 0; s < program_.states; ++s) {
        kernels_.widen(cell_.resets.states[s].at(p_.steps, t).part(row, share.columns.begin), 1,
                       share.columns.size(), in_turn(s, turn).part(row, share.columns.begin));
      }
    });
  }

  Matrix<const S> given_initial(int state) const {
    return state == 0 ? p_.hx : cell_.initial[state - 1];
  }
  Matrix<T> initial_copy(int state) const { return as_rows(initial_[state], p_.hidden_size); }
  Matrix<const T> initial(int state) const {
    if (!given_initial(state)) {
      return {zeros_.data(), 0, 1};
    }
    if constexpr (is_widened<S>) {
      return initial_copy(state);
    } else {
      return given_initial(state);
    }
  }

  void pack(Range columns) const {
    projection_.pack(columns);
    for (std::int64_t c = columns.begin; c < columns.end; c += tiles_.units()) {
      const std::int64_t units = std::min(tiles_.units(), columns.end - c);
      if (weight_hh_.data()) {
        kernels_.pack_gates(p_.weight_hh.part(c, 0), program_.gates, p_.hidden_size, units,
                            p_.hidden_size, panels(c));
      }
      for (std::int64_t g = 0; bias_hh_.data() && g < program_.gates; ++g) {
        T* const bias = bias_hh_.data() + c * program_.gates + g * tiles_.padded(units);
        for (std::int64_t i = 0; i < tiles_.padded(units); ++i) {
          bias[i] =
              i < units
                  ? static_cast<T>(
                        p_.bias_hh.data[(g * p_.hidden_size + c + i) * p_.bias_hh.column_stride])
                  : T{0};
        }
      }
    }
  }

  // The packed columns of the block that starts with this unit.
  T* panels(std::int64_t unit) const {
    return weight_hh_.from(unit * program_.gates * p_.hidden_size);
  }

  // The states of some rows of a step, from their last y.
  void advance(Range rows, Range columns, Matrix<const T> u, Matrix<const T> y,
               const OperandTable<S>& operands, const Team::Member& member,
               Product<S>& product) const {
    product.inner = p_.hidden_size;
    product.a_stride = y.row_stride;
    tiles_.run(rows, columns, operands, member, [&](Range r, Range units, T* slots) {
      product.rows = r.size();
      product.a = y.row(r.begin);
      product.init = nullptr;
      if (starts_from_projection_) {
        product.init = u.row(r.begin) + units.begin;
        product.init_stride = u.row_stride;
      }
      multiply(product, units, slots);
    });
  }

  // v of a block into the first slots, plus product.init where there is no bias.
  void multiply(Product<S>& product, Range units, T* slots) const {
    const std::int64_t width = tiles_.padded(units.size());
    const T* const bias = bias_hh_.from(units.begin * program_.gates);
    product.c_stride = tiles_.row_size(units.size());
    if (weight_hh_.data()) {
      product.columns = (program_.gates - 1) * width + units.size();
      product.b = panels(units.begin);
      product.init = bias ? bias : product.init;
      product.c = slots;
      kernels_.product(product);
      return;
    }
    for (std::int64_t g = 0; g < program_.gates; ++g) {
      product.columns = units.size();
      product.unpacked = p_.weight_hh.part(g * p_.hidden_size + units.begin, 0).transposed();
      product.init = bias ? bias + g * width : product.init;
      product.c = slots + g * width;
      kernels_.product(product);
    }
  }

  const Problem<S>& p_;
  const CellOperands<S>& cell_;
  const Program& program_;
  const std::vector<Matrix<S>>& final_states_;
  const Kernels<S, O>& kernels_;
  std::int64_t columns_;  // of u and of v
  Projection<S, O> projection_;
  bool starts_from_projection_;  // a product adds to u, and the code gets the sum
  Places places_;
  OperandTable<S> operands_;
  TileRunner<S, O> tiles_;
  std::int64_t padded_;  // columns of all packed blocks
  Buffer<T> weight_hh_;  // packed; without memory where the weight is read in place
  Buffer<T> bias_hh_;    // in the order of the packed columns
  Buffer<T> projected_;
  Buffer<T> zeros_;
  std::vector<Buffer<T>> initial_;  // copies
  std::vector<Buffer<T>> states_;   // two of each state, or none
};

}  // namespace

template <class S, class O>
void run_cell_forward(const std::vector<CellForwardTask<S>>& tasks, const Kernels<S, O>& kernels,
                      int threads, ParallelFor parallel_for) {
  const Scratch::Scope scratch;
  const Problem<S>& p = tasks.front().problem;
  const Plan plan =
      plan_of(tasks, true, kernels, p.input_size, 0, threads, tasks.front().cell.program->gates);
  run_directions<CellForward<S, O>>(tasks, plan, kernels, parallel_for, [](const Team::Member&) {});
}

template void run_cell_forward(const std::vector<CellForwardTask<float>>&, const Kernels<float>&,
                               int, ParallelFor);
template void run_cell_forward(const std::vector<CellForwardTask<double>>&, const Kernels<double>&,
                               int, ParallelFor);
template void run_cell_forward(const std::vector<CellForwardTask<BFloat16>>&,
                               const Kernels<BFloat16>&, int, ParallelFor);
template void run_cell_forward(const std::vector<CellForwardTask<BFloat16>>&,
                               const Kernels<BFloat16, BFloat16>&, int, ParallelFor);
template void run_cell_forward(const std::vector<CellForwardTask<Half>>&, const Kernels<Half>&, int,
                               ParallelFor);

}  // namespace rnn_ext::cpu
