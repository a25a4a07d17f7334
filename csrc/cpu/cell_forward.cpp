// The states of a recurrence whose cell is a program, for a whole sequence.
//
// For a block of units, a step multiplies y_{t-1} by the block's columns of W_hh, of all gates
// together, writes the products to slots, and runs the cell's program on them while they are in the
// first-level cache. The input projection of a chunk of steps is computed before them, in scratch
// memory.
//
// A step with further products has a phase for each: it multiplies the value that the previous
// phase yielded, in scratch memory, by the next rows of W_hh, and runs the code after that product.
//
// A state is stored in its tensor, if it has one of the arithmetic type, or else alternately in two
// buffers, since other threads still read the last y while the next is written. A step that resets
// rows reads the states before it from copies, in which those of these rows are replaced.
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
        projection_(p_, program_.gates, program_.merged ? Bias::sum : Bias::input, kernels,
                    can_start_from_projection()
                        ? TileRunner<S, O>::units(kernels, program_.gates, p_.steps.batch, plan)
                        : 0),
        starts_from_projection_(can_start_from_projection() &&
                                (program_.gates == 1 || projection_.is_in_tiles())),
        places_(program_, program_.forward_slots),
        operands_(1, OperandTable<S>(places_, p_.steps)),
        projected_(projection_.buffered_rows() * projection_.columns()),
        zeros_(p_.hidden_size) {
    std::fill_n(zeros_.data(), p_.hidden_size, T{0});
    const std::int64_t size = p_.steps.batch * p_.hidden_size;
    const bool in_place = reads_in_place(kernels, p_.steps.count, p_.steps.batch);
    packs_tiles_ =
        !in_place && is_used_once(p_.steps.count, program_.gates * p_.hidden_size * p_.hidden_size);
    std::int64_t gate = 0;
    for (const int gates : program_.products) {
      TileRunner<S, O> tiles(kernels, gates, places_.slots(), p_.steps.batch, plan);
      const std::int64_t columns = gates * tiles.padded(p_.hidden_size);
      const std::int64_t packed = in_place       ? 0
                                  : packs_tiles_ ? plan.threads * gates * tiles.units()
                                                 : columns;
      phases_.push_back({gate, gates, std::move(tiles), Buffer<T>(packed * p_.hidden_size),
                         Buffer<T>(!program_.merged && p_.bias_hh ? columns : 0),
                         Buffer<T>(gate > 0 ? size : 0)});
      gate += gates;
    }
    for (int i = 0; i < program_.passed; ++i) {
      passed_.push_back(Buffer<T>(size));
    }
    for (int s = 0; s < program_.states; ++s) {
      initial_.push_back(Buffer<T>(is_widened<S> && given_initial(s) ? size : 0));
      states_.push_back(Buffer<T>(is_in_place(s) ? 0 : 2 * size));
      replaced_.push_back(Buffer<T>(cell_.resets ? 2 * size : 0));
    }
    set_operands(operands_[0]);
    for (std::size_t i = 0; i < phases_.size(); ++i) {
      phases_[i].tiles.link(program_.forward[i], operands_[0]);
    }
    operands_.resize(plan.threads, operands_[0]);
  }

  void run(const Team::Member& member, StepShare& share) const {
    const Range columns = column_share(kernels_, p_.hidden_size, member);
    projection_.pack(columns);
    for (const Phase& phase : phases_) {
      pack(phase, columns);
    }
    for (int s = 0; s < program_.states; ++s) {
      if (given_initial(s)) {
        readable(kernels_, given_initial(s), share.rows, share.columns, initial_copy(s));
      }
    }
    Pass pass{*this, member, share, operands_[member.rank()]};
    pass.is_reset = reset(p_.order().step(0), share, 0, [&](int s) { return initial(s); });
    member.barrier();
    run_steps(p_.steps, p_.order(), projection_.chunk_rows(), share, pass);
  }

 private:
  // A product of a step, and the code after it.
  struct Phase {
    std::int64_t first_gate;
    std::int64_t gates;
    TileRunner<S, O> tiles;
    Buffer<T> weight_hh;  // packed: of each member a tile, or all; without memory if it is not
    Buffer<T> bias_hh;    // in the order of the packed columns
    Buffer<T> yielded;    // its operand; in the first phase y, so without memory
  };

  // One member's loop over the steps.
  struct Pass {
    const CellForward& f;
    const Team::Member& member;
    const StepShare& share;
    OperandTable<S>& operands;
    Sequence<T> projected = {};  // of the chunk
    Product<S> product = {};     // the fields that the products of all steps share
    std::int64_t previous = -1;  // step
    int turn = 0;
    bool is_reset = false;  // the next step resets rows

    void begin(const Chunk& chunk) {
      projected = f.projection_.in_scratch(f.projected_, f.projection_.columns(), chunk, share);
      f.projection_.run(chunk, projected, share, member);
      f.set_projection(operands, projected);
    }

    void step(std::int64_t t, Range carried, Range starting, Range ending) {
      const Matrix<const T> u = projected.at(f.p_.steps, t);
      for (const Phase& phase : f.phases_) {
        const Matrix<const T> yielded = as_rows(phase.yielded, f.p_.hidden_size);
        if (yielded) {
          share.group.barrier();  // it is complete for all units
        }
        const auto advance = [&](Range rows, bool starts) {
          if (rows.empty()) {
            return;
          }
          operands.move_to(t, previous, turn);
          const auto before = [&](int s) { return is_reset ? f.replaced(s, turn) : f.initial(s); };
          const bool elsewhere = is_reset || starts;
          for (int s = 0; s < f.program_.states && elsewhere; ++s) {
            operands.put(Memory::state, s, before(s));
          }
          const Matrix<const T> y = elsewhere ? before(0) : f.state(0, previous, 1 - turn);
          f.advance(phase, rows, share.columns, u, yielded ? yielded : y, operands, member,
                    product);
        };
        advance(carried, false);
        advance(starting, true);
      }
      if (!ending.empty()) {
        for (int s = 0; s < f.program_.states; ++s) {
          f.kernels_.narrow(f.state(s, t, turn).part(ending.begin, share.columns.begin),
                            ending.size(), share.columns.size(),
                            f.final_states_[s].part(ending.begin, share.columns.begin));
        }
      }
      const std::int64_t next = f.p_.order().next(t);
      is_reset = f.p_.steps.rows_or_none(next) > 0 &&
                 f.reset(next, share, 1 - turn, [&](int s) { return f.state(s, t, turn); });
      previous = t;
      turn ^= 1;
    }

    void end(const Chunk&, bool is_last) {
      if (!is_last && !f.projection_.keeps_rows()) {
        member.barrier();  // before the chunk's memory is used again
      }
    }
  };

  void set_operands(OperandTable<S>& operands) const {
    for (int i = 0; i < program_.parameters; ++i) {
      operands.set(Memory::parameter, i, cell_.parameters[i]);
    }
    for (int i = 0; i < program_.inputs; ++i) {
      operands.set(Memory::input, i, cell_.inputs[i]);
    }
    for (int i = 0; i < program_.saved; ++i) {
      operands.set(Memory::saved, i, cell_.saved[i]);
    }
    for (std::size_t i = 1; i < phases_.size(); ++i) {
      operands.set(Memory::yielded, static_cast<int>(i - 1),
                   as_rows(phases_[i].yielded, p_.hidden_size));
    }
    for (int i = 0; i < program_.passed; ++i) {
      operands.set(Memory::passed, i, as_rows(passed_[i], p_.hidden_size));
    }
    for (int s = 0; s < program_.states; ++s) {
      if (is_in_place(s)) {
        operands.set(Memory::state, s, sequence(s), When::previous);
        operands.set(Memory::next_state, s, sequence(s));
      } else {
        operands.set(Memory::state, s, in_turns(s), When::last_turn);
        operands.set(Memory::next_state, s, in_turns(s), When::turn);
        operands.set(Places::Second::stored_state, s, sequence(s));
      }
    }
    set_projection(operands, {projected_.data(), 0, projection_.columns(), 1});
  }
  void set_projection(OperandTable<S>& operands, const Sequence<T>& projected) const {
    for (int g = 0; g < program_.gates && !starts_from_projection_; ++g) {
      Sequence<T> u = projected;
      u.data += g * p_.hidden_size;
      operands.set(Memory::projection, g, u);
    }
  }

  // Whether the program reads only the sum of projection and product, and the sum has the same bits
  // in either place.
  bool can_start_from_projection() const {
    return program_.merged && program_.products.size() == 1 &&
           (program_.gates == 1 || p_.hidden_size <= reduction_block);
  }

  // All steps of a state that the call keeps.
  Sequence<S> sequence(int state) const {
    return state == 0 ? p_.output : cell_.sequences[state - 1];
  }

  // Whether a state is stored in the tensor in which the call keeps it.
  bool is_in_place(int state) const { return !is_widened<S> && sequence(state); }

  // The last two steps of a state that is not.
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

  // If step t resets one of these rows, copies the states before it, before(state), to the buffers
  // of its turn, replaces those of the reset rows, and returns true.
  template <class Before>
  bool reset(std::int64_t t, const StepShare& share, int turn, Before before) const {
    const bool any = cell_.resets.any(t, share.rows);
    for (int s = 0; s < program_.states && any; ++s) {
      cell_.resets.template replace<T>(t, share.rows, share.columns, before(s),
                                       cell_.resets.states[s].at(p_.steps, t), replaced(s, turn));
    }
    return any;
  }
  Matrix<T> replaced(int state, int turn) const {
    return as_rows(replaced_[state], p_.hidden_size).part(turn * p_.steps.batch, 0);
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

  void pack(const Phase& phase, Range columns) const {
    const TileRunner<S, O>& tiles = phase.tiles;
    const std::int64_t first = phase.first_gate * p_.hidden_size;  // row of W_hh
    for (std::int64_t c = columns.begin; c < columns.end; c += tiles.units()) {
      const std::int64_t units = std::min(tiles.units(), columns.end - c);
      if (phase.weight_hh.data() && !packs_tiles_) {
        pack_weight(phase, {c, c + units}, panels(phase, c));
      }
      for (std::int64_t g = 0; phase.bias_hh.data() && g < phase.gates; ++g) {
        T* const bias = phase.bias_hh.data() + c * phase.gates + g * tiles.padded(units);
        const auto* const source =
            p_.bias_hh.data + (first + g * p_.hidden_size + c) * p_.bias_hh.column_stride;
        for (std::int64_t i = 0; i < tiles.padded(units); ++i) {
          bias[i] = i < units ? static_cast<T>(source[i * p_.bias_hh.column_stride]) : T{0};
        }
      }
    }
  }

  void pack_weight(const Phase& phase, Range units, T* panels) const {
    const std::int64_t row = phase.first_gate * p_.hidden_size + units.begin;
    kernels_.pack_gates(p_.weight_hh.part(row, 0), phase.gates, p_.hidden_size, units.size(),
                        p_.hidden_size, panels);
  }

  // The packed columns of the block that starts with this unit; null if they are not packed.
  T* panels(const Phase& phase, std::int64_t unit) const {
    return phase.weight_hh.from(unit * phase.gates * p_.hidden_size);
  }

  // A phase for some rows of a step, with its operand.
  void advance(const Phase& phase, Range rows, Range columns, Matrix<const T> u,
               Matrix<const T> multiplied, const OperandTable<S>& operands,
               const Team::Member& member, Product<S>& product) const {
    product.inner = p_.hidden_size;
    product.a_stride = multiplied.row_stride;
    std::int64_t packed = -1;  // first unit of the tile
    phase.tiles.run(product, rows, columns, operands, member, [&](Range r, Range units) {
      product.a = multiplied.row(r.begin);
      product.b = panels(phase, packs_tiles_ ? member.rank() * phase.tiles.units() : units.begin);
      if (packs_tiles_ && units.begin != packed) {
        pack_weight(phase, units, panels(phase, member.rank() * phase.tiles.units()));
        packed = units.begin;
      }
      product.init = nullptr;
      if (starts_from_projection_) {
        product.init = u.row(r.begin) + units.begin * phase.gates;
        product.init_stride = u.row_stride;
      }
      multiply(phase, product, units);
    });
  }

  // Computes the product for a block, plus product.init if there is no bias.
  void multiply(const Phase& phase, Product<S>& product, Range units) const {
    const std::int64_t width = phase.tiles.padded(units.size());
    if (const T* const bias = phase.bias_hh.from(units.begin * phase.gates)) {
      product.init = bias;
    }
    if (product.b) {
      product.columns = (phase.gates - 1) * width + units.size();
      kernels_.product(product);
      return;
    }
    const T* const init = product.init;
    T* const c = product.c;
    for (std::int64_t g = 0; g < phase.gates; ++g) {
      const std::int64_t row = (phase.first_gate + g) * p_.hidden_size + units.begin;
      product.columns = units.size();
      product.unpacked = p_.weight_hh.part(row, 0).transposed();
      product.init = init ? init + g * width : nullptr;
      product.c = c + g * width;
      kernels_.product(product);
    }
  }

  const Problem<S>& p_;
  const CellOperands<S>& cell_;
  const Program& program_;
  const std::vector<Matrix<S>>& final_states_;
  const Kernels<S, O>& kernels_;
  Projection<S, O> projection_;
  bool starts_from_projection_;  // a product adds to u, and the code gets the sum
  bool packs_tiles_;             // of W_hh when they are used, not all of them at first
  Places places_;
  mutable std::vector<OperandTable<S>> operands_;  // of each member, which must not allocate
  std::vector<Phase> phases_;
  Buffer<T> projected_;
  Buffer<T> zeros_;
  std::vector<Buffer<T>> passed_;    // from one phase to a later one
  std::vector<Buffer<T>> initial_;   // copies
  std::vector<Buffer<T>> states_;    // two of each state, or none
  std::vector<Buffer<T>> replaced_;  // likewise, for steps that reset rows
};

}  // namespace

template <class S, class O>
void run_cell_forward(const std::vector<CellForwardTask<S>>& tasks, const Kernels<S, O>& kernels,
                      int threads, ParallelFor parallel_for) {
  const Scratch::Scope scratch;
  const Problem<S>& p = tasks.front().problem;
  const Plan plan = cell_plan_of(tasks, true, kernels, p.input_size, 0, threads);
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
