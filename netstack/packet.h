// Frames and their memory.
//
// A Packet is a move-only handle with one owner: one linear region for headers (and, on receive, for the whole frame) followed by
// slices of shared payload blocks (on transmit: pieces of a send queue, never copied in user space).
//
//   head block:  | headroom | linear: link, network, transport headers [, payload] | tailroom |
//   slices:      | payload 0 | payload 1 | ...
//
// Everything here belongs to one worker: reference counts are not atomic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/bytes.h"
#include "base/check.h"
#include "base/time.h"
#include "netstack/ip/address.h"

namespace sluice {

class BlockPool;

// A reference-counted piece of memory. The bytes may lie behind the header (heap pool) or elsewhere (UMEM, mbuf).
struct Block {
  uint32_t refs;
  uint32_t capacity;
  uint8_t* data;
  BlockPool* pool;
  uint64_t cookie;  // for the pool that made it
};

// Where blocks come from and go back to.
class BlockPool {
 public:
  virtual ~BlockPool() = default;
  // A block of at least `size` bytes with one reference, or nullptr where the pool's bound is reached.
  virtual Block* Allocate(size_t size) = 0;
  virtual void Free(Block* block) = 0;               // called when the last reference goes
  virtual size_t limit() const { return SIZE_MAX; }  // bytes that it hands out at most
};

class BlockRef {
 public:
  BlockRef() = default;
  explicit BlockRef(Block* b) : b_(b) {}  // takes over one reference
  BlockRef(const BlockRef& o) : b_(o.b_) {
    if (b_ != nullptr) ++b_->refs;
  }
  BlockRef(BlockRef&& o) noexcept : b_(std::exchange(o.b_, nullptr)) {}
  BlockRef& operator=(BlockRef o) noexcept {
    std::swap(b_, o.b_);
    return *this;
  }
  ~BlockRef() { Reset(); }
  void Reset() {
    if (b_ != nullptr && --b_->refs == 0) b_->pool->Free(b_);
    b_ = nullptr;
  }
  Block* get() const { return b_; }
  Block* operator->() const { return b_; }
  explicit operator bool() const { return b_ != nullptr; }

 private:
  Block* b_ = nullptr;
};

// A shared, read-only range of a block.
struct Slice {
  BlockRef block;
  uint32_t offset = 0;
  uint32_t length = 0;
  Bytes bytes() const { return {block->data + offset, length}; }
  Slice Sub(uint32_t from, uint32_t len) const { return Slice{block, offset + from, len}; }
};

enum class GsoType : uint8_t { kNone, kTcpV4, kTcpV6, kUdp };

// What is known of the frame's checksums.
enum class ChecksumState : uint8_t {
  kNone,      // transmit: complete in the frame. receive: not checked by anyone
  kPartial,   // the field holds the pseudo-header sum; sum from csum_start to the end and store at csum_start + csum_offset
  kVerified,  // receive: checked by the device or by a trusted sender
};

// As the virtio-net header says it. Offsets count from the first byte of the linear region (the Ethernet header at the port).
struct Offload {
  GsoType gso = GsoType::kNone;
  ChecksumState checksum = ChecksumState::kNone;
  bool ecn = false;       // GSO with CWR in the first segment only
  uint16_t gso_size = 0;  // payload bytes per segment
  uint16_t hdr_len = 0;   // link + network + transport header of a GSO frame
  uint16_t csum_start = 0;
  uint16_t csum_offset = 0;
};

class Packet {
 public:
  static constexpr size_t kMaxSlices = 20;
  static constexpr size_t kHeadroom = 128;  // enough for vnet, Ethernet + VLAN, IPv6 and TCP with all options

  Packet() {}
  // A packet without bytes, with `headroom` before and `size` bytes of room behind; empty handle where the pool is exhausted.
  static Packet Allocate(BlockPool& pool, size_t size, size_t headroom = kHeadroom);
  // A packet whose linear region is [offset, offset + length) of `block`.
  static Packet Adopt(BlockRef block, uint32_t offset, uint32_t length);
  Packet(Packet&& o) noexcept;
  Packet& operator=(Packet&& o) noexcept;
  ~Packet() { DropSlices(); }

