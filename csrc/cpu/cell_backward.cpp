// Backpropagation through time for a recurrence whose cell is a program.
//
// A step multiplies dv_{t+1} by a block of columns of W_hh into a slot, and runs the cell's
// backward program on it, which gives du_t, dv_t, the gradients of the step's other operands, and
// for each state what goes to the step before without passing W_hh. The rest is as in backward.cpp:
// du and dv exist for two chunks of steps at a time, and reductions.h makes of them what is a
// product over many rows.
#include <functional>

#include "cpu/cell_recurrence.h"
#include "cpu/reductions.h"

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
        tiles_(kernels, 1, places_.slots(), Linker<S>(access()).link(program_.backward),
               plan.threads),
        weight_hh_(reads_in_place(kernels, p_.steps.count, p_.steps.batch)
                       ? 0
                       : packed_size(kernels, p_.hidden_size, columns_)),
        grad_parameters_(parameter_columns_),
        final_(is_widened<S> && g_.h_n ? p_.steps.batch * p_.hidden_size : 0),
        zeros_(p_.hidden_size),
        stored_zeros_(p_.hidden_size),
        reductions_(p_, g_, program_.gates, !program_.merged, rows_, kernels) {
    for (int parity = 0; parity < 2; ++parity) {
      dv_[parity] = Buffer<T>(rows_ * columns_);
      du_[parity] = program_.merged ? dv_[parity] : Buffer<T>(rows_ * columns_);
      parameter_rows_[parity] = Buffer<T>(rows_ * parameter_columns_);
    }
    if (rounds) {
      rounded_dv_ = Buffer<O>(rows_ * columns_);
      rounded_du_ = program_.merged ? rounded_dv_ : Buffer<O>(rows_ * columns_);
    }
    for (int s = 0; s < program_.states; ++s) {
      const bool is_carried = Program::stores(program_.backward, Memory::grad_state, s);
      for (int parity = 0; parity < 2; ++parity) {
        carried_.push_back(Buffer<T>(is_carried ? p_.steps.batch * p_.hidden_size : 0));
      }
    }
    std::fill_n(zeros_.data(), p_.hidden_size, T{0});
    std::fill_n(stored_zeros_.data(), p_.hidden_size, S{});
  }

  void run(const Team::Member& member, const StepShare& share) const {
    const Range columns = column_share(kernels_, p_.hidden_size, member);
    if (weight_hh_.data() && !columns.empty()) {
      kernels_.pack(p_.weight_hh.part(0, columns.begin), columns.size(), columns_,
                    weight_hh_.data() + columns.begin * columns_, columns_, 0);
    }
    reductions_.pack(member);
    member.barrier();
    Pass pass{*this, member, share, OperandTable<Operand<S>>(places_)};
    for (int i = 0; i < program_.parameters; ++i) {
      pass.operands.set(Memory::parameter, i, cell_.parameters[i]);
    }
    run_steps(p_.steps, p_.order().reversed(), chunk_rows_, share, pass);
    reductions_.finish(member);
    store_parameters(member);
  }

 private:
  // The gradient of y after a step is a sum of W_hhᵀ dv of the next step and of these. Null: zeros.
  struct OutputGradient {
    Matrix<const T> later;    // dv of the next step
    Matrix<const T> carried;  // from the next step without W_hh, or of the last y
    Matrix<const S> seed;     // of y itself
  };

  // One member's way through the steps, from the last.
  struct Pass {
    const CellBackward& b;
    const Team::Member& member;
    const StepShare& share;
    OperandTable<Operand<S>> operands;
    Rows du = {}, dv = {};       // of the chunk
    Matrix<T> parameters = {};   // likewise
    Matrix<const T> later = {};  // dv of the step processed before
    Product<S> product = {};     // what the products of all steps have in common
    std::int64_t first = 0;      // row of the chunk
    int chunk_parity = 0;
    int parity = 0;
    bool accumulate = false;

    void begin(const Chunk& chunk) {
      first = b.p_.steps.offset(chunk.first);
      dv = b.rows_of(b.dv_[chunk_parity], b.rounded_dv_);
      du = b.rows_of(b.du_[chunk_parity], b.rounded_du_);
      parameters = as_rows(b.parameter_rows_[chunk_parity], b.parameter_columns_);
    }

    void step(std::int64_t t, Range carried, Range ending, Range starting) {
      const std::int64_t row = b.p_.steps.offset(t) - first;
      const Rows step_dv = dv.from(row);
      b.set_operands(operands, t, du.from(row), step_dv, parameters.part(row, 0), parity);
      const Matrix<const S> seed = b.seed() ? b.seed().at(b.p_.steps, t) : Matrix<const S>{};
      for (int s = 1; s < b.program_.states; ++s) {
        operands.set(Memory::grad_next_state, s, b.carried(s, 1 - parity));
      }
      advance(t, carried, starting.begin, {later, b.carried_output(1 - parity), seed});
      for (int s = 1; s < b.program_.states; ++s) {
        operands.set(Memory::grad_next_state, s, b.final_gradient(s));
      }
      advance(t, ending, starting.begin, {{}, b.final_output_gradient(ending, share.columns), seed});
      b.store_initial(starting, share.columns, parity);
      later = step_dv.values;
      parity ^= 1;
    }

    // Rows from `start` on have their first step at t.
    void advance(std::int64_t t, Range rows, std::int64_t start, const OutputGradient& gradient) {
      const Range continuing = rows.below(start), starting = rows.from(start);
      if (!continuing.empty()) {
        b.set_previous(operands, b.p_.order().previous(t));
        b.advance(continuing, share.columns, gradient, operands, member, product);
      }
      if (!starting.empty()) {
        b.set_initial(operands);
        b.advance(starting, share.columns, gradient, operands, member, product);
      }
    }

    void end(const Chunk& chunk, bool) {
      member.barrier();
      b.reductions_.initial_gradient(chunk, dv, true, member,
                                     [&](Range columns) { return b.recurrent_product(columns); });
      b.reductions_.run(chunk, du, dv, accumulate, member);
      b.add_parameters(chunk, parameters, accumulate, member);
      chunk_parity ^= 1;
      accumulate = true;
    }
  };

  bool wants_parameters() const {
    return std::any_of(cell_gradients_.parameters.begin(), cell_gradients_.parameters.end(),
                       [](const Matrix<S>& m) { return static_cast<bool>(m); });
  }

  OperandTable<Access<S>> access() const {
    OperandTable<Access<S>> access(places_);
    constexpr auto in_place = Access<S>::in_place();
    for (int i = 0; i < program_.parameters; ++i) {
      access.set(Memory::parameter, i, cell_.parameters[i]);
      if (parameter_columns_ > 0) {
        access.set(Memory::grad_parameter, i, in_place);
      }
    }
    for (int i = 0; i < program_.inputs; ++i) {
      access.set(Memory::input, i, cell_.inputs[i]);
      access.set(Memory::grad_input, i, cell_gradients_.inputs[i]);
    }
    for (int i = 0; i < program_.saved; ++i) {
      access.set(Memory::saved, i, cell_.saved[i]);
    }
    for (int s = 0; s < program_.states; ++s) {
      access.set(Memory::state, s, sequence(s));
      access.set(Memory::next_state, s, sequence(s));
      access.set(Memory::grad_next_state, s, Access<S>{true, !is_widened<S>});
      access.set(Memory::grad_state, s, in_place);
      if (s > 0 || !seed()) {
        access.set(Places::Second::outer_gradient, s, outer_gradient(s));
      }
    }
    for (int gate = 0; gate < program_.gates; ++gate) {
      access.set(Memory::grad_recurrent, gate, in_place);
      access.set(Memory::grad_projection, gate, in_place);
      if constexpr (rounds) {
        access.set(Places::Second::rounded_recurrent, gate, Access<S>{true, false});
        access.set(Places::Second::rounded_projection, gate, Access<S>{!program_.merged, false});
      }
    }
    return access;
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

  // That of y, where products add it.
  Sequence<const S> seed() const {
    return g_.output.column_stride == 1 ? g_.output : Sequence<const S>{};
  }

  // The gradient of the last value of a state from 1 on, or zeros; and of y, or null.
  Matrix<const S> final_gradient(int state) const {
    const Matrix<const S> given = cell_gradients_.final_states[state - 1];
    return given ? given : stored_zeros();
  }
  Matrix<const T> final_output_gradient(Range rows, Range columns) const {
    return g_.h_n ? readable(kernels_, g_.h_n, rows, columns, as_rows(final_, p_.hidden_size))
                  : Matrix<const T>{};
  }

  // What the step processed before left for a state from 1 on, or zeros; and for y, or null.
  Matrix<const T> carried(int state, int parity) const {
    const Matrix<const T> m = as_rows(carried_[2 * state + parity], p_.hidden_size);
    return m ? m : Matrix<const T>{zeros_.data(), 0, 1};
  }
  Matrix<const T> carried_output(int parity) const {
    return as_rows(carried_[parity], p_.hidden_size);
  }

  Matrix<const S> stored_zeros() const { return {stored_zeros_.data(), 0, 1}; }

  void set_operands(OperandTable<Operand<S>>& operands, std::int64_t t, const Rows& du, const Rows& dv,
                    Matrix<T> parameters, int parity) const {
    for (int i = 0; i < program_.inputs; ++i) {
      operands.set(Memory::input, i, cell_.inputs[i].at(p_.steps, t));
      if (cell_gradients_.inputs[i]) {
        operands.set(Memory::grad_input, i, cell_gradients_.inputs[i].at(p_.steps, t));
      }
    }
    for (int i = 0; i < program_.saved; ++i) {
      operands.set(Memory::saved, i, cell_.saved[i].at(p_.steps, t));
    }
    for (int s = 0; s < program_.states; ++s) {
      if (const Sequence<S> kept = sequence(s)) {
        operands.set(Memory::next_state, s, kept.at(p_.steps, t));
      }
      if (const Sequence<const S> outer = outer_gradient(s)) {
        operands.set(Places::Second::outer_gradient, s, outer.at(p_.steps, t));
      }
      operands.set(Memory::grad_state, s, as_rows(carried_[2 * s + parity], p_.hidden_size));
    }
    for (int gate = 0; gate < program_.gates; ++gate) {
      const std::int64_t column = gate * p_.hidden_size;
      operands.set(Memory::grad_recurrent, gate, dv.values.part(0, column));
      operands.set(Memory::grad_projection, gate, du.values.part(0, column));
      if constexpr (rounds) {
        operands.set(Places::Second::rounded_recurrent, gate, dv.operand.part(0, column));
        operands.set(Places::Second::rounded_projection, gate, du.operand.part(0, column));
      }
    }
    for (int i = 0; i < program_.parameters && parameter_columns_ > 0; ++i) {
      operands.set(Memory::grad_parameter, i, parameters.part(0, i * p_.hidden_size));
    }
  }

  // The states before a step: those of `previous`, or the initial ones.
  void set_previous(OperandTable<Operand<S>>& operands, std::int64_t previous) const {
    for (int s = 0; s < program_.states; ++s) {
      if (const Sequence<S> kept = sequence(s)) {
        operands.set(Memory::state, s, kept.at(p_.steps, previous));
      }
    }
  }
  void set_initial(OperandTable<Operand<S>>& operands) const {
    for (int s = 0; s < program_.states; ++s) {
      const Matrix<const S> given = s == 0 ? p_.hx : cell_.initial[s - 1];
      operands.set(Memory::state, s, given ? given : stored_zeros());
    }
  }

  Sequence<S> sequence(int state) const {
    return state == 0 ? p_.output : cell_.sequences[state - 1];
  }

  // A product by these columns of W_hh.
  Product<S> recurrent_product(Range columns) const {
    return product_by(p_.weight_hh, columns, weight_hh_.from(columns.begin * columns_));
  }

  // Some rows of a step.
  void advance(Range rows, Range columns, const OutputGradient& gradient,
               const OperandTable<Operand<S>>& operands, const Team::Member& member,
               Product<S>& product) const {
    tiles_.run(rows, columns, operands, member, [&](Range r, Range units, T* slots) {
      product.columns = units.size();
      product.b = weight_hh_.from(units.begin * columns_);
      product.unpacked = product.b ? Matrix<const S>{} : p_.weight_hh.part(0, units.begin);
      const auto at = [&](auto m) { return m ? m.row(r.begin) + units.begin : nullptr; };
      product.rows = r.size();
      product.inner = gradient.later ? columns_ : 0;
      product.a = gradient.later ? gradient.later.row(r.begin) : nullptr;
      product.a_stride = gradient.later.row_stride;
      product.init = at(gradient.carried);
      product.init_stride = gradient.carried.row_stride;
      product.seed = at(gradient.seed);
      product.seed_stride = gradient.seed.row_stride;
      product.c = slots;
      product.c_stride = tiles_.row_size(units.size());
      kernels_.product(product);
    });
  }

  // Of the rows whose sequence starts at the step at hand, the gradients of the initial states;
  // that of y without its product, which the reductions add.
  void store_initial(Range rows, Range columns, int parity) const {
    for (int s = 0; s < program_.states && !rows.empty(); ++s) {
      const Matrix<const T> gradient = carried(s, parity).part(rows.begin, columns.begin);
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
  std::int64_t rows_;  // that a chunk has at most
  Places places_;
  TileRunner<S, O> tiles_;
  Buffer<T> weight_hh_;  // packed; without memory where the weight is read in place
  Buffer<T> dv_[2];
  Buffer<T> du_[2];  // the memory of dv_ where the cell is merged
  Buffer<O> rounded_dv_;
  Buffer<O> rounded_du_;
  Buffer<T> parameter_rows_[2];
  std::vector<Buffer<T>> carried_;  // two of each state, or none
  Buffer<T> grad_parameters_;
  Buffer<T> final_;  // the gradient of the last y
  Buffer<T> zeros_;
  Buffer<S> stored_zeros_;
  Reductions<S, O> reductions_;
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
  const Plan plan = plan_of(tasks, independent, kernels, 0, row_products(p, task.gradients),
                            threads, task.cell.program->gates);
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
