#include "dataplane/packet_port.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "dataplane/frame.h"
#include "dataplane/gso.h"

namespace sluice {
namespace {

constexpr uint8_t kNeedsChecksum = 1, kDataValid = 2;
constexpr uint8_t kGsoNone = 0, kGsoTcpV4 = 1, kGsoTcpV6 = 4, kGsoUdpL4 = 5, kGsoEcn = 0x80;
// More of them in a row without one success: the kernel takes no metadata at all.
constexpr int kMaxOffloadRefusals = 8;
constexpr int kMaxReceiveErrors = 8;

}  // namespace

bool ParseVnetHeader(const VnetHeader& header, Packet* frame) {
  Offload offload;
  if ((header.flags & kNeedsChecksum) != 0) {
    if (header.csum_start < kEthernetHeader || size_t{header.csum_start} + header.csum_offset + 2 > frame->linear_size())
      return false;
    offload.checksum = ChecksumState::kPartial;
    offload.csum_start = header.csum_start;
    offload.csum_offset = header.csum_offset;
  } else if ((header.flags & kDataValid) != 0) {
    offload.checksum = ChecksumState::kVerified;
  }
  offload.ecn = (header.gso_type & kGsoEcn) != 0;
  switch (header.gso_type & ~kGsoEcn) {
    case kGsoNone:
      break;
    case kGsoTcpV4:
      offload.gso = GsoType::kTcpV4;
      break;
    case kGsoTcpV6:
      offload.gso = GsoType::kTcpV6;
      break;
    case kGsoUdpL4:
      offload.gso = GsoType::kUdp;
      break;
    default:
      return false;
  }
  if (offload.gso != GsoType::kNone) {
    // The kernel says how much of the frame lay in its first fragment, which may be more than the headers: find them.
    FrameHeaders headers;
    if (header.gso_size == 0 || !LocateHeaders(frame->linear(), frame->size(), &headers)) return false;
    const bool udp = headers.protocol == kProtocolUdp;
    const size_t transport = udp ? 8 : (frame->data()[headers.transport + 12] >> 4) * size_t{4};
    if (headers.fragment || udp != (offload.gso == GsoType::kUdp) || headers.transport + transport > frame->linear_size())
      return false;
    offload.gso_size = header.gso_size;
    offload.hdr_len = static_cast<uint16_t>(headers.transport + transport);
  }
  frame->offload = offload;
  return true;
}

VnetHeader MakeVnetHeader(const Offload& offload) {
  VnetHeader header;
  if (offload.checksum == ChecksumState::kPartial) {
    header.flags = kNeedsChecksum;
    header.csum_start = offload.csum_start;
    header.csum_offset = offload.csum_offset;
  }
  switch (offload.gso) {
    case GsoType::kNone:
      return header;
    case GsoType::kTcpV4:
      header.gso_type = kGsoTcpV4;
      break;
    case GsoType::kTcpV6:
      header.gso_type = kGsoTcpV6;
      break;
    case GsoType::kUdp:
      header.gso_type = kGsoUdpL4;
      break;
  }
  if (offload.ecn) header.gso_type |= kGsoEcn;
  header.gso_size = offload.gso_size;
  header.hdr_len = offload.hdr_len;
  return header;
}

PacketPort::PacketPort(UniqueFd fd, const PacketSocketFacts& facts, const PacketPortOptions& options, BlockPool& pool)
    : fd_(std::move(fd)), facts_(facts), options_(options), pool_(pool), vnet_len_(facts.vnet_header ? sizeof(VnetHeader) : 0) {}

PacketPort::~PacketPort() = default;

LinkFeatures PacketPort::features() const {
  LinkFeatures f;
  f.tx_checksum = true;
  f.gso = facts_.vnet_header || options_.software_gso;
  f.udp_gso = f.gso;
  f.gso_max_size = std::min<uint32_t>(65400, facts_.gso_max_size);
  f.rx_checksum = true;
  return f;
}

// ---- Receive

bool PacketPort::RefillSlot(size_t i) {
  RxSlot& slot = slots_[i];
  if (!slot.small) slot.small = BlockRef(pool_.Allocate(kSmallBlock));
  // A slot without the big block still takes small frames (ACKs free memory); larger ones arrive truncated and are dropped.
  if (!slot.big) slot.big = BlockRef(pool_.Allocate(Packet::kHeadroom + kMaxFrame));
  return static_cast<bool>(slot.small);
}

void PacketPort::OfferSlot(size_t i) {
  RxSlot& slot = slots_[i];
  slot.pieces[0] = {slot.small->data + Packet::kHeadroom - vnet_len_, vnet_len_ + kSmallFrame};
  if (slot.big) slot.pieces[1] = {slot.big->data + Packet::kHeadroom + kSmallFrame, kMaxFrame - kSmallFrame};
  msghdr& message = rx_messages_[i].msg_hdr;
  message.msg_name = &slot.from;
  message.msg_namelen = sizeof slot.from;
  message.msg_iov = slot.pieces.data();
  message.msg_iovlen = slot.big ? 2 : 1;
  message.msg_control = slot.control.data();
  message.msg_controllen = slot.control.size();
  message.msg_flags = 0;
}

int PacketPort::ReceiveMessages(size_t count) {
  for (int tries = 0; tries < kMaxReceiveErrors; ++tries) {
    ++stats_.rx_syscalls;
    const int n = recvmmsg(fd_.get(), rx_messages_.data(), static_cast<unsigned>(count), MSG_DONTWAIT, nullptr);
    if (n >= 0) return n;
    if (errno == EAGAIN) {
      emptied_ = true;
      return 0;
    }
    if (errno == EINTR) continue;
    OnSocketError(errno);
    if (dead_) return 0;
  }
  return 0;
}

void PacketPort::OnSocketError(int error) {
  // A GSO type that the virtio-net header cannot say: the kernel has dropped the frame.
  if (error == EINVAL) ++stats_.rx_dropped;
  if (error != ENETDOWN && error != ENXIO && error != ENODEV) return;
  down_ = true;
  emptied_ = false;
  CheckDevice();
}

// ENETDOWN is said both for a device set down, which comes back, and for one that left; the latter unbinds the socket, a moment
// later and without another word: so it is looked at again until the device is up.
void PacketPort::CheckDevice() {
  sockaddr_ll bound{};
  socklen_t len = sizeof bound;
  if (getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&bound), &len) != 0 || bound.sll_ifindex != facts_.ifindex) dead_ = true;
}

