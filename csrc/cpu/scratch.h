// Scratch memory of a call, kept by the calling thread for its next call: fresh memory costs a page
// fault for every 4 KiB, more than the arithmetic of a small call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace rnn_ext::cpu {

// Hands out uninitialised, cache-line-aligned memory until the scope of a call ends.
class Scratch {
 public:
  // Frees everything taken in it. One at a time in a thread.
  class Scope {
   public:
    Scope() = default;
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    ~Scope() { local().reset(); }
  };

  static Scratch& local() {
    static thread_local Scratch scratch;
    return scratch;
  }

  void* take(std::size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    used_ += bytes;
    if (used_ <= size_) {
      return static_cast<char*>(block_.get()) + used_ - bytes;
    }
    overflow_.push_back(allocate(bytes));
    return overflow_.back().get();
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  using Block = std::unique_ptr<void, Free>;

  // What a thread keeps at most between calls.
  static constexpr std::size_t keep = std::size_t{32} << 20;

  static Block allocate(std::size_t bytes) {
    Block block(std::aligned_alloc(64, bytes));
    if (!block) {
      throw std::bad_alloc();
    }
    return block;
  }

  // Where a call overflowed, the next gets one block that would have held it.
  void reset() {
    overflow_.clear();
    if (used_ > size_ && used_ <= keep) {
      block_.reset();
      size_ = 0;
      block_.reset(std::aligned_alloc(64, used_));
      size_ = block_ ? used_ : 0;
    }
    used_ = 0;
  }

  Block block_;
  std::size_t size_ = 0;
  std::size_t used_ = 0;
  std::vector<Block> overflow_;
};

// `count` values of scratch memory, valid until the call's Scratch::Scope ends.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::int64_t count)
      : data_(count > 0 ? static_cast<T*>(
                              Scratch::local().take(static_cast<std::size_t>(count) * sizeof(T)))
                        : nullptr) {}

  T* data() const { return data_; }
  // The values from `offset` on; null where there is no memory.
  T* from(std::int64_t offset) const { return data_ ? data_ + offset : nullptr; }

 private:
  T* data_ = nullptr;
};

}  // namespace rnn_ext::cpu
