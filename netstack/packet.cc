#include "netstack/packet.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#include "base/sanitizer.h"

#if SLUICE_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace sluice {
namespace {

constexpr size_t kClassSizes[] = {256, 2048, 16384, 65536 + 512};
constexpr uint64_t kUncached = 4;  // larger than every class: goes back to the system when freed

// Cached blocks must not be touched: under the address sanitizer they are marked, so that a use after free is seen.
void Poison([[maybe_unused]] Block* b) {
#if SLUICE_ASAN
  __asan_poison_memory_region(b->data, b->capacity);
#endif
}
void Unpoison([[maybe_unused]] Block* b) {
#if SLUICE_ASAN
  __asan_unpoison_memory_region(b->data, b->capacity);
#endif
}

size_t Footprint(size_t capacity) { return sizeof(Block) + capacity; }

}  // namespace

HeapBlockPool::HeapBlockPool(size_t limit_bytes) : limit_(limit_bytes) {
  static_assert(sizeof(FreeNode) <= sizeof(Block::cookie));
}

HeapBlockPool::~HeapBlockPool() { ReleaseCached(); }

bool HeapBlockPool::Reserve(size_t bytes) {
  if (held_ + bytes > limit_ && in_use_ + bytes <= limit_) ReleaseCached();
  return held_ + bytes <= limit_;
}

// A cached block keeps its header; the list's link takes the place of `pool`.
Block* HeapBlockPool::Allocate(size_t size) {
  uint64_t cls = 0;
  while (cls < kClasses && kClassSizes[cls] < size) ++cls;
  const size_t capacity = cls < kClasses ? kClassSizes[cls] : size;
  if (capacity > 0xffffffffu) return nullptr;
  Block* block;
  if (cls < kClasses && free_[cls] != nullptr) {
    auto* node = free_[cls];
    free_[cls] = node->next;
    block = reinterpret_cast<Block*>(reinterpret_cast<uint8_t*>(node) - offsetof(Block, pool));
    Unpoison(block);
  } else {
    if (!Reserve(Footprint(capacity))) return nullptr;
    void* memory = std::malloc(Footprint(capacity));
    if (memory == nullptr) return nullptr;
    held_ += Footprint(capacity);
    block = static_cast<Block*>(memory);
  }
  in_use_ += Footprint(capacity);
  return new (block) Block{1, static_cast<uint32_t>(capacity), reinterpret_cast<uint8_t*>(block + 1), this, cls};
}

void HeapBlockPool::Free(Block* block) {
  SLUICE_DCHECK(block->refs == 0);
  const size_t footprint = Footprint(block->capacity);
  in_use_ -= footprint;
  if (block->cookie == kUncached) {
    held_ -= footprint;
    std::free(block);
    return;
  }
  Poison(block);
  const uint64_t cls = block->cookie;
  free_[cls] = new (&block->pool) FreeNode{free_[cls]};
}

void HeapBlockPool::ReleaseCached() {
  for (FreeNode*& head : free_) {
    while (head != nullptr) {
      FreeNode* node = head;
      head = node->next;
      auto* block = reinterpret_cast<Block*>(reinterpret_cast<uint8_t*>(node) - offsetof(Block, pool));
      Unpoison(block);
      held_ -= Footprint(block->capacity);
      std::free(block);
    }
  }
}

Packet Packet::Allocate(BlockPool& pool, size_t size, size_t headroom) {
  Packet p;
  p.head_ = BlockRef(pool.Allocate(headroom + size));
  p.offset_ = static_cast<uint32_t>(headroom);
  return p;
}

Packet Packet::Adopt(BlockRef block, uint32_t offset, uint32_t length) {
  SLUICE_DCHECK(uint64_t{offset} + length <= block->capacity);
  Packet p;
  p.head_ = std::move(block);
  p.offset_ = offset;
  p.length_ = length;
  return p;
}

