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

}  // namespace sluice