// Memory is at its bound and no slot could be offered: take a frame off the socket's queue and forget it, so that what waits
// behind is not stale when memory comes back, and the descriptor does not stay readable.
void PacketPort::DropOne() {
  uint8_t scratch[64];
  ++stats_.rx_syscalls;
  if (recv(fd_.get(), scratch, sizeof scratch, MSG_DONTWAIT | MSG_TRUNC) > 0) {
    ++stats_.rx_dropped;
    ++faults_.rx_no_memory;
  } else if (errno != EAGAIN) {
    OnSocketError(errno);
  }
}

bool PacketPort::ArmWakeup() {
  if (down_) CheckDevice();
  return !dead_;
}

size_t PacketPort::Receive(std::span<Packet> out) {
  if (dead_ || out.empty()) return 0;
  size_t offered = std::min({out.size(), kSlots, std::max<size_t>(4, kBurstBytes / average_frame_)});
  for (size_t i = 0; i < offered; ++i) {
    if (!RefillSlot(i)) {
      offered = i;
      break;
    }
    OfferSlot(i);
  }
  if (offered == 0) {
    DropOne();
    return 0;
  }
  const int received = ReceiveMessages(offered);
  size_t taken = 0, bytes = 0;
  for (int i = 0; i < received; ++i) {
    bytes += rx_messages_[i].msg_len;
    if (TakeFrame(static_cast<size_t>(i), &out[taken])) ++taken;
  }
  if (received > 0 && emptied_) down_ = false;  // not one that waited already when it went down
  if (received > 0) average_frame_ = std::max<size_t>(64, (average_frame_ * 3 + bytes / static_cast<size_t>(received)) / 4);
  return taken;
}

bool PacketPort::TakeFrame(size_t i, Packet* out) {
  RxSlot& slot = slots_[i];
  msghdr& message = rx_messages_[i].msg_hdr;
  const size_t length = rx_messages_[i].msg_len;
  if (slot.from.sll_pkttype == PACKET_OUTGOING) return false;
  if ((message.msg_flags & MSG_TRUNC) != 0 || length < vnet_len_ + kEthernetHeader) {
    ++stats_.rx_dropped;
    if (!slot.big) ++faults_.rx_no_memory;
    return false;
  }
  const size_t size = length - vnet_len_;
  VnetHeader vnet;
  std::memcpy(&vnet, slot.pieces[0].iov_base, vnet_len_);
  if (!MakePacket(slot, size, out)) {
    ++stats_.rx_dropped;
    return false;
  }
  ParseAuxdata(message, out);
  if (vnet_len_ != 0 && !ParseVnetHeader(vnet, out)) {
    ++stats_.rx_dropped;
    *out = Packet();
    return false;
  }
  out->ifindex = facts_.ifindex;
  out->link_type = slot.from.sll_pkttype;
  ++stats_.rx_frames;
  stats_.rx_bytes += size;
  return true;
}

