#include "cpu/settings.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>

#include "cpu/cores.h"

namespace rnn_ext::cpu {
namespace {

std::atomic<bool> pool_is_concurrent{false};
std::atomic<bool> in_forked_child{false};
constexpr Plan not_forced{1, false, 0};
std::atomic<Plan> forced{not_forced};

const int fork_handler = pthread_atfork(
    nullptr, nullptr, [] { in_forked_child.store(true, std::memory_order_relaxed); });

bool can_form_team() {
  return pool_is_concurrent.load(std::memory_order_relaxed) &&
         !in_forked_child.load(std::memory_order_relaxed);
}

}  // namespace

int available_threads(int torch_threads) {
  return torch_threads > 1 && can_form_team() ? std::min(torch_threads, usable_cores()) : 1;
}

void set_pool_is_concurrent(bool concurrent) {
  pool_is_concurrent.store(concurrent, std::memory_order_relaxed);
}

void force_plan(std::optional<Plan> plan) {
  forced.store(plan.value_or(not_forced), std::memory_order_relaxed);
}

Plan plan_for(const Shape& shape, int threads) {
  Plan plan = forced.load(std::memory_order_relaxed);
  if (plan.threads == 0 || !can_form_team()) {
    // Most calls of a thread are like the previous one.
    static thread_local struct {
      Shape shape;
      int threads = 0;
      Plan plan;
    } last;
    if (last.threads != threads || last.shape != shape) {
      Shape here = shape;
      here.caches = caches();
      last = {shape, threads, make_plan(here, threads)};
    }
    return last.plan;
  }
  plan.directions_at_once = plan.directions_at_once && shape.independent_directions;
  if (plan.directions_at_once && plan.groups > 1) {
    plan.groups /= 2;
  }
  return plan;
}

}  // namespace rnn_ext::cpu
