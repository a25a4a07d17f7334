// A whole pass over time in one launch, for states small enough that one block holds all of W_hh.
//
//   grid      (groups of a few batch rows, directions); blocks never wait for each other
//   block     each thread keeps the weights of some columns over a slice of the inner length, in
//             registers and, where those do not suffice, in shared memory; the states of the
//             block's rows are in shared memory
//   step      every thread multiplies its weights by the states, which it reads as broadcasts;
//             then the slices' sums are added and finished to the new states; two barriers
//   bound by  the latency of these phases; the other operands of step t + 1 are loaded while step t
//             is computed, and not used before
#include <iterator>
#include <utility>

#include "cuda/rules.cuh"

namespace rnn_ext::cuda {

template <class Rule, int shape_index>
__global__ void __launch_bounds__(persistent_shapes<typename Rule::T>[shape_index].threads, 1)
    persistent(const __grid_constant__ Directions<Rule> directions) {
  using T = typename Rule::T;
  using Operands = typename Rule::Operands;
  constexpr PersistentShape shape = persistent_shapes<T>[shape_index];
  constexpr int threads = shape.threads;
  constexpr int columns = shape.columns;
  constexpr int columns_per_thread = shape.columns_per_thread;
  constexpr int groups = shape.column_groups();
  constexpr int width = Lanes<T>::width;
  constexpr int state_values = shape.states();
  // A thread finishes the elements of a step that are in its own column, some rows apart.
  static_assert(threads % columns == 0);
  constexpr int block_rows = shape.rows;
  constexpr int rows_apart = threads / columns;
  constexpr int elements = (block_rows + rows_apart - 1) / rows_apart;
  static_assert(shape.slices() * shape.slice() == columns);
  static_assert(shape.inner_registers % width == 0 && shape.inner_shared % width == 0);

  const Rule& rule = directions.of[blockIdx.y];
  const std::int64_t hidden_size = rule.hidden_size;
  const std::int64_t first_row = std::int64_t{blockIdx.x} * shape.rows;
  const int thread = static_cast<int>(threadIdx.x);
  const int my_column = thread % groups;
  const int my_slice = thread / groups;
  const int my_inner = my_slice * shape.slice();
  T* const shared_weights = shared_memory<T>();
  T* const states = shared_weights + shape.shared_weights();
  T* const partial_sums = states + state_values;
  // The address of lane 0 of this thread's shared weights: neighboring threads read neighboring
  // lanes.
  const auto shared_weight = [&](int k, int c) {
    return shared_weights + ((k / width * columns_per_thread + c) * threads + thread) * width;
  };

  T weights[columns_per_thread][shape.inner_registers];
#pragma unroll
  for (int c = 0; c < columns_per_thread; ++c) {
    const int column = my_column + c * groups;
    const int size = static_cast<int>(hidden_size);
    const int existing = column < size ? size - my_inner : 0;
    const auto* const row = rule.weight + column * hidden_size + my_inner;
    const auto weight = [&](int k) { return k < existing ? widen(row[k]) : T{0}; };
#pragma unroll
    for (int k = 0; k < shape.inner_registers; ++k) {
      weights[c][k] = weight(k);
    }
    // One at a time: loading all weights at once would need as many registers.
#pragma unroll 1
    for (int k = 0; k < shape.inner_shared; ++k) {
      shared_weight(k, c)[k % width] = weight(shape.inner_registers + k);
    }
  }

  const int own_column = thread % columns;
  const int own_row = thread / columns;
  const bool has_column = own_column < hidden_size;
  // Calls f for each element of a step of `rows` that is this thread's to finish.
  const auto for_own = [&](std::int64_t rows, auto&& f) {
#pragma unroll
    for (int e = 0; e < elements; ++e) {
      const int row = own_row + e * rows_apart;
      if (has_column && row < block_rows && first_row + row < rows) {
        f(e, row * columns + own_column, first_row + row);
      }
    }
  };
  for (int at = thread; at < state_values; at += threads) {
    states[at] = 0;
  }
  for_own(rule.order.steps.batch,
          [&](int, int at, std::int64_t r) { states[at] = rule.initial(r, own_column); });

  const T constant = has_column ? rule.constant(own_column) : T{0};
  Operands operands[elements];
  Operands next_operands[elements] = {};
  const auto load_next = [&](std::int64_t i) {
    const std::int64_t t = rule.order.time(i);
    for_own(rule.rows(t),
            [&](int e, int, std::int64_t r) { next_operands[e] = rule.load(t, r, own_column); });
  };
  const std::int64_t count = rule.step_count();
  load_next(0);
  __syncthreads();
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t t = rule.order.time(i);
    const std::int64_t rows = rule.rows(t);
#pragma unroll
    for (int e = 0; e < elements; ++e) {
      operands[e] = next_operands[e];
    }
    if (i + 1 < count) {
      load_next(i + 1);
    }
    if (first_row >= rows) {
      continue;
    }

    T sums[shape.rows][columns_per_thread] = {};
    const auto add = [&](int r, int c, Lanes<T> h, const auto& w) {
#pragma unroll
      for (int lane = 0; lane < width; ++lane) {
        sums[r][c] += h.values[lane] * w[lane];
      }
    };
    const auto state = [&](int r, int k) {
      return Lanes<T>::load(states + r * columns + my_inner + k);
    };
#pragma unroll
    for (int k = 0; k < shape.inner_registers; k += width) {
#pragma unroll
      for (int r = 0; r < shape.rows; ++r) {
        const Lanes<T> h = state(r, k);
#pragma unroll
        for (int c = 0; c < columns_per_thread; ++c) {
          add(r, c, h, &weights[c][k]);
        }
      }
    }
#pragma unroll 2
    for (int k = 0; k < shape.inner_shared; k += width) {
#pragma unroll
      for (int c = 0; c < columns_per_thread; ++c) {
        const Lanes<T> w = Lanes<T>::load(shared_weight(k, c));
#pragma unroll
        for (int r = 0; r < shape.rows; ++r) {
          add(r, c, state(r, shape.inner_registers + k), w.values);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < shape.rows; ++r) {
#pragma unroll
      for (int c = 0; c < columns_per_thread; ++c) {
        partial_sums[(my_slice * shape.rows + r) * columns + my_column + c * groups] = sums[r][c];
      }
    }
    __syncthreads();
    for_own(rows, [&](int e, int at, std::int64_t r) {
      T sum = 0;
#pragma unroll
      for (int s = 0; s < shape.slices(); ++s) {
        sum += partial_sums[s * state_values + at];
      }
      const T state = rule.finish(t, r, own_column, constant, operands[e], sum);
      if (rule.keeps_state(t, r)) {
        states[at] = state;
      }
    });
    __syncthreads();
  }
}

namespace {

template <int shape_index, class Rule>
cudaError_t run(const Directions<Rule>& directions, unsigned direction_count, cudaStream_t stream) {
  using T = typename Rule::T;
  constexpr PersistentShape shape = persistent_shapes<T>[shape_index];
  const std::int64_t groups = ceil_div(directions.of[0].order.steps.batch, shape.rows);
  return launch(persistent<Rule, shape_index>, dim3(static_cast<unsigned>(groups), direction_count),
                shape.threads, shape.shared_values() * sizeof(T), stream, directions);
}

// Calls run<i> for the i that the plan selects.
template <class Rule, int... indices>
cudaError_t run_shape(int shape, std::integer_sequence<int, indices...>,
                      const Directions<Rule>& directions, unsigned count, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  ((shape == indices ? void(error = run<indices>(directions, count, stream)) : void()), ...);
  return error;
}

}  // namespace

template <class Pass>
cudaError_t run_persistent(const Plan& plan, Nonlinearity nonlinearity,
                           std::span<const Pass> passes, cudaStream_t stream) {
  return with_rules(nonlinearity, passes, [&]<class Rule>(const Directions<Rule>& directions) {
    constexpr int shapes = std::size(persistent_shapes<typename Rule::T>);
    return run_shape(plan.shape, std::make_integer_sequence<int, shapes>{}, directions,
                     static_cast<unsigned>(passes.size()), stream);
  });
}

#define RNN_EXT_INSTANTIATE(Pass)                                                       \
  template cudaError_t run_persistent(const Plan&, Nonlinearity, std::span<const Pass>, \
                                      cudaStream_t)
RNN_EXT_INSTANTIATE(ForwardPass<float>);
RNN_EXT_INSTANTIATE(ForwardPass<double>);
RNN_EXT_INSTANTIATE(ForwardPass<BFloat16>);
RNN_EXT_INSTANTIATE(ForwardPass<Half>);
RNN_EXT_INSTANTIATE(BackwardPass<float>);
RNN_EXT_INSTANTIATE(BackwardPass<double>);
RNN_EXT_INSTANTIATE(BackwardPass<BFloat16>);
RNN_EXT_INSTANTIATE(BackwardPass<Half>);
#undef RNN_EXT_INSTANTIATE

}  // namespace rnn_ext::cuda
