#include "netstack/udp/udp_protocol.h"

#include <algorithm>
#include <new>

#include "netstack/udp/udp_socket.h"
#include "netstack/wire/checksum.h"
#include "netstack/wire/headers.h"

namespace sluice {

bool UdpProtocol::ChecksumOk(const Packet& packet, const IpInfo& info, const wire::UdpView& udp) const {
  if (packet.offload.checksum == ChecksumState::kVerified) return true;
  if (!udp.has_checksum()) return info.source.is_v4();  // RFC 8200 8.1: IPv6 has none without one
  const uint16_t pseudo = wire::PseudoHeaderSum(info.source, info.destination, kIpProtoUdp, udp.length());
  return wire::OnesSum(packet, 0, pseudo) == 0xffff;
}

void UdpProtocol::Input(Packet packet, const IpInfo& info) {
  const auto udp = wire::UdpView::Parse(packet.linear(), packet.size());
  if (!udp) return context_.counters.Add(Counter::kDropUdpMalformed);
  const bool gso = packet.offload.gso == GsoType::kUdp;
  if (!gso) packet.Truncate(udp->length());
  if (!ChecksumOk(packet, info, *udp)) return context_.counters.Add(Counter::kDropUdpChecksum);
  const PortTable::Tuple tuple{info.destination, info.source, udp->destination_port(), udp->source_port(), info.ifindex};
  if (info.multicast || info.broadcast) {
    receivers_.clear();
    ports_.SelectAll(tuple, info.multicast, &receivers_);
    if (receivers_.empty()) return context_.counters.Add(Counter::kUdpNoPorts);
    for (size_t i = 0; i + 1 < receivers_.size(); ++i) {
      Packet copy = packet.Clone(context_.pool);
      if (!copy) {
        context_.counters.Add(Counter::kDropNoMemory);
        continue;
      }
      copy.Pull(wire::kUdpHeader);
      Deliver(*receivers_[i], std::move(copy), info, tuple.remote_port);
    }
    packet.Pull(wire::kUdpHeader);
    return Deliver(*receivers_.back(), std::move(packet), info, tuple.remote_port);
  }
  DatagramBase* socket = ports_.Select(tuple);
  if (socket == nullptr) {
    if (network_.PassOn(PortSpace::kUdp, {tuple.local, tuple.remote, tuple.local_port, tuple.remote_port}, packet, info)) return;
    context_.counters.Add(Counter::kUdpNoPorts);
    const uint8_t code = info.source.is_v6() ? uint8_t{4} : uint8_t{wire::kIcmpPortUnreachable};
    return network_.SendUnreachable(packet, info, code);
  }
  packet.Pull(wire::kUdpHeader);
  Deliver(*socket, std::move(packet), info, tuple.remote_port);
}

void UdpProtocol::Deliver(DatagramBase& socket, Packet payload, const IpInfo& info, uint16_t source_port) {
  constexpr Counter kFull = Counter::kDropUdpReceiveBuffer;
  const uint16_t segment = payload.offload.gso == GsoType::kUdp ? payload.offload.gso_size : uint16_t{0};
  if (segment == 0 || payload.size() <= segment || socket.option(SockOpt::kUdpGro) != 0) {
    const uint16_t gro_size = payload.size() > segment ? segment : uint16_t{0};
    return socket.Enqueue(std::move(payload), info, source_port, gro_size, kFull);
  }
  // The program did not ask for coalesced datagrams: it gets them as they were sent.
  for (size_t at = 0; at < payload.size(); at += segment) {
    const size_t n = std::min<size_t>(segment, payload.size() - at);
    Packet one = Packet::Allocate(context_.pool, n, 0);
    if (!one) return context_.counters.Add(Counter::kDropNoMemory);
    payload.CopyOut(at, {one.Append(n), n});
    one.received = payload.received;
    socket.Enqueue(std::move(one), info, source_port, 0, kFull);
  }
}

bool UdpProtocol::IcmpError(const IcmpErrorInfo& e) {
  const uint16_t local_port = LoadBe16(e.transport.data()), remote_port = LoadBe16(e.transport.data() + 2);
  DatagramBase* socket = ports_.Select(PortTable::Tuple{e.source, e.destination, local_port, remote_port, 0});
  if (socket != nullptr) socket->OnIcmpError(e, remote_port, e.transport.subspan(wire::kUdpHeader));
  return socket != nullptr;
}

DatagramSocket* UdpProtocol::NewSocket(Family family) { return new (std::nothrow) UdpSocket(network_, family, &ports_); }

}  // namespace sluice