bool PacketPort::MakePacket(RxSlot& slot, size_t size, Packet* out) {
  constexpr uint32_t kFront = Packet::kHeadroom;
  if (size <= kSmallFrame) {
    *out = Packet::Adopt(std::move(slot.small), kFront, static_cast<uint32_t>(size));
    return true;
  }
  if (size <= kMiddleFrame) {
    if (BlockRef middle{pool_.Allocate(kFront + size)}) {
      std::memcpy(middle->data + kFront, slot.small->data + kFront, kSmallFrame);
      std::memcpy(middle->data + kFront + kSmallFrame, slot.big->data + kFront + kSmallFrame, size - kSmallFrame);
      *out = Packet::Adopt(std::move(middle), kFront, static_cast<uint32_t>(size));
      return true;
    }
  }
  std::memcpy(slot.big->data + kFront, slot.small->data + kFront, kSmallFrame);
  *out = Packet::Adopt(std::move(slot.big), kFront, static_cast<uint32_t>(size));
  return true;
}

void PacketPort::ParseAuxdata(msghdr& message, Packet* frame) const {
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_PACKET || c->cmsg_type != PACKET_AUXDATA || c->cmsg_len < CMSG_LEN(sizeof(tpacket_auxdata)))
      continue;
    tpacket_auxdata aux;
    std::memcpy(&aux, CMSG_DATA(c), sizeof aux);
    frame->has_vlan = (aux.tp_status & TP_STATUS_VLAN_VALID) != 0;
    frame->vlan_tci = aux.tp_vlan_tci;
    if (vnet_len_ != 0) continue;
    // Without the virtio-net header this is where the kernel says whether a local sender left the checksum to be finished.
    if ((aux.tp_status & TP_STATUS_CSUMNOTREADY) != 0) {
      FrameHeaders headers;
      if (!LocateHeaders(frame->linear(), frame->size(), &headers)) continue;
      frame->offload.checksum = ChecksumState::kPartial;
      frame->offload.csum_start = headers.transport;
      frame->offload.csum_offset = headers.protocol == kProtocolTcp ? 16 : 6;
    } else if ((aux.tp_status & TP_STATUS_CSUM_VALID) != 0) {
      frame->offload.checksum = ChecksumState::kVerified;
    }
  }
}

// ---- Transmit

