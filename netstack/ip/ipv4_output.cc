// IP output: RFC 791, 1122 3.3, 6864 (identification), 1191 (do not fragment).
#include <algorithm>

#include "netstack/ip/network.h"
#include "netstack/wire/checksum.h"
#include "netstack/wire/headers.h"

namespace sluice {
namespace {

constexpr size_t kMaxIpPacket = 65535;

bool IsGso(const Packet& p) { return p.offload.gso != GsoType::kNone; }

void ShiftOffload(Packet& p, size_t pushed) {
  p.offload.csum_start = static_cast<uint16_t>(p.offload.csum_start + pushed);
  if (IsGso(p)) p.offload.hdr_len = static_cast<uint16_t>(p.offload.hdr_len + pushed);
}

bool CompleteNow(Packet& p) { return wire::CompleteChecksum(p, p.offload.csum_offset == wire::kUdpChecksumOffset); }

// RFC 791 3.1: an option without the copied flag stays in the first fragment only; its bytes become NOPs in the others.
void KeepCopiedOptions(MutableBytes options) {
  for (size_t i = 0; i < options.size();) {
    if (options[i] <= 1) {
      if (options[i] == 0) return;
      ++i;
      continue;
    }
    if (i + 1 >= options.size()) return;
    const size_t n = std::clamp<size_t>(options[i + 1], 2, options.size() - i);
    if ((options[i] & 0x80) == 0) std::fill_n(options.begin() + static_cast<ptrdiff_t>(i), n, uint8_t{1});
    i += n;
  }
}

}  // namespace

// Ids only matter for what may be fragmented, but GSO cuts count on, so that every packet takes as many as it may become.
uint16_t Network::NextId(const IpAddress& source, const IpAddress& destination, uint32_t count) {
  uint64_t h = (uint64_t{source.v4()} << 32 | destination.v4()) ^ key_.k0;
  h = (h ^ (h >> 32)) * 0xd6e8feb86659fd93;
  h = (h ^ (h >> 32)) * (key_.k1 | 1);
  uint16_t& id = ids_[(h >> 40) % ids_.size()];
  const uint16_t first = id;
  id = static_cast<uint16_t>(id + count);
  // The stacks of one host take different ones.
  const ShardPeers* peers = context_.peers;
  return peers == nullptr ? first : static_cast<uint16_t>(first * peers->count() + peers->self());
}

Errno Network::Send(Packet packet, const Route& route, const IpSend& how) {
  context_.counters.Add(Counter::kIpOutRequests);
  Route fresh;
  const Route* r = &route;
  if (route.generation != generation_) {  // the cached pointers must not be used
    fresh = Lookup(RouteQuery{.destination = how.destination,
                              .source = how.source,
                              .ifindex = route.local ? 0 : route.ifindex,
                              .tos = how.tos,
                              .any_source = true});
    r = &fresh;
  }
  if (!r->ok()) {
    context_.counters.Add(Counter::kDropIpNoRoute);
    return r->error;
  }
  return how.destination.is_v6() ? SendV6(std::move(packet), *r, how) : SendV4(std::move(packet), *r, how);
}

Errno Network::SendV4(Packet packet, const Route& route, const IpSend& how) {
  wire::Ipv4Fields f;
  f.source = how.source;
  f.destination = how.destination;
  f.options = how.options;
  const size_t header = f.header_length();
  const size_t total = header + packet.size();
  if (total > kMaxIpPacket) {
    context_.counters.Add(Counter::kDropIpTooBig);
    return Errno::kEMSGSIZE;
  }
  uint32_t segments = 1;
  if (IsGso(packet)) {
    const size_t payload = packet.size() - packet.offload.hdr_len;
    segments = static_cast<uint32_t>((payload + packet.offload.gso_size - 1) / packet.offload.gso_size);
    if (header + packet.offload.hdr_len + packet.offload.gso_size > route.mtu) {
      context_.counters.Add(Counter::kDropIpTooBig);
      return Errno::kEMSGSIZE;
    }
  } else if (total > route.mtu) {
    if (how.dont_fragment && !how.ignore_df) {
      context_.counters.Add(Counter::kDropIpTooBig);
      return Errno::kEMSGSIZE;
    }
    return Fragment(std::move(packet), route, how, route.mtu);
  }
  f.total_length = static_cast<uint16_t>(total);
  f.id = NextId(how.source, how.destination, segments);
  f.fragment = how.dont_fragment ? wire::kIpv4DontFragment : 0;
  f.tos = how.tos;
  f.ttl = how.ttl;
  f.protocol = how.protocol;
  f.Write(packet.Push(header));
  ShiftOffload(packet, header);
  Emit(std::move(packet), route, how.destination, how.multicast_loop);
  return Errno::kOk;
}

Errno Network::SendV6(Packet packet, const Route& route, const IpSend& how) {
  if (!route.local) {
    context_.counters.Add(Counter::kDropIpNoRoute);
    return Errno::kENETUNREACH;
  }
  if (packet.size() > kMaxIpPacket) {
    context_.counters.Add(Counter::kDropIpTooBig);
    return Errno::kEMSGSIZE;
  }
  wire::Ipv6Fields f;
  f.source = how.source;
  f.destination = how.destination;
  f.payload_length = static_cast<uint16_t>(packet.size());
  f.flow_label = how.flow_label;
  f.traffic_class = how.tos;
  f.hop_limit = how.ttl;
  f.next_header = how.protocol;
  f.Write(packet.Push(wire::kIpv6Header));
  ShiftOffload(packet, wire::kIpv6Header);
  LoopBack(std::move(packet));
  return Errno::kOk;
}

Errno Network::SendWithHeader(Packet packet, const Route& route) {
  context_.counters.Add(Counter::kIpOutRequests);
  if (!route.ok()) {
    context_.counters.Add(Counter::kDropIpNoRoute);
    return route.error;
  }
  uint8_t* h = packet.data();
  const size_t header = size_t{4} * (h[0] & 15);
  if ((h[0] >> 4) != 4 || header < wire::kIpv4Header || header > packet.linear_size()) return Errno::kEINVAL;
  if (packet.size() > route.mtu) {
    context_.counters.Add(Counter::kDropIpTooBig);
    return Errno::kEMSGSIZE;
  }
  const IpAddress destination = IpAddress::FromBytes({h + 16, 4});
  if (LoadBe32(h + 12) == 0) std::memcpy(h + 12, route.source.bytes().data(), 4);
  StoreBe16(h + 2, static_cast<uint16_t>(packet.size()));
  if (LoadBe16(h + 4) == 0) StoreBe16(h + 4, NextId(IpAddress::FromBytes({h + 12, 4}), destination, 1));
  StoreBe16(h + 10, 0);
  wire::StoreSum(h + 10, static_cast<uint16_t>(~wire::OnesSumScalar({h, header})));
  Emit(std::move(packet), route, destination, true);
  return Errno::kOk;
}

Errno Network::Fragment(Packet packet, const Route& route, const IpSend& how, uint32_t mtu) {
  if (packet.offload.checksum == ChecksumState::kPartial && !CompleteNow(packet)) return Errno::kEINVAL;
  wire::Ipv4Fields f;
  f.source = how.source;
  f.destination = how.destination;
  f.id = NextId(how.source, how.destination, 1);
  f.tos = how.tos;
  f.ttl = how.ttl;
  f.protocol = how.protocol;
  uint8_t options[wire::kIpv4MaxHeader - wire::kIpv4Header];
  const size_t options_size = std::min(how.options.size(), sizeof options);
  if (options_size > 0) std::memcpy(options, how.options.data(), options_size);
  f.options = {options, options_size};
  const size_t header = f.header_length();
  if (mtu < header + 8) return Errno::kEMSGSIZE;
  const size_t step = (mtu - header) & ~size_t{7};
  // All or none: the pieces are made before the first one leaves.
  std::vector<Packet> pieces;
  for (size_t at = 0; at < packet.size(); at += step) {
    const size_t n = std::min(step, packet.size() - at);
    Packet piece = Packet::Allocate(context_.pool, n);
    if (!piece) {
      context_.counters.Add(Counter::kDropNoMemory);
      return Errno::kENOBUFS;
    }
    packet.CopyOut(at, {piece.Append(n), n});
    f.total_length = static_cast<uint16_t>(header + n);
    f.fragment = static_cast<uint16_t>((at / 8) | (at + n < packet.size() ? wire::kIpv4MoreFragments : 0));
    f.Write(piece.Push(header));
    if (at == 0) KeepCopiedOptions({options, options_size});
    pieces.push_back(std::move(piece));
  }
  context_.counters.Add(Counter::kIpFragOKs);
  context_.counters.Add(Counter::kIpFragCreates, pieces.size());
  for (Packet& piece : pieces) Emit(std::move(piece), route, how.destination, how.multicast_loop);
  return Errno::kOk;
}

// `packet` is at its IP header. From here on there is no error for the sender any more, only counted drops.
void Network::Emit(Packet packet, const Route& route, const IpAddress& destination, bool multicast_loop) {
  if (route.local) return LoopBack(std::move(packet));
  if (route.neighbor == nullptr) return EmitGroup(std::move(packet), route, destination, multicast_loop);
  if (packet.offload.checksum == ChecksumState::kPartial) {
    if (!route.neighbor->device().features().tx_checksum && !IsGso(packet) && !CompleteNow(packet)) {
      context_.counters.Add(Counter::kDropIpHeader);
      return;
    }
    ShiftOffload(packet, wire::kEthernetHeader);
  }
  neighbors_.Output(*route.neighbor, std::move(packet));
}

void Network::EmitGroup(Packet packet, const Route& route, const IpAddress& destination, bool multicast_loop) {
  Device* device = FindDevice(route.ifindex);
  if (device == nullptr) {
    context_.counters.Add(Counter::kDropLinkDown);
    return;
  }
  if (packet.offload.checksum == ChecksumState::kPartial && !CompleteNow(packet)) {
    context_.counters.Add(Counter::kDropIpHeader);
    return;
  }
  // Our own sockets hear it too.
  const bool multicast = destination.IsMulticast();
  const bool looped = !multicast || multicast_loop || device->config().loopback();
  const bool here = looped && (!multicast || IsMember(route.ifindex, destination));
  if (here) {
    Packet copy = packet.Clone(context_.pool);
    if (copy) MarkLooped(copy, route.ifindex, multicast ? 2 : 1);
    if (copy && context_.peers != nullptr) ForwardToAll(copy);
    if (copy) LoopBack(std::move(copy), route.ifindex, multicast ? 2 : 1);
  }
  if (device->config().loopback()) return;
  if (multicast && packet.data()[8] == 0) return;  // TTL 0: this host only (RFC 1112 6.1)
  MacAddress to = device->config().broadcast;
  if (multicast) {  // RFC 1112 6.4
    const uint32_t group = destination.v4();
    to = {{0x01, 0x00, 0x5e, static_cast<uint8_t>((group >> 16) & 0x7f), static_cast<uint8_t>(group >> 8),
           static_cast<uint8_t>(group)}};
  } else if (to == MacAddress{}) {
    to = {{255, 255, 255, 255, 255, 255}};
  }
  wire::WriteEthernet(packet.Push(wire::kEthernetHeader), to, device->config().mac, wire::kEtherIpv4);
  device->Enqueue(std::move(packet));
}

void Network::MarkLooped(Packet& packet, IfIndex ifindex, uint8_t link_type) const {
  packet.offload.checksum = ChecksumState::kVerified;  // nothing can have damaged it on the way
  packet.received = context_.now;
  packet.ifindex = ifindex;
  packet.link_type = link_type;
}

void Network::LoopBack(Packet packet, IfIndex ifindex, uint8_t link_type) {
  if (looped_.size() >= kMaxLooped) {
    context_.counters.Add(Counter::kDropLinkTxQueueFull);
    return;
  }
  MarkLooped(packet, ifindex, link_type);
  // A copy of what goes to a group leaves by its device as well, where it is seen.
  if (ifindex == kLoopbackIfIndex) context_.Tap(ifindex, FrameTap::Direction::kIn, packet);
  looped_.push_back(std::move(packet));
}

}  // namespace sluice
