// Error messages for Python: ours, and those of torch, which its C interface hides.
#pragma once

#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "common/compat.h"

namespace rnn_ext {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  text << "rnn_ext: ";
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) {
    fail(parts...);
  }
}

// Whether the text of an error means out of memory; the C interface does not pass error types.
inline bool is_out_of_memory(std::string_view text) {
  for (const std::string_view part :
       {"out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED"}) {
    if (text.find(part) != text.npos) {
      return true;
    }
  }
  return false;
}

// Runs `op`. If torch throws inside it, throws with torch's own message instead of the source line
// that torch's headers report.
template <auto op>
struct WithTorchsWords;

template <class Result, class... Arguments, Result (*op)(Arguments...)>
struct WithTorchsWords<op> {
  static Result call(Arguments... arguments) {
    try {
      return op(std::forward<Arguments>(arguments)...);
    } catch (const std::runtime_error& error) {
      if (std::string_view(error.what()).starts_with("rnn_ext: ")) {
        throw;
      }
      if (!torch_exception_get_what_without_backtrace) {
        fail("an operation of torch's failed; torch before 2.13 prints the reason on stderr");
      }
      const std::string_view reason = torch_exception_get_what_without_backtrace();
      fail(is_out_of_memory(reason) ? "out of memory: " : "", reason);
    }
  }
};

}  // namespace rnn_ext
