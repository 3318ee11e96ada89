// Group membership (RFC 1112 level 2): counted per device and group; reports by IGMPv3 (RFC 3376) when a group is joined or left
// and when a router asks.
#include <algorithm>

#include "netstack/ip/network.h"
#include "netstack/wire/checksum.h"
#include "netstack/wire/headers.h"

namespace sluice {
namespace {

constexpr uint8_t kQuery = 0x11, kV3Report = 0x22;
constexpr uint8_t kToInclude = 3, kToExclude = 4;  // record types, RFC 3376 4.2.12
// In PortSpace::kGroup. Two groups with one value are seldom joined on one host, and then one is heard that no socket joined.
uint16_t GroupNumber(IfIndex ifindex, const IpAddress& group) {
  return static_cast<uint16_t>((group.v4() + static_cast<uint32_t>(ifindex) * 0x85ebca6bu) * 0x9e3779b1u >> 16);
}

const IpAddress kAllHosts = IpAddress::V4(224, 0, 0, 1), kAllV3Routers = IpAddress::V4(224, 0, 0, 22);

}  // namespace

bool Network::IsMember(IfIndex ifindex, const IpAddress& group) const {
  if (group == kAllHosts) return true;
  if (std::any_of(memberships_.begin(), memberships_.end(),
                  [&](const Membership& m) { return m.ifindex == ifindex && m.group == group; }))
    return true;
  const ShardPeers* peers = context_.peers;
  return peers != nullptr && group.is_v4() && peers->Holders(PortSpace::kGroup, GroupNumber(ifindex, group)) != 0;
}

// Sockets of the other stacks hear what comes to a group that one here has joined (IP_MULTICAST_ALL).
void Network::TellMembership(IfIndex ifindex, const IpAddress& group) {
  ShardPeers* peers = context_.peers;
  if (peers == nullptr || !group.is_v4()) return;
  const uint16_t number = GroupNumber(ifindex, group);
  const bool held = std::any_of(memberships_.begin(), memberships_.end(),
                                [&](const Membership& m) { return GroupNumber(m.ifindex, m.group) == number; });
  held ? peers->Hold(PortSpace::kGroup, number) : peers->Release(PortSpace::kGroup, number);
}

void Network::JoinGroup(IfIndex ifindex, const IpAddress& group) {
  for (Membership& m : memberships_) {
    if (m.ifindex == ifindex && m.group == group) {
      ++m.users;
      return;
    }
  }
  if (memberships_.size() >= kMaxMemberships) return;
  memberships_.push_back(Membership{ifindex, group, 1});
  TellMembership(ifindex, group);
  SendIgmpReport(ifindex, group, true);
}

void Network::LeaveGroup(IfIndex ifindex, const IpAddress& group) {
  for (auto m = memberships_.begin(); m != memberships_.end(); ++m) {
    if (m->ifindex != ifindex || m->group != group) continue;
    if (--m->users > 0) return;
    memberships_.erase(m);
    TellMembership(ifindex, group);
    return SendIgmpReport(ifindex, group, false);
  }
}

void Network::SendIgmpReport(IfIndex ifindex, const IpAddress& group, bool join) {
  const Device* device = FindDevice(ifindex);
  if (device == nullptr || device->config().loopback() || group == kAllHosts || !group.is_v4()) return;
  constexpr size_t kReport = 16;
  Packet p = Packet::Allocate(context_.pool, kReport);
  if (!p) return context_.counters.Add(Counter::kDropNoMemory);
  uint8_t* h = p.Append(kReport);
  std::memset(h, 0, kReport);
  h[0] = kV3Report;
  StoreBe16(h + 6, 1);  // one record without sources
  h[8] = join ? kToExclude : kToInclude;
  std::memcpy(h + 12, group.bytes().data(), 4);
  wire::StoreSum(h + 2, static_cast<uint16_t>(~wire::OnesSum({h, kReport})));
  const Route route = Lookup(RouteQuery{.destination = kAllV3Routers, .ifindex = ifindex});
  if (!route.ok()) return;
  static constexpr uint8_t kRouterAlert[] = {0x94, 4, 0, 0};  // RFC 3376 4
  IpSend how;
  how.source = route.source;
  how.destination = kAllV3Routers;
  how.protocol = kIpProtoIgmp;
  how.ttl = 1;
  how.tos = 0xc0;
  how.options = kRouterAlert;
  (void)Send(std::move(p), route, how);
}

// A general query asks for all groups of the device, a specific one for its own.
void Network::IgmpInput(const Packet& packet, const IpInfo& info) {
  const Bytes m = packet.linear();
  if (m.size() < 8 || wire::OnesSum(packet, 0) != 0xffff) return context_.counters.Add(Counter::kDropIpHeader);
  if (m[0] != kQuery || info.ttl != 1) return;
  const IpAddress asked = IpAddress::FromBytes(m.subspan(4, 4));
  const std::vector<Membership> members = memberships_;
  for (const Membership& member : members) {
    if (member.ifindex == info.ifindex && (asked.IsAny() || asked == member.group))
      SendIgmpReport(info.ifindex, member.group, true);
  }
}

}  // namespace sluice
