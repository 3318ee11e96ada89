// Routes: RTM_GETROUTE dumps, messages (linux/rtnetlink.h). Lookups are in route_get.cc, changes in route_change.cc.
#include <linux/rtnetlink.h>

#include <algorithm>

#include "sentry/netlink/route_internal.h"
#include "sentry/netlink/server_impl.h"

namespace sluice::netlink {
namespace {

void ComposeMetrics(MessageWriter& w, const RouteConfig& route) {
  const std::pair<uint16_t, uint32_t> metrics[] = {{RTAX_MTU, route.mtu},
                                                   {RTAX_ADVMSS, route.advmss},
                                                   {RTAX_HOPLIMIT, route.hoplimit},
                                                   {RTAX_INITCWND, route.initcwnd},
                                                   {RTAX_INITRWND, route.initrwnd}};
  if (std::none_of(std::begin(metrics), std::end(metrics), [](const auto& m) { return m.second != 0; })) return;
  const size_t nest = w.BeginNest(RTA_METRICS);
  for (const auto& [type, value] : metrics) {
    if (value != 0) w.U32(type, value);
  }
  w.EndNest(nest);
}

void ComposeGateway(MessageWriter& w, Family family, const IpAddress& gateway) {
  if (!gateway) return;
  if (gateway.family() == family) return w.Address(RTA_GATEWAY, gateway);
  Buffer via;
  const auto af = static_cast<uint16_t>(ToAf(gateway.family()));
  via.insert(via.end(), AsBytes(af).begin(), AsBytes(af).end());
  via.insert(via.end(), gateway.bytes().begin(), gateway.bytes().end());
  w.Attr(RTA_VIA, via);
}

void ComposeNextHops(MessageWriter& w, const RouteConfig& route) {
  const Family family = route.dst.family();
  if (route.next_hops.size() == 1) {
    ComposeGateway(w, family, route.next_hops[0].gateway);
    w.U32(RTA_OIF, static_cast<uint32_t>(route.next_hops[0].ifindex));
    return;
  }
  if (route.next_hops.empty()) return;
  Buffer list;
  for (const NextHop& hop : route.next_hops) {
    const size_t at = list.size();
    Buffer attributes;
    {
      MessageWriter inner(&attributes, 0);
      ComposeGateway(inner, family, hop.gateway);
    }
    const Bytes body = Bytes(attributes).subspan(sizeof(nlmsghdr));
    const rtnexthop header{.rtnh_len = static_cast<uint16_t>(sizeof(rtnexthop) + body.size()),
                           .rtnh_flags = static_cast<uint8_t>(hop.flags),
                           .rtnh_hops = static_cast<uint8_t>(hop.weight - 1),
                           .rtnh_ifindex = hop.ifindex};
    list.insert(list.end(), AsBytes(header).begin(), AsBytes(header).end());
    list.insert(list.end(), body.begin(), body.end());
    list.resize(at + Align4(list.size() - at));
  }
  w.Attr(RTA_MULTIPATH, list);
}

void ComposeRoute(const RouteConfig& route, Buffer* out) {
  MessageWriter w(out, RTM_NEWROUTE);
  w.Header(rtmsg{.rtm_family = static_cast<uint8_t>(ToAf(route.dst.family())),
                 .rtm_dst_len = route.prefix_len,
                 .rtm_tos = route.tos,
                 .rtm_table = CompatTable(route.table),
                 .rtm_protocol = route.protocol,
                 .rtm_scope = route.scope,
                 .rtm_type = route.type,
                 .rtm_flags = route.next_hops.size() == 1 ? route.next_hops[0].flags : 0});
  w.U32(RTA_TABLE, route.table);
  if (route.prefix_len != 0) w.Address(RTA_DST, route.dst);
  const bool v6 = route.dst.is_v6();
  if (route.priority != 0 || v6) w.U32(RTA_PRIORITY, route.priority);
  ComposeMetrics(w, route);
  if (route.prefsrc) w.Address(RTA_PREFSRC, route.prefsrc);
  ComposeNextHops(w, route);
  if (!v6) return;
  w.Struct(RTA_CACHEINFO, rta_cacheinfo{});
  w.U8(RTA_PREF, 0);
}

struct RouteFilter {
  Family family = Family::kNone;
  uint32_t table = 0;
  int32_t oif = 0;
  uint8_t protocol = 0, type = 0;
  uint32_t flags = 0;

