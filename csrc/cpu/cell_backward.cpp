// Backpropagation through time for a recurrence whose cell is a program.
//
// A step multiplies dv_{t+1} by a block of columns of W_hh, writes the product to a slot, and runs
// the cell's backward program on it. The program computes du_t, dv_t, the gradients of the step's
// other operands and, for each state, the part of the gradient that reaches the previous step
// without W_hh. If the step resets a row, the gradients of the states before it become those of the
// reset states. The rest is as in backward.cpp: du and dv exist for two chunks of steps at a time,
// and reductions.h computes the products over many rows from them.
//
// A step with further products has a phase for each, the last product first: after it, dv of the
// product before is complete, which the next phase multiplies. The yielded values of forward are
// computed again, for the gradient of W_hh.
#include <functional>

#include "cpu/cell_recurrence.h"
#include "cpu/reductions.h"
#include "cpu/reset_gradients.h"

namespace rnn_ext::cpu {
namespace {

template <class S, class O>
class CellBackward {
  using T = Arithmetic<S>;
  using Rows = RowGradients<T, O>;
  static constexpr bool rounds = !std::is_same_v<O, T>;  // du and dv, for all but the recurrence

 public:
  CellBackward(const CellBackwardTask<S>& task, const Kernels<S, O>& kernels, const Plan& plan)
      : p_(task.problem),
        cell_(task.cell),
        g_(task.gradients),
        cell_gradients_(task.cell_gradients),
        program_(*task.cell.program),
        kernels_(kernels),
        columns_(program_.gates * p_.hidden_size),
        parameter_columns_(wants_parameters() ? program_.parameters * p_.hidden_size : 0),
        chunk_rows_(gradient_rows(columns_)),
        rows_(std::min(std::max(chunk_rows_, p_.steps.batch), p_.steps.total_rows())),
        places_(program_, program_.backward_slots + 1),
        operands_(1, OperandTable<S>(places_, p_.steps)),
        grad_parameters_(parameter_columns_),
        zeros_(p_.hidden_size),
        stored_zeros_(p_.hidden_size),
        reductions_(p_, g_, program_.products, !program_.merged, rows_, kernels, cell_.resets),
        reset_gradients_(p_, cell_, cell_gradients_, kernels) {
    for (int parity = 0; parity < 2; ++parity) {
      dv_[parity] = Buffer<T>(rows_ * columns_);
      du_[parity] = program_.merged ? dv_[parity] : Buffer<T>(rows_ * columns_);
      parameter_rows_[parity] = Buffer<T>(rows_ * parameter_columns_);
    }
    if (rounds) {
      rounded_dv_ = Buffer<O>(rows_ * columns_);
      rounded_du_ = program_.merged ? rounded_dv_ : Buffer<O>(rows_ * columns_);
    }
    // The last step's first phase multiplies nothing: with one step and phase, W_hh is used once,
    // for the gradient of hx.
    const bool is_unpacked =
        reads_in_place(kernels, p_.steps.count, p_.steps.batch) ||
        (program_.products.size() == 1 && is_used_once(p_.steps.count, columns_ * p_.hidden_size));
    std::int64_t row = 0;
    for (const int gates : program_.products) {
      const std::int64_t rows = gates * p_.hidden_size;
      phases_.push_back({row, rows,
                         TileRunner<S, O>(kernels, 1, places_.slots(), p_.steps.batch, plan),
                         Buffer<T>(is_unpacked ? 0 : packed_size(kernels, p_.hidden_size, rows))});
      if (row > 0) {
        yielded_.push_back(Buffer<S>(g_.weight_hh ? rows_ * p_.hidden_size : 0));
      }
      row += rows;
    }
    const std::int64_t size = p_.steps.batch * p_.hidden_size;
    for (int i = 0; i < program_.passed; ++i) {
      passed_.push_back(Buffer<T>(size));
    }
    for (int s = 0; s < program_.states; ++s) {
      const bool is_carried = Program::stores(program_.backward, Memory::grad_state, s);
      carried_.push_back(Buffer<T>(is_carried ? 2 * size : 0));
      final_.push_back(Buffer<T>(is_widened<S> && given_final(s) ? size : 0));
      const bool is_read = Program::loads(program_.backward, Memory::state, s);
      previous_.push_back(Buffer<S>(cell_.resets && is_read ? size : 0));
    }
    std::fill_n(zeros_.data(), p_.hidden_size, T{0});
    std::fill_n(stored_zeros_.data(), p_.hidden_size, S{});
    set_operands(operands_[0]);
    set_chunk(operands_[0], 0, 0);
    for (std::size_t i = 0; i < phases_.size(); ++i) {
      phases_[product_of(i)].tiles.link(program_.backward[i], operands_[0]);
    }
    operands_.resize(plan.threads, operands_[0]);
  }

