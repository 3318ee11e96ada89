// ICMP input and echo (RFC 792, 1122 3.2.2; for ::1 RFC 4443).
#include "netstack/ip/network.h"
#include "netstack/sysctls.h"
#include "netstack/wire/checksum.h"
#include "netstack/wire/headers.h"

namespace sluice {
namespace {

bool ChecksumOk(const Packet& packet, const IpInfo& info) {
  if (packet.offload.checksum == ChecksumState::kVerified) return true;
  const uint16_t pseudo = info.source.is_v6() ? wire::PseudoHeaderSum(info.source, info.destination, kIpProtoIcmpV6,
                                                                      static_cast<uint32_t>(packet.size()))
                                              : 0;
  return wire::OnesSum(packet, 0, pseudo) == 0xffff;
}

}  // namespace

void Network::IcmpInput(Packet packet, const IpInfo& info) {
  context_.counters.Add(Counter::kIcmpInMsgs);
  const auto icmp = wire::IcmpView::Parse(packet.linear());
  if (!icmp || !ChecksumOk(packet, info)) return context_.counters.Add(Counter::kDropIcmpMalformed);
  if (info.source.is_v6()) {
    switch (icmp->type()) {
      case wire::kIcmpV6Echo:
        return IcmpEcho(std::move(packet), info);
      case wire::kIcmpV6EchoReply:
        if (ping_ != nullptr) ping_->EchoReply(std::move(packet), info);
        return;
      case wire::kIcmpV6Unreachable:
        return Icmp6ErrorInput(packet, info);
      default:
        return;
    }
  }
  switch (icmp->type()) {
    case wire::kIcmpEcho:
      return IcmpEcho(std::move(packet), info);
    case wire::kIcmpEchoReply:
      if (ping_ != nullptr) ping_->EchoReply(std::move(packet), info);
      return;
    case wire::kIcmpUnreachable:
    case wire::kIcmpTimeExceeded:
    case wire::kIcmpParameterProblem:
      return IcmpErrorInput(packet, info);
    default:  // redirects and source quench are ignored on purpose (RFC 6633; the routes are the namespace's), the rest is
              // obsolete
      return;
  }
}

void Network::IcmpEcho(Packet packet, const IpInfo& info) {
  context_.counters.Add(Counter::kIcmpInEchos);
  const Sysctls& s = *context_.sysctls;
  const bool group = info.broadcast || info.multicast;
  if (packet.answered || s.icmp_echo_ignore_all || (group && s.icmp_echo_ignore_broadcasts)) return;
  const Route route =
      Lookup(RouteQuery{.destination = info.source, .source = group ? IpAddress() : info.destination, .tos = info.tos});
  if (!route.ok()) return context_.counters.Add(Counter::kDropIpNoRoute);
  // The request becomes the reply. Its memory may be shared (a looped-back slice, a raw socket's copy), so it is copied then.
  if (packet.head_block()->refs > 1 || packet.headroom() < Packet::kHeadroom / 2) {
    Packet copy = Packet::Allocate(context_.pool, packet.size());
    if (!copy) return context_.counters.Add(Counter::kDropNoMemory);
    const size_t n = packet.size();
    packet.CopyOut(0, {copy.Append(n), n});
    packet = std::move(copy);
  }
  uint8_t* h = packet.data();
  const bool v6 = info.source.is_v6();
  packet.offload = Offload{};
  const uint16_t before = wire::LoadSum(h);
  h[0] = v6 ? uint8_t{wire::kIcmpV6EchoReply} : uint8_t{wire::kIcmpEchoReply};
  if (info.ifindex == kLoopbackIfIndex && v6) {
    wire::StoreSum(h + 2, 0);
    const uint16_t pseudo =
        wire::PseudoHeaderSum(info.destination, info.source, kIpProtoIcmpV6, static_cast<uint32_t>(packet.size()));
    wire::StoreSum(h + 2, static_cast<uint16_t>(~wire::OnesSum(packet, 0, pseudo)));
  } else {
    wire::StoreSum(h + 2, wire::UpdateChecksum(wire::LoadSum(h + 2), before, wire::LoadSum(h)));
  }
  context_.counters.Add(Counter::kIcmpOutMsgs);
  context_.counters.Add(Counter::kIcmpOutEchoReps);
  IpSend how;
  how.source = route.source;
  how.destination = info.source;
  how.protocol = info.protocol;
  how.ttl = static_cast<uint8_t>(s.ip_default_ttl);
  how.tos = info.tos;
  how.dont_fragment = false;
  (void)Send(std::move(packet), route, how);  // what cannot be sent was counted
}

}  // namespace sluice
