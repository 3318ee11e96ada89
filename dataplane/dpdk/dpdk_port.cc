#include "dataplane/dpdk/dpdk_port.h"

#include <rte_interrupts.h>
#include <rte_ip.h>
#include <rte_lcore.h>
#include <sys/epoll.h>

#include <algorithm>
#include <cstring>

#include "dataplane/dpdk/eal.h"
#include "netstack/wire/checksum.h"

namespace sluice::dpdk {
namespace {

// Of a super-segment: one mbuf holds it, and those count to 65535 with their headroom.
constexpr uint32_t kMaxSuper = 65000;
// net_af_xdp rings once a call, and the kernel moves 32 frames for that: what is more would wait for the next call.
constexpr size_t kTxBurst = 32;
constexpr int64_t kStuck = 1'000'000'000;  // ns; frames older than this are of no use to their receiver

uint8_t LinkType(const Packet& frame) {
  const uint8_t* to = frame.data();
  if ((to[0] & 1) == 0) return 0;
  return std::all_of(to, to + 6, [](uint8_t b) { return b == 0xff; }) ? 1 : 2;
}

}  // namespace

DpdkPort::DpdkPort(std::shared_ptr<Ethdev> device, uint32_t queue, const DpdkOptions& options, BlockPool& pool)
    : device_(std::move(device)),
      queue_(static_cast<uint16_t>(queue)),
      ifindex_(options.ifindex),
      options_(options),
      pool_(pool) {
  if (device_->interrupts()) OpenInterrupts();
}

DpdkPort::~DpdkPort() {
  if (epoll_) rte_eth_dev_rx_intr_ctl_q(device_->port(), queue_, epoll_.get(), RTE_INTR_EVENT_DEL, nullptr);
  DropPending();
  for (; received_next_ < received_.size(); ++received_next_) rte_pktmbuf_free(received_[received_next_]);
}

void DpdkPort::OpenInterrupts() {
  epoll_ = UniqueFd(epoll_create1(EPOLL_CLOEXEC));
  // A driver without says so by an error, which is no news to the user.
  const int level = rte_log_get_level(rte_eth_dev_logtype);
  rte_log_set_level(static_cast<uint32_t>(rte_eth_dev_logtype), RTE_LOG_CRIT);
  if (!epoll_ || rte_eth_dev_rx_intr_ctl_q(device_->port(), queue_, epoll_.get(), RTE_INTR_EVENT_ADD, nullptr) != 0)
    epoll_.Reset();
  rte_log_set_level(static_cast<uint32_t>(rte_eth_dev_logtype), static_cast<uint32_t>(level));
}

LinkFeatures DpdkPort::features() const {
  LinkFeatures f;
  f.tx_checksum = true;
  f.gso = options_.software_gso || (device_->tx_offloads() & RTE_ETH_TX_OFFLOAD_TCP_TSO) != 0;
  f.udp_gso = options_.software_gso;
  f.gso_max_size = kMaxSuper;
  f.rx_checksum = true;
  return f;
}

// ---- Receive

bool DpdkPort::CopyFrame(const rte_mbuf* frame, Packet* out) {
  Packet packet = Packet::Allocate(pool_, frame->pkt_len);
  if (!packet) return false;
  for (const rte_mbuf* s = frame; s != nullptr; s = s->next) {
    std::memcpy(packet.Append(s->data_len), rte_pktmbuf_mtod(s, const uint8_t*), s->data_len);
  }
  *out = std::move(packet);
  ++copied_;
  return true;
}

void DpdkPort::SetOffload(const rte_mbuf* frame, Packet* out) const {
  const uint64_t l4 = frame->ol_flags & RTE_MBUF_F_RX_L4_CKSUM_MASK;
  if (l4 == RTE_MBUF_F_RX_L4_CKSUM_GOOD) out->offload.checksum = ChecksumState::kVerified;
  if (!device_->local_peer()) return;
  // As on the xdp port: exactly the pseudo header's sum in the field is a checksum that a local sender left to be finished.
  FrameHeaders h;
  if (!LocateHeaders(out->linear(), out->size(), &h) || h.fragment) return;
  const uint16_t offset = h.protocol == kProtocolTcp ? 16 : 6;
  if (wire::LoadSum(out->data() + h.transport + offset) != PseudoHeaderSum(out->linear(), h, h.end - h.transport)) return;
  out->offload.checksum = ChecksumState::kPartial;
  out->offload.csum_start = h.transport;
  out->offload.csum_offset = offset;
}

// Takes over `frame` in any case.
bool DpdkPort::TakeFrame(rte_mbuf* frame, Packet* out) {
  const bool whole = frame->nb_segs <= 1 + Packet::kMaxSlices && frame->pkt_len <= kMaxFrame;
  MbufPool& lender = device_->rx_pool(queue_);
  bool ok = whole && frame->data_len >= kEthernetHeader;
  if (ok && frame->pool == lender.mempool() && lender.CanLend()) {
    const uint64_t flags = frame->ol_flags;
    rte_mbuf* next = frame->next;
    const uint32_t offset = frame->data_off, length = frame->data_len;
    Packet packet = Packet::Adopt(lender.Lend(frame), offset, length);
    while (next != nullptr) {
      rte_mbuf* segment = std::exchange(next, next->next);
      const uint32_t at = segment->data_off, bytes = segment->data_len;
      (void)packet.AddSlice(Slice{lender.Lend(segment), at, bytes});
    }
    *out = std::move(packet);
    rte_mbuf said{};
    said.ol_flags = flags;
    SetOffload(&said, out);
  } else {
    ok = ok && CopyFrame(frame, out);
    if (ok) SetOffload(frame, out);
    rte_pktmbuf_free(frame);
  }
  if (!ok) {
    ++stats_.rx_dropped;
    return false;
  }
  out->ifindex = ifindex_;
  out->link_type = LinkType(*out);
  ++stats_.rx_frames;
  stats_.rx_bytes += out->size();
  return true;
}

void DpdkPort::FillReceived() {
  received_.resize(kBurst);
  received_.resize(rte_eth_rx_burst(device_->port(), queue_, received_.data(), kBurst));
  received_next_ = 0;
  ++stats_.rx_syscalls;
}

size_t DpdkPort::Receive(std::span<Packet> out) {
  // DPDK's caches of free mbufs belong to threads that it knows.
  if (rte_lcore_id() == LCORE_ID_ANY) rte_thread_register();
  size_t taken = 0;
  while (taken < out.size() && !dead_) {
    if (received_next_ == received_.size()) FillReceived();
    if (received_.empty()) break;
    while (taken < out.size() && received_next_ < received_.size()) {
      if (TakeFrame(received_[received_next_++], &out[taken])) ++taken;
    }
    if (received_.size() < kBurst) break;
  }
  if (taken == 0 && device_->Gone()) dead_ = true;
  return taken;
}

bool DpdkPort::ArmWakeup() {
  if (device_->Gone()) dead_ = true;
  if (!epoll_ || dead_) return false;
  rte_epoll_event event;
  rte_epoll_wait(epoll_.get(), &event, 1, 0);  // takes back what woke us
  if (rte_eth_dev_rx_intr_enable(device_->port(), queue_) != 0) return false;
  if (received_next_ == received_.size()) FillReceived();
  return received_next_ == received_.size();
}

// ---- Transmit

bool DpdkPort::DeviceTakes(const Packet& frame, FrameHeaders* headers) const {
  const Offload& o = frame.offload;
  if (o.checksum != ChecksumState::kPartial || device_->tx_offloads() == 0) return false;
  if (!LocateHeaders(frame.linear(), frame.size(), headers) || headers->fragment || headers->transport != o.csum_start)
    return false;
  if (o.gso == GsoType::kNone) return true;
  return headers->protocol == kProtocolTcp && uint32_t{o.gso_size} + o.hdr_len <= device_->max_tso_segment();
}

// The frame as it is with a word to the device: finish the checksum, cut it.
DpdkPort::Sent DpdkPort::QueueWhole(const Packet& frame, const FrameHeaders& h) {
  const bool super = frame.offload.gso != GsoType::kNone;
  rte_mbuf* m = rte_pktmbuf_alloc(super ? device_->super_mempool(queue_) : device_->tx_mempool(queue_));
  if (m == nullptr) return Sent::kFull;
  const size_t size = frame.size();
  if (size > rte_pktmbuf_tailroom(m)) {
    rte_pktmbuf_free(m);
    return Sent::kNever;
  }
  auto* data = reinterpret_cast<uint8_t*>(rte_pktmbuf_append(m, static_cast<uint16_t>(size)));
  frame.CopyOut(0, MutableBytes{data, size});
  const bool tcp = h.protocol == kProtocolTcp;
  m->l2_len = h.network;
  m->l3_len = static_cast<uint16_t>(h.transport - h.network);
  m->l4_len = tcp ? static_cast<uint8_t>((data[h.transport + 12] >> 4) * 4) : 8;
  m->ol_flags = (h.v6 ? RTE_MBUF_F_TX_IPV6 : RTE_MBUF_F_TX_IPV4) | (tcp ? RTE_MBUF_F_TX_TCP_CKSUM : RTE_MBUF_F_TX_UDP_CKSUM);
  if (super) {
    m->ol_flags |= RTE_MBUF_F_TX_TCP_SEG;
    m->tso_segsz = frame.offload.gso_size;
    if (!h.v6) {
      m->ol_flags |= RTE_MBUF_F_TX_IP_CKSUM;
      std::memset(data + h.network + 10, 0, 2);
    }
    // For TSO the field takes the pseudo header's sum with a length of zero.
    wire::StoreSum(data + h.transport + 16, PseudoHeaderSum(Bytes{data, size}, h, 0));
  }
  pending_.push_back(m);
  ++stats_.tx_frames;
  stats_.tx_bytes += size;
  return Sent::kTaken;
}

DpdkPort::Sent DpdkPort::QueueCut(const Packet& frame) {
  GsoCutter cutter(frame);
  if (!cutter.valid()) return Sent::kNever;
  rte_mempool* mempool = device_->tx_mempool(queue_);
  if (cutter.max_size() > rte_pktmbuf_data_room_size(mempool) - size_t{RTE_PKTMBUF_HEADROOM}) return Sent::kNever;
  const size_t count = cutter.segments();
  if (count > mempool->size / 2) return Sent::kNever;
  const size_t before = pending_.size();
  pending_.resize(before + count);
  if (rte_pktmbuf_alloc_bulk(mempool, pending_.data() + before, static_cast<unsigned>(count)) != 0) {
    pending_.resize(before);
    return Sent::kFull;
  }
  if (count > 1) ++stats_.software_gso_frames;
  for (size_t i = 0; i < count; ++i) {
    const size_t size = cutter.next_size();
    char* to = rte_pktmbuf_append(pending_[before + i], static_cast<uint16_t>(size));
    cutter.Next(MutableBytes{reinterpret_cast<uint8_t*>(to), size});
    ++stats_.tx_frames;
    stats_.tx_bytes += size;
  }
  return Sent::kTaken;
}

DpdkPort::Sent DpdkPort::Queue(const Packet& frame) {
  FrameHeaders headers;
  if (DeviceTakes(frame, &headers)) {
    const Sent sent = QueueWhole(frame, headers);
    if (sent != Sent::kNever) return sent;
  }
  return QueueCut(frame);
}

void DpdkPort::DropPending() {
  stats_.tx_dropped += pending_.size() - pending_next_;
  rte_pktmbuf_free_bulk(pending_.data() + pending_next_, static_cast<unsigned>(pending_.size() - pending_next_));
  pending_.clear();
  pending_next_ = 0;
  stuck_since_ = 0;
}

// Gives the device what it takes.
void DpdkPort::Flush() {
  while (pending_next_ < pending_.size()) {
    const auto count = static_cast<uint16_t>(std::min(pending_.size() - pending_next_, kTxBurst));
    rte_mbuf** first = pending_.data() + pending_next_;
    const uint16_t ready = device_->tx_offloads() == 0 ? count : rte_eth_tx_prepare(device_->port(), queue_, first, count);
    const uint16_t sent = rte_eth_tx_burst(device_->port(), queue_, first, ready);
    ++stats_.tx_syscalls;
    pending_next_ += sent;
    if (sent > 0) stuck_since_ = 0;
    if (sent == count) continue;
    if (sent == ready) {  // the driver cannot say to the device what the next frame asks for
      rte_pktmbuf_free(pending_[pending_next_++]);
      ++stats_.tx_dropped;
      continue;
    }
    // Full. Nothing waits for a device that is down or gone, nor for long for one that takes nothing.
    if (device_->Gone()) dead_ = true;
    const int64_t now = CoarseNow();
    if (stuck_since_ == 0) stuck_since_ = now;
    if (dead_ || !device_->LinkUp() || now - stuck_since_ > kStuck) DropPending();
    return;
  }
  pending_.clear();
  pending_next_ = 0;
}

size_t DpdkPort::Transmit(std::span<Packet> burst) {
  if (rte_lcore_id() == LCORE_ID_ANY) rte_thread_register();
  if (!pending_.empty()) Flush();
  size_t done = 0;
  while (done < burst.size() && !dead_ && pending_.size() < kMaxPending) {
    Packet& frame = burst[done];
    const Sent sent = InsertVlanTag(frame) ? Queue(frame) : Sent::kNever;
    if (sent == Sent::kFull) break;
    if (sent == Sent::kNever) ++stats_.tx_dropped;
    frame = Packet();
    ++done;
    if (pending_.size() >= kMaxPending) Flush();
  }
  Flush();
  for (; dead_ && done < burst.size(); ++done) {
    ++stats_.tx_dropped;
    burst[done] = Packet();
  }
  return done;
}

// ---- Reporting

PortStats DpdkPort::stats() const {
  PortStats s = stats_;
  if (queue_ == 0) s.rx_dropped += device_->rx_missed();
  return s;
}

std::vector<std::string> DpdkPort::describe() const {
  const bool tso = (device_->tx_offloads() & RTE_ETH_TX_OFFLOAD_TCP_TSO) != 0;
  return {"link=dpdk",
          std::string("driver=") + (device_->info().driver_name != nullptr ? device_->info().driver_name : "unknown"),
          "device=" + device_->name(),
          "queue=" + std::to_string(queue_),
          std::string("tx_checksum=") + (device_->tx_offloads() != 0 ? "device" : "software"),
          std::string("gso=") + (tso                     ? "device"
                                 : options_.software_gso ? "software"
                                                         : "off"),
          std::string("wakeup=") + (epoll_ ? "interrupt" : "none (polls without end)"),
          "mtu=" + std::to_string(device_->mtu()),
          "mbufs_lent=" + std::to_string(device_->rx_pool(queue_).lent()),
          "frames_copied=" + std::to_string(copied_)};
}

namespace {

Errno Open(const DpdkOptions& options, BlockPool& pool, DpdkLink* out, std::string* error) {
  uint16_t port = 0;
  if (const Errno e = FindDevice(options.device, &port, error); e != Errno::kOk) return e;
  const auto device = Ethdev::Open(port, options, error);
  if (device == nullptr) return Errno::kENODEV;
  if (options.promiscuous) rte_eth_promiscuous_enable(port);  // a virtual device may have no such thing, and needs none
  rte_eth_allmulticast_enable(port);
  DpdkLink link;
  rte_ether_addr mac{};
  if (rte_eth_macaddr_get(port, &mac) == 0) std::memcpy(link.mac.bytes.data(), mac.addr_bytes, sizeof mac.addr_bytes);
  link.mtu = device->mtu();
  for (uint32_t q = 0; q < options.queues; ++q) link.queues.push_back(std::make_unique<DpdkPort>(device, q, options, pool));
  *out = std::move(link);
  return Errno::kOk;
}

}  // namespace
}  // namespace sluice::dpdk

extern "C" __attribute__((visibility("default")))
const sluice::DpdkModule sluice_dpdk_module{sluice::DpdkModule::kVersion, sluice::dpdk::Open};
