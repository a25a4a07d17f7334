// Settings of the whole process: threads, and a plan forced by tests.
#pragma once

#include <optional>

#include "cpu/plan.h"

namespace rnn_ext::cpu {

// The number of threads that a call may use: torch's own setting, at most the cores that this
// process may use (more threads would only wait for each other), and 1 in a forked child, which
// lacks the pool's threads.
int available_threads(int torch_threads);

// Whether torch's pool runs the bodies of one parallel_for at the same time, which a team needs.
// False until it is set.
void set_pool_is_concurrent(bool concurrent);

// Makes every call use this plan, whatever its size, so that small tests reach all plans; nullopt
// for the plan of the cost model. If directions can run at once, each has half of its groups.
void force_plan(std::optional<Plan> plan);

// The plan of a call on at most `threads` threads.
Plan plan_for(const Shape& shape, int threads);

}  // namespace rnn_ext::cpu
