#include <linux/rtnetlink.h>

#include <algorithm>
#include <string_view>

#include "sentry/netlink/server_impl.h"

namespace sluice::netlink {
namespace {

constexpr uint32_t kDefaultPriority6 = 1024;

bool Shows(const NetConfig& config, const AddressChange& c, bool present) {
  const IpAddress local = ToIpAddress(c.local.family != 0 ? c.local : c.address);
  const bool found = std::any_of(config.addresses.begin(), config.addresses.end(), [&](const AddressConfig& a) {
    return (c.ifindex == 0 || a.ifindex == c.ifindex) && a.local == local && a.prefix_len == c.prefix_len;
  });
  return found == present;
}

// The next hops that a change names are those of the route. A deletion without any means every one.
bool SameNextHops(const RouteConfig& route, const RouteChange& c) {
  if (c.next_hop_count != 0) {
    return route.next_hops.size() == c.next_hop_count &&
           std::equal(route.next_hops.begin(), route.next_hops.end(), c.next_hops.begin(),
                      [](const NextHop& have, const NextHopChange& want) {
                        return have.gateway == ToIpAddress(want.gateway) && (want.ifindex == 0 || have.ifindex == want.ifindex);
                      });
  }
  const IpAddress gateway = ToIpAddress(c.gateway);
  if (!gateway && c.oif == 0) return true;
  return route.next_hops.size() == 1 && (!gateway || route.next_hops[0].gateway == gateway) &&
         (c.oif == 0 || route.next_hops[0].ifindex == c.oif);
}

bool Shows(const NetConfig& config, const RouteChange& c, bool present) {
  const uint32_t table = c.table != 0 ? c.table : uint32_t{RT_TABLE_MAIN};
  const Family family = ToFamily(c.family);
  const IpAddress dst = c.dst.family != 0 ? ToIpAddress(c.dst) : IpAddress::Any(family);
  const uint32_t priority = c.priority != 0 || family == Family::kIpv4 ? c.priority : kDefaultPriority6;
  const bool found = std::any_of(config.routes.begin(), config.routes.end(), [&](const RouteConfig& r) {
    if (r.dst != dst || r.prefix_len != c.dst_len || r.table != table || r.tos != c.tos) return false;
    if (c.type != 0 && r.type != c.type) return false;
    if ((present || c.has_priority) && r.priority != priority) return false;
    if (present && (c.metric_mask & (1u << RTAX_MTU)) != 0 && r.mtu != c.metrics[RTAX_MTU]) return false;
    return SameNextHops(r, c);
  });
  return found == present;
}

bool Shows(const NetConfig& config, const RuleChange& c, bool present) {
  const bool found = std::any_of(config.rules.begin(), config.rules.end(), [&](const RuleConfig& r) {
    return ToAf(r.family) == c.family && (!c.has_priority || r.priority == c.priority) && (c.table == 0 || r.table == c.table) &&
           r.src_len == c.src_len && r.dst_len == c.dst_len && (c.src_len == 0 || r.src == ToIpAddress(c.src)) &&
           (c.dst_len == 0 || r.dst == ToIpAddress(c.dst)) && (!c.has_fwmark || r.fwmark == c.fwmark) &&
           r.iif == std::string_view(c.iif.data()) && r.oif == std::string_view(c.oif.data());
  });
  return found == present;
}

bool Shows(const NetConfig& config, const NeighborChange& c, bool present) {
  const bool found = std::any_of(config.neighbors.begin(), config.neighbors.end(), [&](const NeighborConfig& n) {
    return n.ifindex == c.ifindex && n.address == ToIpAddress(c.dst) && (!present || !c.has_lladdr || n.mac.bytes == c.lladdr);
  });
  return found == present;
}

bool Shows(const NetConfig& config, const LinkChange& c) {
  const LinkConfig* link = FindLink(config, c.ifindex);
  return link != nullptr && (!c.has_up || link->up() == c.up) && (!c.has_mtu || link->mtu == c.mtu) &&
         (!c.has_txqlen || link->tx_queue_len == c.txqlen) && (!c.has_address || link->mac.bytes == c.address);
}

}  // namespace

bool ConfigShows(const NetConfig& config, const NetChange& change) {
  switch (change.kind) {
    case NetChangeKind::kNone:
      return true;
    case NetChangeKind::kNewAddress:
    case NetChangeKind::kDeleteAddress:
      return Shows(config, change.address, change.kind == NetChangeKind::kNewAddress);
    case NetChangeKind::kNewRoute:
    case NetChangeKind::kDeleteRoute:
      return Shows(config, change.route, change.kind == NetChangeKind::kNewRoute);
    case NetChangeKind::kNewRule:
    case NetChangeKind::kDeleteRule:
      return Shows(config, change.rule, change.kind == NetChangeKind::kNewRule);
    case NetChangeKind::kNewNeighbor:
    case NetChangeKind::kDeleteNeighbor:
      return Shows(config, change.neighbor, change.kind == NetChangeKind::kNewNeighbor);
    case NetChangeKind::kSetLink:
      return Shows(config, change.link);
  }
  return true;
}

}  // namespace sluice::netlink