  void run(const Team::Member& member, StepShare& share) const {
    const Range columns = column_share(kernels_, p_.hidden_size, member);
    for (const Phase& phase : phases_) {
      if (phase.weight_hh.data() && !columns.empty()) {
        kernels_.pack(p_.weight_hh.part(phase.first, columns.begin), columns.size(), phase.rows,
                      phase.weight_hh.data() + columns.begin * phase.rows, phase.rows, 0);
      }
    }
    reductions_.pack(member);
    member.barrier();
    Pass pass{*this, member, share, operands_[member.rank()]};
    run_steps(p_.steps, p_.order().reversed(), chunk_rows_, share, pass);
    reductions_.finish(member);
    store_parameters(member);
    reset_gradients_.store(share);
  }

 private:
  // A product of a step with rows of W_hh, transposed, and the code after it.
  struct Phase {
    std::int64_t first;  // row of W_hh, column of dv
    std::int64_t rows;
    TileRunner<S, O> tiles;
    Buffer<T> weight_hh;  // packed; without memory if it is not
  };

  // The product with which a phase starts: that of the later step, then from the last one on.
  std::size_t product_of(std::size_t phase) const {
    return phase == 0 ? 0 : phases_.size() - phase;
  }

  // One member's loop over the steps, from the last.
  struct Pass {
    const CellBackward& b;
    const Team::Member& member;
    const StepShare& share;
    OperandTable<S>& operands;
    Rows dv = {};                // of the chunk
    Matrix<const T> later = {};  // dv of the previously processed step
    Product<S> product = {};     // the fields that the products of all steps share
    std::int64_t first = 0;      // row of the chunk
    int chunk_parity = 0;
    int turn = 0;
    bool accumulate = false;

    void begin(const Chunk& chunk) {
      first = b.p_.steps.offset(chunk.first);
      dv = b.rows_of(b.dv_[chunk_parity], b.rounded_dv_);
      b.set_chunk(operands, first, chunk_parity);
    }

    void step(std::int64_t t, Range carried, Range ending, Range starting) {
      const Matrix<const T> own = dv.values.part(b.p_.steps.offset(t) - first, 0);
      for (std::size_t i = 0; i < b.phases_.size(); ++i) {
        const Phase& phase = b.phases_[b.product_of(i)];
        if (i > 0) {
          share.group.barrier();  // dv of the product before is complete for all units
        }
        const auto advance = [&](Range rows, bool ends, bool starts) {
          if (!rows.empty()) {
            set_operands(t, rows, ends, starts);
            i == 0 ? multiply_later(phase, t, rows, ends) : multiply_own(phase, rows, own);
          }
        };
        advance(carried.below(starting.begin), false, false);
        advance(carried.from(starting.begin), false, true);
        advance(ending.below(starting.begin), true, false);
        advance(ending.from(starting.begin), true, true);
      }
      if (b.cell_.resets) {
        b.cut_states(t, starting, share.columns, turn);
      }
      b.store_initial(starting, share.columns, turn);
      later = own;
      turn ^= 1;
    }

