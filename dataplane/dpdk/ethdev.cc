#include <linux/sockios.h>
#include <net/if.h>
#include <rte_errno.h>
#include <rte_lcore.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "dataplane/device_facts.h"
#include "dataplane/dpdk/dpdk_port.h"

namespace sluice::dpdk {
namespace {

constexpr uint32_t kRxMbufs = 4096, kTxMbufs = 2048, kSuperMbufs = 64;
constexpr uint16_t kRing = 512;
constexpr int64_t kAskEvery = 10'000'000;  // ns
constexpr uint64_t kChecksums = RTE_ETH_TX_OFFLOAD_TCP_CKSUM | RTE_ETH_TX_OFFLOAD_UDP_CKSUM | RTE_ETH_TX_OFFLOAD_IPV4_CKSUM;

Errno Fail(std::string* error, const std::string& what, int code) {
  *error = what + ": " + rte_strerror(code < 0 ? -code : code);
  return static_cast<Errno>(code < 0 ? -code : code);
}

}  // namespace

int64_t CoarseNow() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
  return t.tv_sec * int64_t{1000000000} + t.tv_nsec;
}

std::shared_ptr<Ethdev> Ethdev::Open(uint16_t port, const DpdkOptions& options, std::string* error) {
  std::shared_ptr<Ethdev> device(new Ethdev);
  device->port_ = port;
  char name[RTE_ETH_NAME_MAX_LEN];
  if (rte_eth_dev_get_name_by_port(port, name) == 0) device->name_ = name;
  if (const int e = rte_eth_dev_info_get(port, &device->info_); e != 0) {
    (void)Fail(error, "DPDK device " + device->name_, e);
    return nullptr;
  }
  if (options.queues == 0 || options.queues > std::min(device->info_.max_rx_queues, device->info_.max_tx_queues)) {
    *error = "DPDK device " + device->name_ + " has no " + std::to_string(options.queues) + " queues";
    return nullptr;
  }
  device->ReadKernelDevice();
  if (device->Configure(options, error) != Errno::kOk) return nullptr;
  if (device->MakePools(options.queues, error) != Errno::kOk || device->SetUpQueues(options.queues, error) != Errno::kOk)
    return nullptr;
  return device;
}

// The namespace that the thread is in is the one the driver found its device in.
void Ethdev::ReadKernelDevice() {
  if (info_.if_index == 0) return;
  kernel_ = UniqueFd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  DeviceFacts facts;
  std::string ignored;
  if (ReadDeviceFacts(static_cast<IfIndex>(info_.if_index), &facts, &ignored) == Errno::kOk) local_peer_ = facts.kind == "veth";
}

Errno Ethdev::Configure(const DpdkOptions& options, std::string* error) {
  uint16_t mtu = 1500;
  if (rte_eth_dev_get_mtu(port_, &mtu) == 0) mtu_ = mtu;
  rte_eth_conf conf{};
  conf.rxmode.mtu = mtu;
  if (options.offloads) {
    if ((info_.tx_offload_capa & kChecksums) == kChecksums) tx_offloads_ = kChecksums;
    if (tx_offloads_ != 0) tx_offloads_ |= info_.tx_offload_capa & RTE_ETH_TX_OFFLOAD_TCP_TSO;
    constexpr uint64_t kVerify = RTE_ETH_RX_OFFLOAD_TCP_CKSUM | RTE_ETH_RX_OFFLOAD_UDP_CKSUM;
    // net_tap counts the Ethernet header as part of the MTU and refuses, without end, what is longer.
    if ((tx_offloads_ & RTE_ETH_TX_OFFLOAD_TCP_TSO) != 0)
      max_tso_segment_ = std::strcmp(info_.driver_name, "net_tap") == 0 ? mtu_ : UINT16_MAX;
    // What a local kernel left to be finished would be found wrong.
    if (!local_peer_) rx_offloads_ = info_.rx_offload_capa & kVerify;
  }
  rx_offloads_ |= info_.rx_offload_capa & RTE_ETH_RX_OFFLOAD_SCATTER;
  conf.rxmode.offloads = rx_offloads_;
  conf.txmode.offloads = tx_offloads_;
  conf.intr_conf.rxq = 1;
  const auto queues = static_cast<uint16_t>(options.queues);
  int e = rte_eth_dev_configure(port_, queues, queues, &conf);
  interrupts_ = e == 0;
  if (e != 0) {
    conf.intr_conf.rxq = 0;
    e = rte_eth_dev_configure(port_, queues, queues, &conf);
  }
  return e == 0 ? Errno::kOk : Fail(error, "DPDK device " + name_ + " cannot be configured", e);
}

