#include "emulation.h"

#include <cuda_runtime.h>
#include <cxxabi.h>
#include <dlfcn.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx;
dim3 blockIdx;

namespace rnn_ext::cuda {

// No device gives a block more; what a launch did not ask for is out of bounds all the same.
alignas(16) unsigned char shared_bytes[256 << 10];

}  // namespace rnn_ext::cuda

namespace emulation {

Order order = Order::identity;
rnn_ext::cuda::Limits limits{132, 227 << 10, 65536};

namespace {

constexpr std::size_t stack_size = 128 << 10;
constexpr unsigned char filling = 0xff;  // NaN in every floating-point type
constexpr std::size_t granted_shared_bytes = 48 << 10;

std::map<Kernel, std::size_t> allowed_shared_bytes;
std::set<Kernel> launched_kernels;
std::string last_error;

// Tells the address sanitizer of a switch, before and after it.
struct Switch {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  void start(const void* stack, std::size_t size) {
    __sanitizer_start_switch_fiber(&fake_stack, stack, size);
  }
  void finish(const void** stack, std::size_t* size) {
    __sanitizer_finish_switch_fiber(fake_stack, stack, size);
  }
  static void leave_for_good(const void* stack, std::size_t size) {
    __sanitizer_start_switch_fiber(nullptr, stack, size);
  }
#else
  void start(const void*, std::size_t) {}
  void finish(const void**, std::size_t*) {}
  static void leave_for_good(const void*, std::size_t) {}
#endif
};

struct Fiber {
  ucontext_t context;
  Switch to_scheduler;
  std::unique_ptr<char[]> stack{new char[stack_size]};
  bool is_finished = false;
  unsigned line = 0;  // of the barrier that it waits at
};

// Runs the threads of one block at a time.
class Scheduler {
 public:
  void run_block(unsigned threads, const std::function<void()>& thread) {
    thread_ = &thread;
    while (fibers_.size() < threads) {
      fibers_.push_back(std::make_unique<Fiber>());
    }
    for (unsigned i = 0; i < threads; ++i) {
      start(*fibers_[i]);
    }
    std::vector<unsigned> sequence(threads);
    std::iota(sequence.begin(), sequence.end(), 0u);
    if (order == Order::reversed) {
      std::reverse(sequence.begin(), sequence.end());
    }
    do {
      if (order == Order::shuffled) {
        std::shuffle(sequence.begin(), sequence.end(), random_);
      }
      for (const unsigned i : sequence) {
        threadIdx.x = i;
        resume(*fibers_[i]);
      }
      require_all_alike(threads);
    } while (!fibers_[0]->is_finished);
  }

  void wait(unsigned line) {
    current_->line = line;
    current_->to_scheduler.start(scheduler_stack_, scheduler_stack_size_);
    swapcontext(&current_->context, &context_);
    current_->to_scheduler.finish(&scheduler_stack_, &scheduler_stack_size_);
  }

 private:
  static void entry();

  void start(Fiber& fiber) {
    fiber.is_finished = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = stack_size;
    fiber.context.uc_link = &context_;
    makecontext(&fiber.context, &entry, 0);
  }

  void resume(Fiber& fiber) {
    current_ = &fiber;
    to_fiber_.start(fiber.stack.get(), stack_size);
    swapcontext(&context_, &fiber.context);
    to_fiber_.finish(nullptr, nullptr);
  }

