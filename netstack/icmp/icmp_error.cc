// ICMP errors: made for others (RFC 792, 1122 3.2.2, 1812 4.3), and received about packets of ours (RFC 5927: nothing is believed
// that does not quote one; the transport decides whether it is one that it has in flight).
#include <algorithm>

#include "netstack/ip/network.h"
#include "netstack/sysctls.h"
#include "netstack/wire/checksum.h"
#include "netstack/wire/headers.h"

namespace sluice {
namespace {

struct Conversion {
  Errno error;
  bool hard;
};

// linux icmp_err_convert
constexpr Conversion kUnreachable[] = {
    {Errno::kENETUNREACH, false},  {Errno::kEHOSTUNREACH, false}, {Errno::kENOPROTOOPT, true},  {Errno::kECONNREFUSED, true},
    {Errno::kEMSGSIZE, false},     {Errno::kEOPNOTSUPP, false},   {Errno::kENETUNREACH, true},  {Errno::kEHOSTDOWN, true},
    {Errno::kENONET, true},        {Errno::kENETUNREACH, true},   {Errno::kEHOSTUNREACH, true}, {Errno::kENETUNREACH, false},
    {Errno::kEHOSTUNREACH, false}, {Errno::kEHOSTUNREACH, true},  {Errno::kEHOSTUNREACH, true}, {Errno::kEHOSTUNREACH, true}};

// RFC 1191 7: what a router that does not tell its MTU probably has.
uint32_t Plateau(uint32_t length) {
  for (const uint32_t mtu : {32000u, 17914u, 8166u, 4352u, 2002u, 1492u, 576u}) {
    if (mtu < length) return mtu;
  }
  return 68;
}

bool IsIcmpError(uint8_t type) { return type != wire::kIcmpEcho && type != wire::kIcmpEchoReply && type < wire::kIcmpTimestamp; }

constexpr size_t kMaxQuote4 = 576 - wire::kIpv4Header - wire::kIcmpHeader;  // RFC 1812 4.3.2.3
constexpr size_t kMaxQuote6 = 1280 - wire::kIpv6Header - wire::kIcmpHeader;

}  // namespace

void Network::SendUnreachable(const Packet& packet, const IpInfo& info, uint8_t code) {
  SendIcmpError(info, packet.linear(), info.source.is_v6() ? uint8_t{wire::kIcmpV6Unreachable} : uint8_t{wire::kIcmpUnreachable},
                code, 0);
}

// `quoted` is what follows the IP header of the packet in error; `rest` the last four bytes of the ICMP header.
void Network::SendIcmpError(const IpInfo& info, Bytes quoted, uint8_t type, uint8_t code, uint32_t rest) {
  const bool v6 = info.source.is_v6();
  // RFC 1122 3.2.2: never about groups, later fragments, ICMP errors, or a source that is nobody.
  if (info.broadcast || info.multicast || info.source.IsAny() || info.source.IsMulticast() || IsBroadcastAddress(info.source, 0))
    return;
  if (!v6 && (LoadBe16(info.header.data() + 6) & wire::kIpv4OffsetMask) != 0) return;
  if (!v6 && info.protocol == kIpProtoIcmp && (quoted.empty() || IsIcmpError(quoted[0]))) return;
  if (v6 && info.protocol == kIpProtoIcmpV6 && (quoted.empty() || quoted[0] < 128)) return;
  const Route route = Lookup(RouteQuery{.destination = info.source, .source = info.destination});
  if (!route.ok()) return;
  if (!route.local && !icmp_limit_.Allow(info.source, context_.now, *context_.sysctls, key_)) {
    return context_.counters.Add(Counter::kIcmpOutRateLimited);
  }
  const size_t room = (v6 ? kMaxQuote6 : kMaxQuote4) - info.header.size();
  const size_t n = std::min(quoted.size(), room);
  const size_t total = wire::kIcmpHeader + info.header.size() + n;
  Packet p = Packet::Allocate(context_.pool, total);
  if (!p) return context_.counters.Add(Counter::kDropNoMemory);
  uint8_t* h = p.Append(total);
  h[0] = type;
  h[1] = code;
  StoreBe16(h + 2, 0);
  StoreBe32(h + 4, rest);
  std::memcpy(h + wire::kIcmpHeader, info.header.data(), info.header.size());
  if (n > 0) std::memcpy(h + wire::kIcmpHeader + info.header.size(), quoted.data(), n);
  const uint8_t protocol = v6 ? kIpProtoIcmpV6 : kIpProtoIcmp;
  const uint16_t pseudo =
      v6 ? wire::PseudoHeaderSum(route.source, info.source, protocol, static_cast<uint32_t>(total)) : uint16_t{0};
  wire::StoreSum(h + 2, static_cast<uint16_t>(~wire::OnesSum(p.linear(), pseudo)));
  context_.counters.Add(Counter::kIcmpOutMsgs);
  IpSend how;
  how.source = route.source;
  how.destination = info.source;
  how.protocol = protocol;
  how.ttl = static_cast<uint8_t>(context_.sysctls->ip_default_ttl);
  how.tos = v6 ? 0 : 0xc0;  // RFC 1812 4.3.2.5: internetwork control
  how.dont_fragment = false;
  (void)Send(std::move(p), route, how);
}

// False, and counted where it is malformed: there is nothing to be told.
bool Network::ReadError(const Packet& packet, const IpInfo& info, IcmpErrorInfo* out) {
  const auto malformed = [this] {
    context_.counters.Add(Counter::kDropIcmpMalformed);
    return false;
  };
  if (info.broadcast || info.multicast) return malformed();
  const auto icmp = wire::IcmpView::Parse(packet.linear());
  const Bytes quoted = packet.linear().subspan(wire::kIcmpHeader);
  const auto ip = wire::Ipv4View::ParseQuoted(quoted);
  // The quoted packet must be one that we can have sent, with the 8 bytes that RFC 792 promises.
  if (!icmp || !ip || ip->fragment_offset() != 0 || quoted.size() < ip->header_length() + 8 || !IsLocalAddress(ip->source())) {
    return malformed();
  }
  IcmpErrorInfo& e = *out;
  e.source = ip->source();
  e.destination = ip->destination();
  e.offender = info.source;
  e.protocol = ip->protocol();
  e.type = icmp->type();
  e.code = icmp->code();
  e.transport = quoted.subspan(ip->header_length());
  switch (icmp->type()) {
    case wire::kIcmpUnreachable: {
      if (icmp->code() >= std::size(kUnreachable)) return malformed();
      e.error = kUnreachable[icmp->code()].error;
      e.hard = kUnreachable[icmp->code()].hard;
      if (icmp->code() == wire::kIcmpFragNeeded) {
        if (context_.sysctls->ip_no_pmtu_disc) return false;
        e.too_big = true;
        e.mtu = icmp->mtu() != 0 ? icmp->mtu() : Plateau(ip->total_length());
        if (e.mtu >= ip->total_length()) return false;  // RFC 5927 7.2: it would have passed
      }
      break;
    }
    case wire::kIcmpTimeExceeded:
      e.error = Errno::kEHOSTUNREACH;
      break;
    default:  // parameter problem
      e.error = Errno::kEPROTO;
      e.hard = true;
  }
  return true;
}

void Network::IcmpErrorInput(Packet& packet, const IpInfo& info) {
  IcmpErrorInfo e;
  if (!ReadError(packet, info, &e)) return;
  TellRaw(e, packet, info);
  if (DispatchError(e)) return;
  const bool echo = e.protocol == kIpProtoIcmp;
  if (!echo && e.protocol != kIpProtoTcp && e.protocol != kIpProtoUdp) return;
  const PortSpace space = echo ? PortSpace::kEcho : e.protocol == kIpProtoTcp ? PortSpace::kTcpAway : PortSpace::kUdp;
  const uint16_t local = LoadBe16(e.transport.data() + (echo ? 4 : 0)), remote = LoadBe16(e.transport.data() + (echo ? 4 : 2));
  (void)PassOn(space, {e.source, e.destination, local, remote}, packet, info);
}

// Only from ourselves by ::1, for as long as IPv6 is not spoken on the wire.
void Network::Icmp6ErrorInput(const Packet& packet, const IpInfo& info) {
  const Bytes quoted = packet.linear().subspan(wire::kIcmpHeader);
  if (quoted.size() < wire::kIpv6Header + 8 || (quoted[0] >> 4) != 6) return context_.counters.Add(Counter::kDropIcmpMalformed);
  const auto icmp = wire::IcmpView::Parse(packet.linear());
  IcmpErrorInfo e;
  e.ipv6 = true;
  e.source = IpAddress::FromBytes(quoted.subspan(8, 16));
  e.destination = IpAddress::FromBytes(quoted.subspan(24, 16));
  e.offender = info.source;
  e.protocol = quoted[6];
  e.type = icmp->type();
  e.code = icmp->code();
  // linux tab_unreach
  constexpr Conversion kCodes[] = {{Errno::kENETUNREACH, false},  {Errno::kEACCES, true},       {Errno::kEHOSTUNREACH, false},
                                   {Errno::kEHOSTUNREACH, false}, {Errno::kECONNREFUSED, true}, {Errno::kEACCES, true},
                                   {Errno::kEACCES, true}};
  const Conversion c = icmp->code() < std::size(kCodes) ? kCodes[icmp->code()] : Conversion{Errno::kEPROTO, false};
  e.error = c.error;
  e.hard = c.hard;
  e.transport = quoted.subspan(wire::kIpv6Header);
  if (raw_ != nullptr) raw_->RawError(e);
  (void)DispatchError(e);
}

bool Network::DispatchError(const IcmpErrorInfo& error) {
  if (error.protocol == (error.ipv6 ? kIpProtoIcmpV6 : kIpProtoIcmp)) return ping_ != nullptr && ping_->PingError(error);
  TransportProtocol* p = protocols_[error.protocol];
  return p != nullptr && p->IcmpError(error);
}

// A packet of ours that no neighbour answered for: its socket hears what Linux would tell it (ipv4_link_failure).
void Network::NeighborUnreachable(Packet packet) {
  const auto ip = wire::Ipv4View::Parse(packet.linear(), packet.size());
  if (!ip || ip->fragment_offset() != 0) return;
  const Bytes transport = packet.linear().subspan(ip->header_length());
  if (transport.size() < 8) return;
  IcmpErrorInfo e;
  e.source = ip->source();
  e.destination = ip->destination();
  e.offender = ip->source();
  e.protocol = ip->protocol();
  e.type = wire::kIcmpUnreachable;
  e.code = wire::kIcmpHostUnreachable;
  e.error = Errno::kEHOSTUNREACH;
  e.transport = transport;
  if (raw_ != nullptr) raw_->RawError(e);
  (void)DispatchError(e);
}

}  // namespace sluice
