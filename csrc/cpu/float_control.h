// A thread's settings of floating-point arithmetic: its rounding, and whether subnormal numbers
// count as zeros. torch.set_flush_denormal changes them for the calling thread only.
#pragma once

#include <cstdint>

namespace rnn_ext::cpu {

// The control register of a thread.
struct FloatControl {
  std::uint64_t bits = 0;

  static FloatControl of_this_thread() {
    FloatControl control;
#if defined(__x86_64__)
    control.bits = __builtin_ia32_stmxcsr();
#elif defined(__aarch64__)
    asm volatile("mrs %0, fpcr" : "=r"(control.bits));
#endif
    return control;
  }
  void apply() const {
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr(static_cast<unsigned>(bits));
#elif defined(__aarch64__)
    asm volatile("msr fpcr, %0" : : "r"(bits));
#endif
  }
};

// Sets another control register for this thread until the scope ends.
class FloatControlScope {
 public:
  explicit FloatControlScope(FloatControl control) { control.apply(); }
  FloatControlScope(const FloatControlScope&) = delete;
  FloatControlScope& operator=(const FloatControlScope&) = delete;
  ~FloatControlScope() { before_.apply(); }

 private:
  const FloatControl before_ = FloatControl::of_this_thread();
};

}  // namespace rnn_ext::cpu
