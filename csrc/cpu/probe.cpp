#include "cpu/probe.h"

#include <algorithm>
#include <chrono>
#include <limits>

#include "cpu/isa.h"
#include "cpu/scratch.h"

namespace rnn_ext::cpu {
namespace {

// The seconds of f() when nothing disturbed it: the least of several times.
template <class F>
double least_seconds(F&& f) {
  double least = std::numeric_limits<double>::infinity();
  for (int round = 0; round < 20; ++round) {
    const auto start = std::chrono::steady_clock::now();
    f();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    least = std::min(least, seconds.count());
  }
  return least;
}

// What f(member) returns to the leader of a team.
template <class F>
double on_team(int threads, ParallelFor parallel_for, F&& f) {
  double result = 0;
  const auto body = [&](Team::Member member) {
    const double own = f(member);
    if (member.is_leader()) {
      result = own;
    }
  };
  Team::run(parallel_for, threads, body);
  return result;
}

}  // namespace

double read_rate(std::int64_t bytes, int threads, ParallelFor parallel_for) {
  constexpr std::int64_t bytes_a_round = 16 << 20;  // long beside a barrier
  constexpr std::int64_t unit = 128;
  constexpr std::int64_t size = sizeof(float);
  const std::int64_t count = std::max<std::int64_t>(1, bytes / size / unit) * unit;
  const std::int64_t times = std::max<std::int64_t>(1, bytes_a_round / size / count);
  const Scratch::Scope scratch;
  const Buffer<float> memory(count * threads);
  const double seconds = on_team(threads, parallel_for, [&](Team::Member& member) {
    float* own = memory.data() + member.rank() * count;
    std::fill_n(own, count, 1.0f);  // by its reader, so that its pages are near
    return least_seconds([&] {
      member.barrier();
      kernels().sum(own, count, times);
      member.barrier();
    });
  });
  return static_cast<double>(times * count * size) / seconds;
}

double barrier_seconds(int threads, ParallelFor parallel_for) {
  constexpr int barriers = 200;
  const double seconds = on_team(threads, parallel_for, [](Team::Member& member) {
    return least_seconds([&] {
      for (int i = 0; i < barriers; ++i) {
        member.barrier();
      }
    });
  });
  return seconds / barriers;
}

double fork_join_seconds(int threads, ParallelFor parallel_for) {
  constexpr int teams = 20;
  const auto nothing = [](Team::Member) {};
  const double seconds = least_seconds([&] {
    for (int i = 0; i < teams; ++i) {
      Team::run(parallel_for, threads, nothing);
    }
  });
  return seconds / teams;
}

}  // namespace rnn_ext::cpu
