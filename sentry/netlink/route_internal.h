// Internal: what the three files about routes share.
#pragma once

#include <span>

#include "sentry/netlink/server_impl.h"

namespace sluice::netlink {

// rtm_table: tables above 255 are told by RTA_TABLE only.
uint8_t CompatTable(uint32_t table);
// How RTA_* attributes look in requests of a family.
std::span<const AttributeRule> RouteRules(int af);

// Which route of the tables a destination matches (rules in order, longest prefix, tos, metric), for what a Route does not tell:
// table, protocol, metric. nullptr where none matches or a rule forbids it.
struct FibQuery {
  IpAddress destination;
  IpAddress source;  // may be none
  IfIndex oif = 0;
  uint8_t tos = 0;
  uint32_t mark = 0;
};
const RouteConfig* MatchRoute(const NetConfig& config, const FibQuery& query);

}  // namespace sluice::netlink
