// Ping sockets: linux net/ipv4/ping.c.
#include <new>

#include "netstack/raw/raw_protocol.h"
#include "netstack/wire/checksum.h"
#include "netstack/wire/headers.h"

namespace sluice {

Errno PingSocket::Send(const DatagramSend& how, std::span<const Bytes> payload) {
  size_t size = 0;
  for (const Bytes& part : payload) size += part.size();
  if (size > 65535) return Errno::kEMSGSIZE;
  if (size < wire::kIcmpHeader) return Errno::kEINVAL;
  Packet p = Packet::Allocate(context_.pool, size);
  if (!p) return Errno::kENOBUFS;
  uint8_t* h = p.Append(size);
  for (uint8_t* to = h; const Bytes& part : payload) {
    if (!part.empty()) std::memcpy(to, part.data(), part.size());
    to += part.size();
  }
  // Only requests; the identifier and the checksum are the stack's.
  const bool v6 = family_ == Family::kIpv6;
  if (h[0] != (v6 ? uint8_t{wire::kIcmpV6Echo} : uint8_t{wire::kIcmpEcho}) || h[1] != 0) return Errno::kEINVAL;
  Target t;
  if (const Errno e = Prepare(how, false, &t); e != Errno::kOk) return e;
  if (t.address.is_v6() != v6) return Errno::kENETUNREACH;
  StoreBe16(h + 4, local_port());
  StoreBe16(h + 2, 0);
  const uint16_t pseudo =
      v6 ? wire::PseudoHeaderSum(t.how.source, t.address, kIpProtoIcmpV6, static_cast<uint32_t>(size)) : uint16_t{0};
  wire::StoreSum(h + 2, static_cast<uint16_t>(~wire::OnesSum(p.linear(), pseudo)));
  context_.counters.Add(Counter::kIcmpOutMsgs);
  return Finish(network_.Send(std::move(p), t.route, t.how), t);
}

void PingProtocol::EchoReply(Packet packet, const IpInfo& info) {
  const auto icmp = wire::IcmpView::Parse(packet.linear());
  const PortTable& table = info.source.is_v6() ? v6_ : v4_;
  DatagramBase* s = table.Select(PortTable::Tuple{info.destination, info.source, icmp->ident(), 0, info.ifindex});
  if (s != nullptr) return s->Enqueue(std::move(packet), info, 0, 0, Counter::kDropUdpReceiveBuffer);
  (void)network_.PassOn(PortSpace::kEcho, {info.destination, info.source, icmp->ident(), icmp->ident()}, packet, info);
}

bool PingProtocol::PingError(const IcmpErrorInfo& e) {
  const auto icmp = wire::IcmpView::Parse(e.transport);
  if (!icmp || icmp->type() != (e.ipv6 ? uint8_t{wire::kIcmpV6Echo} : uint8_t{wire::kIcmpEcho})) return false;
  DatagramBase* s = (e.ipv6 ? v6_ : v4_).Select(PortTable::Tuple{e.source, e.destination, icmp->ident(), 0, 0});
  if (s != nullptr) s->OnIcmpError(e, 0, e.transport);
  return s != nullptr;
}

DatagramSocket* PingProtocol::NewSocket(Family family) {
  return new (std::nothrow) PingSocket(network_, family, family == Family::kIpv6 ? &v6_ : &v4_);
}

void PingProtocol::AppendSockets(std::vector<SocketInfo>* out) const {
  for (const PortTable* t : {&v4_, &v6_}) t->ForEach([out](const DatagramBase& s) { out->push_back(s.info()); });
}

}  // namespace sluice