    // Of rows of step t: their last one or not, and their first one or not.
    void set_operands(std::int64_t t, Range rows, bool ends, bool starts) {
      operands.move_to(t, b.p_.order().previous(t), turn);
      if (b.cell_.resets && !ends) {
        b.cut_states(b.p_.order().next(t), rows, share.columns, 1 - turn);
      }
      for (int s = 1; s < b.program_.states && ends; ++s) {
        operands.put(Memory::grad_next_state, s, b.final_gradient(s, rows, share.columns));
      }
      for (int s = 0; s < b.program_.states && starts; ++s) {
        operands.put(Memory::state, s, b.initial(s));
      }
      if (b.cell_.resets) {
        b.replace_states(t, rows, share.columns, starts, operands);
      }
    }

    // The gradient of y: W_hhᵀ dv of the next step, the part that reaches it without W_hh, and the
    // gradient of the output.
    void multiply_later(const Phase& phase, std::int64_t t, Range rows, bool ends) {
      product.inner = ends ? 0 : phase.rows;
      const Matrix<const T> carried =
          ends ? b.final_gradient(0, rows, share.columns) : b.carried(0, 1 - turn);
      const Matrix<const S> seed = b.seed() ? b.seed().at(b.p_.steps, t) : Matrix<const S>{};
      const std::int64_t next = b.p_.order().next(t);
      const bool cuts = !ends && b.cell_.resets.any(next, rows);
      const auto multiply = [&](Range r, Range units) {
        b.multiply(phase, product, r, units, later, carried, cuts ? Matrix<const S>{} : seed);
        if (cuts) {
          const Matrix<T> gradient{product.c, product.c_stride, 1};
          b.reset_gradients_.cut(0, next, r, units, gradient);
          add(seed ? seed.part(r.begin, units.begin) : seed, r.size(), units.size(), gradient);
        }
      };
      phase.tiles.run(product, rows, share.columns, operands, member, multiply, !cuts);
    }

    // The gradient of the yielded value: W_hhᵀ dv of the product that multiplied it.
    void multiply_own(const Phase& phase, Range rows, const Matrix<const T>& own) {
      product.inner = phase.rows;
      const auto multiply = [&](Range r, Range units) {
        b.multiply(phase, product, r, units, own.part(0, phase.first), {}, {});
      };
      phase.tiles.run(product, rows, share.columns, operands, member, multiply);
    }

    static void add(const Matrix<const S>& m, std::int64_t rows, std::int64_t columns,
                    const Matrix<T>& target) {
      for (std::int64_t r = 0; r < rows && m; ++r) {
        for (std::int64_t c = 0; c < columns; ++c) {
          target.row(r)[c] += static_cast<T>(m.row(r)[c]);
        }
      }
    }

    void end(const Chunk& chunk, bool is_last) {
      member.barrier();
      if (!b.cell_.resets) {
        b.reductions_.initial_gradient(chunk, dv, true, member,
                                       [&](Range columns) { return b.recurrent_product(columns); });
      } else if (is_last) {
        b.store_first(later, b.carried(0, 1 - turn), share, member);
      }
      const Rows du = b.rows_of(b.du_[chunk_parity], b.rounded_du_);
      b.reductions_.run(chunk, du, dv, b.yielded_, accumulate, member);
      b.add_parameters(chunk, as_rows(b.parameter_rows_[chunk_parity], b.parameter_columns_),
                       accumulate, member);
      chunk_parity ^= 1;
      accumulate = true;
    }
  };

  bool wants_parameters() const {
    return std::any_of(cell_gradients_.parameters.begin(), cell_gradients_.parameters.end(),
                       [](const Matrix<S>& m) { return static_cast<bool>(m); });
  }

