#include "cpu/scratch.h"

#include <algorithm>
#include <atomic>
#include <utility>

namespace rnn_ext::cpu {
namespace {

using Block = Scratch::Block;

// The blocks that no running call uses. There is no lock, since a fork could leave it locked in the
// child. Each thread starts at the slot of its last call, whose block is in its cache.
constexpr std::size_t slot_count = 64;
std::atomic<Block*> slots[slot_count];
thread_local std::size_t own_slot = 0;

// After this number of calls a block shrinks to the size that they used, and a block that no call
// used twice in a row is freed.
constexpr int calls_in_round = 256;

std::unique_ptr<Block> take_from(std::atomic<Block*>& slot) {
  return std::unique_ptr<Block>(slot.load(std::memory_order_relaxed)
                                    ? slot.exchange(nullptr, std::memory_order_acquire)
                                    : nullptr);
}

// Puts the block into the slot if it is empty.
void put_into(std::atomic<Block*>& slot, std::unique_ptr<Block>& block) {
  Block* expected = nullptr;
  if (!slot.load(std::memory_order_relaxed) &&
      slot.compare_exchange_strong(expected, block.get(), std::memory_order_release,
                                   std::memory_order_relaxed)) {
    block.release();
  }
}

std::atomic<Block*>& nth_slot(std::size_t i) { return slots[(own_slot + i) % slot_count]; }

void age_unused_blocks() {
  for (auto& slot : slots) {
    if (auto block = take_from(slot); block && ++block->rounds_unused < 2) {
      put_into(slot, block);
    }
  }
}

Scratch::Memory allocate(std::size_t bytes) {
  return Scratch::Memory(std::aligned_alloc(64, bytes));
}

void resize(Block& block, std::size_t size) {
  block.memory.reset();
  block.memory = allocate(size);
  block.size = block.memory ? size : 0;
}

}  // namespace

std::size_t release_scratch() {
  std::size_t bytes = 0;
  for (auto& slot : slots) {
    if (const auto block = take_from(slot)) {
      bytes += block->size;
    }
  }
  return bytes;
}

Scratch::Scope::Scope() : is_outermost_(!local().block_) {
  Scratch& scratch = local();
  if (is_outermost_) {
    scratch.begin();
  }
  used_ = scratch.used_;
  overflows_ = scratch.overflows_.size();
}

Scratch::Scope::~Scope() {
  Scratch& scratch = local();
  scratch.used_ = used_;
  scratch.overflows_.resize(overflows_);
  if (is_outermost_) {
    scratch.end();
  }
}

void Scratch::begin() {
  for (std::size_t i = 0; i < slot_count && !block_; ++i) {
    if ((block_ = take_from(nth_slot(i)))) {
      own_slot = (own_slot + i) % slot_count;
    }
  }
  if (!block_) {
    block_ = std::make_unique<Block>();
  }
}

// If the call overflowed, the next one gets a block large enough for all of it.
void Scratch::end() {
  Block& block = *block_;
  block.rounds_unused = 0;
  block.most_used = std::max(block.most_used, std::exchange(most_used_, 0));
  if (block.most_used > block.size) {
    resize(block, block.most_used);
  }
  const bool round_ends = ++block.calls == calls_in_round;
  if (round_ends) {
    if (block.most_used < block.size / 2) {
      resize(block, block.most_used);
    }
    block.most_used = 0;
    block.calls = 0;
  }
  for (std::size_t i = 0; i < slot_count && block_; ++i) {
    put_into(nth_slot(i), block_);
  }
  block_.reset();
  if (round_ends) {
    age_unused_blocks();
  }
}

void* Scratch::overflow(std::size_t bytes) {
  Memory memory = allocate(bytes);
  if (!memory) {
    throw std::bad_alloc();
  }
  overflows_.push_back(std::move(memory));
  return overflows_.back().get();
}

}  // namespace rnn_ext::cpu
