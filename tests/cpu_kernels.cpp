// The CPU kernels without Python and torch, to run under a sanitizer: every operand is an
// allocation of its own, and so is every buffer of a call's scratch memory. Results must leave no
// value unwritten and have the same bits on every team. If an allocation fails, the call throws and
// leaks nothing, and the next one is right. The arguments are files with programs of cells.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cpu/cell_recurrence.h"
#include "cpu/isa.h"
#include "cpu/packed_layer.h"
#include "text/generate.h"

// How many objects of operator new are alive, and how many allocations succeed before one fails; -1
// if none fails.
static std::atomic<std::int64_t> alive{0}, left_to_succeed{-1};
static thread_local bool never_fails = false;

static void* allocate(std::size_t alignment, std::size_t bytes) {
  if (!never_fails && left_to_succeed >= 0 && left_to_succeed-- == 0) {
    return nullptr;
  }
  void* result = nullptr;
  return posix_memalign(&result, std::max(alignment, sizeof(void*)), bytes) == 0 ? result : nullptr;
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  void* const result = allocate(static_cast<std::size_t>(alignment), bytes);
  if (!result) {
    throw std::bad_alloc();
  }
  ++alive;
  return result;
}
void* operator new(std::size_t bytes) { return operator new(bytes, std::align_val_t{16}); }
void operator delete(void* object) noexcept {
  alive -= object != nullptr;
  std::free(object);
}
void operator delete(void* object, std::size_t) noexcept { operator delete(object); }
void operator delete(void* object, std::align_val_t) noexcept { operator delete(object); }
void operator delete(void* object, std::size_t, std::align_val_t) noexcept {
  operator delete(object);
}
extern "C" void* aligned_alloc(std::size_t alignment, std::size_t bytes) noexcept {
  return allocate(alignment, bytes);
}

namespace {

using namespace rnn_ext;
using namespace rnn_ext::cpu;

using Body = void (*)(std::int64_t, std::int64_t, void*);

std::int32_t in_threads(std::int64_t count, std::int64_t indices_each, Body body, void* context) {
  std::vector<std::thread> others;
  never_fails = true;  // torch's pool has its threads before the call
  for (std::int64_t i = indices_each; i < count; i += indices_each) {
    others.emplace_back(body, i, std::min(count, i + indices_each), context);
  }
  never_fails = false;
  body(0, std::min(count, indices_each), context);
  for (std::thread& other : others) {
    other.join();
  }
  return 0;
}

// Pools of threads, as torch's: one thread for each index, or for every two.
std::int32_t full_pool(std::int64_t, std::int64_t end, std::int64_t, Body body, void* context) {
  return in_threads(end, 1, body, context);
}
std::int32_t small_pool(std::int64_t, std::int64_t end, std::int64_t, Body body, void* context) {
  return in_threads(end, 2, body, context);
}

struct Workers {
  Plan plan;
  ParallelFor pool = full_pool;
};
const Workers all_workers[] = {
    {{1, false, 1}}, {{1, false, 3}}, {{3, false, 3}}, {{4, true, 4}}, {{2, false, 4}, small_pool},
};

std::mt19937 engine{1};

template <class S>
S stored(float x) {
  if constexpr (std::is_same_v<S, Arithmetic<S>>) {
    return x;
  } else {
    return S::from(x);
  }
}

template <class S>
std::vector<S> draw(std::int64_t count, float scale = 1) {
  std::normal_distribution<float> normal;
  std::vector<S> values(count);
  for (S& value : values) {
    value = stored<S>(scale * normal(engine));
  }
  return values;
}

// What a call writes, each result in memory of its own.
template <class S>
class Results {
 public:
  S* add(std::int64_t count) {
    S value;
    std::memset(&value, unwritten, sizeof(S));
    return values_.emplace_back(count, value).data();
  }
  S* add_zeros(std::int64_t count) { return values_.emplace_back(count, S{}).data(); }

