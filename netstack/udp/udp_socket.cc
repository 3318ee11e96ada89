#include "netstack/udp/udp_socket.h"

#include <algorithm>

#include "netstack/wire/checksum.h"
#include "netstack/wire/headers.h"

namespace sluice {
namespace {

constexpr size_t kMaxDatagram4 = 65535 - wire::kIpv4Header - wire::kUdpHeader;
constexpr size_t kMaxDatagram6 = 65535 - wire::kUdpHeader;
constexpr size_t kMaxSegments = 128;  // UDP_MAX_SEGMENTS

void Gather(std::span<const Bytes> parts, size_t from, MutableBytes out) {
  for (const Bytes& part : parts) {
    if (from >= part.size()) {
      from -= part.size();
      continue;
    }
    const size_t n = std::min(out.size(), part.size() - from);
    if (n > 0) std::memcpy(out.data(), part.data() + from, n);
    out = out.subspan(n);
    from = 0;
    if (out.empty()) return;
  }
}

}  // namespace

bool UdpSocket::Supports(SockOpt o) const {
  return o == SockOpt::kUdpSegment || o == SockOpt::kUdpGro || DatagramBase::Supports(o);
}

Errno UdpSocket::Send(const DatagramSend& how, std::span<const Bytes> payload) {
  size_t size = 0;
  for (const Bytes& part : payload) size += part.size();
  Target t;
  if (const Errno e = Prepare(how, true, &t); e != Errno::kOk) return e;
  if (size > (t.address.is_v6() ? kMaxDatagram6 : kMaxDatagram4)) return Errno::kEMSGSIZE;
  const uint16_t segment = how.gso_size != 0 ? how.gso_size : static_cast<uint16_t>(option(SockOpt::kUdpSegment));
  if (segment == 0 || size <= segment) return Finish(SendOne(t, payload, 0, size, 0), t);
  // linux udp_send_skb: a segment must fit the path, and there are at most 64 (128 since 6.9) of them.
  const size_t headers = wire::kUdpHeader + (t.address.is_v6() ? wire::kIpv6Header : wire::kIpv4Header);
  if (segment + headers > t.route.mtu) return Errno::kEMSGSIZE;
  if (size > segment * kMaxSegments) return Errno::kEINVAL;
  const Device* device = network_.FindDevice(t.route.ifindex);
  const bool whole = t.route.local || (t.route.neighbor != nullptr && device != nullptr && device->features().udp_gso &&
                                       size + headers <= device->features().gso_max_size);
  if (whole) return Finish(SendOne(t, payload, 0, size, segment), t);
  for (size_t at = 0; at < size; at += segment) {
    if (const Errno e = SendOne(t, payload, at, std::min<size_t>(segment, size - at), 0); e != Errno::kOk) return Finish(e, t);
  }
  return Errno::kOk;
}

Errno UdpSocket::SendOne(const Target& t, std::span<const Bytes> payload, size_t from, size_t size, uint16_t gso_size) {
  Packet p = Packet::Allocate(context_.pool, wire::kUdpHeader + size);
  if (!p) {
    context_.counters.Add(Counter::kDropNoMemory);
    return Errno::kENOBUFS;
  }
  const uint16_t length = static_cast<uint16_t>(wire::kUdpHeader + size);
  uint8_t* h = p.Append(length);
  StoreBe16(h, local_port());
  StoreBe16(h + 2, t.port);
  StoreBe16(h + 4, length);
  StoreBe16(h + 6, 0);
  Gather(payload, from, {h + wire::kUdpHeader, size});
  const bool none = option(SockOpt::kNoCheck) != 0 && t.address.is_v4() && gso_size == 0;
  if (!none) {
    wire::StoreSum(h + wire::kUdpChecksumOffset, wire::PseudoHeaderSum(t.how.source, t.address, kIpProtoUdp, length));
    p.offload.checksum = ChecksumState::kPartial;
    p.offload.csum_offset = wire::kUdpChecksumOffset;
    if (gso_size != 0) {
      p.offload.gso = GsoType::kUdp;
      p.offload.gso_size = gso_size;
      p.offload.hdr_len = wire::kUdpHeader;
    }
  }
  context_.counters.Add(Counter::kUdpOutDatagrams);
  return network_.Send(std::move(p), t.route, t.how);
}

}  // namespace sluice
