// Measures limits of the machine that no call can exceed: the rate of reading memory, and the time
// of barriers and of starting a team.
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/team.h"

namespace py = pybind11;
using rnn_ext::cpu::Team;

namespace {

// Returns the seconds of an undisturbed f(): the minimum of several runs.
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

// Calls f(member) on each thread of a team and returns what it returns to the leader.
template <class F>
double on_team(int threads, F&& f) {
  double result = 0;
  const auto body = [&](Team::Member member) {
    const double own = f(member);
    if (member.is_leader()) {
      result = own;
    }
  };
  Team::run(torch_parallel_for, threads, body);
  return result;
}

// Enough vectors that no addition waits for another. Loops over them are unrolled, which keeps them
// in registers.
using Vector = float __attribute__((vector_size(64)));
constexpr int chains = 8;

Vector sum(const Vector* values, std::int64_t count, std::int64_t times) {
  Vector sums[chains] = {};
  for (std::int64_t pass = 0; pass < times; ++pass) {
    for (std::int64_t i = 0; i < count; i += chains) {
#pragma GCC unroll 8
      for (int j = 0; j < chains; ++j) {
        sums[j] += values[i + j];
      }
    }
  }
#pragma GCC unroll 8
  for (int j = 1; j < chains; ++j) {
    sums[0] += sums[j];
  }
  return sums[0];
}

// Returns the bytes per second that each thread reads from `bytes` of its own while all read.
double read_rate(std::int64_t bytes, int threads) {
  constexpr std::int64_t bytes_a_round = 16 << 20;  // long compared to a barrier
  constexpr std::int64_t size = sizeof(Vector);
  const std::int64_t count = std::max<std::int64_t>(1, bytes / size / chains) * chains;
  const std::int64_t times = std::max<std::int64_t>(1, bytes_a_round / size / count);
  const double seconds = on_team(threads, [&](Team::Member member) {
    const std::vector<Vector> own(count, Vector{} + 1.0f);  // allocated and written by its reader
    volatile float result = 0;
    return least_seconds([&] {
      member.barrier();
      result = sum(own.data(), count, times)[0];
      member.barrier();
    });
  });
  return static_cast<double>(times * count * size) / seconds;
}

// Returns the seconds of a barrier between threads that do nothing else.
double barrier_seconds(int threads) {
  constexpr int barriers = 200;
  const double seconds = on_team(threads, [](Team::Member member) {
    return least_seconds([&] {
      for (int i = 0; i < barriers; ++i) {
        member.barrier();
      }
    });
  });
  return seconds / barriers;
}

// Returns the seconds of starting and ending a team that does nothing.
double fork_join_seconds(int threads) {
  constexpr int teams = 20;
  const auto nothing = [](Team::Member) {};
  const double seconds = least_seconds([&] {
    for (int i = 0; i < teams; ++i) {
      Team::run(torch_parallel_for, threads, nothing);
    }
  });
  return seconds / teams;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  const py::call_guard<py::gil_scoped_release> without_gil;
  m.def("read_rate", &read_rate, py::arg("bytes"), py::arg("threads"), without_gil);
  m.def("barrier_seconds", &barrier_seconds, py::arg("threads"), without_gil);
  m.def("fork_join_seconds", &fork_join_seconds, py::arg("threads"), without_gil);
}