void PacketPort::FillMessage(size_t i, Packet& frame, bool with_offload) {
  auto& pieces = tx_pieces_[i];
  size_t count = 0;
  if (vnet_len_ != 0) {
    tx_headers_[i] = with_offload ? MakeVnetHeader(frame.offload) : VnetHeader{};
    pieces[count++] = {&tx_headers_[i], vnet_len_};
  }
  pieces[count++] = {frame.data(), frame.linear_size()};
  for (size_t s = 0; s < frame.slice_count(); ++s) {
    const Slice& slice = frame.slice(s);
    pieces[count++] = {slice.block->data + slice.offset, slice.length};
  }
  msghdr& message = tx_messages_[i].msg_hdr;
  message = msghdr{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = count;
}

// Sends a prefix of `burst` as it is; returns how many frames are done with (sent, or dropped and counted).
size_t PacketPort::TransmitBatch(std::span<Packet> burst, bool with_offload) {
  size_t done = 0;
  while (done < burst.size()) {
    const size_t count = std::min(burst.size() - done, kTxBatch);
    for (size_t i = 0; i < count; ++i) FillMessage(i, burst[done + i], with_offload);
    ++stats_.tx_syscalls;
    int sent = sendmmsg(fd_.get(), tx_messages_.data(), static_cast<unsigned>(count), MSG_DONTWAIT);
    if (sent < 0) {
      if (!OnSendError(errno, burst[done])) break;
      ++done;
      if (with_offload && !cut_.empty()) break;  // its segments go before the frames behind it
      continue;
    }
    full_retries_ = 0;
    down_ = false;
    for (int i = 0; i < sent; ++i, ++done) {
      Packet& frame = burst[done];
      ++stats_.tx_frames;
      stats_.tx_bytes += frame.size();
      if (with_offload && frame.offload.checksum == ChecksumState::kPartial) offload_refusals_ = 0;
      frame = Packet();
    }
  }
  return done;
}

// True: the frame is done with (dropped, or taken for cutting). False: wait and offer it again.
bool PacketPort::OnSendError(int error, Packet& head) {
  const bool metadata = head.offload.gso != GsoType::kNone || head.offload.checksum == ChecksumState::kPartial;
  switch (error) {
    case EINTR:
      return false;
    case EAGAIN:
      ++faults_.tx_no_buffer;
      tx_blocked_on_socket_ = true;
      return false;
    case ENOBUFS:
    case ENOMEM:
      ++faults_.tx_no_buffer;
      // The device's queue is full, or a filter on egress eats every frame: wait a little, but not for ever.
      if (++full_retries_ <= kFullRetries) return false;
      full_retries_ = 0;
      break;
    case EINVAL:
    case EPROTONOSUPPORT:
    case EOPNOTSUPP:
      if (!metadata || !cut_.empty()) break;
      if (head.offload.gso == GsoType::kUdp) {
        udp_gso_ = false;
      } else if (++offload_refusals_ >= kMaxOffloadRefusals) {
        facts_.vnet_header_refused = true;
      }
      if (!CutFrame(head, pool_, &cut_, &stats_.software_gso_frames)) break;
      head = Packet();
      return true;
    case ENETDOWN:
    case ENXIO:
    case ENODEV:
      OnSocketError(error);
      break;
    default:
      break;
  }
  ++stats_.tx_dropped;
  head = Packet();
  return true;
}

bool PacketPort::NeedsCut(const Packet& frame) const {
  if (frame.offload.gso == GsoType::kNone && frame.offload.checksum != ChecksumState::kPartial) return false;
  if (!facts_.vnet_header || facts_.vnet_header_refused) return true;
  return frame.offload.gso == GsoType::kUdp && !udp_gso_;
}

// Sends what is left of frames already taken. True when nothing is left.
bool PacketPort::FlushCut() {
  if (cut_.empty()) return true;
  cut_next_ += TransmitBatch(std::span(cut_).subspan(cut_next_), false);
  if (cut_next_ < cut_.size()) return false;
  cut_.clear();
  cut_next_ = 0;
  return true;
}

size_t PacketPort::Transmit(std::span<Packet> burst) {
  tx_blocked_on_socket_ = false;
  size_t done = 0;
  while (!dead_ && FlushCut() && done < burst.size()) {
    for (Packet& frame : burst.subspan(done)) {
      if (frame.has_vlan && !InsertVlanTag(frame)) break;
    }
    size_t whole = 0;
    while (done + whole < burst.size() && !NeedsCut(burst[done + whole])) ++whole;
    if (whole > 0) {
      const size_t sent = TransmitBatch(burst.subspan(done, whole), true);
      done += sent;
      if (sent < whole && cut_.empty()) break;
      continue;
    }
    if (!CutFrame(burst[done], pool_, &cut_, &stats_.software_gso_frames)) ++stats_.tx_dropped;
    burst[done++] = Packet();
  }
  if (dead_) {
    // Nothing waits for a device that is gone.
    for (; done < burst.size(); ++done) {
      ++stats_.tx_dropped;
      burst[done] = Packet();
    }
  }
  return done;
}

// ---- Reporting

// Reading resets the kernel's counters.
void PacketPort::ReadKernelDrops() const {
  tpacket_stats kernel{};
  socklen_t len = sizeof kernel;
  if (getsockopt(fd_.get(), SOL_PACKET, PACKET_STATISTICS, &kernel, &len) != 0) return;
  stats_.rx_dropped += kernel.tp_drops;
  faults_.rx_ring_full += kernel.tp_drops;
}

PortStats PacketPort::stats() const {
  ReadKernelDrops();
  return stats_;
}

PortFaults PacketPort::faults() const {
  ReadKernelDrops();
  return faults_;
}

std::vector<std::string> PacketPort::describe() const {
  const bool whole = facts_.vnet_header && !facts_.vnet_header_refused;
  return {"link=packet",
          "vnet_header=" + std::string(whole ? "true" : "false"),
          "gso=" + std::string(whole                   ? "device"
                               : options_.software_gso ? "software"
                                                       : "off"),
          "gso_max_size=" + std::to_string(features().gso_max_size),
          "mtu=" + std::to_string(facts_.mtu),
          "receive_buffer=" + std::to_string(facts_.receive_buffer),
          "send_buffer=" + std::to_string(facts_.send_buffer)};
}

}  // namespace sluice