Errno Ethdev::MakePools(uint32_t queues, std::string* error) {
  const int socket = std::max(0, rte_eth_dev_socket_id(port_));
  const auto room = static_cast<uint16_t>(RTE_PKTMBUF_HEADROOM + std::max<uint32_t>(2048, (mtu_ + 64 + 63) / 64 * 64));
  // Names are unique in the process; a pool of a port that was closed may still be lent out.
  static uint32_t generation = 0;
  const std::string base = "sl" + std::to_string(++generation) + "q";
  for (uint32_t q = 0; q < queues; ++q) {
    const std::string name = base + std::to_string(q);
    MbufPool* rx = MbufPool::Make(name + "r", kRxMbufs, room, socket);
    if (rx != nullptr) rx_pools_.push_back(rx);
    rte_mempool* tx = rte_pktmbuf_pool_create((name + "t").c_str(), kTxMbufs, 256, 0, room, socket);
    if (tx != nullptr) tx_pools_.push_back(tx);
    if (rx == nullptr || tx == nullptr) return Fail(error, "memory of DPDK device " + name_ + " (EAL's -m)", rte_errno);
    if ((tx_offloads_ & RTE_ETH_TX_OFFLOAD_TCP_TSO) == 0) continue;
    rte_mempool* super = rte_pktmbuf_pool_create((name + "s").c_str(), kSuperMbufs, 0, 0, UINT16_MAX, socket);
    if (super == nullptr) return Fail(error, "memory of DPDK device " + name_ + " (EAL's -m)", rte_errno);
    super_pools_.push_back(super);
  }
  return Errno::kOk;
}

Errno Ethdev::SetUpQueues(uint32_t queues, std::string* error) {
  const auto socket = static_cast<unsigned>(std::max(0, rte_eth_dev_socket_id(port_)));
  uint16_t rx_ring = kRing, tx_ring = kRing;
  if (const int e = rte_eth_dev_adjust_nb_rx_tx_desc(port_, &rx_ring, &tx_ring); e != 0)
    return Fail(error, "rings of " + name_, e);
  for (uint16_t q = 0; q < queues; ++q) {
    rte_eth_rxconf rx = info_.default_rxconf;
    rx.offloads = rx_offloads_;
    if (const int e = rte_eth_rx_queue_setup(port_, q, rx_ring, socket, &rx, rx_mempool(q)); e != 0) {
      return Fail(error, "receive queue of DPDK device " + name_, e);
    }
    rte_eth_txconf tx = info_.default_txconf;
    tx.offloads = tx_offloads_;
    if (const int e = rte_eth_tx_queue_setup(port_, q, tx_ring, socket, &tx); e != 0) {
      return Fail(error, "transmit queue of DPDK device " + name_, e);
    }
  }
  if (const int e = rte_eth_dev_start(port_); e != 0) return Fail(error, "DPDK device " + name_ + " cannot be started", e);
  started_ = true;
  rte_eth_dev_callback_register(port_, RTE_ETH_EVENT_INTR_RMV, OnRemoved, this);
  return Errno::kOk;
}

Ethdev::~Ethdev() {
  rte_eth_dev_callback_unregister(port_, RTE_ETH_EVENT_INTR_RMV, OnRemoved, this);
  if (started_) rte_eth_dev_stop(port_);
  rte_eth_dev_close(port_);
  for (rte_mempool* pool : tx_pools_) rte_mempool_free(pool);
  for (rte_mempool* pool : super_pools_) rte_mempool_free(pool);
  for (MbufPool* pool : rx_pools_) pool->Release();
  // A virtual device goes too, so that its name can be used again; closing has released the port number.
  if (info_.device != nullptr) rte_dev_remove(info_.device);
}

int Ethdev::OnRemoved(uint16_t, rte_eth_event_type, void* self, void*) {
  static_cast<Ethdev*>(self)->removed_.store(true, std::memory_order_relaxed);
  return 0;
}

uint64_t Ethdev::rx_missed() const {
  rte_eth_stats stats{};
  return rte_eth_stats_get(port_, &stats) == 0 ? stats.imissed + stats.ierrors + stats.rx_nombuf : 0;
}

bool Ethdev::Due(int64_t* last) const {
  const int64_t now = CoarseNow();
  if (now - *last < kAskEvery) return false;
  *last = now;
  return true;
}

bool Ethdev::LinkUp() {
  if (!Due(&link_asked_)) return link_up_;
  if (kernel_) {
    ifreq request{};
    request.ifr_ifindex = static_cast<int>(info_.if_index);
    link_up_ = ioctl(kernel_.get(), SIOCGIFNAME, &request) == 0 && ioctl(kernel_.get(), SIOCGIFFLAGS, &request) == 0 &&
               (request.ifr_flags & IFF_UP) != 0;
    return link_up_;
  }
  rte_eth_link link{};
  if (rte_eth_link_get_nowait(port_, &link) == 0) link_up_ = link.link_status == RTE_ETH_LINK_UP;
  return link_up_;
}

bool Ethdev::Gone() {
  if (removed_.load(std::memory_order_relaxed)) return true;
  if (!kernel_ || !Due(&gone_asked_)) return false;
  ifreq request{};
  request.ifr_ifindex = static_cast<int>(info_.if_index);
  return ioctl(kernel_.get(), SIOCGIFNAME, &request) != 0 && errno == ENODEV;
}

}  // namespace sluice::dpdk
