#include "text/generate.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>

#include "cpu/recurrence.h"

namespace rnn_ext::cpu {
namespace {

// Multiplying smaller weights takes less time than synchronizing threads.
constexpr std::int64_t few_weights = std::int64_t{1} << 16;

// Returns the index that `draw`, in [0, 1), selects by these scores; NaN counts as the lowest.
// `weights` has room for twice as many.
std::int64_t choose(const float* scores, std::int64_t count, const Sampling& sampling, double draw,
                    double* weights) {
  constexpr double lowest = -std::numeric_limits<double>::infinity();
  for (std::int64_t i = 0; i < count; ++i) {
    weights[i] = i == sampling.never || std::isnan(scores[i]) ? lowest : scores[i];
  }
  std::int64_t best = sampling.never == 0 ? 1 : 0;
  for (std::int64_t i = best + 1; i < count; ++i) {
    if (weights[i] > weights[best]) {
      best = i;
    }
  }
  if (sampling.temperature == 0) {
    return best;
  }
  const double highest = weights[best];
  double threshold = lowest;
  if (sampling.top_k < count) {
    double* const others = weights + count;
    std::copy_n(weights, count, others);
    std::nth_element(others, others + sampling.top_k - 1, others + count, std::greater<>());
    threshold = others[sampling.top_k - 1];
  }
  double total = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const double below = weights[i] - highest;
    weights[i] = weights[i] >= threshold ? std::exp(below / sampling.temperature) : 0;
    total += weights[i];
  }
  double sum = 0;
  std::int64_t chosen = best;
  for (std::int64_t i = 0; i < count && !(sum > draw * total); ++i) {
    if (weights[i] > 0) {
      chosen = i;
      sum += weights[i];
    }
  }
  return chosen;
}

class Generator {
 public:
  Generator(const GenerateTask& task, const Kernels<float>& kernels, int threads)
      : task_(task),
        kernels_(kernels),
        out_weight_(packed_size(kernels, task.vocab_size, task.hidden_size)),
        scores_(task.vocab_size),
        weights_(2 * threads * task.vocab_size) {
    const std::int64_t h = task.hidden_size;
    for (std::size_t l = 0; l < task.weight_hh.size(); ++l) {
      weight_ih_.emplace_back(l > 0 ? packed_size(kernels, h, h) : 0);
      weight_hh_.emplace_back(packed_size(kernels, h, h));
      states_[0].emplace_back(h);
      states_[1].emplace_back(h);
      std::memcpy(states_[0][l].data(), task.hidden + l * h, h * sizeof(float));
    }
  }

  void run(Team::Member& member) {
    const std::int64_t h = task_.hidden_size;
    const Range columns = column_share(kernels_, h, member);
    const Range characters = column_share(kernels_, task_.vocab_size, member);
    pack(columns, characters);
    member.barrier();
    const std::int64_t steps = task_.prompt_length + task_.length - 1;
    std::int64_t token = task_.prompt[0];
    for (std::int64_t t = 0; t < steps; ++t) {
      const float* x = task_.table.row(token);
      for (std::size_t l = 0; l < weight_hh_.size(); ++l) {
        x = advance(l, t % 2, x, columns);
        member.barrier();
      }
      const std::int64_t next = t + 1 - task_.prompt_length;  // the one to generate
      if (next < 0) {
        token = task_.prompt[t + 1];
        continue;
      }
      multiply(x, out_weight_, characters, task_.out_bias, scores_.data(), Finish::none);
      member.barrier();
      // Every member draws on its own: all have the same scores.
      token = choose(scores_.data(), task_.vocab_size, task_.sampling, task_.draws[next],
                     weights_.data() + 2 * member.rank() * task_.vocab_size);
      if (member.is_leader()) {
        task_.generated[next] = token;
      }
    }
    for (std::size_t l = 0; l < weight_hh_.size() && !columns.empty(); ++l) {
      std::memcpy(task_.hidden + l * h + columns.begin,
                  states_[steps % 2][l].data() + columns.begin, columns.size() * sizeof(float));
    }
  }

 private:
  void pack(Range columns, Range characters) const {
    const auto transposed = [&](Matrix<const float> w, Range range, const Buffer<float>& panels) {
      if (!range.empty()) {
        kernels_.pack_transposed(w.part(range.begin, 0), range.size(), task_.hidden_size,
                                 panels.data() + range.begin * task_.hidden_size);
      }
    };
    for (std::size_t l = 0; l < weight_hh_.size(); ++l) {
      transposed(task_.weight_hh[l], columns, weight_hh_[l]);
      if (l > 0) {
        transposed(task_.weight_ih[l - 1], columns, weight_ih_[l]);
      }
    }
    transposed(task_.out_weight, characters, out_weight_);
  }

  // A member's columns of a layer's state, from `states_[from]` to the other; x is the row of the
  // table, or the state of the layer before. Returns the state.
  const float* advance(std::size_t layer, int from, const float* x, Range columns) const {
    float* const h = states_[1 - from][layer].data();
    const float* init = x;
    if (layer > 0) {
      multiply(x, weight_ih_[layer], columns, task_.bias[layer - 1].data, h, Finish::none);
      init = h;
    }
    multiply(states_[from][layer].data(), weight_hh_[layer], columns, init, h, Finish::activate);
    return h;
  }

  // c = finish(init + W a) for these columns.
  void multiply(const float* a, const Buffer<float>& weights, Range columns, const float* init,
                float* c, Finish finish) const {
    if (columns.empty()) {
      return;
    }
    Product<float> product;
    product.rows = 1;
    product.inner = task_.hidden_size;
    product.columns = columns.size();
    product.a = a;
    product.b = weights.data() + columns.begin * task_.hidden_size;
    product.init = init + columns.begin;
    product.c = c + columns.begin;
    product.finish = finish;
    product.nonlinearity = task_.nonlinearity;
    kernels_.product(product);
  }

  const GenerateTask& task_;
  const Kernels<float>& kernels_;
  std::vector<Buffer<float>> weight_ih_;  // of layer 0: empty
  std::vector<Buffer<float>> weight_hh_;
  Buffer<float> out_weight_;
  std::vector<Buffer<float>> states_[2];  // of each layer, in turns
  Buffer<float> scores_;
  Buffer<double> weights_;  // of each member, scratch memory of choose()
};

}  // namespace

void run_generate(const GenerateTask& task, const Kernels<float>& kernels, int threads,
                  ParallelFor parallel_for) {
  const Scratch::Scope scratch;
  const bool shares = task.hidden_size * task.hidden_size >= few_weights;
  Generator generator(task, kernels, shares ? threads : 1);
  const auto body = [&](Team::Member member) { generator.run(member); };
  Team::run(parallel_for, shares ? threads : 1, body);
}

}  // namespace rnn_ext::cpu
