// Packets between the stacks of one host (shard.h).
#include "netstack/shard.h"

#include <bit>

#include "netstack/ip/network.h"
#include "netstack/wire/headers.h"

namespace sluice {
namespace {

// Back at its IP header, which lies in front of it in the same block.
void PushHeader(Packet& packet, const IpInfo& info) {
  const auto n = static_cast<size_t>(packet.data() - info.header.data());
  packet.Push(n);
  packet.offload.csum_start = static_cast<uint16_t>(packet.offload.csum_start + n);
}

// The `n`th shard of a set that is not empty.
uint32_t Choose(ShardSet set, uint32_t n) {
  for (n %= static_cast<uint32_t>(std::popcount(set)); n > 0; --n) set &= set - 1;
  return static_cast<uint32_t>(std::countr_zero(set));
}

}  // namespace

bool Network::PassOn(PortSpace space, const FlowEnds& flow, Packet& packet, const IpInfo& info) {
  ShardPeers* peers = context_.peers;
  if (peers == nullptr) return false;
  const ShardSet seen = info.seen | ShardSet{1} << peers->self();
  const uint32_t home = peers->Home(flow);
  ShardSet candidates = peers->Holders(space, flow.local_port);
  const bool tcp = space == PortSpace::kTcp || space == PortSpace::kTcpAway;
  if (tcp) candidates |= ShardSet{1} << home;  // the port of an active open is held by nobody
  candidates &= ~seen;
  if (candidates == 0) return false;
  PushHeader(packet, info);
  peers->Forward((candidates >> home & 1) != 0 ? home : Choose(candidates, home), packet, seen);
  context_.counters.Add(Counter::kShardPassedOn);
  return true;
}

bool Network::SendHome(const Packet& packet, const wire::Ipv4View& ip) {
  ShardPeers* peers = context_.peers;
  const size_t header = ip.header_length();
  if (peers == nullptr || (ip.protocol() != kIpProtoTcp && ip.protocol() != kIpProtoUdp)) return false;
  if (packet.linear_size() < header + 4) return false;
  const uint8_t* ports = packet.data() + header;
  const uint32_t home = peers->Home({ip.destination(), ip.source(), LoadBe16(ports + 2), LoadBe16(ports)});
  if (home == peers->self()) return false;
  peers->Forward(home, packet, 0);
  context_.counters.Add(Counter::kShardPassedOn);
  return true;
}

void Network::ForwardToAll(const Packet& packet) {
  for (ShardSet to = context_.peers->others(); to != 0; to &= to - 1)
    context_.peers->Forward(static_cast<uint32_t>(std::countr_zero(to)), packet, context_.peers->all());
}

void Network::InputForwarded(Packet packet, ShardSet seen) {
  if (packet.linear_size() > 0 && packet.data()[0] >> 4 == 6) return Ipv6Loopback(std::move(packet), seen);
  const auto ip = wire::Ipv4View::Parse(packet.linear(), packet.size());
  if (!ip) return context_.counters.Add(Counter::kDropIpHeader);
  const IfIndex ifindex = packet.ifindex;
  Ipv4Deliver(std::move(packet), *ip, ifindex, seen);
}

// ---- Raw sockets, which see the packets of all stacks

ShardSet Network::RawElsewhere(uint8_t protocol) const {
  const ShardPeers* peers = context_.peers;
  return peers == nullptr ? 0 : peers->Holders(PortSpace::kRaw, protocol) & peers->others();
}

// The first stack that delivers a packet shows it to all; a group's packet comes to each by itself.
bool Network::DeliverRaw(const Packet& packet, const IpInfo& info) {
  const bool group = info.multicast || info.broadcast;
  if (info.seen != 0 && !group) return false;
  const bool taken = raw_ != nullptr && raw_->RawInput(packet, info);
  if (group) return taken;
  const ShardSet others = RawElsewhere(info.protocol);
  for (ShardSet to = others; to != 0; to &= to - 1)
    context_.peers->ForwardRaw(static_cast<uint32_t>(std::countr_zero(to)), packet, false);
  return taken || others != 0;
}

// `packet` is at the ICMP header.
void Network::TellRaw(const IcmpErrorInfo& error, Packet& packet, const IpInfo& info) {
  if (info.seen != 0) return;
  if (raw_ != nullptr) raw_->RawError(error);
  ShardSet to = RawElsewhere(error.protocol);
  if (to == 0) return;
  const auto header = static_cast<size_t>(packet.data() - info.header.data());
  PushHeader(packet, info);
  for (; to != 0; to &= to - 1) context_.peers->ForwardRaw(static_cast<uint32_t>(std::countr_zero(to)), packet, true);
  packet.Pull(header);
  packet.offload.csum_start = static_cast<uint16_t>(packet.offload.csum_start - header);
}

void Network::InputRaw(Packet& packet, bool error) {
  if (raw_ == nullptr || packet.linear_size() == 0) return;
  if (packet.data()[0] >> 4 == 6) {
    const auto ip = wire::Ipv6View::Parse(packet.linear(), packet.size());
    if (ip && !error) (void)raw_->RawInput(packet, InfoOf(*ip, packet, 0));
    return;
  }
  const auto ip = wire::Ipv4View::Parse(packet.linear(), packet.size());
  if (!ip) return;
  const IpInfo info = InfoOf(*ip, packet, packet.ifindex, 0);
  if (!error) return (void)raw_->RawInput(packet, info);
  packet.Pull(info.header.size());
  IcmpErrorInfo e;
  if (ReadError(packet, info, &e)) raw_->RawError(e);
}

}  // namespace sluice
