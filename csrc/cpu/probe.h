// The limits of the machine that a call cannot pass, for the benchmark to compare with.
#pragma once

#include <cstdint>

#include "cpu/team.h"

namespace rnn_ext::cpu {

// Bytes a second that each of `threads` threads reads of `bytes` of its own, again and again, while
// the others do so too.
double read_rate(std::int64_t bytes, int threads, ParallelFor parallel_for);

// Seconds that a barrier takes among threads that do nothing else.
double barrier_seconds(int threads, ParallelFor parallel_for);

// Seconds that it takes to call up a team that does nothing.
double fork_join_seconds(int threads, ParallelFor parallel_for);

}  // namespace rnn_ext::cpu
