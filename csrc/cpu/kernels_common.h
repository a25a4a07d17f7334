// What the kernels use of the standard library and the project, included before any target pragma:
// code that is parsed before the pragma is compiled for the baseline machine, code after it for the
// ISA level. So common/cell.h, whose rules must be inlined into the kernels, comes after.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <type_traits>
#include <utility>

#include "common/half.h"
#include "cpu/kernels.h"