  explicit operator bool() const { return static_cast<bool>(head_); }

  uint8_t* data() { return head_->data + offset_; }
  const uint8_t* data() const { return head_->data + offset_; }
  size_t linear_size() const { return length_; }
  Bytes linear() const { return {data(), length_}; }
  MutableBytes linear() { return {data(), length_}; }
  size_t headroom() const { return offset_; }
  size_t tailroom() const { return head_->capacity - offset_ - length_; }

  size_t slice_count() const { return slice_count_; }
  const Slice& slice(size_t i) const { return slices_[i]; }
  size_t size() const { return length_ + slice_bytes_; }  // whole frame

  // All four need room or bytes enough; the caller has checked (DCHECK).
  uint8_t* Push(size_t n);    // grows the linear region to the front; returns the new first byte
  void Pull(size_t n);        // drops n bytes at the front of the linear region
  uint8_t* Append(size_t n);  // grows the linear region at the back (only while there are no slices)
  void TrimLinear(size_t n);  // shortens the linear region to n bytes

  // False where kMaxSlices is reached.
  [[nodiscard]] bool AddSlice(Slice s);
  // Drops bytes at the end of the packet, slices first.
  void Truncate(size_t new_size);
  // Copies the slices behind the linear region (into a new block where there is no room). False where the pool is exhausted.
  [[nodiscard]] bool Linearize(BlockPool& pool);
  // Copies [from, from + out.size()) of the whole frame.
  void CopyOut(size_t from, MutableBytes out) const;
  Packet Clone(BlockPool& pool) const;  // deep copy of the linear region, shared slices
  // The linear region as a slice (shares the head block).
  Slice LinearSlice(uint32_t from, uint32_t len) const { return Slice{head_, offset_ + from, len}; }
  const BlockRef& head_block() const { return head_; }

  Offload offload;
  IfIndex ifindex = 0;    // receive: ingress device; transmit: egress device
  Instant received;       // receive: when the burst was taken
  Instant departure;      // transmit: not before then, where the link paces (LinkFeatures); zero: at once
  uint8_t link_type = 0;  // receive: 0 to us, 1 broadcast, 2 multicast, 3 other host, 4 outgoing (PACKET_HOST ...)
  uint16_t vlan_tci = 0;  // 802.1Q tag that the device took off; valid where has_vlan
  bool has_vlan = false;
  bool answered = false;  // receive: a copy for learning; another stack of this host answers it (shard.h)

 private:
  BlockRef head_;
  uint32_t offset_ = 0;
  uint32_t length_ = 0;
  uint32_t slice_bytes_ = 0;
  uint32_t slice_count_ = 0;
  void DropSlices() {
    while (slice_count_ > 0) slices_[--slice_count_].~Slice();
    slice_bytes_ = 0;
  }
  void TakeFrom(Packet& o) noexcept;

  // Only the first slice_count_ are alive: a frame without slices pays nothing for them.
  union {
    Slice slices_[kMaxSlices];
  };
};

// Grows on demand up to `limit_bytes`, keeps freed blocks by size class (256, 2048, 16 KiB, 64 KiB + 512) for reuse.
class HeapBlockPool final : public BlockPool {
 public:
  explicit HeapBlockPool(size_t limit_bytes);
  ~HeapBlockPool() override;
  Block* Allocate(size_t size) override;
  void Free(Block* block) override;
  size_t limit() const override { return limit_; }
  size_t bytes_in_use() const { return in_use_; }
  size_t bytes_held() const { return held_; }  // in use and cached
  void ReleaseCached();                        // gives cached blocks back to the system

 private:
  static constexpr int kClasses = 4;
  struct FreeNode {
    FreeNode* next;
  };
  bool Reserve(size_t bytes);  // makes room below the limit, by giving back cached blocks where needed
  FreeNode* free_[kClasses] = {};
  size_t limit_;
  size_t in_use_ = 0;
  size_t held_ = 0;
};

// The largest frame a port hands up: 64 KiB of IP packet + Ethernet with a VLAN tag + slack.
inline constexpr size_t kMaxFrame = 65536 + 64;

}  // namespace sluice
