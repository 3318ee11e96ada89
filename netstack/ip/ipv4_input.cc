// IP input: RFC 791, 1122 3.2.1 (what a host must discard), 1812 5.3 (addresses that cannot be).
#include "netstack/ip/network.h"
#include "netstack/wire/headers.h"

namespace sluice {
namespace {

constexpr uint8_t kIcmp6ParameterProblem = 4;
constexpr uint8_t kFragmentTimeExceeded = 1;

}  // namespace

// Martians: linux fib_validate_source and ip_route_input_slow.
bool Network::SourceAcceptable(const IpAddress& source, const IpAddress& destination) const {
  if (source.IsMulticast() || source.IsLimitedBroadcast() || source.IsLoopback()) return false;
  if (destination.IsLoopback()) return false;
  if ((source.v4() >> 24) == 0) return source.IsAny() && destination.IsLimitedBroadcast();  // a DHCP client
  if ((source.v4() >> 28) == 15) return false;                                              // 240/4
  // Our own address from outside: a land attack, or a conflict.
  return !IsLocalAddress(source) && !IsBroadcastAddress(source, 0);
}

void Network::Ipv4Input(Packet packet, Device& device) {
  context_.counters.Add(Counter::kIpInReceives);
  auto drop = [&](Counter why) {
    context_.counters.Add(why);
    device.CountReceiveDrop();
  };
  const auto ip = wire::Ipv4View::Parse(packet.linear(), packet.size());
  if (!ip) return drop(Counter::kDropIpHeader);
  if (!ip->ChecksumOk()) return drop(Counter::kDropIpChecksum);
  packet.Truncate(ip->total_length());  // what is behind is padding of the link
  const IpAddress destination = ip->destination();
  if (!SourceAcceptable(ip->source(), destination)) return drop(Counter::kDropIpAddress);
  const bool group =
      destination.IsMulticast() ? IsMember(device.ifindex(), destination) : IsBroadcastAddress(destination, device.ifindex());
  if (!group && (destination.IsMulticast() || !IsLocalAddress(destination))) return drop(Counter::kDropIpAddress);
  if ((ip->tos() & kEcnMask) == kEcnCe) context_.counters.Add(Counter::kIpInCEPkts);
  if (!ip->options().empty()) {
    const auto options = wire::Ipv4Options::Parse(ip->options());
    if (!options) {
      IpInfo info{.source = ip->source(),
                  .destination = destination,
                  .protocol = ip->protocol(),
                  .ifindex = device.ifindex(),
                  .broadcast = group || packet.link_type != 0,
                  .header = ip->header()};
      SendIcmpError(info, packet.linear().subspan(ip->header_length()), wire::kIcmpParameterProblem, 0,
                    uint32_t{wire::kIpv4Header} << 24);
      return drop(Counter::kDropIpHeader);
    }
    if (options->source_route) return drop(Counter::kDropIpHeader);
  }
  if (ip->is_fragment()) {
    Packet whole = reassembler_.Add(std::move(packet));
    if (!whole) return;
    const auto view = wire::Ipv4View::Parse(whole.linear(), whole.size());
    SLUICE_DCHECK(view.has_value());
    if (SendHome(whole, *view)) return;  // fragments are steered without the ports
    return Ipv4Deliver(std::move(whole), *view, device.ifindex());
  }
  Ipv4Deliver(std::move(packet), *ip, device.ifindex());
}

IpInfo Network::InfoOf(const wire::Ipv4View& ip, const Packet& packet, IfIndex ifindex, ShardSet seen) const {
  IpInfo info;
  info.source = ip.source();
  info.destination = ip.destination();
  info.protocol = ip.protocol();
  info.ttl = ip.ttl();
  info.tos = ip.tos();
  info.ifindex = ifindex;
  info.multicast = info.destination.IsMulticast();
  info.broadcast = !info.multicast && (packet.link_type == 1 || IsBroadcastAddress(info.destination, ifindex));
  info.header = ip.header();
  info.seen = seen;
  return info;
}

void Network::Ipv4Deliver(Packet packet, const wire::Ipv4View& ip, IfIndex ifindex, ShardSet seen) {
  IpInfo info = InfoOf(ip, packet, ifindex, seen);
  Deliver(std::move(packet), info);
}

void Network::Deliver(Packet packet, IpInfo& info) {
  // Sockets first: they want the IP header, which stays in the block behind the packet's start.
  const bool raw = DeliverRaw(packet, info);
  packet.offload.csum_start = static_cast<uint16_t>(packet.offload.csum_start - info.header.size());
  packet.Pull(info.header.size());
  const bool v6 = info.source.is_v6();
  if (info.protocol == (v6 ? kIpProtoIcmpV6 : kIpProtoIcmp)) {
    context_.counters.Add(Counter::kIpInDelivers);
    return IcmpInput(std::move(packet), info);
  }
  if (info.protocol == kIpProtoIgmp && !v6) {
    context_.counters.Add(Counter::kIpInDelivers);
    return IgmpInput(packet, info);
  }
  if (TransportProtocol* p = protocols_[info.protocol]; p != nullptr) {
    context_.counters.Add(Counter::kIpInDelivers);
    return p->Input(std::move(packet), info);
  }
  if (raw) {
    context_.counters.Add(Counter::kIpInDelivers);
    return;
  }
  context_.counters.Add(Counter::kDropIpUnknownProtocol);
  if (v6) {
    SendIcmpError(info, packet.linear(), kIcmp6ParameterProblem, 1, 6);  // RFC 4443 3.4: at the next header field
  } else {
    SendIcmpError(info, packet.linear(), wire::kIcmpUnreachable, wire::kIcmpProtocolUnreachable, 0);
  }
}

IpInfo Network::InfoOf(const wire::Ipv6View& ip, const Packet& packet, ShardSet seen) {
  IpInfo info;
  info.source = ip.source();
  info.destination = ip.destination();
  info.protocol = ip.next_header();
  info.ttl = ip.hop_limit();
  info.tos = ip.traffic_class();
  info.ifindex = packet.ifindex;
  info.header = ip.header();
  info.seen = seen;
  return info;
}

void Network::Ipv6Loopback(Packet packet, ShardSet seen) {
  const auto ip = wire::Ipv6View::Parse(packet.linear(), packet.size());
  if (!ip) return context_.counters.Add(Counter::kDropIpHeader);
  IpInfo info = InfoOf(*ip, packet, seen);
  Deliver(std::move(packet), info);
}

void Network::DeliverLooped() {
  // What the deliveries loop back goes to looped_ and waits for the next call.
  delivering_.swap(looped_);
  for (Packet& p : delivering_) {
    context_.counters.Add(Counter::kIpInReceives);
    const uint8_t version = p.linear_size() > 0 ? p.data()[0] >> 4 : 0;
    if (version == 6) {
      Ipv6Loopback(std::move(p));
      continue;
    }
    const auto ip = wire::Ipv4View::Parse(p.linear(), p.size());
    if (!ip || (!ip->options().empty() && !wire::Ipv4Options::Parse(ip->options()))) {
      context_.counters.Add(Counter::kDropIpHeader);  // made by a program with IP_HDRINCL
      continue;
    }
    const IfIndex ifindex = p.ifindex;
    if (ip->is_fragment()) {
      Packet whole = reassembler_.Add(std::move(p));
      const auto view = whole ? wire::Ipv4View::Parse(whole.linear(), whole.size()) : std::nullopt;
      if (view) {
        whole.offload.checksum = ChecksumState::kVerified;
        Ipv4Deliver(std::move(whole), *view, ifindex);
      }
      continue;
    }
    Ipv4Deliver(std::move(p), *ip, ifindex);
  }
  delivering_.clear();
}

void Network::ReassemblyTimedOut(Packet first) {
  const auto ip = wire::Ipv4View::Parse(first.linear(), first.size());
  if (!ip) return;
  IpInfo info{.source = ip->source(),
              .destination = ip->destination(),
              .protocol = ip->protocol(),
              .ifindex = first.ifindex,
              .broadcast = first.link_type != 0,
              .header = ip->header()};
  SendIcmpError(info, first.linear().subspan(ip->header_length()), wire::kIcmpTimeExceeded, kFragmentTimeExceeded, 0);
}

}  // namespace sluice