  void require_all_alike(unsigned threads) const {
    const auto& first = *fibers_[0];
    for (unsigned i = 1; i < threads; ++i) {
      const auto& other = *fibers_[i];
      if (other.is_finished != first.is_finished ||
          (!first.is_finished && other.line != first.line)) {
        throw std::runtime_error("threads 0 and " + std::to_string(i) +
                                 " of a block do not meet at the same barrier");
      }
    }
  }

  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::mt19937 random_{1};
  ucontext_t context_;
  Switch to_fiber_;
  const void* scheduler_stack_ = nullptr;
  std::size_t scheduler_stack_size_ = 0;
  Fiber* current_ = nullptr;
  const std::function<void()>* thread_ = nullptr;
} scheduler;

void Scheduler::entry() {
  Scheduler& self = scheduler;
  self.current_->to_scheduler = {};
  self.current_->to_scheduler.finish(&self.scheduler_stack_, &self.scheduler_stack_size_);
  (*self.thread_)();
  self.current_->is_finished = true;
  Switch::leave_for_good(self.scheduler_stack_, self.scheduler_stack_size_);
}

// The block's shared memory: NaN in the bytes that it requested, out of bounds elsewhere.
class SharedMemory {
 public:
  explicit SharedMemory(std::size_t bytes) : rest_(std::begin(memory()) + bytes) {
    std::fill(std::begin(memory()), std::end(memory()), filling);
#if defined(__SANITIZE_ADDRESS__)
    ASAN_POISON_MEMORY_REGION(rest_, std::end(memory()) - rest_);
#endif
  }
  ~SharedMemory() {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(rest_, std::end(memory()) - rest_);
#endif
  }
  void require_rest_untouched() const {
#if !defined(__SANITIZE_ADDRESS__)
    if (!std::all_of(rest_, std::end(memory()), [](auto byte) { return byte == filling; })) {
      throw std::runtime_error("a block wrote beyond its shared memory");
    }
#endif
  }

 private:
  static auto memory() -> decltype((rnn_ext::cuda::shared_bytes)) {
    return rnn_ext::cuda::shared_bytes;
  }
  unsigned char* rest_;
};

void require_valid(Kernel kernel, const cudaLaunchConfig_t& config) {
  const auto found = allowed_shared_bytes.find(kernel);
  const std::size_t allowed =
      std::max(granted_shared_bytes, found == allowed_shared_bytes.end() ? 0 : found->second);
  const auto shared_limit = static_cast<std::size_t>(limits.shared_bytes);
  if (config.blockDim.x == 0 || config.blockDim.x > 1024 || config.blockDim.y != 1 ||
      config.blockDim.z != 1 || config.gridDim.x == 0 || config.gridDim.x > 0x7fffffff ||
      config.gridDim.y == 0 || config.gridDim.y > 65535 || config.gridDim.z != 1 ||
      config.dynamicSmemBytes > allowed || allowed > std::max(shared_limit, granted_shared_bytes)) {
    throw std::runtime_error("a kernel was launched in a shape that the device does not offer");
  }
}

}  // namespace

cudaError_t allow_shared_bytes(Kernel kernel, int bytes) {
  allowed_shared_bytes[kernel] = static_cast<std::size_t>(bytes);
  return cudaSuccess;
}

cudaError_t launch(Kernel kernel, const cudaLaunchConfig_t& config,
                   const std::function<void()>& thread) {
  try {
    require_valid(kernel, config);
    launched_kernels.insert(kernel);
    for (blockIdx.y = 0; blockIdx.y < config.gridDim.y; ++blockIdx.y) {
      for (blockIdx.x = 0; blockIdx.x < config.gridDim.x; ++blockIdx.x) {
        const SharedMemory shared(config.dynamicSmemBytes);
        scheduler.run_block(config.blockDim.x, thread);
        shared.require_rest_untouched();
      }
    }
    return cudaSuccess;
  } catch (const std::runtime_error& error) {
    last_error = error.what();
    return cudaErrorLaunchFailure;
  }
}

std::set<std::string> launched() {
  std::set<std::string> names;
  for (const Kernel kernel : launched_kernels) {
    Dl_info info{};
    // For a kernel without a name of its own (a test's), dladdr returns the nearest one.
    if (dladdr(const_cast<void*>(kernel), &info) && info.dli_saddr == kernel) {
      const std::unique_ptr<char, void (*)(void*)> name(
          abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, nullptr), std::free);
      names.insert(name ? name.get() : info.dli_sname);
    }
  }
  return names;
}

}  // namespace emulation

void __syncthreads(std::source_location place) { emulation::scheduler.wait(place.line()); }

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? emulation::last_error.c_str() : "invalid argument";
}
