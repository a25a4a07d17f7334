// What the tests set and ask of the emulation.
#pragma once

#include <set>
#include <string>

#include "cuda/plan.h"

namespace emulation {

// The order in which the threads of a block run between two barriers. Shuffled: anew each time.
enum class Order { identity, reversed, shuffled };

extern Order order;
extern rnn_ext::cuda::Limits limits;

// The demangled names of all kernels that were launched.
std::set<std::string> launched();

}  // namespace emulation
