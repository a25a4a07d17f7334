// Everything that differs between releases of torch's headers, or that they do not guarantee. With
// TORCH_TARGET_VERSION 2.10 one binary runs on that and all later releases.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/shim_utils.h>

// Throws if a call of torch's C interface failed; torch 2.13 renamed the macro for it.
#if !defined(STABLE_TORCH_ERROR_CODE_CHECK)
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

// Returns why the last call of that interface failed; missing before torch 2.13.
extern "C" [[gnu::weak, gnu::visibility("default")]] const char*
torch_exception_get_what_without_backtrace();

namespace rnn_ext {

// The argument that STABLE_TORCH_LIBRARY passes to its block.
using Library = torch::stable::detail::StableLibrary;

// Arguments and results of torch_call_dispatcher.
namespace boxed {
using torch::stable::detail::from;
using torch::stable::detail::to;
}  // namespace boxed

}  // namespace rnn_ext
