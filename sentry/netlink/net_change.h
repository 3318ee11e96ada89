// A change of the namespace that a program inside asked for (by rtnetlink or by an ioctl), in the fixed form in which the sentry
// hands it to the broker. Trivially copyable and bounded: no attribute of the program's passes raw. The broker judges the caller,
// checks every field again (the sentry is not trusted) and builds the kernel's message itself (control/broker/net_change.h).
#pragma once

#include <array>
#include <cstdint>
#include <type_traits>

namespace sluice::netlink {

enum class NetChangeKind : uint8_t {
  kNone,
  kNewAddress,
  kDeleteAddress,
  kNewRoute,
  kDeleteRoute,
  kNewRule,
  kDeleteRule,
  kNewNeighbor,
  kDeleteNeighbor,
  kSetLink,
};

struct NetAddress {
  uint8_t family = 0;  // AF_INET, AF_INET6; 0: absent
  std::array<uint8_t, 16> bytes{};
};

using Flag = uint8_t;  // 0: no. Not bool: the bytes come from a process that is not trusted

using NetName = std::array<char, 16>;  // device name or label, zero-terminated; empty: absent

struct AddressChange {
  int32_t ifindex = 0;
  uint8_t family = 0, prefix_len = 0, scope = 0;
  uint8_t proto = 0;   // IFA_PROTO
  uint32_t flags = 0;  // IFA_F_*
  NetAddress local, address, broadcast;
  NetName label{};
  Flag has_cacheinfo = false;
  uint32_t preferred = 0, valid = 0;  // seconds
  uint32_t route_priority = 0;        // IFA_RT_PRIORITY, 0: none
};

inline constexpr int kMaxChangeNextHops = 16;
inline constexpr int kMaxChangeMetrics = 18;  // RTAX_* numbers below this

struct NextHopChange {
  int32_t ifindex = 0;
  uint8_t hops = 0, flags = 0;  // rtnh_hops, RTNH_F_*
  NetAddress gateway;           // family may differ from the route's (RTA_VIA)
};

struct RouteChange {
  uint8_t family = 0, dst_len = 0, tos = 0, protocol = 0, scope = 0, type = 0;
  uint8_t pref = 0;  // RTA_PREF (IPv6), valid where has_pref
  Flag has_pref = false;
  Flag has_priority = false;
  uint32_t table = 0, flags = 0, priority = 0;
  uint32_t expires = 0;  // RTA_EXPIRES in seconds, 0: none
  int32_t oif = 0;
  NetAddress dst, gateway, prefsrc;
  uint32_t metric_mask = 0;  // bit n: metrics[n] (RTAX_n) is given
  std::array<uint32_t, kMaxChangeMetrics> metrics{};
  uint8_t next_hop_count = 0;  // 0: gateway and oif above
  std::array<NextHopChange, kMaxChangeNextHops> next_hops{};
};

struct RuleChange {
  uint8_t family = 0, src_len = 0, dst_len = 0, tos = 0, action = 0, protocol = 0;
  Flag invert = false, has_priority = false, has_fwmark = false, has_fwmask = false;
  uint32_t table = 0, priority = 0, fwmark = 0, fwmask = 0, goto_target = 0;
  NetAddress src, dst;
  NetName iif{}, oif{};
};

struct NeighborChange {
  int32_t ifindex = 0;
  uint8_t family = 0, flags = 0;
  uint16_t state = 0;  // NUD_*
  Flag has_lladdr = false;
  std::array<uint8_t, 6> lladdr{};
  NetAddress dst;
};

struct LinkChange {
  int32_t ifindex = 0;
  Flag has_up = false, up = false, has_mtu = false, has_txqlen = false, has_address = false;
  uint32_t mtu = 0, txqlen = 0;
  std::array<uint8_t, 6> address{};
};

struct NetChange {
  NetChangeKind kind = NetChangeKind::kNone;
  uint16_t nl_flags = 0;  // NLM_F_CREATE | EXCL | REPLACE | APPEND of the request
  // Only the one that `kind` names is read. Not a union, so that a copy is always fully initialized.
  AddressChange address;
  RouteChange route;
  RuleChange rule;
  NeighborChange neighbor;
  LinkChange link;
};
static_assert(std::is_trivially_copyable_v<NetChange>);
static_assert(sizeof(NetChange) <= 1536, "fits one message between sentry and broker with room to spare");

// The kernel's answer, or the broker's refusal.
struct NetChangeResult {
  uint16_t error = 0;  // errno, 0: done
  // The kernel's extended acknowledgement or the broker's reason; zero-terminated, may be empty.
  std::array<char, 120> message{};
};
static_assert(std::is_trivially_copyable_v<NetChangeResult>);

}  // namespace sluice::netlink
