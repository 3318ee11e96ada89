// A bounded ring of records of bytes between two threads: one that writes, one that reads. No lock, no allocation after the
// constructor. A record lies in one piece; the bytes are copied in by the writer and read in place.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>

#include "base/bytes.h"
#include "base/check.h"

namespace sluice {

class SpscByteRing {
 public:
  // `capacity` is rounded up to a power of two. A record takes its bytes and at most 15 more; it may be half of the ring.
  explicit SpscByteRing(size_t capacity)
      : mask_(std::bit_ceil(capacity) - 1), bytes_(std::make_unique_for_overwrite<uint8_t[]>(mask_ + 1)) {}

  // --- the writer
  // Room for a record of `size` bytes, until Commit; empty where the reader has left too little.
  MutableBytes Reserve(size_t size) {
    const uint64_t tail = tail_.load(std::memory_order_relaxed);
    const size_t whole = Whole(size), to_end = mask_ + 1 - (tail & mask_);
    const size_t skipped = to_end < whole ? to_end : 0;  // a record does not wrap
    if (mask_ + 1 - (tail - seen_head_) < skipped + whole) {
      seen_head_ = head_.load(std::memory_order_acquire);
      if (mask_ + 1 - (tail - seen_head_) < skipped + whole) return {};
    }
    if (skipped != 0) Header(tail) = kSkip;
    reserved_ = tail + skipped;
    Header(reserved_) = size;
    return {&bytes_[(reserved_ & mask_) + kHeader], size};
  }
  // The reader sees the reserved record.
  void Commit() { tail_.store(reserved_ + Whole(Header(reserved_)), std::memory_order_release); }

  // --- the reader
  bool empty() const { return head_.load(std::memory_order_relaxed) == tail_.load(std::memory_order_acquire); }
  // The oldest record, until Pop; empty where there is none.
  Bytes Front() {
    uint64_t head = head_.load(std::memory_order_relaxed);
    if (head == seen_tail_ && head == (seen_tail_ = tail_.load(std::memory_order_acquire))) return {};
    if (Header(head) == kSkip) {
      head += mask_ + 1 - (head & mask_);
      head_.store(head, std::memory_order_release);
    }
    return {&bytes_[(head & mask_) + kHeader], Header(head)};
  }
  void Pop() {
    const uint64_t head = head_.load(std::memory_order_relaxed);
    head_.store(head + Whole(Header(head)), std::memory_order_release);
  }

 private:
  static constexpr size_t kHeader = 8;
  static constexpr uint64_t kSkip = ~uint64_t{0};
  static size_t Whole(uint64_t size) { return (kHeader + size + 7) & ~size_t{7}; }
  uint64_t& Header(uint64_t at) const { return *reinterpret_cast<uint64_t*>(&bytes_[at & mask_]); }

  const size_t mask_;
  const std::unique_ptr<uint8_t[]> bytes_;
  // What one side writes lies on cache lines of its own, beside its last look at the other's.
  alignas(64) std::atomic<uint64_t> tail_{0};
  uint64_t seen_head_ = 0, reserved_ = 0;
  alignas(64) std::atomic<uint64_t> head_{0};
  uint64_t seen_tail_ = 0;
};

}  // namespace sluice
