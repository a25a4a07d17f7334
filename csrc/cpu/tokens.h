// Tokens as an operand: indices of the rows of a table.
#pragma once

#include <algorithm>

#include "common/views.h"

namespace rnn_ext::cpu {

// A contiguous copy, since the caller may change the tensor after it was checked.
inline Tensor copy_of_tokens(const Tensor& t, std::int64_t limit) {
  Tensor tokens = torch::stable::contiguous(torch::stable::clone(t));
  const auto* data = view::data<const std::int64_t>(tokens);
  require(std::all_of(data, data + tokens.numel(),
                      [&](std::int64_t token) { return token >= 0 && token < limit; }),
          "tokens must be from 0 to ", limit - 1);
  return tokens;
}

}  // namespace rnn_ext::cpu