void Packet::TakeFrom(Packet& o) noexcept {
  offload = o.offload;
  ifindex = o.ifindex;
  received = o.received;
  departure = o.departure;
  link_type = o.link_type;
  vlan_tci = o.vlan_tci;
  has_vlan = o.has_vlan;
  answered = o.answered;
  offset_ = o.offset_;
  length_ = std::exchange(o.length_, 0);
  slice_bytes_ = o.slice_bytes_;
  for (uint32_t i = 0; i < o.slice_count_; ++i) new (&slices_[i]) Slice(std::move(o.slices_[i]));
  slice_count_ = o.slice_count_;
  o.DropSlices();
}

Packet::Packet(Packet&& o) noexcept : head_(std::move(o.head_)) { TakeFrom(o); }

Packet& Packet::operator=(Packet&& o) noexcept {
  if (this == &o) return *this;
  DropSlices();
  head_ = std::move(o.head_);
  TakeFrom(o);
  return *this;
}

uint8_t* Packet::Push(size_t n) {
  SLUICE_DCHECK(n <= offset_);
  offset_ -= static_cast<uint32_t>(n);
  length_ += static_cast<uint32_t>(n);
  return data();
}

void Packet::Pull(size_t n) {
  SLUICE_DCHECK(n <= length_);
  offset_ += static_cast<uint32_t>(n);
  length_ -= static_cast<uint32_t>(n);
}

uint8_t* Packet::Append(size_t n) {
  SLUICE_DCHECK(slice_count_ == 0 && n <= tailroom());
  uint8_t* p = data() + length_;
  length_ += static_cast<uint32_t>(n);
  return p;
}

void Packet::TrimLinear(size_t n) {
  SLUICE_DCHECK(n <= length_);
  length_ = static_cast<uint32_t>(n);
}

bool Packet::AddSlice(Slice s) {
  if (slice_count_ == kMaxSlices) return false;
  slice_bytes_ += s.length;
  new (&slices_[slice_count_++]) Slice(std::move(s));
  return true;
}

void Packet::Truncate(size_t new_size) {
  SLUICE_DCHECK(new_size <= size());
  size_t excess = size() - new_size;
  while (excess > 0 && slice_count_ > 0) {
    Slice& last = slices_[slice_count_ - 1];
    const uint32_t cut = static_cast<uint32_t>(std::min<size_t>(excess, last.length));
    last.length -= cut;
    slice_bytes_ -= cut;
    excess -= cut;
    if (last.length == 0) slices_[--slice_count_].~Slice();
  }
  length_ -= static_cast<uint32_t>(excess);
}

bool Packet::Linearize(BlockPool& pool) {
  if (slice_count_ == 0) return true;
  if (head_->refs > 1 || tailroom() < slice_bytes_) {
    BlockRef bigger(pool.Allocate(offset_ + size()));
    if (!bigger) return false;
    std::memcpy(bigger->data + offset_, data(), length_);
    head_ = std::move(bigger);
  }
  uint8_t* to = data() + length_;
  for (uint32_t i = 0; i < slice_count_; ++i) {
    std::memcpy(to, slices_[i].bytes().data(), slices_[i].length);
    to += slices_[i].length;
  }
  length_ += slice_bytes_;
  DropSlices();
  return true;
}

void Packet::CopyOut(size_t from, MutableBytes out) const {
  SLUICE_DCHECK(from + out.size() <= size());
  auto copy = [&](Bytes piece) {
    if (from >= piece.size()) {
      from -= piece.size();
      return;
    }
    const size_t n = std::min(out.size(), piece.size() - from);
    if (n > 0) std::memcpy(out.data(), piece.data() + from, n);
    out = out.subspan(n);
    from = 0;
  };
  copy(linear());
  for (uint32_t i = 0; i < slice_count_ && !out.empty(); ++i) copy(slices_[i].bytes());
}

Packet Packet::Clone(BlockPool& pool) const {
  Packet p = Allocate(pool, length_, offset_);
  if (!p) return p;
  p.offload = offload;
  p.ifindex = ifindex;
  p.received = received;
  p.departure = departure;
  p.link_type = link_type;
  p.vlan_tci = vlan_tci;
  p.has_vlan = has_vlan;
  if (length_ > 0) std::memcpy(p.Append(length_), data(), length_);
  for (uint32_t i = 0; i < slice_count_; ++i) (void)p.AddSlice(slices_[i]);
  return p;
}

}  // namespace sluice
