// The kernel's tables as they were last read, and what the stack gets of them. Pure: netlink messages in, NetConfig out.
#pragma once

#include <linux/netlink.h>

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "netstack/config.h"

namespace sluice {

// Parses one message of a dump; false where it is none of that kind or nothing for the stack (other families, cached routes).
bool ParseLink(const nlmsghdr* message, LinkConfig* out);
bool ParseAddress(const nlmsghdr* message, AddressConfig* out);
bool ParseRoute(const nlmsghdr* message, RouteConfig* out);
bool ParseRule(const nlmsghdr* message, RuleConfig* out);
bool ParseNeighbor(const nlmsghdr* message, NeighborConfig* out);

struct KernelTables {
  std::vector<LinkConfig> links;
  std::vector<AddressConfig> addresses;
  std::vector<RouteConfig> routes;
  std::vector<RuleConfig> rules;
  std::vector<NeighborConfig> neighbors;
};

// The configuration inside: devices for which `usable` says true (the others, with their addresses and routes, are not there at
// all), and our loopback: index 1, always up, with its addresses and routes whatever state the kernel's is in.
// LinkConfig::attached is taken from `attached`.
NetConfig MakeConfig(const KernelTables& tables, const std::function<bool(const LinkConfig&)>& usable,
                     const std::set<IfIndex>& attached);

// What the kernel would say of a loopback that is up; used where its own is down or without the address.
LinkConfig LoopbackLink(const LinkConfig* kernel);
std::vector<AddressConfig> LoopbackAddresses();
std::vector<RouteConfig> LoopbackRoutes();

}  // namespace sluice
