// Half-open ranges and how work is shared out.
#pragma once

#include <algorithm>
#include <cstdint>

namespace rnn_ext::cpu {

struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;

  std::int64_t size() const { return end - begin; }
  bool empty() const { return end <= begin; }
  Range below(std::int64_t limit) const { return {begin, std::min(end, limit)}; }
  Range from(std::int64_t limit) const { return {std::max(begin, limit), end}; }

  // Part `rank` of `size` of [0, count), cut at multiples of `unit`.
  static Range share(std::int64_t count, std::int64_t unit, int rank, int size) {
    const std::int64_t units = (count + unit - 1) / unit;
    return {std::min(count, units * rank / size * unit),
            std::min(count, units * (rank + 1) / size * unit)};
  }
};

}  // namespace rnn_ext::cpu
