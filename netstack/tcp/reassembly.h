// Segments that arrived above a hole, and the SACK blocks that tell of them (RFC 2018, RFC 2883).
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/seq_num.h"
#include "netstack/packet.h"
#include "netstack/tcp/byte_queue.h"
#include "netstack/tcp/segment.h"

namespace sluice::tcp {

// Ordered, without overlap: the bytes that came first are kept, which bounds memory to one copy of the window.
class Reassembly {
 public:
  // `account`, where there is one, hears of what is pinned.
  explicit Reassembly(QueueMemory* account = nullptr) : account_(account) {}
  Reassembly(const Reassembly&) = delete;
  Reassembly& operator=(const Reassembly&) = delete;
  ~Reassembly() { Discharge(memory_); }

  bool empty() const { return head_ == pieces_.size(); }
  size_t memory() const { return memory_; }
  size_t bytes() const { return bytes_; }
  size_t count() const { return pieces_.size() - head_; }
  // What the first piece has of the bytes before `next`: they came twice.
  SackBlock Below(SeqNum next) const;
  SeqNum highest() const { return pieces_.back().end(); }  // not where empty()

  // Adds what is new of [seq, seq + slice.length). True where anything was.
  bool Insert(SeqNum seq, Slice slice, BlockPool& pool);
  // Moves what continues at `next` to `queue`; returns the number after the last byte moved.
  SeqNum Drain(SeqNum next, ByteQueue* queue, BlockPool& pool);
  // Gives up the highest bytes until at most `limit` bytes of memory are pinned. Returns how many bytes went.
  size_t Prune(size_t limit);
  void Clear();

 private:
  struct Piece {
    SeqNum start;
    Slice slice;
    uint32_t charge = 0;
    SeqNum end() const { return start + slice.length; }
  };
  void Discharge(size_t bytes) {
    if (account_ != nullptr) account_->Remove(bytes);
  }
  bool InsertPiece(size_t index, SeqNum seq, Slice slice, BlockPool& pool);

  std::vector<Piece> pieces_;
  size_t head_ = 0;
  size_t memory_ = 0;
  size_t bytes_ = 0;
  QueueMemory* account_;
};

// What to report: the latest change first (RFC 2018 4).
class SackList {
 public:
  uint8_t count() const { return count_; }
  const SackBlock& operator[](size_t i) const { return blocks_[i]; }
  void Add(SeqNum start, SeqNum end);
  // The cumulative acknowledgment reached `next`.
  void Advance(SeqNum next);
  // Data from `edge` on was given up.
  void Trim(SeqNum edge);
  void Clear() { count_ = 0; }

 private:
  void Remove(size_t i);
  std::array<SackBlock, 4> blocks_;
  uint8_t count_ = 0;
};

}  // namespace sluice::tcp
