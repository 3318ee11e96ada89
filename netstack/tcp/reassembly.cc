#include "netstack/tcp/reassembly.h"

#include <algorithm>
#include <cstring>

namespace sluice::tcp {

bool Reassembly::InsertPiece(size_t index, SeqNum seq, Slice slice, BlockPool& pool) {
  // A short piece in a large block would pin far more than the peer paid for.
  if (slice.block->capacity / 2 > slice.length) {
    if (Block* own = pool.Allocate(slice.length)) {
      std::memcpy(own->data, slice.bytes().data(), slice.length);
      slice = Slice{BlockRef(own), 0, slice.length};
    }
  }
  Piece p{seq, std::move(slice), 0};
  p.charge = ByteQueue::ChargeOf(p.slice) + static_cast<uint32_t>(sizeof(Piece));
  memory_ += p.charge;
  if (account_ != nullptr) account_->Add(p.charge);
  bytes_ += p.slice.length;
  pieces_.insert(pieces_.begin() + static_cast<ptrdiff_t>(index), std::move(p));
  return true;
}

bool Reassembly::Insert(SeqNum seq, Slice slice, BlockPool& pool) {
  const SeqNum end = seq + slice.length;
  auto it = std::upper_bound(pieces_.begin() + static_cast<ptrdiff_t>(head_), pieces_.end(), seq,
                             [](SeqNum s, const Piece& p) { return s < p.end(); });
  auto i = static_cast<size_t>(it - pieces_.begin());
  bool added = false;
  SeqNum at = seq;
  while (at < end) {  // fill each gap between the pieces that are there
    if (i < pieces_.size() && pieces_[i].start <= at) {
      at = Max(at, pieces_[i].end());
      ++i;
      continue;
    }
    const SeqNum stop = i < pieces_.size() ? Min(end, pieces_[i].start) : end;
    added |= InsertPiece(i, at, slice.Sub(at - seq, stop - at), pool);
    at = stop;
    ++i;
  }
  return added;
}

SackBlock Reassembly::Below(SeqNum next) const {
  if (empty() || next <= pieces_[head_].start) return {next, next};
  const Piece& p = pieces_[head_];
  return {p.start, p.end() < next ? p.end() : next};
}

SeqNum Reassembly::Drain(SeqNum next, ByteQueue* queue, BlockPool& pool) {
  while (!empty() && pieces_[head_].start <= next) {
    Piece& p = pieces_[head_];
    memory_ -= p.charge;
    Discharge(p.charge);
    bytes_ -= p.slice.length;
    if (next < p.end()) {
      const uint32_t skip = next - p.start;
      next = p.end();
      p.slice.offset += skip;
      p.slice.length -= skip;
      queue->Append(std::move(p.slice), pool);
    }
    p.slice.block.Reset();
    ++head_;
  }
  if (empty()) {
    pieces_.clear();
    if (pieces_.capacity() > 64) pieces_.shrink_to_fit();
    head_ = 0;
  } else if (head_ >= 64 && head_ * 2 >= pieces_.size()) {
    pieces_.erase(pieces_.begin(), pieces_.begin() + static_cast<ptrdiff_t>(head_));
    head_ = 0;
  }
  return next;
}

size_t Reassembly::Prune(size_t limit) {
  size_t gone = 0;
  while (!empty() && memory_ > limit) {
    Piece& p = pieces_.back();
    memory_ -= p.charge;
    Discharge(p.charge);
    bytes_ -= p.slice.length;
    gone += p.slice.length;
    pieces_.pop_back();
  }
  return gone;
}

void Reassembly::Clear() {
  pieces_.clear();
  pieces_.shrink_to_fit();
  Discharge(memory_);
  head_ = memory_ = bytes_ = 0;
}

void SackList::Remove(size_t i) {
  for (; i + 1 < count_; ++i) blocks_[i] = blocks_[i + 1];
  --count_;
}

void SackList::Add(SeqNum start, SeqNum end) {
  for (size_t i = 0; i < count_;) {  // absorb what touches
    if (start <= blocks_[i].end && blocks_[i].start <= end) {
      start = Min(start, blocks_[i].start);
      end = Max(end, blocks_[i].end);
      Remove(i);
    } else {
      ++i;
    }
  }
  if (count_ == blocks_.size()) --count_;
  for (size_t i = count_; i > 0; --i) blocks_[i] = blocks_[i - 1];
  blocks_[0] = {start, end};
  ++count_;
}

void SackList::Advance(SeqNum next) {
  for (size_t i = 0; i < count_;) {
    if (blocks_[i].start <= next)
      Remove(i);  // in order now, up to its end
    else
      ++i;
  }
}

void SackList::Trim(SeqNum edge) {
  for (size_t i = 0; i < count_;) {
    if (edge < blocks_[i].end) blocks_[i].end = edge;
    if (blocks_[i].end <= blocks_[i].start)
      Remove(i);
    else
      ++i;
  }
}

}  // namespace sluice::tcp