  bool are_written() const {
    return std::ranges::none_of(values_, [](const std::vector<S>& values) {
      return std::ranges::any_of(values, [](const S& x) {
        const auto* const bytes = reinterpret_cast<const unsigned char*>(&x);
        return std::all_of(bytes, bytes + sizeof(S), [](auto b) { return b == unwritten; });
      });
    });
  }
  bool operator==(const Results& other) const {
    return std::ranges::equal(values_, other.values_, [](const auto& a, const auto& b) {
      return a.size() == b.size() &&
             (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(S)) == 0);
    });
  }

 private:
  static constexpr unsigned char unwritten = 0xff;  // a NaN that no arithmetic makes
  std::vector<std::vector<S>> values_;
};

struct Sizes {
  std::int64_t count, batch, input_size, hidden_size;  // input_size 0: the input is tokens
  bool is_packed = false;
};

// The operands that an RNN and a cell have in common, of a layer with two directions.
template <class S>
struct Operands {
  static constexpr std::int64_t directions = 2;
  static constexpr std::int64_t vocabulary = 11;

  Sizes sizes;
  std::int64_t gates;
  std::vector<std::int64_t> batch_sizes, offsets;
  Steps steps;
  std::int64_t rows = 0;
  std::vector<std::int64_t> tokens;
  std::vector<S> input, hx, grad_output, grad_h_n;
  std::vector<S> weights[directions][4];

  Operands(const Sizes& sizes, std::int64_t gates) : sizes(sizes), gates(gates) {
    for (std::int64_t t = 0; t < sizes.count; ++t) {
      offsets.push_back(rows);
      batch_sizes.push_back(sizes.is_packed ? sizes.batch - t * sizes.batch / sizes.count
                                            : sizes.batch);
      rows += batch_sizes.back();
    }
    steps = {sizes.count, sizes.batch, nullptr, nullptr};
    if (sizes.is_packed) {
      steps.batch_sizes = batch_sizes.data();
      steps.batch_offsets = offsets.data();
    }
    const std::int64_t h = sizes.hidden_size;
    input = draw<S>(rows * sizes.input_size);
    for (std::int64_t i = 0; i < rows; ++i) {
      tokens.push_back(i * i % vocabulary);
    }
    hx = draw<S>(directions * sizes.batch * h);
    grad_output = draw<S>(rows * directions * h);
    grad_h_n = draw<S>(directions * sizes.batch * h);
    for (auto& [weight_ih, weight_hh, bias_ih, bias_hh] : weights) {
      weight_ih = draw<S>(gates * h * (has_tokens() ? vocabulary : sizes.input_size), 0.1f);
      weight_hh = draw<S>(gates * h * h, 0.1f);
      bias_ih = draw<S>(gates * h);
      bias_hh = draw<S>(gates * h);
    }
  }
  Operands(const Operands&) = delete;  // steps points into it

  bool has_tokens() const { return sizes.input_size == 0; }

  template <class T>
  Sequence<T> sequence(T* data, std::int64_t columns) const {
    return {data, sizes.is_packed ? 0 : sizes.batch * columns, columns, 1};
  }
  // The part of a direction in states of all steps, and in those of one step.
  template <class T>
  Sequence<T> states(T* data, std::int64_t direction) const {
    return sequence(data + direction * sizes.hidden_size, directions * sizes.hidden_size);
  }
  template <class T>
  Matrix<T> state(T* data, std::int64_t direction) const {
    return {data + direction * sizes.batch * sizes.hidden_size, sizes.hidden_size, 1};
  }

  // Transposed in memory in the second direction.
  Matrix<const S> weight(std::int64_t i, std::int64_t columns, std::int64_t direction) const {
    const S* const data = weights[direction][i].data();
    return direction == 0 ? Matrix<const S>{data, columns, 1}
                          : Matrix<const S>{data, 1, gates * sizes.hidden_size};
  }

