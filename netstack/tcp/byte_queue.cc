#include "netstack/tcp/byte_queue.h"

#include <algorithm>
#include <cstring>

namespace sluice::tcp {
namespace {

constexpr uint32_t kCopyBelow = 2048;      // shorter pieces are always copied together
constexpr uint32_t kSmallTail = 256 - 64;  // first tail block: what an idle connection that talks little needs
constexpr uint32_t kLargeTail = 16384;
constexpr uint32_t kShrinkAbove = 64;

// A slice that holds less than half of its block would let a slow reader pin more than the window rules allow for.
bool PinsTooMuch(const Slice& s) { return s.block->refs == 1 && s.block->capacity / 2 > s.length; }

}  // namespace

uint32_t ByteQueue::ChargeOf(const Slice& s) { return s.block->refs == 1 ? std::max(s.block->capacity, s.length) : s.length; }

void ByteQueue::Append(Slice slice, BlockPool& pool) {
  if (slice.length == 0) return;
  if (slice.length < kCopyBelow || PinsTooMuch(slice)) {
    const uint32_t copied = AppendCopy(slice.bytes(), pool);
    if (copied == slice.length) return;
    slice = slice.Sub(copied, slice.length - copied);
  }
  const uint32_t charge = ChargeOf(slice);
  AppendShared(std::move(slice), charge);
}

void ByteQueue::AppendShared(Slice slice, uint32_t charge) {
  Entry& e = PushEntry();
  e.start = base_ + size_;
  size_ += slice.length;
  memory_ += charge;
  if (account_ != nullptr) account_->Add(charge);
  e.slice = std::move(slice);
  e.charge = charge;
  tail_room_ = 0;
}

uint32_t ByteQueue::AppendCopy(Bytes bytes, BlockPool& pool) {
  const auto total = static_cast<uint32_t>(bytes.size());
  if (tail_room_ > 0) {
    Slice& last = at(count_ - 1).slice;
    const uint32_t n = std::min<uint32_t>(tail_room_, static_cast<uint32_t>(bytes.size()));
    std::memcpy(last.block->data + last.offset + last.length, bytes.data(), n);
    last.length += n;
    size_ += n;
    tail_room_ -= n;
    bytes = bytes.subspan(n);
  }
  while (!bytes.empty()) {
    const uint32_t want = std::min<uint32_t>(static_cast<uint32_t>(bytes.size()), kLargeTail);
    const uint32_t usual = size_ + want <= kSmallTail ? kSmallTail : size_ + want <= kCopyBelow ? kCopyBelow : kLargeTail;
    Block* block = pool.Allocate(std::max(want, usual));
    if (block == nullptr) break;
    std::memcpy(block->data, bytes.data(), want);
    const uint32_t room = block->capacity - want;
    AppendShared(Slice{BlockRef(block), 0, want}, block->capacity);
    tail_room_ = room;
    bytes = bytes.subspan(want);
  }
  return total - static_cast<uint32_t>(bytes.size());
}

void ByteQueue::PopFront(size_t n) {
  SLUICE_DCHECK(n <= size_);
  size_ -= n;
  base_ += n;
  while (n > 0) {
    Entry& e = at(0);
    if (n < e.slice.length) {
      e.slice.offset += static_cast<uint32_t>(n);
      e.slice.length -= static_cast<uint32_t>(n);
      e.start += n;
      return;
    }
    n -= e.slice.length;
    memory_ -= e.charge;
    Discharge(e.charge);
    e.slice.block.Reset();
    head_ = (head_ + 1) & (capacity_ - 1);
    --count_;
  }
  if (count_ == 0) {
    tail_room_ = 0;
    if (capacity_ > kShrinkAbove) Reallocate(0);
  }
}

size_t ByteQueue::Peek(std::span<Bytes> out) const {
  const size_t n = std::min<size_t>(out.size(), count_);
  for (size_t i = 0; i < n; ++i) out[i] = at(i).slice.bytes();
  return n;
}

size_t ByteQueue::Find(size_t offset) const {
  const uint64_t position = base_ + offset;
  size_t low = 0, high = count_;
  while (high - low > 1) {
    const size_t middle = (low + high) / 2;
    (at(middle).start <= position ? low : high) = middle;
  }
  return low;
}

size_t ByteQueue::Gather(size_t offset, size_t length, Packet* packet) const {
  SLUICE_DCHECK(offset + length <= size_);
  size_t done = 0;
  for (size_t i = Find(offset); done < length; ++i) {
    const Entry& e = at(i);
    const auto skip = static_cast<uint32_t>(base_ + offset + done - e.start);
    const auto n = static_cast<uint32_t>(std::min<size_t>(e.slice.length - skip, length - done));
    if (!packet->AddSlice(e.slice.Sub(skip, n))) break;
    done += n;
  }
  return done;
}

void ByteQueue::CopyOut(size_t offset, MutableBytes out) const {
  SLUICE_DCHECK(offset + out.size() <= size_);
  size_t done = 0;
  for (size_t i = Find(offset); done < out.size(); ++i) {
    const Entry& e = at(i);
    const size_t skip = base_ + offset + done - e.start;
    const size_t n = std::min<size_t>(e.slice.length - skip, out.size() - done);
    std::memcpy(out.data() + done, e.slice.bytes().data() + skip, n);
    done += n;
  }
}

void ByteQueue::Clear() {
  PopFront(size_);
  Reallocate(0);
}

ByteQueue::Entry& ByteQueue::PushEntry() {
  if (count_ == capacity_) Reallocate(capacity_ == 0 ? 4 : capacity_ * 2);
  return at(count_++);
}

void ByteQueue::Reallocate(size_t capacity) {
  std::unique_ptr<Entry[]> ring = capacity == 0 ? nullptr : std::make_unique<Entry[]>(capacity);
  for (size_t i = 0; i < count_; ++i) ring[i] = std::move(at(i));
  ring_ = std::move(ring);
  capacity_ = static_cast<uint32_t>(capacity);
  head_ = 0;
}

}  // namespace sluice::tcp
