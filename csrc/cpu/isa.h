// The kernel set that this process uses.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace rnn_ext::cpu {

// The set in use: by default the best one for this machine, capped by RNN_EXT_ISA.
const KernelSet& kernels();

// All levels in this binary, and those that this machine can run, from the lowest up.
std::vector<std::string> compiled_isas();
std::vector<std::string> available_isas();

// Caps the level. Throws std::invalid_argument, which names the valid levels, if `cap` is not one.
void cap_isa(const std::string& cap);

}  // namespace rnn_ext::cpu
