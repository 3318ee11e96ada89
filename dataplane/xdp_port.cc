#include "dataplane/xdp_port.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "dataplane/frame.h"
#include "netstack/wire/checksum.h"

namespace sluice {
namespace {

constexpr uint32_t kContinues = 1;  // XDP_PKT_CONTD, 6.6
constexpr int kMaxKicks = 64;       // in copy mode a call moves 32 descriptors

}  // namespace

std::unique_ptr<XdpPort> XdpPort::Create(UniqueFd fd, UniqueFd umem, const XskFacts& facts, const XdpPortOptions& options,
                                         BlockPool& pool, std::string* error, std::shared_ptr<XdpShare> share) {
  std::unique_ptr<XskMapping> rings;
  SLUICE_CHECK(facts.sharers == 1 || share != nullptr);
  if (Errno e = XskMapping::Map(fd.get(), umem.get(), facts, &rings, error); e != Errno::kOk) return nullptr;
  return std::unique_ptr<XdpPort>(new XdpPort(std::move(fd), facts, options, pool, std::move(rings), std::move(share)));
}

Errno XdpPort::CreateQueues(std::vector<Xsk> sockets, const XdpPortOptions& options, std::span<BlockPool* const> pools,
                            std::vector<std::unique_ptr<Port>>* out, std::string* error,
                            std::vector<std::unique_ptr<Port>> beside) {
  SLUICE_CHECK(sockets.size() == pools.size() && (beside.empty() || beside.size() == pools.size()));
  std::shared_ptr<XdpShare> share;
  if (!sockets.empty() && sockets[0].facts.sharers > 1) share = std::make_shared<XdpShare>(sockets[0].facts.sharers);
  for (size_t i = 0; i < sockets.size(); ++i) {
    Xsk& s = sockets[i];
    auto port = Create(std::move(s.fd), std::move(s.umem), s.facts, options, *pools[i], error, share);
    if (port == nullptr) return Errno::kEINVAL;
    if (!beside.empty()) port->HearBeside(std::move(beside[i]));
    out->push_back(std::move(port));
  }
  return Errno::kOk;
}

XdpPort::XdpPort(UniqueFd fd, const XskFacts& facts, const XdpPortOptions& options, BlockPool& pool,
                 std::unique_ptr<XskMapping> rings, std::shared_ptr<XdpShare> share)
    : fd_(std::move(fd)), facts_(facts), options_(options), pool_(pool), rings_(std::move(rings)), share_(std::move(share)) {
  const uint64_t part = uint64_t{facts_.first_chunk} * facts_.chunk_size;
  const auto lock = LockShared();
  if (share_ != nullptr) share_->sent[facts_.share()].reserve(facts_.tx_chunks);
  XskRing& fill = rings_->fill;
  const uint32_t at = __atomic_load_n(fill.producer, __ATOMIC_RELAXED);
  for (uint32_t i = 0; i < facts_.rx_chunks; ++i) fill.At<uint64_t>(at + i) = part + uint64_t{i} * facts_.chunk_size;
  __atomic_store_n(fill.producer, at + facts_.rx_chunks, __ATOMIC_RELEASE);
  for (uint32_t i = facts_.tx_chunks; i > 0; --i)
    free_tx_.push_back(part + uint64_t{facts_.rx_chunks + i - 1} * facts_.chunk_size);
  tx_head_ = __atomic_load_n(rings_->tx.producer, __ATOMIC_RELAXED);
}

XdpPort::~XdpPort() = default;

LinkFeatures XdpPort::features() const {
  LinkFeatures f;
  f.tx_checksum = true;
  f.gso = options_.software_gso;
  f.udp_gso = options_.software_gso;
  f.rx_checksum = true;
  return f;
}

// ---- Receive

bool XdpPort::ValidChunk(uint64_t address, uint32_t length) const {
  return length <= facts_.chunk_size && address + length <= facts_.umem_size();
}

// How many descriptors the frame at `first` has, 0 where its last one is not there yet.
uint32_t XdpPort::FrameDescriptors(uint32_t first, uint32_t available, size_t* bytes) const {
  *bytes = 0;
  for (uint32_t i = 0; i < available; ++i) {
    const xdp_desc& d = rings_->rx.At<xdp_desc>(first + i);
    *bytes += d.len;
    if ((d.options & kContinues) == 0) return i + 1;
  }
  return 0;
}

// Those that share the queue write one fill ring and read one completion ring.
std::unique_lock<std::mutex> XdpPort::LockShared() const {
  return share_ == nullptr ? std::unique_lock<std::mutex>() : std::unique_lock(share_->lock);
}

// Gives the chunks of received descriptors, whoever's they are, back to the device.
void XdpPort::Recycle(uint32_t first, uint32_t count) {
  const auto lock = LockShared();
  XskRing& fill = rings_->fill;
  const uint32_t at = __atomic_load_n(fill.producer, __ATOMIC_RELAXED);
  for (uint32_t i = 0; i < count; ++i) {
    const uint64_t address = rings_->rx.At<xdp_desc>(first + i).addr;
    fill.At<uint64_t>(at + i) = address - address % facts_.chunk_size;
  }
  __atomic_store_n(fill.producer, at + count, __ATOMIC_RELEASE);
}

bool XdpPort::TakeFrame(uint32_t first, uint32_t count, size_t bytes, Packet* out) {
  if (bytes < kEthernetHeader || bytes > kMaxFrame) return false;
  Packet frame = Packet::Allocate(pool_, bytes);
  if (!frame) {
    ++faults_.rx_no_memory;
    return false;
  }
  for (uint32_t i = 0; i < count; ++i) {
    const xdp_desc d = rings_->rx.At<xdp_desc>(first + i);
    if (!ValidChunk(d.addr, d.len)) return false;
    std::memcpy(frame.Append(d.len), rings_->umem + d.addr, d.len);
  }
  frame.ifindex = facts_.ifindex;
  if ((frame.data()[0] & 1) != 0) {
    frame.link_type =
        MacAddress{{frame.data()[0], frame.data()[1], frame.data()[2], frame.data()[3], frame.data()[4], frame.data()[5]}}
                .IsBroadcast()
            ? 1
            : 2;
  }
  SetOffload(&frame);
  *out = std::move(frame);
  return true;
}

void XdpPort::SetOffload(Packet* frame) const {
  FrameHeaders h;
  if (!LocateHeaders(frame->linear(), frame->size(), &h) || h.fragment) return;
  const bool super = h.end - h.network > facts_.mtu;
  if (!facts_.local_peer && !super) return;
  const bool tcp = h.protocol == kProtocolTcp;
  const uint16_t offset = tcp ? 16 : 6;
  const uint16_t field = wire::LoadSum(frame->data() + h.transport + offset);
  if (field != PseudoHeaderSum(frame->linear(), h, h.end - h.transport)) return;
  frame->offload.checksum = ChecksumState::kPartial;
  frame->offload.csum_start = h.transport;
  frame->offload.csum_offset = offset;
  if (!super || !tcp) return;
  // The segment size is not said. A sender's segments fill its MTU, which is the device's.
  const size_t header = h.transport + (frame->data()[h.transport + 12] >> 4) * size_t{4};
  if (header <= h.network || header - h.network >= facts_.mtu || header > frame->size()) return;
  frame->offload.gso = h.v6 ? GsoType::kTcpV6 : GsoType::kTcpV4;
  frame->offload.gso_size = static_cast<uint16_t>(facts_.mtu - (header - h.network));
  frame->offload.hdr_len = static_cast<uint16_t>(header);
}

void XdpPort::HearBeside(std::unique_ptr<Port> packet) {
  SLUICE_CHECK(packet->ifindex() == facts_.ifindex && packet->wait_fds().size() == 1);
  beside_ = std::move(packet);
  beside_fd_ = beside_->wait_fds()[0];
}

std::vector<int> XdpPort::wait_fds() const {
  if (beside_ == nullptr) return {fd_.get()};
  return {fd_.get(), beside_fd_};
}

size_t XdpPort::Receive(std::span<Packet> out) {
  if (dead_) return 0;
  size_t taken = 0;
  if (++turns_ % (beside_busy_ ? 2 : kBesideTurn) == 0) taken = ReceiveBeside(out);
  taken += ReceiveRing(out.subspan(taken));
  if (taken == 0) taken = ReceiveBeside(out);
  return taken;
}

// Where it has something: its port would set up memory for a whole burst only to look.
size_t XdpPort::ReceiveBeside(std::span<Packet> out) {
  if (beside_ == nullptr) return 0;
  pollfd waits{beside_fd_, POLLIN, 0};
  const size_t taken = poll(&waits, 1, 0) > 0 ? beside_->Receive(out) : 0;
  beside_busy_ = taken > 0;
  return taken;
}

size_t XdpPort::ReceiveRing(std::span<Packet> out) {
  XskRing& rx = rings_->rx;
  const uint32_t first = __atomic_load_n(rx.consumer, __ATOMIC_RELAXED);
  uint32_t at = first, available = rx.Available();
  size_t taken = 0;
  if (available == 0) return 0;
  while (available > 0 && taken < out.size()) {
    size_t bytes;
    const uint32_t count = FrameDescriptors(at, available, &bytes);
    if (count == 0) break;
    if (TakeFrame(at, count, bytes, &out[taken])) {
      ++taken;
      ++stats_.rx_frames;
      stats_.rx_bytes += bytes;
    } else {
      ++stats_.rx_dropped;
    }
    at += count;
    available -= count;
  }
  Recycle(first, at - first);
  __atomic_store_n(rx.consumer, at, __ATOMIC_RELEASE);
  if (rings_->fill.NeedsWakeup()) {
    ++stats_.rx_syscalls;
    recvfrom(fd_.get(), nullptr, 0, MSG_DONTWAIT, nullptr, nullptr);
  }
  return taken;
}

bool XdpPort::ArmWakeup() {
  CheckDevice();
  return rings_->rx.Available() == 0 && !dead_;
}

void XdpPort::CheckDevice() {
  int error = 0;
  socklen_t length = sizeof error;
  if (getsockopt(fd_.get(), SOL_SOCKET, SO_ERROR, &error, &length) != 0 || error == 0) return;
  // Said both when the device goes down and when it goes away. Only the latter unbinds, and an unbound socket says so.
  char byte = 0;
  if (sendto(fd_.get(), &byte, 0, MSG_DONTWAIT, nullptr, 0) < 0 && errno == ENXIO) dead_ = true;
}

// ---- Transmit

void XdpPort::Reclaim(uint64_t address) {
  const auto owner = static_cast<uint32_t>(address / facts_.part_size());
  const uint64_t chunk = address - address % facts_.chunk_size;
  (share_ == nullptr || owner == facts_.share() ? free_tx_ : share_->sent[owner]).push_back(chunk);
}

void XdpPort::ReapCompletions() {
  XskRing& done = rings_->completion;
  if (share_ == nullptr && done.Available() == 0) return;
  const auto lock = LockShared();
  const uint32_t count = done.Available();
  const uint32_t at = __atomic_load_n(done.consumer, __ATOMIC_RELAXED);
  for (uint32_t i = 0; i < count; ++i) Reclaim(done.At<uint64_t>(at + i));
  __atomic_store_n(done.consumer, at + count, __ATOMIC_RELEASE);
  if (share_ == nullptr) return;
  std::vector<uint64_t>& found = share_->sent[facts_.share()];
  free_tx_.insert(free_tx_.end(), found.begin(), found.end());
  found.clear();
}

void XdpPort::Kick() {
  __atomic_store_n(rings_->tx.producer, tx_head_, __ATOMIC_RELEASE);
  for (int i = 0; i < kMaxKicks && TxUnsent() && rings_->tx.NeedsWakeup(); ++i) {
    ++stats_.tx_syscalls;
    const bool moved = sendto(fd_.get(), nullptr, 0, MSG_DONTWAIT, nullptr, 0) >= 0;
    down_ = !moved && errno == ENETDOWN;
    if (moved) continue;
    if (errno == ENXIO || errno == ENODEV) dead_ = true;
    if (errno != EAGAIN && errno != EINTR) break;  // ENOBUFS, EBUSY, ENETDOWN: the descriptors stay, tried again later
    ReapCompletions();
  }
}

void XdpPort::PushDescriptor(uint64_t address, uint32_t length, bool more) {
  xdp_desc& d = rings_->tx.At<xdp_desc>(tx_head_++);
  d.addr = address;
  d.len = length;
  d.options = more ? kContinues : 0;
}

void XdpPort::SendInChunks(Bytes frame) {
  for (size_t at = 0; at < frame.size();) {
    const size_t n = std::min<size_t>(facts_.chunk_size, frame.size() - at);
    const uint64_t address = free_tx_.back();
    free_tx_.pop_back();
    std::memcpy(rings_->umem + address, frame.data() + at, n);
    at += n;
    PushDescriptor(address, static_cast<uint32_t>(n), at < frame.size());
  }
}

XdpPort::Sent XdpPort::SendFrame(const Packet& frame) {
  GsoCutter cutter(frame);
  if (!cutter.valid()) return Sent::kNever;
  const size_t chunks_each = (cutter.max_size() + facts_.chunk_size - 1) / facts_.chunk_size;
  if (chunks_each > 1 && !facts_.scatter) return Sent::kNever;
  const size_t needed = chunks_each * cutter.segments();
  if (needed > facts_.tx_chunks) return Sent::kNever;
  const uint32_t used = tx_head_ - __atomic_load_n(rings_->tx.consumer, __ATOMIC_ACQUIRE);
  if (free_tx_.size() < needed || rings_->tx.size - used < needed) return Sent::kFull;
  if (cutter.segments() > 1) ++stats_.software_gso_frames;
  while (!cutter.done()) {
    const size_t size = cutter.next_size();
    ++stats_.tx_frames;
    stats_.tx_bytes += size;
    if (size > facts_.chunk_size) {
      scratch_.resize(std::max(scratch_.size(), size));
      cutter.Next(scratch_);
      SendInChunks(Bytes{scratch_.data(), size});
      continue;
    }
    const uint64_t address = free_tx_.back();
    free_tx_.pop_back();
    cutter.Next(MutableBytes{rings_->umem + address, facts_.chunk_size});
    PushDescriptor(address, static_cast<uint32_t>(size), false);
  }
  return Sent::kTaken;
}

size_t XdpPort::Transmit(std::span<Packet> burst) {
  ReapCompletions();
  if (down_) Kick();
  size_t done = 0;
  bool retried = false;
  while (done < burst.size() && !dead_ && !down_) {
    Packet& frame = burst[done];
    const Sent sent = InsertVlanTag(frame) ? SendFrame(frame) : Sent::kNever;
    if (sent == Sent::kFull) {
      ++faults_.tx_no_buffer;
      if (retried) break;
      Kick();
      ReapCompletions();
      retried = true;
      continue;
    }
    retried = false;
    if (sent == Sent::kNever) ++stats_.tx_dropped;
    frame = Packet();
    ++done;
  }
  Kick();
  ReapCompletions();
  // Nothing waits for a device that is down or gone.
  for (; (dead_ || down_) && done < burst.size(); ++done) {
    ++stats_.tx_dropped;
    burst[done] = Packet();
  }
  return done;
}

// ---- Reporting

// The fill ring is the queue's: of those that share it, the first tells what it counts.
xdp_statistics XdpPort::KernelCounts() const {
  xdp_statistics counts{};
  socklen_t length = sizeof counts;
  if (getsockopt(fd_.get(), SOL_XDP, XDP_STATISTICS, &counts, &length) != 0) return {};
  if (share_ != nullptr && facts_.share() != 0) counts.rx_fill_ring_empty_descs = 0;
  return counts;
}

PortStats XdpPort::stats() const {
  PortStats s = stats_;
  const xdp_statistics kernel = KernelCounts();
  // A copied frame that finds the fill ring empty is in rx_dropped, too; invalid descriptors of that ring are no frames.
  s.rx_dropped += kernel.rx_dropped + kernel.rx_ring_full;
  s.tx_dropped += kernel.tx_invalid_descs;
  if (beside_ != nullptr) {
    const PortStats beside = beside_->stats();
    s.rx_frames += beside.rx_frames;
    s.rx_bytes += beside.rx_bytes;
    s.rx_dropped += beside.rx_dropped;
    s.rx_syscalls += beside.rx_syscalls;
  }
  return s;
}

PortFaults XdpPort::faults() const {
  PortFaults f = faults_;
  const xdp_statistics kernel = KernelCounts();
  f.rx_ring_full += kernel.rx_ring_full;
  f.rx_no_buffer += kernel.rx_fill_ring_empty_descs;
  if (beside_ != nullptr) {
    const PortFaults beside = beside_->faults();
    f.rx_ring_full += beside.rx_ring_full;
    f.rx_no_memory += beside.rx_no_memory;
    f.rx_beside_ring = beside_->stats().rx_frames;
  }
  return f;
}

std::vector<std::string> XdpPort::describe() const {
  return {"link=xdp",
          std::string("mode=") + (facts_.native ? "native" : "generic"),
          std::string("zero_copy=") + (facts_.zero_copy ? "true" : "false"),
          std::string("scatter=") + (facts_.scatter ? "true" : "false"),
          "queue=" + std::to_string(facts_.queue),
          "sockets_of_queue=" + std::to_string(facts_.sharers),
          std::string("gso=") + (options_.software_gso ? "software" : "off"),
          "umem_bytes=" + std::to_string(facts_.umem_size()),
          std::string("beside_ring=") + (beside_ != nullptr ? "heard" : "lost")};
}

}  // namespace sluice
