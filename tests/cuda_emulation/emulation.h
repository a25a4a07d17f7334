// The settings of the emulation, and what it reports to the tests.
#pragma once

#include <set>
#include <string>

#include "cuda/plan.h"

namespace emulation {

// The order in which the threads of a block run between two barriers; shuffled again each time.
enum class Order { identity, reversed, shuffled };

extern Order order;
extern rnn_ext::cuda::Limits limits;

// The demangled names of all kernels that were launched.
std::set<std::string> launched();

}  // namespace emulation
