// The tensors that a backward call returns.
#pragma once

#include <optional>
#include <vector>

#include "common/call.h"

namespace rnn_ext {

// The gradients that a backward call returns: one slot for input, hx and each weight, filled if
// output_mask requests it.
class GradientSlots {
 public:
  GradientSlots(const Call& call, const std::vector<Tensor>& weights,
                const std::vector<bool>& output_mask)
      : slots_(output_mask.size()), per_direction_(call.per_direction) {
    require(output_mask.size() == 2 + weights.size(),
            "output_mask needs a flag for input, hx and each weight");
    require(!output_mask[1] || call.hx(), "there is no hx to compute a gradient for");
    // The largest first: a small one could take a part of the free block that fits a large one.
    for (std::size_t i = 2; i < slots_.size(); ++i) {
      if (output_mask[i]) {
        const auto sizes = weights[i - 2].sizes();
        slots_[i] = sizes.size() == 2 ? empty({sizes[0], sizes[1]}, call.dtype, call.device)
                                      : empty({sizes[0]}, call.dtype, call.device);
      }
    }
    if (output_mask[0]) {
      slots_[0] = call.new_input_gradient();
    }
    if (output_mask[1]) {
      slots_[1] = call.new_state();
    }
  }

  std::optional<Tensor>& input() { return slots_[0]; }
  std::optional<Tensor>& hx() { return slots_[1]; }
  std::optional<Tensor>& weight(std::int64_t direction, std::int64_t i) {
    return slots_[2 + direction * per_direction_ + i];
  }
  std::vector<Tensor> take() {
    std::vector<Tensor> filled;
    filled.reserve(slots_.size());
    for (auto& slot : slots_) {
      if (slot) {
        filled.push_back(std::move(*slot));
      }
    }
    return filled;
  }

 private:
  std::vector<std::optional<Tensor>> slots_;
  std::int64_t per_direction_;
};

}  // namespace rnn_ext
