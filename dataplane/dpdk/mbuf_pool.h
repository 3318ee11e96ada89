// Memory of received frames: DPDK's mbufs as blocks of the stack, without a copy. The Block lies in the mbuf's private area.
//
// A reader that is slow keeps frames for long; so that the device never starves, no more than half of the pool is lent out, and
// what comes then is copied.
#pragma once

#include <rte_mbuf.h>

#include <cstdint>
#include <string>

#include "netstack/packet.h"

namespace sluice::dpdk {

class MbufPool final : public BlockPool {
 public:
  // nullptr where EAL has no memory.
  static MbufPool* Make(const std::string& name, uint32_t count, uint16_t data_room, int socket);
  // The owner has no use for it any more: it goes when the last frame that was lent comes back.
  void Release();

  Block* Allocate(size_t) override { return nullptr; }  // blocks come from the device only
  void Free(Block* block) override;

  rte_mempool* mempool() const { return mempool_; }
  bool CanLend() const { return lent_ < limit_; }
  uint32_t lent() const { return lent_; }
  // One segment, cut off its chain: its block takes it over.
  BlockRef Lend(rte_mbuf* segment);

 private:
  MbufPool(rte_mempool* mempool, uint32_t count) : mempool_(mempool), limit_(count / 2) {}
  ~MbufPool() override { rte_mempool_free(mempool_); }

  rte_mempool* mempool_;
  const uint32_t limit_;
  uint32_t lent_ = 0;
  bool released_ = false;
};

}  // namespace sluice::dpdk
