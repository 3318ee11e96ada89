#include "sentry/netlink/if_route.h"

#include <linux/if.h>
#include <linux/route.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <netinet/in.h>

#include <algorithm>

#include "sentry/netlink/server_impl.h"

namespace sluice::netlink {
namespace {

IpAddress AddressOf(const sockaddr& address) {
  return IpAddress::FromBytes(AsBytes(LoadPrefix<sockaddr_in>(AsBytes(address)).sin_addr));
}

NetAddress ToNet(const IpAddress& address) {
  NetAddress out{.family = AF_INET};
  std::copy_n(address.bytes().begin(), 4, out.bytes.begin());
  return out;
}

// The prefix length of a network mask, -1 where it has holes.
int PrefixOfMask(uint32_t mask) {
  const uint32_t host = ~mask;
  return (host & (host + 1)) == 0 ? __builtin_popcount(mask) : -1;
}

Errno ReadDestination(const rtentry& entry, RouteChange* c) {
  if (entry.rt_dst.sa_family != AF_INET) return Errno::kEAFNOSUPPORT;
  const IpAddress dst = AddressOf(entry.rt_dst);
  int prefix = 32;
  if ((entry.rt_flags & RTF_HOST) == 0) {
    const uint32_t mask = AddressOf(entry.rt_genmask).v4();
    if (entry.rt_genmask.sa_family != AF_INET && (mask != 0 || entry.rt_genmask.sa_family != 0)) return Errno::kEAFNOSUPPORT;
    prefix = PrefixOfMask(mask);
    if (prefix < 0 || (dst.v4() & ~mask) != 0) return Errno::kEINVAL;
  }
  c->dst_len = static_cast<uint8_t>(prefix);
  c->dst = ToNet(dst);
  return Errno::kOk;
}

Errno ReadDevice(const NetConfig& config, std::string_view name, RouteChange* c) {
  const LinkConfig* link = FindLink(config, name.substr(0, name.find(':')));
  if (link == nullptr) return Errno::kENODEV;
  c->oif = link->index;
  if (name.find(':') == std::string_view::npos) return Errno::kOk;
  // By the name of an alias: from its address.
  const auto it = std::find_if(config.addresses.begin(), config.addresses.end(), [&](const AddressConfig& a) {
    return a.ifindex == link->index && a.local.is_v4() && a.label == name;
  });
  if (it == config.addresses.end()) return Errno::kENODEV;
  c->prefsrc = ToNet(it->local);
  return Errno::kOk;
}

void ReadMetrics(const rtentry& entry, RouteChange* c) {
  if ((entry.rt_flags & RTF_MTU) == 0 || entry.rt_mtu <= 40) return;
  c->metric_mask |= 1u << RTAX_ADVMSS;
  c->metrics[RTAX_ADVMSS] = static_cast<uint32_t>(entry.rt_mtu - 40);
}

}  // namespace

IoctlResult RouteIoctl(const NetConfig& config, uint32_t request, Bytes argument, Bytes device, const Caller& caller) {
  if (!caller.net_admin) return {.error = Errno::kEPERM};
  const auto entry = LoadPrefix<rtentry>(argument);
  const bool add = request == SIOCADDRT;
  RouteChange c{.family = AF_INET, .protocol = RTPROT_BOOT, .type = RTN_UNICAST, .table = RT_TABLE_MAIN};
  if (const Errno e = ReadDestination(entry, &c); e != Errno::kOk) return {.error = e};
  if ((entry.rt_flags & (RTF_WINDOW | RTF_IRTT)) != 0) return {.error = Errno::kEOPNOTSUPP};
  if (entry.rt_metric > 0) c.has_priority = true, c.priority = static_cast<uint32_t>(entry.rt_metric - 1);
  if (!add) c.protocol = RTPROT_UNSPEC, c.scope = RT_SCOPE_NOWHERE, c.type = RTN_UNSPEC;
  const std::string_view name = Attribute{.present = true, .value = device}.text();
  if ((entry.rt_flags & RTF_REJECT) != 0) {
    c.type = RTN_UNREACHABLE;
    if (add) c.scope = RT_SCOPE_HOST;
  } else {
    if (!name.empty()) {
      if (const Errno e = ReadDevice(config, name, &c); e != Errno::kOk) return {.error = e};
    }
    if (add) c.scope = RT_SCOPE_LINK;
    const IpAddress gateway = AddressOf(entry.rt_gateway);
    if (entry.rt_gateway.sa_family == AF_INET && !gateway.IsAny()) {
      c.gateway = ToNet(gateway);
      if (add && (entry.rt_flags & RTF_GATEWAY) != 0) c.scope = RT_SCOPE_UNIVERSE;
    }
    if (add && (entry.rt_flags & RTF_GATEWAY) != 0 && c.gateway.family == 0) return {.error = Errno::kEINVAL};
    ReadMetrics(entry, &c);
  }
  IoctlResult result;
  result.changes.push_back({.kind = add ? NetChangeKind::kNewRoute : NetChangeKind::kDeleteRoute,
                            .nl_flags = static_cast<uint16_t>(add ? NLM_F_CREATE : 0),
                            .route = c});
  return result;
}

}  // namespace sluice::netlink