  Problem<S> problem(S* output, std::int64_t d) const {
    Problem<S> p;
    p.steps = steps;
    p.input_size = sizes.input_size;
    p.hidden_size = sizes.hidden_size;
    p.reverse = d == 1;
    if (has_tokens()) {
      p.tokens = tokens.data();
      p.table = {weights[d][0].data(), gates * sizes.hidden_size, 1};
    } else {
      p.input = sequence(input.data(), sizes.input_size);
      p.weight_ih = weight(0, sizes.input_size, d);
    }
    p.hx = state(hx.data(), d);
    p.weight_hh = weight(1, sizes.hidden_size, d);
    p.bias_ih = {weights[d][2].data(), 0, 1};
    p.bias_hh = {weights[d][3].data(), 0, 1};
    p.output = states(output, d);
    return p;
  }

  // All of them, the weights' in memory of `results`. Both directions add to `input`.
  Gradients<S> gradients(Results<S>& results, S* input, S* hx, std::int64_t d) const {
    const std::int64_t h = sizes.hidden_size;
    Gradients<S> g;
    g.output = states(grad_output.data(), d);
    g.h_n = state(grad_h_n.data(), d);
    if (has_tokens()) {
      g.table = {results.add_zeros(vocabulary * gates * h), gates * h, 1};
    } else {
      g.input = sequence(input, sizes.input_size);
      g.add_to_input = d > 0;
      g.weight_ih = {results.add(gates * h * sizes.input_size), sizes.input_size, 1};
    }
    if (hx) {
      g.hx = state(hx, d);
    }
    g.weight_hh = {results.add(gates * h * h), h, 1};
    g.bias_ih = {results.add(gates * h), 0, 1};
    g.bias_hh = {results.add(gates * h), 0, 1};
    return g;
  }
};

// Forward, backward and tangent of an RNN layer.
template <class S>
class Rnn {
 public:
  Rnn(const Sizes& sizes, Nonlinearity nonlinearity, bool has_hx)
      : operands_(sizes, 1),
        seed_(draw<S>(operands_.rows * 2 * sizes.hidden_size)),
        nonlinearity_(nonlinearity),
        has_hx_(has_hx) {}

  template <class O>
  Results<S> run(const Kernels<S, O>& kernels, const Workers& workers) const {
    const auto& [count, batch, input_size, h, is_packed] = operands_.sizes;
    const std::int64_t rows = operands_.rows;
    Results<S> results;
    S* const output = results.add(rows * 2 * h);
    S* const tangent = results.add(rows * 2 * h);
    S* const h_n = results.add(2 * batch * h);
    S* const grad_input = results.add(rows * input_size);
    S* const grad_hx = has_hx_ ? results.add(2 * batch * h) : nullptr;
    std::vector<ForwardTask<S>> forward;
    std::vector<BackwardTask<S>> backward;
    std::vector<TangentTask<S>> tangents;
    S* const packed_output = results.add(rows * 2 * h);
    S* const packed_h_n = results.add(2 * batch * h);
    std::vector<std::vector<std::byte>> packed;
    std::vector<ForwardTask<S>> with_packed;
    for (std::int64_t d = 0; d < 2; ++d) {
      Problem<S> p = operands_.problem(output, d);
      p.nonlinearity = nonlinearity_;
      if (!has_hx_) {
        p.hx = {};
      }
      forward.push_back({p, operands_.state(h_n, d)});
      packed.emplace_back(PackedLayer<S, O>::bytes(kernels, input_size, h));
      PackedLayer<S, O>(packed.back().data(), p, kernels).fill(p, kernels);
      Problem<S> again = operands_.problem(packed_output, d);
      again.nonlinearity = nonlinearity_;
      again.hx = p.hx;
      with_packed.push_back({again, operands_.state(packed_h_n, d), packed.back().data()});
      backward.push_back({p, operands_.gradients(results, grad_input, grad_hx, d)});
      tangents.push_back({p, operands_.states(seed_.data(), d), operands_.states(tangent, d)});
    }
    release_scratch();
    run_forward(forward, kernels, workers.plan.threads, workers.pool);
    release_scratch();
    run_forward(with_packed, kernels, workers.plan.threads, workers.pool);
    release_scratch();
    run_backward(backward, kernels, workers.plan.threads, workers.pool);
    release_scratch();
    run_tangent(tangents, kernels, workers.plan.threads, workers.pool);
    return results;
  }

