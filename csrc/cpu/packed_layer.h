// The weights of one direction of a layer, packed once for many calls (rnn_ext.freeze).
#pragma once

#include <cstddef>
#include <cstring>

#include "cpu/recurrent_weight.h"

namespace rnn_ext::cpu {

// The start of the memory: what the layout of the rest depends on.
struct PackedHeader {
  char isa[32] = {};
  std::int64_t dtype = 0;
  std::int64_t input_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t unused = 0;

  PackedHeader(const char* name, std::int64_t dtype, std::int64_t input_size,
               std::int64_t hidden_size)
      : dtype(dtype), input_size(input_size), hidden_size(hidden_size) {
    std::strncpy(isa, name, sizeof(isa) - 1);
  }
};
static_assert(sizeof(PackedHeader) == 64);

// The places in the memory after a header; null without memory.
template <class S, class O>
struct PackedLayer {
  using T = Arithmetic<S>;

  T* weight_hh = nullptr;
  T* from_zeros = nullptr;  // W_hh times zeros
  O* weight_ih = nullptr;
  S* stored_hh = nullptr;  // W_hh in 16 bits

  PackedLayer() = default;
  PackedLayer(std::byte* memory, const Problem<S>& p, const Kernels<S, O>& kernels) {
    if (memory) {
      weight_hh = reinterpret_cast<T*>(memory + sizeof(PackedHeader));
      from_zeros = weight_hh + packed_size(kernels, p.hidden_size, p.hidden_size);
      weight_ih = reinterpret_cast<O*>(from_zeros + packed_size(kernels, p.hidden_size, 1));
      stored_hh =
          reinterpret_cast<S*>(weight_ih + packed_size(kernels, p.hidden_size, p.input_size));
    }
  }

  static std::int64_t bytes(const Kernels<S, O>& kernels, std::int64_t input_size,
                            std::int64_t hidden_size) {
    const std::int64_t recurrent =
        packed_size(kernels, hidden_size, hidden_size) + packed_size(kernels, hidden_size, 1);
    return static_cast<std::int64_t>(
        sizeof(PackedHeader) + recurrent * sizeof(T) +
        packed_size(kernels, hidden_size, input_size) * sizeof(O) +
        (kernels.pack_stored ? RecurrentWeight<S, O>::stored_size(kernels, hidden_size) : 0) *
            sizeof(S));
  }

  void fill(const Problem<S>& p, const Kernels<S, O>& kernels) const {
    kernels.pack_transposed(p.weight_hh, p.hidden_size, p.hidden_size, weight_hh);
    kernels.pack_operand_transposed(p.weight_ih, p.hidden_size, p.input_size, weight_ih);
    if (kernels.pack_stored) {
      kernels.pack_stored(p.weight_hh.transposed(), p.hidden_size, p.hidden_size, stored_hh);
    }
    const std::vector<T> zeros(p.hidden_size, T{0});
    Product<S> product = product_by(p.weight_hh.transposed(), {0, p.hidden_size}, weight_hh);
    product.rows = 1;
    product.inner = p.hidden_size;
    product.a = zeros.data();
    product.c = from_zeros;
    kernels.product(product);
  }
};

}  // namespace rnn_ext::cpu
