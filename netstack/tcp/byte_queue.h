// A queue of stream bytes made of shared slices: the send queue and the receive queue of a connection.
//
// Small pieces are copied into a tail block that the queue owns, so that one-byte writes cost neither a slice each nor pin a
// large block each. `memory()` is what the queue really pins.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/bytes.h"
#include "netstack/packet.h"
#include "netstack/socket/queue_memory.h"

namespace sluice::tcp {

class ByteQueue {
 public:
  // `account`, where there is one, hears of what is pinned.
  explicit ByteQueue(QueueMemory* account = nullptr) : account_(account) {}
  ~ByteQueue() { Discharge(memory_); }
  ByteQueue(const ByteQueue&) = delete;
  ByteQueue& operator=(const ByteQueue&) = delete;

  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  size_t memory() const { return memory_; }

  // Shares the slice, or copies it where it is short or pins much more than it holds. Falls back to sharing where the pool is
  // exhausted, so that it cannot fail.
  void Append(Slice slice, BlockPool& pool);
  // Shares the slice; `charge` is what the caller accounts for it.
  void AppendShared(Slice slice, uint32_t charge);
  void PopFront(size_t n);
  // Fills `out` with the oldest bytes; returns the number of spans.
  size_t Peek(std::span<Bytes> out) const;
  // Adds bytes from `offset` on to the packet as slices; returns how many found room (at most `length`).
  size_t Gather(size_t offset, size_t length, Packet* packet) const;
  void CopyOut(size_t offset, MutableBytes out) const;
  void Clear();

  // What a slice pins, for accounting.
  static uint32_t ChargeOf(const Slice& slice);

 private:
  struct Entry {
    Slice slice;
    uint64_t start = 0;  // stream position of the first byte
    uint32_t charge = 0;
  };
  void Discharge(size_t bytes) {
    if (account_ != nullptr) account_->Remove(bytes);
  }
  Entry& at(size_t i) const { return ring_[(head_ + i) & (capacity_ - 1)]; }
  size_t Find(size_t offset) const;
  Entry& PushEntry();
  void Reallocate(size_t capacity);
  uint32_t AppendCopy(Bytes bytes, BlockPool& pool);  // how many bytes were copied

  std::unique_ptr<Entry[]> ring_;
  uint32_t capacity_ = 0;  // a power of two, or 0
  uint32_t head_ = 0;
  uint32_t count_ = 0;
  uint32_t tail_room_ = 0;  // bytes free behind the last slice in a block that the queue made itself
  uint64_t base_ = 0;       // stream position of the first byte
  size_t size_ = 0;
  size_t memory_ = 0;
  QueueMemory* account_;
};

}  // namespace sluice::tcp
