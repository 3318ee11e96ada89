// The namespace's configuration as the stack uses it: an immutable snapshot made by the control thread from the kernel's tables
// (rtnetlink, /proc/sys/net) and handed to every stack shard whole. Numbers are those of linux/rtnetlink.h and linux/if.h.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "netstack/ip/address.h"

namespace sluice {

struct LinkConfig {
  IfIndex index = 0;
  std::string name;
  MacAddress mac;
  MacAddress broadcast;
  uint32_t mtu = 1500;
  uint32_t flags = 0;  // IFF_*
  uint16_t type = 1;   // ARPHRD_*
  uint32_t tx_queue_len = 1000;
  uint8_t operstate = 0;  // IF_OPER_*
  bool carrier = true;
  bool attached = false;         // frames flow: a port exists for it
  std::vector<uint8_t> netlink;  // the kernel's own RTM_NEWLINK message, for dumps inside

  bool up() const { return (flags & 0x1) != 0; }        // IFF_UP
  bool loopback() const { return (flags & 0x8) != 0; }  // IFF_LOOPBACK
  bool noarp() const { return (flags & 0x80) != 0; }    // IFF_NOARP
};

struct AddressConfig {
  IfIndex ifindex = 0;
  IpAddress local;      // IFA_LOCAL
  IpAddress peer;       // IFA_ADDRESS: equals local, but on point-to-point devices
  IpAddress broadcast;  // IFA_BROADCAST or none
  uint8_t prefix_len = 0;
  uint8_t scope = 0;   // RT_SCOPE_*
  uint32_t flags = 0;  // IFA_F_*
  std::string label;
  std::vector<uint8_t> netlink;  // RTM_NEWADDR
};

struct NextHop {
  IpAddress gateway;  // none: on-link
  IfIndex ifindex = 0;
  uint32_t weight = 1;  // rtnh_hops + 1
  uint32_t flags = 0;   // RTNH_F_ONLINK, RTNH_F_DEAD, RTNH_F_LINKDOWN
};

struct RouteConfig {
  IpAddress dst;  // with prefix_len; Any(family) and 0 for a default route
  uint8_t prefix_len = 0;
  uint32_t table = 254;
  uint8_t type = 1;      // RTN_UNICAST, LOCAL, BROADCAST, ANYCAST, MULTICAST, BLACKHOLE, UNREACHABLE, PROHIBIT, THROW
  uint8_t scope = 0;     // RT_SCOPE_*
  uint8_t protocol = 0;  // RTPROT_*
  uint8_t tos = 0;
  uint32_t priority = 0;  // metric; lower wins
  IpAddress prefsrc;
  uint32_t mtu = 0;     // RTAX_MTU or 0
  uint32_t advmss = 0;  // RTAX_ADVMSS or 0
  uint32_t initcwnd = 0;
  uint32_t initrwnd = 0;
  uint32_t hoplimit = 0;
  std::vector<NextHop> next_hops;  // one, or several for multipath; empty for types without a device
  std::vector<uint8_t> netlink;    // RTM_NEWROUTE
};

struct RuleConfig {
  Family family = Family::kIpv4;
  uint32_t priority = 0;
  IpAddress src, dst;  // none: any
  uint8_t src_len = 0, dst_len = 0;
  uint8_t tos = 0;
  uint32_t fwmark = 0, fwmask = 0;
  std::string iif, oif;
  uint8_t action = 1;  // FR_ACT_TO_TBL, GOTO, NOP, BLACKHOLE, UNREACHABLE, PROHIBIT
  uint32_t table = 254;
  uint32_t goto_target = 0;
  bool invert = false;
  std::vector<uint8_t> netlink;  // RTM_NEWRULE
};

struct NeighborConfig {
  IfIndex ifindex = 0;
  IpAddress address;
  MacAddress mac;
  uint16_t state = 0x80;  // NUD_PERMANENT or NUD_NOARP: the only ones mirrored
  uint8_t flags = 0;      // NTF_*
};

// `net.*` keys by name as below /proc/sys ("net.ipv4.tcp_rmem"), value as the file has it without the newline.
// Keys that a namespace lacks come from flags. A key that is absent has the default that is written where it is used.
using SysctlMap = std::map<std::string, std::string, std::less<>>;

struct NetConfig {
  std::vector<LinkConfig> links;         // the loopback (index 1, always up) first
  std::vector<AddressConfig> addresses;  // 127.0.0.1/8 and ::1/128 of the loopback included
  std::vector<RouteConfig> routes;       // all tables; local and broadcast routes of the loopback included
  std::vector<RuleConfig> rules;
  std::vector<NeighborConfig> neighbors;
  SysctlMap sysctls;
  uint64_t generation = 0;
};

// The configuration of a sandbox without devices: our loopback, its addresses and routes, the three default rules.
NetConfig LoopbackOnlyConfig();

}  // namespace sluice