  void set_operands(OperandTable<S>& operands) const {
    for (int i = 0; i < program_.parameters; ++i) {
      operands.set(Memory::parameter, i, cell_.parameters[i]);
    }
    for (int i = 0; i < program_.inputs; ++i) {
      operands.set(Memory::input, i, cell_.inputs[i]);
      operands.set(Memory::grad_input, i, cell_gradients_.inputs[i]);
    }
    for (int i = 0; i < program_.saved; ++i) {
      operands.set(Memory::saved, i, cell_.saved[i]);
    }
    for (int i = 0; i < program_.passed; ++i) {
      operands.set(Memory::passed, i, as_rows(passed_[i], p_.hidden_size));
    }
    for (int s = 0; s < program_.states; ++s) {
      operands.set(Memory::state, s, sequence(s), When::previous);
      operands.set(Memory::next_state, s, sequence(s));
      if (s > 0 || !seed()) {
        operands.set(Places::Second::outer_gradient, s, outer_gradient(s));
      }
      if (carried_[s].data()) {
        const Sequence<T> turns{carried_[s].data(), p_.steps.batch * p_.hidden_size, p_.hidden_size,
                                1};
        operands.set(Memory::grad_next_state, s, turns, When::last_turn);
        operands.set(Memory::grad_state, s, turns, When::turn);
      } else {
        operands.set(Memory::grad_next_state, s, zeros());
      }
    }
  }

  // The results of a chunk with this first row.
  void set_chunk(OperandTable<S>& operands, std::int64_t first, int parity) const {
    const auto set_at = [&]<class U, class Place>(Place place, int index, const Buffer<U>& rows,
                                                  std::int64_t columns, std::int64_t column) {
      if (rows.data()) {
        operands.set(place, index,
                     Sequence<U>{rows.data() - first * columns + column, p_.steps.batch * columns,
                                 columns, 1});
      }
    };
    const auto set = [&](auto place, int index, const auto& rows, std::int64_t columns) {
      set_at(place, index, rows, columns, index * p_.hidden_size);
    };
    for (int gate = 0; gate < program_.gates; ++gate) {
      set(Memory::grad_recurrent, gate, dv_[parity], columns_);
      set(Memory::grad_projection, gate, du_[parity], columns_);
      if constexpr (rounds) {
        set(Places::Second::rounded_recurrent, gate, rounded_dv_, columns_);
        if (!program_.merged) {
          set(Places::Second::rounded_projection, gate, rounded_du_, columns_);
        }
      }
    }
    for (int i = 0; i < program_.parameters; ++i) {
      set(Memory::grad_parameter, i, parameter_rows_[parity], parameter_columns_);
    }
    for (std::size_t i = 0; i < yielded_.size(); ++i) {
      set_at(Memory::yielded, static_cast<int>(i), yielded_[i], p_.hidden_size, 0);
    }
  }

  Rows rows_of(const Buffer<T>& values, const Buffer<O>& rounded) const {
    const Matrix<T> m = as_rows(values, columns_);
    if constexpr (rounds) {
      return {m, as_rows(rounded, columns_)};
    } else {
      return {m, m};
    }
  }

  Sequence<const S> outer_gradient(int state) const {
    return state == 0 ? g_.output : cell_gradients_.sequences[state - 1];
  }

  // The gradient of the output, if products add it.
  Sequence<const S> seed() const {
    return g_.output.column_stride == 1 ? g_.output : Sequence<const S>{};
  }

  // The gradient of the last value of a state, for these rows and columns.
  Matrix<const T> final_gradient(int state, Range rows, Range columns) const {
    const Matrix<const S> given = given_final(state);
    return given ? readable(kernels_, given, rows, columns, as_rows(final_[state], p_.hidden_size))
                 : zeros();
  }
  Matrix<const S> given_final(int state) const {
    return state == 0 ? g_.h_n : cell_gradients_.final_states[state - 1];
  }

  // The gradient of a state that a step wrote in this turn.
  Matrix<const T> carried(int state, int turn) const {
    const Matrix<T> left = in_turn(state, turn);
    return left ? left : zeros();
  }
  Matrix<T> in_turn(int state, int turn) const {
    const Matrix<T> turns = as_rows(carried_[state], p_.hidden_size);
    return turns ? turns.part(turn * p_.steps.batch, 0) : turns;
  }

  // Makes the code of step t read the states before it from copies, if it resets one of the rows.
  void replace_states(std::int64_t t, Range rows, Range columns, bool starts,
                      OperandTable<S>& operands) const {
    const bool any = cell_.resets.any(t, rows);
    for (int s = 0; s < program_.states && any; ++s) {
      if (!previous_[s].data()) {
        continue;
      }
      const Matrix<const S> before =
          starts ? initial(s) : sequence(s).at(p_.steps, p_.order().previous(t));
      const Matrix<S> copy = as_rows(previous_[s], p_.hidden_size);
      cell_.resets.template replace<S>(t, rows, columns, before,
                                       cell_.resets.states[s].at(p_.steps, t), copy);
      operands.put(Memory::state, s, copy);
    }
  }

