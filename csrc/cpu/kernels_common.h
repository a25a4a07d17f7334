// The headers that the kernels use, of the standard library and the project, before any target
// pragma: code that is parsed before the pragma is compiled for the baseline machine, code after it
// for the ISA level. So common/cell.h, whose rules must be inlined into the kernels, comes after.
#pragma once

// All tiles and all compilers must give the same bits.
#if defined(__FAST_MATH__)
#error "rnn_ext does not keep its promises under -ffast-math: build without it"
#endif

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <type_traits>
#include <utility>

#include "common/half.h"
#include "cpu/kernels.h"