  bool set() const { return table != 0 || oif != 0 || protocol != 0 || type != 0 || flags != 0; }
  bool Accepts(const RouteConfig& route) const {
    if (table != 0 && route.table != table) return false;
    if (protocol != 0 && route.protocol != protocol) return false;
    if (type != 0 && route.type != type) return false;
    return oif == 0 ||
           std::any_of(route.next_hops.begin(), route.next_hops.end(), [this](const NextHop& h) { return h.ifindex == oif; });
  }
};

Errno ReadRouteFilter(Request& r, RouteFilter* filter) {
  const auto header = r.Fixed<rtmsg>();
  filter->family = ToFamily(header.rtm_family);
  if (!r.strict) {
    if (r.payload().size() >= sizeof(rtmsg)) filter->flags = header.rtm_flags & RTM_F_PREFIX;
    return Errno::kOk;
  }
  if (r.payload().size() < sizeof(rtmsg)) return r.Refuse(Errno::kEINVAL, "the header of a route dump is too short");
  if (header.rtm_src_len != 0 || header.rtm_dst_len != 0 || header.rtm_tos != 0 || header.rtm_scope != 0) {
    return r.Refuse(Errno::kEINVAL, "a route dump takes only family, table, protocol, type and flags in its header");
  }
  if ((header.rtm_flags & ~uint32_t{RTM_F_CLONED | RTM_F_PREFIX}) != 0) {
    return r.Refuse(Errno::kEINVAL, "a route dump takes no such flag");
  }
  filter->flags = header.rtm_flags;
  filter->table = header.rtm_table;
  filter->protocol = header.rtm_protocol;
  filter->type = header.rtm_type;
  AttributeTable table;
  if (const Errno e = r.Parse<rtmsg>(&table, RTA_MAX, RouteRules(ToAf(filter->family)), true); e != Errno::kOk) return e;
  for (int type = 1; type <= table.max(); ++type) {
    if (table[type] && type != RTA_TABLE && type != RTA_OIF) {
      return r.Refuse(Errno::kEINVAL, "a route dump cannot be filtered by this attribute", table[type]);
    }
  }
  if (table[RTA_TABLE]) filter->table = table[RTA_TABLE].u32();
  if (table[RTA_OIF]) {
    filter->oif = static_cast<int32_t>(table[RTA_OIF].u32());
    if (FindLink(*r.backend.config(), filter->oif) == nullptr) return Errno::kENODEV;
  }
  return Errno::kOk;
}

// A table exists while something is in it; the three of every namespace always do.
bool TableExists(const NetConfig& config, const RouteFilter& filter) {
  if (filter.table >= RT_TABLE_DEFAULT && filter.table <= RT_TABLE_LOCAL) return true;
  return std::any_of(config.routes.begin(), config.routes.end(), [&](const RouteConfig& route) {
    return route.table == filter.table && (filter.family == Family::kNone || route.dst.family() == filter.family);
  });
}

}  // namespace

uint8_t CompatTable(uint32_t table) { return static_cast<uint8_t>(table < 256 ? table : RT_TABLE_COMPAT); }

std::span<const AttributeRule> RouteRules(int af) {
  static constexpr AttributeRule kRules4[] = {
      {RTA_DST, Shape::kU32},        {RTA_SRC, Shape::kU32},      {RTA_IIF, Shape::kU32},     {RTA_OIF, Shape::kU32},
      {RTA_GATEWAY, Shape::kU32},    {RTA_PRIORITY, Shape::kU32}, {RTA_PREFSRC, Shape::kU32}, {RTA_METRICS, Shape::kNested},
      {RTA_FLOW, Shape::kU32},       {RTA_TABLE, Shape::kU32},    {RTA_MARK, Shape::kU32},    {RTA_UID, Shape::kU32},
      {RTA_IP_PROTO, Shape::kU8},    {RTA_SPORT, Shape::kU16},    {RTA_DPORT, Shape::kU16},   {RTA_NH_ID, Shape::kU32},
      {RTA_ENCAP_TYPE, Shape::kU16}, {RTA_ENCAP, Shape::kNested}};
  static constexpr AttributeRule kRules6[] = {{RTA_DST, Shape::kMaxBytes, 16},
                                              {RTA_SRC, Shape::kMaxBytes, 16},
                                              {RTA_IIF, Shape::kU32},
                                              {RTA_OIF, Shape::kU32},
                                              {RTA_GATEWAY, Shape::kMinBytes, 16},
                                              {RTA_PRIORITY, Shape::kU32},
                                              {RTA_PREFSRC, Shape::kMinBytes, 16},
                                              {RTA_METRICS, Shape::kNested},
                                              {RTA_TABLE, Shape::kU32},
                                              {RTA_MARK, Shape::kU32},
                                              {RTA_PREF, Shape::kU8},
                                              {RTA_EXPIRES, Shape::kU32},
                                              {RTA_UID, Shape::kU32},
                                              {RTA_IP_PROTO, Shape::kU8},
                                              {RTA_SPORT, Shape::kU16},
                                              {RTA_DPORT, Shape::kU16},
                                              {RTA_NH_ID, Shape::kU32},
                                              {RTA_ENCAP_TYPE, Shape::kU16},
                                              {RTA_ENCAP, Shape::kNested}};
  if (af == AF_INET6) return kRules6;
  return kRules4;
}

void AppendRoute(const RouteConfig& route, Buffer* out) {
  if (!WellFormed(route.netlink, sizeof(rtmsg))) return ComposeRoute(route, out);
  MessageWriter w(out, RTM_NEWROUTE);
  w.Raw(Bytes(route.netlink).subspan(sizeof(nlmsghdr)));
}

Errno DumpRoutes(Request& r) {
  const uint8_t af = r.Fixed<rtgenmsg>().rtgen_family;
  if (af == RTNL_FAMILY_IPMR || af == RTNL_FAMILY_IP6MR) return DumpNothing(r);
  RouteFilter filter;
  if (const Errno e = ReadRouteFilter(r, &filter); e != Errno::kOk) return e;
  if (r.strict) {
    r.dump_flags = NLM_F_DUMP_FILTERED;
    if (filter.set()) r.done_flags = NLM_F_DUMP_FILTERED;
  }
  // Cached exceptions are kept per destination by our stack and not listed; prefixes are what router advertisements made.
  if (filter.flags != 0) return DumpNothing(r);
  const auto config = r.backend.config();
  if (filter.table != 0 && filter.family != Family::kNone && !TableExists(*config, filter)) {
    return r.Refuse(Errno::kENOENT, "there is no such routing table");
  }
  r.dump = std::make_unique<ConfigDump>(config, [filter](const NetConfig& c, size_t i, Buffer* out) {
    const size_t n = c.routes.size();
    if (i >= 2 * n) return false;
    const Family pass = i < n ? Family::kIpv4 : Family::kIpv6;
    const RouteConfig& route = c.routes[i % n];
    if (route.dst.family() != pass || (filter.family != Family::kNone && filter.family != pass)) return true;
    if (filter.Accepts(route)) AppendRoute(route, out);
    return true;
  });
  return Errno::kOk;
}

}  // namespace sluice::netlink
