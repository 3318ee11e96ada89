#include "control/mirror/tables.h"

#include <linux/fib_rules.h>
#include <linux/if.h>
#include <linux/if_addr.h>
#include <linux/if_arp.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "control/rtnl.h"

namespace sluice {
namespace {

std::vector<uint8_t> Raw(const nlmsghdr* message) {
  const auto* p = reinterpret_cast<const uint8_t*>(message);
  std::vector<uint8_t> out(p, p + message->nlmsg_len);
  nlmsghdr header = *message;
  header.nlmsg_flags &= static_cast<uint16_t>(~(NLM_F_MULTI | NLM_F_DUMP_INTR | NLM_F_DUMP_FILTERED));
  header.nlmsg_seq = 0;
  header.nlmsg_pid = 0;
  std::memcpy(out.data(), &header, sizeof header);
  return out;
}

Family FamilyOf(uint8_t af) { return af == AF_INET ? Family::kIpv4 : af == AF_INET6 ? Family::kIpv6 : Family::kNone; }

MacAddress Mac(Bytes bytes) {
  MacAddress mac;
  if (bytes.size() == mac.bytes.size()) std::memcpy(mac.bytes.data(), bytes.data(), bytes.size());
  return mac;
}

// The address of an attribute where it is of the family; none otherwise.
IpAddress AddressOf(Bytes bytes, Family family) {
  const IpAddress address = IpAddress::FromBytes(bytes);
  return address.family() == family ? address : IpAddress();
}

// RTA_VIA: a gateway of another family than the route's.
IpAddress Via(Bytes bytes) {
  uint16_t family = 0;
  if (bytes.size() < sizeof family) return {};
  std::memcpy(&family, bytes.data(), sizeof family);
  return AddressOf(bytes.subspan(sizeof family), FamilyOf(static_cast<uint8_t>(family)));
}

IpAddress Gateway(const Attributes& attributes, Family family) {
  if (attributes.has(RTA_VIA)) return Via(attributes.get(RTA_VIA));
  return AddressOf(attributes.get(RTA_GATEWAY), family);
}

void ParseNextHops(Bytes bytes, Family family, std::vector<NextHop>* out) {
  while (bytes.size() >= sizeof(rtnexthop)) {
    rtnexthop hop;
    std::memcpy(&hop, bytes.data(), sizeof hop);
    if (hop.rtnh_len < sizeof hop || hop.rtnh_len > bytes.size()) return;
    const Attributes attributes(bytes.subspan(sizeof hop, hop.rtnh_len - sizeof hop));
    out->push_back({Gateway(attributes, family), hop.rtnh_ifindex, uint32_t{hop.rtnh_hops} + 1, hop.rtnh_flags});
    bytes = bytes.subspan(std::min<size_t>(RTNH_ALIGN(hop.rtnh_len), bytes.size()));
  }
}

}  // namespace

bool ParseLink(const nlmsghdr* message, LinkConfig* out) {
  ifinfomsg header;
  Attributes a;
  if (message->nlmsg_type != RTM_NEWLINK || !ParseMessage(message, &header, &a)) return false;
  if (header.ifi_family != AF_UNSPEC || header.ifi_index <= 0) return false;
  out->index = header.ifi_index;
  out->name = a.str(IFLA_IFNAME);
  out->mac = Mac(a.get(IFLA_ADDRESS));
  out->broadcast = Mac(a.get(IFLA_BROADCAST));
  out->mtu = a.u32(IFLA_MTU, 1500);
  out->flags = header.ifi_flags;
  out->type = header.ifi_type;
  out->tx_queue_len = a.u32(IFLA_TXQLEN, 1000);
  out->operstate = a.u8(IFLA_OPERSTATE);
  out->carrier = a.u8(IFLA_CARRIER, 1) != 0;
  out->netlink = Raw(message);
  return true;
}

bool ParseAddress(const nlmsghdr* message, AddressConfig* out) {
  ifaddrmsg header;
  Attributes a;
  if (message->nlmsg_type != RTM_NEWADDR || !ParseMessage(message, &header, &a)) return false;
  const Family family = FamilyOf(header.ifa_family);
  if (family == Family::kNone) return false;
  out->ifindex = static_cast<IfIndex>(header.ifa_index);
  out->peer = AddressOf(a.get(IFA_ADDRESS), family);
  out->local = a.has(IFA_LOCAL) ? AddressOf(a.get(IFA_LOCAL), family) : out->peer;
  if (!out->local) return false;
  if (!out->peer) out->peer = out->local;
  out->broadcast = AddressOf(a.get(IFA_BROADCAST), family);
  out->prefix_len = header.ifa_prefixlen;
  out->scope = header.ifa_scope;
  out->flags = a.u32(IFA_FLAGS, header.ifa_flags);
  out->label = a.str(IFA_LABEL);
  out->netlink = Raw(message);
  return true;
}

bool ParseRoute(const nlmsghdr* message, RouteConfig* out) {
  rtmsg header;
  Attributes a;
  if (message->nlmsg_type != RTM_NEWROUTE || !ParseMessage(message, &header, &a)) return false;
  const Family family = FamilyOf(header.rtm_family);
  if (family == Family::kNone || (header.rtm_flags & RTM_F_CLONED) != 0) return false;
  out->dst = a.has(RTA_DST) ? AddressOf(a.get(RTA_DST), family) : IpAddress::Any(family);
  if (!out->dst) return false;
  out->prefix_len = header.rtm_dst_len;
  out->table = a.u32(RTA_TABLE, header.rtm_table);
  out->type = header.rtm_type;
  out->scope = header.rtm_scope;
  out->protocol = header.rtm_protocol;
  out->tos = header.rtm_tos;
  out->priority = a.u32(RTA_PRIORITY);
  out->prefsrc = AddressOf(a.get(RTA_PREFSRC), family);
  const Attributes metrics(a.get(RTA_METRICS));
  out->mtu = metrics.u32(RTAX_MTU);
  out->advmss = metrics.u32(RTAX_ADVMSS);
  out->initcwnd = metrics.u32(RTAX_INITCWND);
  out->initrwnd = metrics.u32(RTAX_INITRWND);
  out->hoplimit = metrics.u32(RTAX_HOPLIMIT);
  if (a.has(RTA_MULTIPATH)) {
    ParseNextHops(a.get(RTA_MULTIPATH), family, &out->next_hops);
  } else if (a.has(RTA_OIF)) {
    out->next_hops.push_back({Gateway(a, family), static_cast<IfIndex>(a.u32(RTA_OIF)), 1, header.rtm_flags});
  }
  out->netlink = Raw(message);
  return true;
}

bool ParseRule(const nlmsghdr* message, RuleConfig* out) {
  fib_rule_hdr header;
  Attributes a;
  if (message->nlmsg_type != RTM_NEWRULE || !ParseMessage(message, &header, &a)) return false;
  out->family = FamilyOf(header.family);
  if (out->family == Family::kNone) return false;
  out->priority = a.u32(FRA_PRIORITY);
  out->src = AddressOf(a.get(FRA_SRC), out->family);
  out->dst = AddressOf(a.get(FRA_DST), out->family);
  out->src_len = header.src_len;
  out->dst_len = header.dst_len;
  out->tos = header.tos;
  out->fwmark = a.u32(FRA_FWMARK);
  out->fwmask = a.u32(FRA_FWMASK);
  out->iif = a.str(FRA_IIFNAME);
  out->oif = a.str(FRA_OIFNAME);
  out->action = header.action;
  out->table = a.u32(FRA_TABLE, header.table);
  out->goto_target = a.u32(FRA_GOTO);
  out->invert = (header.flags & FIB_RULE_INVERT) != 0;
  out->netlink = Raw(message);
  return true;
}

bool ParseNeighbor(const nlmsghdr* message, NeighborConfig* out) {
  ndmsg header;
  Attributes a;
  if (message->nlmsg_type != RTM_NEWNEIGH || !ParseMessage(message, &header, &a)) return false;
  const Family family = FamilyOf(header.ndm_family);
  // What the kernel learns it learns of its own traffic, which there is none of; multicast entries it makes up itself.
  if (family == Family::kNone || (header.ndm_state & NUD_PERMANENT) == 0) return false;
  out->ifindex = header.ndm_ifindex;
  out->address = AddressOf(a.get(NDA_DST), family);
  if (!out->address || a.get(NDA_LLADDR).size() != 6) return false;
  out->mac = Mac(a.get(NDA_LLADDR));
  out->state = header.ndm_state;
  out->flags = header.ndm_flags;
  return true;
}

namespace {

bool SameAddress(const AddressConfig& a, const AddressConfig& b) {
  return a.ifindex == b.ifindex && a.local == b.local && a.prefix_len == b.prefix_len;
}

bool SameRoute(const RouteConfig& a, const RouteConfig& b) {
  return a.dst == b.dst && a.prefix_len == b.prefix_len && a.table == b.table && a.type == b.type && a.priority == b.priority;
}

template <typename T, typename Same>
void AddMissing(std::vector<T>& to, std::vector<T> ours, Same same) {
  for (T& one : ours) {
    if (std::none_of(to.begin(), to.end(), [&](const T& t) { return same(t, one); })) to.push_back(std::move(one));
  }
}

}  // namespace

NetConfig MakeConfig(const KernelTables& tables, const std::function<bool(const LinkConfig&)>& usable,
                     const std::set<IfIndex>& attached) {
  NetConfig config;
  std::set<IfIndex> present{kLoopbackIfIndex};
  const LinkConfig* loopback = nullptr;
  for (const LinkConfig& link : tables.links) {
    if (link.index == kLoopbackIfIndex) loopback = &link;
  }
  config.links.push_back(LoopbackLink(loopback));
  for (const LinkConfig& link : tables.links) {
    if (link.index == kLoopbackIfIndex || !usable(link)) continue;
    present.insert(link.index);
    config.links.push_back(link);
    config.links.back().attached = attached.count(link.index) != 0;
  }
  for (const AddressConfig& address : tables.addresses) {
    if (present.count(address.ifindex) != 0) config.addresses.push_back(address);
  }
  AddMissing(config.addresses, LoopbackAddresses(), SameAddress);
  for (const RouteConfig& route : tables.routes) {
    RouteConfig copy = route;
    std::erase_if(copy.next_hops, [&](const NextHop& hop) { return present.count(hop.ifindex) == 0; });
    if (copy.next_hops.empty() && !route.next_hops.empty()) continue;
    config.routes.push_back(std::move(copy));
  }
  AddMissing(config.routes, LoopbackRoutes(), SameRoute);
  config.rules = tables.rules;
  for (const NeighborConfig& neighbor : tables.neighbors) {
    if (present.count(neighbor.ifindex) != 0 && neighbor.ifindex != kLoopbackIfIndex) config.neighbors.push_back(neighbor);
  }
  return config;
}

}  // namespace sluice