 private:
  Operands<S> operands_;
  std::vector<S> seed_;
  Nonlinearity nonlinearity_;
  bool has_hx_;
};

// Forward and backward of a layer with a cell. Rows start anew unless the input is packed.
template <class S>
class CellLayer {
 public:
  CellLayer(const Sizes& sizes, const Program& program)
      : program_(program), operands_(sizes, program.gates) {
    const std::int64_t h = sizes.hidden_size;
    for (int i = 0; i < program.parameters; ++i) {
      parameters_.push_back(draw<S>(i % 2 == 0 ? h : 1));
    }
    for (int i = 0; i < program.inputs; ++i) {
      inputs_.push_back(draw<S>(2 * operands_.rows * h));
    }
    for (int s = 0; s < program.states; ++s) {
      initial_.push_back(draw<S>(2 * sizes.batch * h));
      grad_final_.push_back(draw<S>(2 * sizes.batch * h));
      grad_states_.push_back(draw<S>(2 * operands_.rows * h));
      reset_states_.push_back(draw<S>(2 * operands_.rows * h));
    }
    for (std::int64_t i = 0; i < operands_.rows; ++i) {
      resets_.push_back(engine() % 4 == 0);
    }
  }

  template <class O>
  Results<S> run(const Kernels<S, O>& kernels, const Workers& workers) const {
    const auto& [count, batch, input_size, h, is_packed] = operands_.sizes;
    const std::int64_t all_states = operands_.rows * 2 * h;
    const std::int64_t final_states = 2 * batch * h;
    Results<S> results;
    const auto add_each = [&](int number, std::int64_t size) {
      std::vector<S*> added;
      for (int i = 0; i < number; ++i) {
        added.push_back(results.add(size));
      }
      return added;
    };
    const std::vector<S*> states = add_each(program_.states, all_states);
    const std::vector<S*> finals = add_each(program_.states, final_states);
    const std::vector<S*> saved = add_each(program_.saved, all_states);
    S* const grad_input = results.add(operands_.rows * input_size);
    const std::vector<S*> grad_initial = add_each(program_.states, final_states);
    std::vector<CellForwardTask<S>> forward;
    std::vector<CellBackwardTask<S>> backward;
    for (std::int64_t d = 0; d < 2; ++d) {
      CellForwardTask<S> f{operands_.problem(states[0], d), {}, {}};
      CellBackwardTask<S> b;
      b.gradients = operands_.gradients(results, grad_input, grad_initial[0], d);
      CellOperands<S>& cell = f.cell;
      CellGradients<S>& g = b.cell_gradients;
      cell.program = &program_;
      for (const auto& parameter : parameters_) {
        cell.parameters.push_back({parameter.data(), 0, parameter.size() == 1 ? 0 : 1});
        g.parameters.push_back({results.add(h), 0, 1});
      }
      for (const auto& input : inputs_) {
        cell.inputs.push_back(operands_.states(input.data(), d));
        g.inputs.push_back(operands_.sequence(results.add(operands_.rows * h), h));
      }
      for (int s = 0; s < program_.states; ++s) {
        f.final_states.push_back(operands_.state(finals[s], d));
        if (s > 0) {
          cell.initial.push_back(operands_.state(initial_[s].data(), d));
          cell.sequences.push_back(operands_.states(states[s], d));
          g.sequences.push_back(operands_.states(grad_states_[s].data(), d));
          g.final_states.push_back(operands_.state(grad_final_[s].data(), d));
          g.initial.push_back(operands_.state(grad_initial[s], d));
        }
        if (!is_packed) {
          cell.resets.flags = {resets_.data(), batch, 1};
          cell.resets.states.push_back(operands_.states(reset_states_[s].data(), d));
          g.reset_states.push_back(operands_.sequence(results.add_zeros(operands_.rows * h), h));
        }
      }
      for (S* const value : saved) {
        cell.saved.push_back(operands_.states(value, d));
      }
      b.problem = f.problem;
      b.cell = cell;
      forward.push_back(f);
      backward.push_back(b);
    }
    release_scratch();
    run_cell_forward(forward, kernels, workers.plan.threads, workers.pool);
    release_scratch();
    run_cell_backward(backward, kernels, workers.plan.threads, workers.pool);
    return results;
  }

