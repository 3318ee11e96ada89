// RTM_NEWROUTE and RTM_DELROUTE: into a RouteChange. What our stack would not act on is refused, not dropped.
#include <linux/rtnetlink.h>

#include <algorithm>

#include "sentry/netlink/route_internal.h"

namespace sluice::netlink {
namespace {

// The metrics that the stack uses (RouteConfig).
constexpr bool UsedMetric(int number) {
  return number == RTAX_MTU || number == RTAX_ADVMSS || number == RTAX_HOPLIMIT || number == RTAX_INITCWND ||
         number == RTAX_INITRWND;
}

Errno ReadMetrics(Request& r, const Attribute& attribute, RouteChange* change) {
  Errno error = Errno::kOk;
  ForEachAttribute(attribute.value, [&](uint16_t type, Bytes value) {
    if (error != Errno::kOk || type == 0) return;
    const auto number = LoadPrefix<uint32_t>(value);
    if (type >= kMaxChangeMetrics || value.size() < sizeof number) {
      error = r.Refuse(Errno::kEINVAL, "a route's metric has a wrong form", attribute);
    } else if (!UsedMetric(type) && number != 0) {
      error = r.Refuse(Errno::kEOPNOTSUPP,
                       "sluice: of a route's metrics mtu, advmss, hoplimit, initcwnd and initrwnd are supported", attribute);
    } else if (UsedMetric(type)) {
      change->metric_mask |= 1u << type;
      change->metrics[type] = number;
    }
  });
  return error;
}

// RTA_GATEWAY, or RTA_VIA with a family of its own.
bool ReadGateway(const Attribute& gateway, const Attribute& via, int af, NetAddress* out) {
  if (gateway) return ReadAddress(gateway, af, out);
  if (!via) return true;
  if (via.value.size() < sizeof(uint16_t)) return false;
  Attribute rest = via;
  rest.value = via.value.subspan(sizeof(uint16_t));
  return ReadAddress(rest, via.u16(), out);
}

Errno ReadOneNextHop(Request& r, const Attribute& list, Bytes entry, int af, NextHopChange* hop) {
  const auto header = LoadPrefix<rtnexthop>(entry);
  *hop = {.ifindex = header.rtnh_ifindex, .hops = header.rtnh_hops, .flags = header.rtnh_flags};
  AttributeTable table;
  ExtAck ignored;
  if (const Errno e = table.Parse(entry.subspan(sizeof header), RTA_MAX, RouteRules(af), false, list.offset, &ignored);
      e != Errno::kOk) {
    return r.Refuse(e, "a next hop has a wrong form", list);
  }
  if (table[RTA_ENCAP] || table[RTA_ENCAP_TYPE] || table[RTA_FLOW]) {
    return r.Refuse(Errno::kEOPNOTSUPP, "sluice: encapsulation and realms of next hops are not supported", list);
  }
  if (!ReadGateway(table[RTA_GATEWAY], table[RTA_VIA], af, &hop->gateway)) {
    return r.Refuse(Errno::kEINVAL, "a next hop's gateway has a wrong form", list);
  }
  if (hop->ifindex != 0 && FindLink(*r.backend.config(), hop->ifindex) == nullptr) return Errno::kENODEV;
  return Errno::kOk;
}

Errno ReadNextHops(Request& r, const Attribute& list, RouteChange* change) {
  Bytes rest = list.value;
  while (rest.size() >= sizeof(rtnexthop)) {
    const auto header = LoadPrefix<rtnexthop>(rest);
    if (header.rtnh_len < sizeof(rtnexthop) || header.rtnh_len > rest.size()) break;
    if (change->next_hop_count == kMaxChangeNextHops) {
      return r.Refuse(Errno::kEOPNOTSUPP, "sluice: a route has at most 16 next hops", list);
    }
    NextHopChange& hop = change->next_hops[change->next_hop_count++];
    if (const Errno e = ReadOneNextHop(r, list, rest.first(header.rtnh_len), change->family, &hop); e != Errno::kOk) return e;
    rest = rest.subspan(std::min(Align4(header.rtnh_len), rest.size()));
  }
  if (change->next_hop_count == 0 || !rest.empty())
    return r.Refuse(Errno::kEINVAL, "the list of next hops has a wrong form", list);
  return Errno::kOk;
}

Errno RefuseUnsupported(Request& r, const AttributeTable& table) {
  for (int type = 1; type <= table.max(); ++type) {
    if (!table[type]) continue;
    switch (type) {
      case RTA_DST:
      case RTA_OIF:
      case RTA_GATEWAY:
      case RTA_VIA:
      case RTA_PRIORITY:
      case RTA_PREFSRC:
      case RTA_METRICS:
      case RTA_MULTIPATH:
      case RTA_TABLE:
      case RTA_PREF:
      case RTA_EXPIRES:
      case RTA_CACHEINFO:  // of a dump that is played back; the kernel does not read it either
      case RTA_PAD:
        break;
      default:
        return r.Refuse(Errno::kEOPNOTSUPP,
                        "sluice: this attribute of routes (source, realm, encapsulation, next-hop object ...) is not supported",
                        table[type]);
    }
  }
  return Errno::kOk;
}

Errno ReadRouteAttributes(Request& r, const AttributeTable& table, RouteChange* change) {
  const int af = change->family;
  for (const auto& [type, field] : {std::pair{RTA_DST, &change->dst}, {RTA_PREFSRC, &change->prefsrc}}) {
    if (table[type] && !ReadAddress(table[type], af, field)) {
      return r.Refuse(Errno::kEINVAL, "the address has a wrong length", table[type]);
    }
  }
  if (table[RTA_GATEWAY] && table[RTA_VIA])
    return r.Refuse(Errno::kEINVAL, "a route has a gateway or a via, not both", table[RTA_VIA]);
  if (!ReadGateway(table[RTA_GATEWAY], table[RTA_VIA], af, &change->gateway)) {
    return r.Refuse(Errno::kEINVAL, "the gateway has a wrong form", table[RTA_GATEWAY] ? table[RTA_GATEWAY] : table[RTA_VIA]);
  }
  if (table[RTA_OIF]) {
    change->oif = static_cast<int32_t>(table[RTA_OIF].u32());
    if (change->oif != 0 && FindLink(*r.backend.config(), change->oif) == nullptr) return Errno::kENODEV;
  }
  if (table[RTA_PRIORITY]) change->has_priority = true, change->priority = table[RTA_PRIORITY].u32();
  if (table[RTA_TABLE]) change->table = table[RTA_TABLE].u32();
  if (table[RTA_PREF]) change->has_pref = true, change->pref = table[RTA_PREF].u8();
  if (table[RTA_EXPIRES]) change->expires = table[RTA_EXPIRES].u32();
  if (table[RTA_METRICS]) {
    if (const Errno e = ReadMetrics(r, table[RTA_METRICS], change); e != Errno::kOk) return e;
  }
  return table[RTA_MULTIPATH] ? ReadNextHops(r, table[RTA_MULTIPATH], change) : Errno::kOk;
}

}  // namespace

Errno ChangeRoute(Request& r) {
  const int af = r.Fixed<rtgenmsg>().rtgen_family;
  if (af != AF_INET && af != AF_INET6) return Errno::kEOPNOTSUPP;
  AttributeTable table;
  if (const Errno e = r.Parse<rtmsg>(&table, RTA_MAX, RouteRules(af), false); e != Errno::kOk) return e;
  if (const Errno e = RefuseUnsupported(r, table); e != Errno::kOk) return e;
  const auto header = r.Fixed<rtmsg>();
  const auto bits = AddressSize(af) * 8;
  if (header.rtm_dst_len > bits) return r.Refuse(Errno::kEINVAL, "a prefix is longer than an address");
  if (header.rtm_src_len != 0)
    return r.Refuse(af == AF_INET ? Errno::kEINVAL : Errno::kEOPNOTSUPP, "sluice: routes by source are not supported");
  RouteChange change{.family = header.rtm_family,
                     .dst_len = header.rtm_dst_len,
                     .tos = header.rtm_tos,
                     .protocol = header.rtm_protocol,
                     .scope = header.rtm_scope,
                     .type = header.rtm_type,
                     .table = header.rtm_table,
                     .flags = header.rtm_flags & RTNH_F_ONLINK};
  if (const Errno e = ReadRouteAttributes(r, table, &change); e != Errno::kOk) return e;
  r.Change(r.header.nlmsg_type == RTM_NEWROUTE ? NetChangeKind::kNewRoute : NetChangeKind::kDeleteRoute).route = change;
  return Errno::kOk;
}

}  // namespace sluice::netlink