  // Moves the reset rows' gradients of the states from 1 on that a step wrote in this turn.
  void cut_states(std::int64_t t, Range rows, Range columns, int turn) const {
    for (int s = 1; s < program_.states; ++s) {
      if (const Matrix<T> left = in_turn(s, turn)) {
        reset_gradients_.cut(s, t, rows, columns, left.part(rows.begin, columns.begin));
      }
    }
  }

  Matrix<const T> zeros() const { return {zeros_.data(), 0, 1}; }

  Matrix<const S> initial(int state) const {
    const Matrix<const S> given = state == 0 ? p_.hx : cell_.initial[state - 1];
    return given ? given : Matrix<const S>{stored_zeros_.data(), 0, 1};
  }

  Sequence<S> sequence(int state) const {
    return state == 0 ? p_.output : cell_.sequences[state - 1];
  }

  // The product for the gradient of y, with these columns of W_hh.
  Product<S> recurrent_product(Range columns) const {
    const Phase& phase = phases_.front();
    return product_by(p_.weight_hh, columns, phase.weight_hh.from(columns.begin * phase.rows));
  }

  // Computes W_hhᵀ multiplied + carried + seed.
  void multiply(const Phase& phase, Product<S>& product, Range rows, Range units,
                const Matrix<const T>& multiplied, const Matrix<const T>& carried,
                const Matrix<const S>& seed) const {
    product.columns = units.size();
    product.a = multiplied.row(rows.begin);
    product.a_stride = multiplied.row_stride;
    product.b = phase.weight_hh.from(units.begin * phase.rows);
    product.unpacked = product.b ? Matrix<const S>{} : p_.weight_hh.part(phase.first, units.begin);
    product.init = carried ? carried.row(rows.begin) + units.begin : nullptr;
    product.init_stride = carried.row_stride;
    product.seed = seed ? seed.row(rows.begin) + units.begin : nullptr;
    product.seed_stride = seed.row_stride;
    kernels_.product(product);
  }

  // Writes the gradients of the initial states, for the rows whose sequence starts at the current
  // step; that of y without its product, which the reductions add.
  void store_initial(Range rows, Range columns, int turn) const {
    for (int s = 0; s < program_.states && !rows.empty(); ++s) {
      const Matrix<const T> gradient = carried(s, turn).part(rows.begin, columns.begin);
      if (s == 0 && g_.hx) {
        const Matrix<T> target = reductions_.initial_target();
        for (std::int64_t r = 0; r < rows.size(); ++r) {
          std::copy_n(gradient.row(r), columns.size(), target.row(rows.begin + r) + columns.begin);
        }
      } else if (s > 0 && cell_gradients_.initial[s - 1]) {
        kernels_.narrow(gradient, rows.size(), columns.size(),
                        cell_gradients_.initial[s - 1].part(rows.begin, columns.begin));
      }
    }
  }

  // With resets, computes the gradient of y before the first step, from its dv and the part without
  // W_hh: that of the initial y, or of a row's reset state.
  void store_first(const Matrix<const T>& dv, const Matrix<const T>& carried,
                   const StepShare& share, const Team::Member& member) const {
    if (!g_.hx && !reset_gradients_.wants(0)) {
      return;
    }
    const Phase& phase = phases_.front();
    Product<S> product;
    product.inner = phase.rows;
    phase.tiles.for_each_tile(
        share.rows, share.columns, member, [&](Range r, Range units, T* slots) {
          const Matrix<T> gradient{slots, phase.tiles.row_size(units.size()), 1};
          product.rows = r.size();
          product.c = gradient.data;
          product.c_stride = gradient.row_stride;
          multiply(phase, product, r, units, dv, carried, {});
          reset_gradients_.cut(0, p_.order().step(0), r, units, gradient);
          if (g_.hx) {
            kernels_.narrow(gradient, r.size(), units.size(), g_.hx.part(r.begin, units.begin));
          }
        });
  }

