// The cores of this machine: how many this process may use, and their caches.
#pragma once

#include <optional>
#include <string>

#include "cpu/plan.h"

namespace rnn_ext::cpu {

// The number of cores in the affinity mask or in the CPU quota, whichever is smaller; at least 1.
// Both may change while the process runs, and are read again once a second.
int usable_cores();

// The CPU quota of the process's control groups (version 1 or 2) and their parents, in cores,
// rounded up; nullopt if there is none. `root` is prepended to all paths.
std::optional<int> cpu_quota(const std::string& root);

// What the system says of them; Zen 4's where it does not know.
const Caches& caches();

}  // namespace rnn_ext::cpu
