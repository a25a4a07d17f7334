// The CPU kernels of the ops as functions: the autograd node calls them without torch's dispatcher,
// whose conversions take an eighth of a small call, and a fifth between other work.
//
// The node and the kernels are in two modules of one build; `_C.direct_kernels` is a capsule with a
// pointer to this.
#pragma once

#include "common/problem.h"
#include "common/tensors.h"

namespace rnn_ext {

// The arguments are those of the ops, in their order.
struct DirectKernels {
  using Optional = std::optional<Tensor>;
  using Flags = std::vector<bool>;
  using List = std::vector<Tensor>;
  using OptionalList = std::optional<List>;
  using Pair = std::tuple<Tensor, Tensor>;

  Pair (*rnn_forward)(const Tensor&, const Optional&, const List&, const Optional&, Nonlinearity,
                      bool);
  Pair (*rnn_forward_packed)(const Tensor&, const Optional&, const List&, const List&,
                             const Optional&, Nonlinearity, bool);
  List (*rnn_backward)(const Optional&, const Optional&, const Tensor&, const Optional&,
                       const List&, const Tensor&, const Optional&, Nonlinearity, bool,
                       const Flags&);
  Tensor (*cell_forward)(const Tensor&, const Optional&, const List&, Nonlinearity);
  List (*cell_backward)(const Tensor&, const Tensor&, const Optional&, const List&, const Tensor&,
                        Nonlinearity, const Flags&);
  List (*recurrence_forward)(const Tensor&, const OptionalList&, const List&, const OptionalList&,
                             const OptionalList&, const OptionalList&, const Optional&,
                             const Optional&, const Tensor&, bool, std::int64_t, std::int64_t,
                             std::int64_t);
  List (*recurrence_backward)(const List&, const Flags&, const Tensor&, const List&, const List&,
                              const List&, const List&, const List&, const Tensor&, const List&,
                              const List&, const Optional&, const Optional&, const Tensor&, bool,
                              std::int64_t, const Flags&);
};

extern const DirectKernels direct_kernels;

}  // namespace rnn_ext
