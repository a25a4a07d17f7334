#include "cpu/team.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <thread>

namespace rnn_ext::cpu {
namespace {

std::atomic<bool> pool_is_concurrent{false};
std::atomic<bool> in_forked_child{false};

const int fork_handler = pthread_atfork(
    nullptr, nullptr, [] { in_forked_child.store(true, std::memory_order_relaxed); });

int usable_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    return std::max(1, CPU_COUNT(&set));
  }
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

int available_threads(int torch_threads) {
  static const int cores = usable_cores();
  if (!pool_is_concurrent.load(std::memory_order_relaxed) ||
      in_forked_child.load(std::memory_order_relaxed)) {
    return 1;
  }
  return std::clamp(torch_threads, 1, cores);
}

void set_pool_is_concurrent(bool concurrent) {
  pool_is_concurrent.store(concurrent, std::memory_order_relaxed);
}

}  // namespace rnn_ext::cpu
