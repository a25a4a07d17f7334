// Scratch memory of calls. Fresh memory costs a page fault for every 4 KiB, more than the
// arithmetic of a small call, so a call leaves its block for the next one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <vector>

namespace rnn_ext::cpu {

// Frees the blocks that no running call uses, and returns their bytes.
std::size_t release_scratch();

// Allocates uninitialized, cache-line-aligned memory for the call that this thread runs.
class Scratch {
 public:
  // Frees everything allocated within it when it ends. The outermost scope of a thread is a call.
  class Scope {
   public:
    Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    ~Scope();

   private:
    const bool is_outermost_;
    std::size_t used_;
    std::size_t overflows_;
  };

  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  using Memory = std::unique_ptr<void, Free>;

  // Kept between calls.
  struct Block {
    Memory memory;
    std::size_t size = 0;
    std::size_t most_used = 0;  // by the calls counted in `calls`
    int calls = 0;
    int rounds_unused = 0;
  };

  static Scratch& local() {
    static thread_local Scratch scratch;
    return scratch;
  }

  void* take(std::size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    void* const next = used_ + bytes <= block_->size
                           ? static_cast<char*>(block_->memory.get()) + used_
                           : overflow(bytes);
    used_ += bytes;
    most_used_ = used_ > most_used_ ? used_ : most_used_;
    return next;
  }

 private:
  void begin();
  void end();
  void* overflow(std::size_t bytes);

  std::unique_ptr<Block> block_;   // during a call
  std::vector<Memory> overflows_;  // allocations that do not fit into the block
  std::size_t used_ = 0;
  std::size_t most_used_ = 0;
};

// `count` values of scratch memory, valid until the Scratch::Scope around it ends.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::int64_t count) {
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max() / (2 * sizeof(T));
    if (count > most) {
      throw std::bad_alloc();
    }
    if (count > 0) {
      data_ = static_cast<T*>(Scratch::local().take(static_cast<std::size_t>(count) * sizeof(T)));
    }
  }

  // Memory that the caller owns.
  static Buffer of(T* data) {
    Buffer buffer;
    buffer.data_ = data;
    return buffer;
  }

  T* data() const { return data_; }
  // The values from `offset` on; null if there is no memory.
  T* from(std::int64_t offset) const { return data_ ? data_ + offset : nullptr; }

 private:
  T* data_ = nullptr;
};

}  // namespace rnn_ext::cpu
