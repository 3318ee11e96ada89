#include "dataplane/dpdk/mbuf_pool.h"

#include <new>

namespace sluice::dpdk {
namespace {

constexpr uint16_t kPrivate = (sizeof(Block) + RTE_MBUF_PRIV_ALIGN - 1) / RTE_MBUF_PRIV_ALIGN * RTE_MBUF_PRIV_ALIGN;
constexpr unsigned kCache = 256;

}  // namespace

MbufPool* MbufPool::Make(const std::string& name, uint32_t count, uint16_t data_room, int socket) {
  rte_mempool* mempool = rte_pktmbuf_pool_create(name.c_str(), count, kCache, kPrivate, data_room, socket);
  return mempool == nullptr ? nullptr : new MbufPool(mempool, count);
}

void MbufPool::Release() {
  released_ = true;
  if (lent_ == 0) delete this;
}

BlockRef MbufPool::Lend(rte_mbuf* segment) {
  segment->next = nullptr;
  segment->nb_segs = 1;
  ++lent_;
  return BlockRef(new (rte_mbuf_to_priv(segment)) Block{1, segment->buf_len, static_cast<uint8_t*>(segment->buf_addr), this,
                                                        reinterpret_cast<uint64_t>(segment)});
}

void MbufPool::Free(Block* block) {
  rte_pktmbuf_free_seg(reinterpret_cast<rte_mbuf*>(block->cookie));
  if (--lent_ == 0 && released_) delete this;
}

}  // namespace sluice::dpdk
