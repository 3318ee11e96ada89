// A Port over one queue of a DPDK Ethernet device.
//
// Receive: mbufs become blocks of the stack without a copy while the pool has enough left (mbuf_pool.h), else they are copied.
// Transmit: one copy into mbufs, where software segmentation has to put the segments anyway; checksums and TSO are the device's
// where it has them, else finished and cut here.
//
// Where the driver has receive interrupts the worker can sleep; where not, it polls without end and uses its core.
#pragma once

#include <rte_ethdev.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "dataplane/dpdk/mbuf_pool.h"
#include "dataplane/dpdk_link.h"
#include "dataplane/frame.h"
#include "dataplane/gso.h"
#include "xdp/unique_fd.h"

namespace sluice::dpdk {

// Nanoseconds, a few milliseconds behind.
int64_t CoarseNow();

// The device of all its queues' ports: stopped and closed with the last.
class Ethdev {
 public:
  static std::shared_ptr<Ethdev> Open(uint16_t port, const DpdkOptions& options, std::string* error);
  ~Ethdev();

  uint16_t port() const { return port_; }
  const rte_eth_dev_info& info() const { return info_; }
  const std::string& name() const { return name_; }
  uint32_t mtu() const { return mtu_; }
  uint64_t tx_offloads() const { return tx_offloads_; }
  // Bytes of a segment, headers included, that the device cuts to; 0: it cuts none.
  uint32_t max_tso_segment() const { return max_tso_segment_; }
  bool interrupts() const { return interrupts_; }
  bool local_peer() const { return local_peer_; }
  uint64_t rx_missed() const;
  // Is the device up? Asks the driver at most every 10 ms.
  bool LinkUp();
  // Did it vanish? Asks the kernel at most every 10 ms.
  bool Gone();
  rte_mempool* rx_mempool(uint32_t queue) const { return rx_pools_[queue]->mempool(); }
  MbufPool& rx_pool(uint32_t queue) const { return *rx_pools_[queue]; }
  rte_mempool* tx_mempool(uint32_t queue) const { return tx_pools_[queue]; }
  rte_mempool* super_mempool(uint32_t queue) const { return super_pools_.empty() ? nullptr : super_pools_[queue]; }

 private:
  Ethdev() = default;
  Errno Configure(const DpdkOptions& options, std::string* error);
  Errno MakePools(uint32_t queues, std::string* error);
  Errno SetUpQueues(uint32_t queues, std::string* error);
  void ReadKernelDevice();
  bool Due(int64_t* last) const;
  static int OnRemoved(uint16_t port, rte_eth_event_type type, void* self, void* unused);

  uint16_t port_ = 0;
  bool started_ = false;
  std::string name_;
  rte_eth_dev_info info_{};
  uint32_t mtu_ = 1500;
  uint64_t tx_offloads_ = 0, rx_offloads_ = 0;
  uint32_t max_tso_segment_ = 0;
  bool interrupts_ = false;
  bool local_peer_ = false;  // frames come from a kernel on this machine, with checksums that it left to be finished
  std::vector<MbufPool*> rx_pools_;
  std::vector<rte_mempool*> tx_pools_, super_pools_;
  UniqueFd kernel_;  // a socket of the namespace that the kernel's device is in, where there is one
  std::atomic<bool> removed_{false};
  int64_t link_asked_ = 0, gone_asked_ = 0;
  bool link_up_ = true;
};

class DpdkPort final : public Port {
 public:
  DpdkPort(std::shared_ptr<Ethdev> device, uint32_t queue, const DpdkOptions& options, BlockPool& pool);
  ~DpdkPort() override;

  LinkFeatures features() const override;
  size_t Transmit(std::span<Packet> burst) override;
  IfIndex ifindex() const override { return ifindex_; }
  std::string_view kind() const override { return "dpdk"; }
  size_t Receive(std::span<Packet> out) override;
  std::vector<int> wait_fds() const override { return epoll_ ? std::vector<int>{epoll_.get()} : std::vector<int>{}; }
  bool ArmWakeup() override;
  bool tx_pending() const override { return pending_next_ < pending_.size(); }
  bool polled() const override { return true; }
  bool dead() const override { return dead_; }
  PortStats stats() const override;
  std::vector<std::string> describe() const override;

 private:
  static constexpr size_t kBurst = 32;
  static constexpr size_t kMaxPending = 256;

  void OpenInterrupts();
  void FillReceived();
  bool TakeFrame(rte_mbuf* frame, Packet* out);
  bool CopyFrame(const rte_mbuf* frame, Packet* out);
  void SetOffload(const rte_mbuf* frame, Packet* out) const;

  enum class Sent : uint8_t { kTaken, kFull, kNever };
  Sent Queue(const Packet& frame);
  Sent QueueWhole(const Packet& frame, const FrameHeaders& headers);
  Sent QueueCut(const Packet& frame);
  bool DeviceTakes(const Packet& frame, FrameHeaders* headers) const;
  void Flush();
  void DropPending();

  std::shared_ptr<Ethdev> device_;
  const uint16_t queue_;
  const IfIndex ifindex_;
  const DpdkOptions options_;
  BlockPool& pool_;
  UniqueFd epoll_;                   // where the driver has receive interrupts
  std::vector<rte_mbuf*> received_;  // of the last burst, not yet handed up
  size_t received_next_ = 0;
  std::vector<rte_mbuf*> pending_;  // taken, not yet with the device
  size_t pending_next_ = 0;
  int64_t stuck_since_ = 0;  // the device took nothing since; 0: it did
  bool dead_ = false;
  uint64_t copied_ = 0;  // frames that were copied because too many were lent out
  PortStats stats_;
};

}  // namespace sluice::dpdk