 private:
  const Program& program_;
  Operands<S> operands_;
  std::vector<std::vector<S>> parameters_, inputs_, initial_, grad_final_, grad_states_,
      reset_states_;
  std::vector<std::uint8_t> resets_;
};

// Text from two layers, large enough for several threads.
class Generation {
 public:
  Results<float> run(const Kernels<float>& kernels, const Workers& workers) const {
    Results<float> results;
    std::vector<std::int64_t> generated(draws_.size());
    GenerateTask task;
    task.hidden_size = hidden_size;
    task.vocab_size = vocabulary;
    task.table = {table_.data(), hidden_size, 1};
    task.weight_ih = {{weights_[0].data(), hidden_size, 1}};
    task.bias = {{bias_.data(), 0, 1}};
    for (int layer = 0; layer < 2; ++layer) {
      task.weight_hh.push_back({weights_[1 + layer].data(), hidden_size, 1});
    }
    task.out_weight = {out_weight_.data(), hidden_size, 1};
    task.out_bias = out_bias_.data();
    task.prompt = prompt_.data();
    task.prompt_length = static_cast<std::int64_t>(prompt_.size());
    task.draws = draws_.data();
    task.length = static_cast<std::int64_t>(draws_.size());
    task.sampling = {0.8, 5, 0};
    task.hidden = results.add_zeros(2 * hidden_size);
    task.generated = generated.data();
    release_scratch();
    run_generate(task, kernels, workers.plan.threads, workers.pool);
    std::ranges::copy(generated, results.add(task.length));
    return results;
  }

 private:
  static constexpr std::int64_t hidden_size = 259, vocabulary = 37;
  std::vector<float> table_ = draw<float>(vocabulary * hidden_size);
  std::vector<float> weights_[3] = {draw<float>(hidden_size * hidden_size, 0.1f),
                                    draw<float>(hidden_size * hidden_size, 0.1f),
                                    draw<float>(hidden_size * hidden_size, 0.1f)};
  std::vector<float> bias_ = draw<float>(hidden_size);
  std::vector<float> out_weight_ = draw<float>(vocabulary * hidden_size);
  std::vector<float> out_bias_ = draw<float>(vocabulary);
  std::vector<std::int64_t> prompt_ = {3, 1, 36};
  std::vector<double> draws_ = {0.1, 0.9, 0.5, 0.999};
};

int passed = 0, failed = 0;

void record(bool is_right, const std::string& name) {
  ++(is_right ? passed : failed);
  if (!is_right) {
    std::printf("%s: wrong\n", name.c_str());
  }
}

// Whether a call gives the same results on every team.
template <class Call, class S, class O>
void check(const Call& call, const Kernels<S, O>& kernels, const std::string& name) {
  const auto run = [&](const Workers& workers) {
    force_plan(workers.plan);
    return call.run(kernels, workers);
  };
  const Results<S> expected = run(all_workers[0]);
  const bool is_right =
      expected.are_written() && std::all_of(std::begin(all_workers) + 1, std::end(all_workers),
                                            [&](const Workers& w) { return run(w) == expected; });
  record(is_right, name);
}

