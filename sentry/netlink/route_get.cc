// RTM_GETROUTE for one destination: what `ip route get` prints. The decision is the stack's own; table, protocol and metric,
// which the stack's answer does not hold, come from matching the same tables.
#include <linux/fib_rules.h>
#include <linux/in_route.h>
#include <linux/rtnetlink.h>

#include <algorithm>

#include "sentry/netlink/route_internal.h"

namespace sluice::netlink {
namespace {

bool InPrefix(const IpAddress& address, const IpAddress& prefix, int length) {
  return length == 0 || (address.family() == prefix.family() && address.InPrefix(prefix, length));
}

bool RuleMatches(const RuleConfig& rule, const FibQuery& query, const NetConfig& config) {
  if (rule.family != query.destination.family()) return false;
  const LinkConfig* out = query.oif != 0 ? FindLink(config, query.oif) : nullptr;
  const bool source_ok = rule.src_len == 0 || (query.source && InPrefix(query.source, rule.src, rule.src_len));
  const bool match = InPrefix(query.destination, rule.dst, rule.dst_len) && source_ok &&
                     (rule.tos == 0 || rule.tos == query.tos) && ((rule.fwmark ^ query.mark) & rule.fwmask) == 0 &&
                     (rule.iif.empty() || rule.iif == "lo") && (rule.oif.empty() || (out != nullptr && out->name == rule.oif));
  return match != rule.invert;
}

bool UsesDevice(const RouteConfig& route, IfIndex oif) {
  if (oif == 0 || route.next_hops.empty()) return true;
  return std::any_of(route.next_hops.begin(), route.next_hops.end(), [oif](const NextHop& h) { return h.ifindex == oif; });
}

bool Alive(const RouteConfig& route) {
  if (route.next_hops.empty()) return true;
  return std::any_of(route.next_hops.begin(), route.next_hops.end(),
                     [](const NextHop& h) { return (h.flags & RTNH_F_DEAD) == 0; });
}

// True where `a` is to be preferred to `b`: both match.
bool Better(const RouteConfig& a, const RouteConfig& b) {
  if (a.prefix_len != b.prefix_len) return a.prefix_len > b.prefix_len;
  if (a.tos != b.tos) return a.tos > b.tos;
  return a.priority < b.priority;
}

const RouteConfig* MatchTable(const NetConfig& config, uint32_t table, const FibQuery& query) {
  const RouteConfig* best = nullptr;
  for (const RouteConfig& route : config.routes) {
    if (route.table != table || route.dst.family() != query.destination.family()) continue;
    if (!InPrefix(query.destination, route.dst, route.prefix_len)) continue;
    if ((route.tos != 0 && route.tos != query.tos) || !UsesDevice(route, query.oif) || !Alive(route)) continue;
    if (best == nullptr || Better(route, *best)) best = &route;
  }
  return best;
}

// The bits of rtm_flags that tell what kind of destination it is.
uint32_t TypeFlags(uint8_t type) {
  switch (type) {
    case RTN_LOCAL:
      return RTCF_LOCAL;
    case RTN_BROADCAST:
      return RTCF_BROADCAST | RTCF_LOCAL;
    case RTN_MULTICAST:
      return RTCF_MULTICAST;
    default:
      return 0;
  }
}

struct GetRequest {
  rtmsg header{};
  FibQuery fib;
  IfIndex iif = 0;
  uint32_t uid = 0;
  bool has_mark = false;
};

Errno CheckStrict(Request& r, const AttributeTable& table) {
  const auto header = r.Fixed<rtmsg>();
  if (header.rtm_table != 0 || header.rtm_protocol != 0 || header.rtm_scope != 0 || header.rtm_type != 0) {
    return r.Refuse(Errno::kEINVAL, "a route request takes only prefixes, tos and flags in its header");
  }
  const auto bits = static_cast<uint8_t>(AddressSize(header.rtm_family) * 8);
  if ((header.rtm_dst_len != 0 && header.rtm_dst_len != bits) || (header.rtm_src_len != 0 && header.rtm_src_len != bits)) {
    return r.Refuse(Errno::kEINVAL, "a route request is for whole addresses");
  }
  const uint32_t flags = header.rtm_family == AF_INET ? RTM_F_NOTIFY | RTM_F_LOOKUP_TABLE | RTM_F_FIB_MATCH : RTM_F_FIB_MATCH;
  if ((header.rtm_flags & ~flags) != 0) {
    return r.Refuse(Errno::kEINVAL, "a route request takes no such flag");
  }
  for (int type = 1; type <= table.max(); ++type) {
    if (!table[type]) continue;
    switch (type) {
      case RTA_IIF:
      case RTA_OIF:
      case RTA_SRC:
      case RTA_DST:
      case RTA_IP_PROTO:
      case RTA_SPORT:
      case RTA_DPORT:
      case RTA_MARK:
      case RTA_UID:
        break;
      default:
        return r.Refuse(Errno::kEINVAL, "a route request cannot have this attribute", table[type]);
    }
  }
  if ((table[RTA_DST] && header.rtm_dst_len == 0) || (table[RTA_SRC] && header.rtm_src_len == 0)) {
    return r.Refuse(Errno::kEINVAL, "an address without its prefix length");
  }
  return Errno::kOk;
}

Errno ReadGetRequest(Request& r, GetRequest* get) {
  const int af = r.Fixed<rtgenmsg>().rtgen_family;
  if (af != AF_INET && af != AF_INET6) return Errno::kEOPNOTSUPP;
  if (r.payload().size() < sizeof(rtmsg)) return r.Refuse(Errno::kEINVAL, "the header of a route request is too short");
  get->header = r.Fixed<rtmsg>();
  AttributeTable table;
  if (const Errno e = r.Parse<rtmsg>(&table, RTA_MAX, RouteRules(af), r.strict); e != Errno::kOk) return e;
  if (r.strict) {
    if (const Errno e = CheckStrict(r, table); e != Errno::kOk) return e;
  }
  get->fib.destination = IpAddress::Any(ToFamily(af));
  NetAddress address;
  if (table[RTA_DST]) {
    if (!ReadAddress(table[RTA_DST], af, &address))
      return r.Refuse(Errno::kEINVAL, "the address has a wrong length", table[RTA_DST]);
    get->fib.destination = ToIpAddress(address);
  }
  if (table[RTA_SRC]) {
    if (!ReadAddress(table[RTA_SRC], af, &address))
      return r.Refuse(Errno::kEINVAL, "the address has a wrong length", table[RTA_SRC]);
    get->fib.source = ToIpAddress(address);
    if (get->fib.source.IsAny()) get->fib.source = IpAddress();
  }
  get->fib.tos = get->header.rtm_tos;
  get->fib.oif = table[RTA_OIF] ? static_cast<IfIndex>(table[RTA_OIF].u32()) : 0;
  get->iif = table[RTA_IIF] ? static_cast<IfIndex>(table[RTA_IIF].u32()) : 0;
  get->has_mark = static_cast<bool>(table[RTA_MARK]);
  get->fib.mark = table[RTA_MARK] ? table[RTA_MARK].u32() : 0;
  get->uid = table[RTA_UID] ? table[RTA_UID].u32() : r.caller.uid;
  return Errno::kOk;
}

// The route's own metrics; a path MTU that was learnt takes the place of the route's.
void AppendMetrics(MessageWriter& w, const Route& route, const RouteConfig* match, const LinkConfig* link) {
  Buffer of_route;
  if (match != nullptr) AppendRoute(*match, &of_route);
  const Bytes metrics = FindAttribute(of_route, sizeof(rtmsg), RTA_METRICS);
  // The loopback device's 65536 is one more than an IPv4 packet can be: that is no path that was learnt.
  const bool learnt = route.mtu != 0 && link != nullptr && route.mtu < std::min(link->mtu, uint32_t{65535});
  if (metrics.empty() && !learnt) return;
  const size_t nest = w.BeginNest(RTA_METRICS);
  bool has_mtu = false;
  ForEachAttribute(metrics, [&](uint16_t type, Bytes value) {
    has_mtu |= type == RTAX_MTU;
    if (type == RTAX_MTU && learnt) {
      w.U32(type, route.mtu);
    } else {
      w.Attr(type, value);
    }
  });
  if (learnt && !has_mtu) w.U32(RTAX_MTU, route.mtu);
  w.EndNest(nest);
}

void AppendResult4(const GetRequest& get, const Route& route, const RouteConfig* match, const LinkConfig* link, Buffer* out) {
  const bool lookup_table = (get.header.rtm_flags & RTM_F_LOOKUP_TABLE) != 0 && match != nullptr;
  const uint32_t table = lookup_table ? match->table : uint32_t{RT_TABLE_MAIN};
  const bool via = route.next_hop && route.next_hop != get.fib.destination && !route.local;
  MessageWriter w(out, RTM_NEWROUTE);
  w.Header(rtmsg{.rtm_family = AF_INET,
                 .rtm_dst_len = 32,
                 .rtm_src_len = static_cast<uint8_t>(get.fib.source ? 32 : 0),
                 .rtm_tos = get.fib.tos,
                 .rtm_table = CompatTable(table),
                 .rtm_protocol = RTPROT_UNSPEC,
                 .rtm_scope = RT_SCOPE_UNIVERSE,
                 .rtm_type = route.type,
                 .rtm_flags = TypeFlags(route.type) | RTM_F_CLONED});
  w.U32(RTA_TABLE, table);
  w.Address(RTA_DST, get.fib.destination);
  if (get.fib.source) w.Address(RTA_SRC, get.fib.source);
  w.U32(RTA_OIF, static_cast<uint32_t>(route.local ? kLoopbackIfIndex : route.ifindex));
  if (get.iif == 0 && route.source && route.source != get.fib.source) w.Address(RTA_PREFSRC, route.source);
  if (via) w.Address(RTA_GATEWAY, route.next_hop);
  AppendMetrics(w, route, match, link);
  if (get.has_mark && get.fib.mark != 0) w.U32(RTA_MARK, get.fib.mark);
  w.U32(RTA_UID, get.uid);
  if (get.iif != 0) w.U32(RTA_IIF, static_cast<uint32_t>(get.iif));
  w.Struct(RTA_CACHEINFO, rta_cacheinfo{});
}

void AppendResult6(const GetRequest& get, const Route& route, const RouteConfig* match, const LinkConfig* link, Buffer* out) {
  const uint32_t table = match != nullptr ? match->table : uint32_t{RT_TABLE_MAIN};
  const bool via = route.next_hop && route.next_hop != get.fib.destination && !route.local;
  MessageWriter w(out, RTM_NEWROUTE);
  w.Header(rtmsg{.rtm_family = AF_INET6,
                 .rtm_dst_len = 128,
                 .rtm_src_len = 128,
                 .rtm_tos = 0,
                 .rtm_table = CompatTable(table),
                 .rtm_protocol = match != nullptr ? match->protocol : uint8_t{RTPROT_UNSPEC},
                 .rtm_scope = RT_SCOPE_UNIVERSE,
                 .rtm_type = route.type});
  w.U32(RTA_TABLE, table);
  w.Address(RTA_DST, get.fib.destination);
  w.Address(RTA_SRC, get.fib.source ? get.fib.source : IpAddress::Any(Family::kIpv6));
  if (get.iif != 0) {
    w.U32(RTA_IIF, static_cast<uint32_t>(get.iif));
  } else if (route.source) {
    w.Address(RTA_PREFSRC, route.source);
  }
  AppendMetrics(w, route, match, link);
  w.U32(RTA_PRIORITY, match != nullptr ? match->priority : 0);
  if (via) w.Address(RTA_GATEWAY, route.next_hop);
  w.U32(RTA_OIF, static_cast<uint32_t>(route.local ? kLoopbackIfIndex : route.ifindex));
  w.Struct(RTA_CACHEINFO, rta_cacheinfo{});
  w.U8(RTA_PREF, 0);
}

// The stack calls a source that is not ours invalid, as a socket's caller hears it; who asks for the route hears of the network.
Errno LookupError(const NetConfig& config, const GetRequest& get, const Route& route) {
  const bool ours = std::any_of(config.addresses.begin(), config.addresses.end(),
                                [&](const AddressConfig& a) { return a.local == get.fib.source; });
  const bool foreign = get.fib.source && !ours && !get.fib.source.IsLoopback();
  return foreign && route.error == Errno::kEINVAL ? Errno::kENETUNREACH : route.error;
}

}  // namespace

const RouteConfig* MatchRoute(const NetConfig& config, const FibQuery& query) {
  std::vector<const RuleConfig*> rules;
  for (const RuleConfig& rule : config.rules) {
    if (rule.family == query.destination.family()) rules.push_back(&rule);
  }
  std::stable_sort(rules.begin(), rules.end(), [](const auto* a, const auto* b) { return a->priority < b->priority; });
  uint32_t skip_below = 0;
  for (const RuleConfig* rule : rules) {
    if (rule->priority < skip_below || !RuleMatches(*rule, query, config)) continue;
    if (rule->action == FR_ACT_NOP) continue;
    if (rule->action == FR_ACT_GOTO) {
      skip_below = rule->goto_target;
      continue;
    }
    if (rule->action != FR_ACT_TO_TBL) return nullptr;
    const RouteConfig* route = MatchTable(config, rule->table, query);
    if (route == nullptr || route->type == RTN_THROW) continue;
    return route;
  }
  return nullptr;
}

Errno GetRoute(Request& r) {
  GetRequest get;
  if (const Errno e = ReadGetRequest(r, &get); e != Errno::kOk) return e;
  const auto config = r.backend.config();
  for (const IfIndex index : {get.iif, get.fib.oif}) {
    if (index != 0 && FindLink(*config, index) == nullptr) return Errno::kENODEV;
  }
  const RouteQuery query{.destination = get.fib.destination,
                         .source = get.fib.source,
                         .ifindex = get.fib.oif,
                         .tos = get.fib.tos,
                         .mark = get.fib.mark,
                         .any_source = get.iif != 0};
  Route route = r.backend.Lookup(query);
  if (!route.ok()) return LookupError(*config, get, route);
  // What comes in for somebody else is not forwarded.
  if (get.iif != 0 && !route.local && route.type != RTN_BROADCAST) return Errno::kEHOSTUNREACH;
  const RouteConfig* match = MatchRoute(*config, get.fib);
  Buffer& reply = r.replies.emplace_back();
  if ((get.header.rtm_flags & RTM_F_FIB_MATCH) != 0) {
    if (match == nullptr) return Errno::kEHOSTUNREACH;
    AppendRoute(*match, &reply);
    return Errno::kOk;
  }
  if (route.type == 0) route.type = route.local ? RTN_LOCAL : RTN_UNICAST;
  const LinkConfig* link = FindLink(*config, route.local ? kLoopbackIfIndex : route.ifindex);
  if (get.header.rtm_family == AF_INET) {
    AppendResult4(get, route, match, link, &reply);
  } else {
    AppendResult6(get, route, match, link, &reply);
  }
  return Errno::kOk;
}

}  // namespace sluice::netlink