  // A member owns columns of the parameters' gradients, and adds up the chunk's rows in order.
  void add_parameters(const Chunk& chunk, Matrix<T> rows, bool accumulate,
                      const Team::Member& member) const {
    const Range own = column_share(kernels_, parameter_columns_, member);
    if (!own.empty()) {
      kernels_.column_sums(rows.part(0, own.begin), chunk.rows, own.size(),
                           grad_parameters_.data() + own.begin, accumulate);
    }
  }

  void store_parameters(const Team::Member& member) const {
    member.barrier();
    const Range own = member.share(parameter_columns_ > 0 ? program_.parameters : 0);
    for (std::int64_t i = own.begin; i < own.end; ++i) {
      if (const Matrix<S> target = cell_gradients_.parameters[i]) {
        kernels_.narrow({grad_parameters_.data() + i * p_.hidden_size, 0, 1}, 1, p_.hidden_size,
                        target);
      }
    }
  }

  const Problem<S>& p_;
  const CellOperands<S>& cell_;
  const Gradients<S>& g_;
  const CellGradients<S>& cell_gradients_;
  const Program& program_;
  const Kernels<S, O>& kernels_;
  std::int64_t columns_;            // of du and of dv
  std::int64_t parameter_columns_;  // of the parameters' gradients, side by side
  std::int64_t chunk_rows_;
  std::int64_t rows_;  // maximum of a chunk
  Places places_;
  mutable std::vector<OperandTable<S>> operands_;  // of each member, which must not allocate
  std::vector<Phase> phases_;                      // by product
  Buffer<T> dv_[2];
  Buffer<T> du_[2];  // the memory of dv_ if the cell is merged
  Buffer<O> rounded_dv_;
  Buffer<O> rounded_du_;
  Buffer<T> parameter_rows_[2];
  std::vector<Buffer<S>> yielded_;   // of a chunk's rows, if they are needed
  std::vector<Buffer<T>> passed_;    // from one phase to a later one
  std::vector<Buffer<T>> carried_;   // two for each state, or none
  std::vector<Buffer<T>> final_;     // copies of the gradients of the last values
  std::vector<Buffer<S>> previous_;  // states before a step that resets a row
  Buffer<T> grad_parameters_;
  Buffer<T> zeros_;
  Buffer<S> stored_zeros_;
  Reductions<S, O> reductions_;
  ResetGradients<S, O> reset_gradients_;
};

}  // namespace

template <class S, class O>
void run_cell_backward(const std::vector<CellBackwardTask<S>>& tasks, const Kernels<S, O>& kernels,
                       int threads, ParallelFor parallel_for) {
  const Scratch::Scope scratch;
  const CellBackwardTask<S>& task = tasks.front();
  const Problem<S>& p = task.problem;
  // The directions add to the same dx one after the other.
  const bool independent = !task.gradients.input;
  const Plan plan =
      cell_plan_of(tasks, independent, kernels, 0, row_products(p, task.gradients), threads);
  run_directions<CellBackward<S, O>>(tasks, plan, kernels, parallel_for,
                                     [](const Team::Member&) {});
}

template void run_cell_backward(const std::vector<CellBackwardTask<float>>&, const Kernels<float>&,
                                int, ParallelFor);
template void run_cell_backward(const std::vector<CellBackwardTask<double>>&,
                                const Kernels<double>&, int, ParallelFor);
template void run_cell_backward(const std::vector<CellBackwardTask<BFloat16>>&,
                                const Kernels<BFloat16>&, int, ParallelFor);
template void run_cell_backward(const std::vector<CellBackwardTask<BFloat16>>&,
                                const Kernels<BFloat16, BFloat16>&, int, ParallelFor);
template void run_cell_backward(const std::vector<CellBackwardTask<Half>>&, const Kernels<Half>&,
                                int, ParallelFor);

}  // namespace rnn_ext::cpu
