// A team: the threads that work on one call together and synchronize at barriers.
//
// Threads come from torch's own pool. Its parallel_for may hand several indices to one body (and
// hands all of them to one body inside another parallel region), so the members are known only when
// all indices have been handed out: every body adds the length of its range to a counter, and when
// that reaches the requested number, the bodies counted so far are the team. This requires a pool
// that runs its bodies at the same time, such as OpenMP's.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <utility>

#include "cpu/float_control.h"
#include "cpu/ranges.h"

namespace rnn_ext::cpu {

// The signature of torch_parallel_for: begin, end, grain size, body, context; 0 on success.
using ParallelFor = std::int32_t (*)(std::int64_t, std::int64_t, std::int64_t,
                                     void (*)(std::int64_t, std::int64_t, void*), void*);

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");  // `yield` does nothing on most cores
#endif
}

// Waits until `value` is no longer `old`. Spins for longer than running threads need to reach a
// barrier, then sleeps: if another program uses one of the cores, a thread that continued to spin
// would keep the other core from its teammate.
inline void wait_while(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::microseconds patience(30);
  constexpr int loads_between_looks = 64;  // at the clock: 0.1 to 3 µs
  const auto changes = [&] {
    for (int i = 0; i < loads_between_looks; ++i) {
      if (value.load(std::memory_order_acquire) != old) {
        return true;
      }
      relax();
    }
    return false;
  };
  if (changes()) {
    return;
  }
  for (const auto end = Clock::now() + patience; Clock::now() < end;) {
    if (changes()) {
      return;
    }
  }
  value.wait(old, std::memory_order_acquire);
}

// Changes `value` and wakes the threads that wait for it. The store is sequentially consistent
// because notify_all first checks whether a thread waits. A processor may move a release store
// behind that check; a thread could then miss the change and sleep forever.
inline void announce(std::atomic<std::uint32_t>& value, std::uint32_t changed) {
  value.store(changed, std::memory_order_seq_cst);
  value.notify_all();
}

// A barrier for a number of threads, which they can use repeatedly.
class Barrier {
 public:
  // Returns when all `size` threads have called it.
  void wait(int size) {
    const std::uint32_t generation = generation_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      announce(generation_, generation + 1);
    } else {
      wait_while(generation_, generation);
    }
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> generation_{0};
};

class Team {
 public:
  class Member {
   public:
    int rank() const { return rank_; }
    int size() const { return size_; }
    bool is_leader() const { return rank_ == 0; }
    void barrier() const {
      if (size_ > 1) {
        barrier_->wait(size_);
      }
    }
    // This member's share of [0, count), cut at multiples of `unit`.
    Range share(std::int64_t count, std::int64_t unit = 1) const {
      return Range::share(count, unit, rank_, size());
    }

    // This thread as a member of one of `count` independent teams, and the number of that team.
    // Neighbors stay together. Requires at least `count` members, and a barrier for each team that
    // has more than one member.
    std::pair<Member, int> in_parts(int count, Barrier* barriers) const {
      const int part = ((rank_ + 1) * count - 1) / size_;
      const auto [begin, end] = Range::share(size_, 1, part, count);
      const auto size = static_cast<int>(end - begin);
      Barrier* const barrier = size > 1 ? barriers + part : nullptr;
      return {Member(barrier, rank_ - static_cast<int>(begin), size), part};
    }

   private:
    friend Team;

    Member(Barrier* barrier, int rank, int size) : barrier_(barrier), rank_(rank), size_(size) {}

    Barrier* barrier_;
    int rank_;
    int size_;
  };

  // Calls body(member) once on each thread of a team of at most `threads`, with the caller's
  // settings of floating-point arithmetic. The body must not throw.
  template <class Body>
  static void run(ParallelFor parallel_for, int threads, Body& body) {
    Team team(threads);
    if (threads == 1) {
      body(Member(nullptr, 0, 1));
      return;
    }
    struct Context {
      Team& team;
      Body& body;
      FloatControl control;
    } context{team, body, FloatControl::of_this_thread()};
    const auto enter = [](std::int64_t begin, std::int64_t end, void* opaque) {
      auto& c = *static_cast<Context*>(opaque);
      const FloatControlScope as_the_caller(c.control);
      const int rank = c.team.join(begin, end);
      const Member member(&c.team.barrier_, rank, c.team.size_);
      c.body(member);
      // Leave together: the pool's own barrier spins for milliseconds before it sleeps.
      member.barrier();
    };
    if (parallel_for(0, threads, 1, enter, &context) != 0) {
      throw std::runtime_error("rnn_ext: torch's thread pool refused the work");
    }
  }

 private:
  explicit Team(int threads) : asked_(threads), size_(1) {}

  // Returns the caller's rank once the team is complete. If each member has one index, this is the
  // rank: the same thread then does the same part in every call, with its data in its cache.
  int join(std::int64_t begin, std::int64_t end) {
    const int arrival = joined_.fetch_add(1, std::memory_order_relaxed);
    const std::int64_t indices = end - begin;
    if (covered_.fetch_add(indices, std::memory_order_acq_rel) + indices == asked_) {
      // All members have counted themselves by now.
      size_ = joined_.load(std::memory_order_relaxed);
      announce(complete_, 1);
    } else {
      wait_while(complete_, 0);
    }
    return size_ == asked_ ? static_cast<int>(begin) : arrival;
  }

  const std::int64_t asked_;
  int size_;
  std::atomic<int> joined_{0};
  std::atomic<std::int64_t> covered_{0};
  std::atomic<std::uint32_t> complete_{0};
  Barrier barrier_;
};

}  // namespace rnn_ext::cpu
