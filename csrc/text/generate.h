// Generates text with a character model, one character after the other.
//
//   h⁰ = φ(table[token] + W_hh h⁰),  hˡ = φ(W_ih hˡ⁻¹ + b + W_hh hˡ),  scores = W h + b
//
// A step reads every weight once, so reading them is its limit. They are packed once per call, and
// threads share the columns of large ones. The same loop draws the next character.
#pragma once

#include <vector>

#include "common/problem.h"
#include "cpu/kernels.h"
#include "cpu/team.h"

namespace rnn_ext::cpu {

// How to draw a character from the scores.
struct Sampling {
  double temperature = 0;   // 0: the most likely
  std::int64_t top_k = 1;   // 0: from all; else from the most likely
  std::int64_t never = -1;  // a character that is never drawn; -1: none
};

struct GenerateTask {
  std::int64_t hidden_size = 0;
  std::int64_t vocab_size = 0;
  Nonlinearity nonlinearity = Nonlinearity::tanh;
  Matrix<const float> table;                   // (vocabulary, hidden), column stride 1
  std::vector<Matrix<const float>> weight_ih;  // of the layers after the first
  std::vector<Matrix<const float>> bias;       // likewise, one row each, column stride 1
  std::vector<Matrix<const float>> weight_hh;  // of all layers
  Matrix<const float> out_weight;              // (vocabulary, hidden)
  const float* out_bias = nullptr;

  const std::int64_t* prompt = nullptr;
  std::int64_t prompt_length = 0;  // at least 1
  const double* draws = nullptr;   // one for each character to generate
  std::int64_t length = 0;         // at least 1
  Sampling sampling;

  float* hidden = nullptr;            // (layers, hidden): before the prompt, then at the end
  std::int64_t* generated = nullptr;  // `length` of them
};

void run_generate(const GenerateTask& task, const Kernels<float>& kernels, int threads,
                  ParallelFor parallel_for);

}  // namespace rnn_ext::cpu
