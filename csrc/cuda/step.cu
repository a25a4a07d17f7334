// One time step in one launch: product, bias and φ, or the same backward, for any size.
//
//   grid      (tiles of rows × columns of h_t, directions); the launch is the barrier over time
//   block     256 threads, one tile, in slabs of the inner length through shared memory; a thread
//             sums 4 × 4 elements over its slice of each slab
//   bound by  reading W_hh from the L2 cache once a step and row of tiles
#include <utility>

#include "cuda/rules.cuh"

namespace rnn_ext::cuda {

// A row of a slab in shared memory has a padding of one access, so that threads which read one
// column of it from several rows use different banks.
template <class T>
constexpr int padding = Lanes<T>::width;

template <class Rule, int shape_index>
__global__ void __launch_bounds__(StepShape::threads, 2)
    step(const __grid_constant__ Directions<Rule> directions, std::int64_t i) {
  using S = typename Rule::Stored;
  using T = typename Rule::T;
  constexpr StepShape shape = step_shapes[shape_index];
  constexpr int rows_per_thread = StepShape::rows_per_thread;
  constexpr int columns_per_thread = StepShape::columns_per_thread;
  constexpr int row_threads = shape.rows / rows_per_thread;
  constexpr int column_threads = shape.columns / columns_per_thread;
  constexpr int slice = shape.slab / shape.slices;
  constexpr int stride = shape.slab + padding<T>;
  constexpr int width = Lanes<T>::width;
  static_assert(row_threads * column_threads * shape.slices == StepShape::threads);
  static_assert(slice % width == 0);
  static_assert(shape.shared_values(padding<T>) * sizeof(T) <= granted_shared_bytes);

  const Rule& rule = directions.of[blockIdx.y];
  const std::int64_t hidden_size = rule.hidden_size;
  const std::int64_t t = rule.order.time(i);
  const std::int64_t rows = rule.rows(t);
  const auto column_tiles = static_cast<unsigned>(ceil_div(hidden_size, shape.columns));
  const std::int64_t first_row = std::int64_t{blockIdx.x / column_tiles} * shape.rows;
  const std::int64_t first_column = std::int64_t{blockIdx.x % column_tiles} * shape.columns;
  if (first_row >= rows) {
    return;
  }

  const int thread = static_cast<int>(threadIdx.x);
  const int my_column = thread % column_threads;
  const int my_row = thread / column_threads % row_threads;
  const int my_slice = thread / (column_threads * row_threads);
  T* const states = shared_memory<T>();
  T* const weights = states + shape.rows * stride;

  T sums[rows_per_thread][columns_per_thread] = {};
  for (std::int64_t start = 0; start < hidden_size; start += shape.slab) {
    for (int e = thread; e < shape.rows * shape.slab; e += StepShape::threads) {
      const int r = e / shape.slab;
      const int k = e % shape.slab;
      const bool exists = first_row + r < rows && start + k < hidden_size;
      const S* const source = exists ? rule.source(t, first_row + r) : nullptr;
      states[r * stride + k] = source ? widen(source[start + k]) : T{0};
    }
    for (int e = thread; e < shape.columns * shape.slab; e += StepShape::threads) {
      const int c = e / shape.slab;
      const int k = e % shape.slab;
      const bool exists = first_column + c < hidden_size && start + k < hidden_size;
      weights[c * stride + k] =
          exists ? widen(rule.weight[(first_column + c) * hidden_size + start + k]) : T{0};
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < slice; k += width) {
      Lanes<T> a[rows_per_thread];
      Lanes<T> b[columns_per_thread];
#pragma unroll
      for (int r = 0; r < rows_per_thread; ++r) {
        a[r] = Lanes<T>::load(states + (my_row + r * row_threads) * stride + my_slice * slice + k);
      }
#pragma unroll
      for (int c = 0; c < columns_per_thread; ++c) {
        b[c] = Lanes<T>::load(weights + (my_column + c * column_threads) * stride +
                              my_slice * slice + k);
      }
#pragma unroll
      for (int r = 0; r < rows_per_thread; ++r) {
#pragma unroll
        for (int c = 0; c < columns_per_thread; ++c) {
#pragma unroll
          for (int lane = 0; lane < width; ++lane) {
            sums[r][c] += a[r].values[lane] * b[c].values[lane];
          }
        }
      }
    }
    __syncthreads();
  }

  T* const partial_sums = shared_memory<T>();
#pragma unroll
  for (int r = 0; r < rows_per_thread; ++r) {
#pragma unroll
    for (int c = 0; c < columns_per_thread; ++c) {
      partial_sums[(my_slice * shape.rows + my_row + r * row_threads) * shape.columns + my_column +
                   c * column_threads] = sums[r][c];
    }
  }
  __syncthreads();
  for (int e = thread; e < shape.rows * shape.columns; e += StepShape::threads) {
    const std::int64_t r = first_row + e / shape.columns;
    const std::int64_t c = first_column + e % shape.columns;
    if (r < rows && c < hidden_size) {
      T sum = 0;
#pragma unroll
      for (int s = 0; s < shape.slices; ++s) {
        sum += partial_sums[s * shape.rows * shape.columns + e];
      }
      rule.finish(t, r, c, rule.constant(c), rule.load(t, r, c), sum);
    }
  }
}

namespace {

template <int shape_index, class Rule>
cudaError_t run(const Directions<Rule>& directions, unsigned direction_count, cudaStream_t stream) {
  using T = typename Rule::T;
  constexpr StepShape shape = step_shapes[shape_index];
  const Rule& rule = directions.of[0];
  const std::int64_t tiles =
      ceil_div(rule.order.steps.batch, shape.rows) * ceil_div(rule.hidden_size, shape.columns);
  const dim3 grid(static_cast<unsigned>(tiles), direction_count);
  for (std::int64_t i = 0; i < rule.step_count(); ++i) {
    const cudaError_t error =
        launch(step<Rule, shape_index>, grid, StepShape::threads,
               shape.shared_values(padding<T>) * sizeof(T), stream, directions, i);
    if (error != cudaSuccess) {
      return error;
    }
  }
  return cudaSuccess;
}

}  // namespace

template <class Pass>
cudaError_t run_steps(const Plan& plan, Nonlinearity nonlinearity, std::span<const Pass> passes,
                      cudaStream_t stream) {
  const auto count = static_cast<unsigned>(passes.size());
  return with_rules(nonlinearity, passes, [&](const auto& directions) {
    return plan.shape == 0   ? run<0>(directions, count, stream)
           : plan.shape == 1 ? run<1>(directions, count, stream)
                             : run<2>(directions, count, stream);
  });
}

#define RNN_EXT_INSTANTIATE(Pass) \
  template cudaError_t run_steps(const Plan&, Nonlinearity, std::span<const Pass>, cudaStream_t)
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