// Whether each allocation of a call may fail: one after the other, of the kernels and of this
// program.
template <class Call>
void check_failed_allocations(const Call& call, const std::string& name) {
  // One thread, and several that share both directions: more would take minutes.
  for (const Workers& workers : {all_workers[0], all_workers[3]}) {
    force_plan(workers.plan);
    const auto expected = call.run(kernels().f32, workers);
    release_scratch();
    const std::int64_t before = alive;
    bool is_right = true, has_failed = true;
    for (std::int64_t count = 0; has_failed; ++count) {
      left_to_succeed = count;
      try {
        is_right = call.run(kernels().f32, workers) == expected && is_right;
      } catch (const std::bad_alloc&) {
      }
      has_failed = left_to_succeed.exchange(-1) < 0;
      release_scratch();
      is_right = alive == before && call.run(kernels().f32, workers) == expected && is_right;
      release_scratch();
    }
    record(is_right, name + ", failed allocations");
  }
}

// Whether calls of two threads at once, each with a team of its own, give the results of one.
void check_concurrent_callers() {
  const Rnn<float> call({4, 6, 9, 40}, Nonlinearity::tanh, true);
  force_plan(std::nullopt);
  const Workers workers{{1, false, available_threads(2)}};
  const Results<float> expected = call.run(kernels().f32, workers);
  bool is_right[2] = {true, true};
  const auto caller = [&](bool& right) {
    for (int i = 0; i < 30; ++i) {
      right = call.run(kernels().f32, workers) == expected && right;
    }
  };
  std::thread other(caller, std::ref(is_right[0]));
  caller(is_right[1]);
  other.join();
  record(is_right[0] && is_right[1], "calls of two threads");
}

// At edges of tiles and panels, of the blocks of a sum (256), and where a weight is packed at once.
const Sizes all_sizes[] = {
    {1, 1, 1, 1},        {3, 2, 5, 17},   {4, 19, 3, 33, true},
    {6, 5, 9, 65, true}, {2, 3, 261, 70}, {4, 3, 7, 301},
};

template <class S, class O>
void check_type(const std::string& name, const Kernels<S, O>& kernels,
                const std::vector<std::pair<std::string, Program>>& programs) {
  for (const Sizes& sizes : all_sizes) {
    const std::string at = name + ", hidden size " + std::to_string(sizes.hidden_size);
    check(Rnn<S>(sizes, Nonlinearity::tanh, true), kernels, at);
    check(Rnn<S>(sizes, Nonlinearity::relu, false), kernels, at + ", relu, no hx");
    for (const auto& [cell, program] : programs) {
      check(CellLayer<S>(sizes, program), kernels, at + ", " + cell);
      if constexpr (std::is_same_v<S, Arithmetic<S>>) {
        Sizes tokens = sizes;
        tokens.input_size = 0;
        check(CellLayer<S>(tokens, program), kernels, at + ", tokens, " + cell);
      }
    }
  }
  check(Rnn<S>({2, 2, 515, 515}, Nonlinearity::tanh, true), kernels, name + ", large");
}

Program read_program(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  std::vector<std::int64_t> values(bytes.size() / sizeof(std::int64_t));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(std::int64_t));
  return Program(values.data(), static_cast<std::int64_t>(values.size()));
}

}  // namespace

int main(int count, char** arguments) {
  std::vector<std::pair<std::string, Program>> programs;
  for (int i = 1; i < count; ++i) {
    programs.emplace_back(arguments[i], read_program(arguments[i]));
  }
  set_pool_is_concurrent(true);
  for (const std::string& level : available_isas()) {
    cap_isa(level);
    const KernelSet& set = kernels();
    check_type(level + ", float32", set.f32, programs);
    check_type(level + ", float64", set.f64, programs);
    check_type(level + ", float16", set.f16, programs);
    set.bf16_products ? check_type(level + ", bfloat16", *set.bf16_products, programs)
                      : check_type(level + ", bfloat16", set.bf16, programs);
    check(Generation(), set.f32, level + ", text");
  }
  check_concurrent_callers();
  const Sizes sizes{3, 4, 5, 33};
  check_failed_allocations(Rnn<float>(sizes, Nonlinearity::tanh, true), "RNN");
  for (const auto& [cell, program] : programs) {
    check_failed_allocations(CellLayer<float>(sizes, program), cell);
  }
  check_failed_allocations(Generation(), "text");
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed > 0;
}
