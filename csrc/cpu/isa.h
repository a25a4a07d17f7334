// Which kernel set serves this process.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace rnn_ext::cpu {

// The set in use: at first the best one that the machine has, capped by RNN_EXT_ISA.
const KernelSet& kernels();

// All levels in this binary, and those of them that this machine can run, from the lowest up.
std::vector<std::string> compiled_isas();
std::vector<std::string> available_isas();

// Caps the level. Throws std::invalid_argument, naming the valid levels, where `cap` is none.
void cap_isa(const std::string& cap);

}  // namespace rnn_ext::cpu
