#include "cpu/cores.h"

#include <sched.h>
#include <time.h>
#include <unistd.h>
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <thread>

namespace rnn_ext::cpu {
namespace {

int cores_of_affinity() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    return std::max(1, CPU_COUNT(&set));
  }
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int cores_now() {
  const int cores = cores_of_affinity();
  return std::min(cores, cpu_quota("").value_or(cores));
}

std::int64_t seconds() {
#if defined(CLOCK_MONOTONIC_COARSE)
  constexpr clockid_t clock = CLOCK_MONOTONIC_COARSE;  // read in a few nanoseconds
#else
  constexpr clockid_t clock = CLOCK_MONOTONIC;
#endif
  timespec now{};
  clock_gettime(clock, &now);
  return now.tv_sec;
}

// The quota of one control group; infinite if it has none.
double quota_of(const std::string& folder, bool is_version_2) {
  double quota = 0, period = 0;
  if (is_version_2) {
    std::ifstream(folder + "/cpu.max") >> quota >> period;  // "max" is not a number
  } else {
    std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;  // -1: none
    std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  }
  return quota > 0 && period > 0 ? quota / period : INFINITY;
}

}  // namespace

int usable_cores() {
  static std::atomic<std::int64_t> read_at{-1};
  static std::atomic<int> cores{1};
  const std::int64_t now = seconds();
  if (read_at.load(std::memory_order_acquire) != now) {
    cores.store(cores_now(), std::memory_order_relaxed);
    read_at.store(now, std::memory_order_release);
  }
  return cores.load(std::memory_order_relaxed);
}

std::optional<int> cpu_quota(const std::string& root) {
  double least = INFINITY;
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // id:controllers:path
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (second == std::string::npos) {
      continue;
    }
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool is_version_2 = controllers == ",,";
    if (!is_version_2 && controllers.find(",cpu,") == std::string::npos) {
      continue;
    }
    const std::string mounted = root + "/sys/fs/cgroup" + (is_version_2 ? "" : "/cpu");
    // A container may see its own group as the root, whatever its path.
    for (std::string path = line.substr(second + 1);; path.resize(path.rfind('/'))) {
      least = std::min(least, quota_of(mounted + path, is_version_2));
      if (path.rfind('/') == std::string::npos) {
        break;
      }
    }
  }
  constexpr double most = 1 << 20;
  return least <= most ? std::optional(static_cast<int>(std::ceil(least))) : std::nullopt;
}

const Caches& caches() {
  static const Caches known = [] {
    Caches sizes;
#if defined(_SC_LEVEL1_DCACHE_SIZE)
    const auto replace = [](std::int64_t& size, int name) {
      if (const long known = sysconf(name); known > 0) {
        size = known;
      }
    };
    replace(sizes.l1, _SC_LEVEL1_DCACHE_SIZE);
    replace(sizes.l2, _SC_LEVEL2_CACHE_SIZE);
#elif defined(__APPLE__)
    std::size_t length = sizeof(sizes.l1);
    sysctlbyname("hw.perflevel0.l1dcachesize", &sizes.l1, &length, nullptr, 0);
    length = sizeof(sizes.l2);
    sysctlbyname("hw.perflevel0.l2cachesize", &sizes.l2, &length, nullptr, 0);
#endif
    return sizes;
  }();
  return known;
}

}  // namespace rnn_ext::cpu
