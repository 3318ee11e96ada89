#include "netstack/config.h"

namespace sluice {
namespace {

RouteConfig LoopbackRoute(IpAddress dst, uint8_t prefix_len, uint32_t table, uint8_t type, uint8_t scope, IpAddress source) {
  RouteConfig r;
  r.dst = dst;
  r.prefix_len = prefix_len;
  r.table = table;
  r.type = type;
  r.scope = scope;
  r.protocol = 2;  // RTPROT_KERNEL
  r.prefsrc = source;
  r.next_hops.push_back(NextHop{.ifindex = kLoopbackIfIndex});
  return r;
}

RuleConfig Rule(Family family, uint32_t priority, uint32_t table) {
  RuleConfig r;
  r.family = family;
  r.priority = priority;
  r.table = table;
  return r;
}

}  // namespace

NetConfig LoopbackOnlyConfig() {
  constexpr uint8_t kLocal = 2, kBroadcast = 3;
  constexpr uint8_t kScopeHost = 254, kScopeLink = 253;
  constexpr uint32_t kTableLocal = 255, kTableMain = 254, kTableDefault = 253;
  NetConfig c;
  LinkConfig lo;
  lo.index = kLoopbackIfIndex;
  lo.name = "lo";
  lo.mtu = 65536;
  lo.flags = 0x1 | 0x8 | 0x40 | 0x10000;  // UP, LOOPBACK, RUNNING, LOWER_UP
  lo.type = 772;                          // ARPHRD_LOOPBACK
  lo.attached = true;
  c.links.push_back(lo);

  AddressConfig a4;
  a4.ifindex = kLoopbackIfIndex;
  a4.local = a4.peer = IpAddress::Loopback(Family::kIpv4);
  a4.prefix_len = 8;
  a4.scope = kScopeHost;
  a4.flags = 0x80;  // IFA_F_PERMANENT
  a4.label = "lo";
  c.addresses.push_back(a4);
  AddressConfig a6 = a4;
  a6.local = a6.peer = IpAddress::Loopback(Family::kIpv6);
  a6.prefix_len = 128;
  a6.label.clear();
  c.addresses.push_back(a6);

  const IpAddress v4 = a4.local, v6 = a6.local;
  c.routes.push_back(LoopbackRoute(IpAddress::V4(127, 0, 0, 0), 8, kTableLocal, kLocal, kScopeHost, v4));
  c.routes.push_back(LoopbackRoute(v4, 32, kTableLocal, kLocal, kScopeHost, v4));
  c.routes.push_back(LoopbackRoute(IpAddress::V4(127, 255, 255, 255), 32, kTableLocal, kBroadcast, kScopeLink, v4));
  c.routes.push_back(LoopbackRoute(v6, 128, kTableLocal, kLocal, 0, IpAddress()));

  c.rules.push_back(Rule(Family::kIpv4, 0, kTableLocal));
  c.rules.push_back(Rule(Family::kIpv4, 32766, kTableMain));
  c.rules.push_back(Rule(Family::kIpv4, 32767, kTableDefault));
  c.rules.push_back(Rule(Family::kIpv6, 0, kTableLocal));
  c.rules.push_back(Rule(Family::kIpv6, 32766, kTableMain));
  return c;
}

}  // namespace sluice
