// How many cores this process may use.
#pragma once

#include <optional>
#include <string>

namespace rnn_ext::cpu {

// The cores of its affinity mask or those of its CPU quota, whichever are fewer; at least 1. Both
// may change while the process runs, and are read anew once a second.
int usable_cores();

// The CPU quota that the process's control groups (version 1 or 2) and their parents set, in cores,
// a part of one counted as one; nullopt where there is none. `root` stands before all paths.
std::optional<int> cpu_quota(const std::string& root);

}  // namespace rnn_ext::cpu
