// Devices: RTM_GETLINK, RTM_SETLINK and RTM_NEWLINK of a device that exists (linux/if_link.h).
#include <linux/if.h>
#include <linux/if_arp.h>
#include <linux/if_link.h>

#include <algorithm>

#include "sentry/netlink/server_impl.h"

namespace sluice::netlink {
namespace {

constexpr AttributeRule kLinkRules[] = {
    {IFLA_IFNAME, Shape::kText, IFNAMSIZ - 1},
    {IFLA_ADDRESS, Shape::kMaxBytes, 32},
    {IFLA_BROADCAST, Shape::kMaxBytes, 32},
    {IFLA_MAP, Shape::kMinBytes, 28},
    {IFLA_MTU, Shape::kU32},
    {IFLA_LINK, Shape::kU32},
    {IFLA_MASTER, Shape::kU32},
    {IFLA_CARRIER, Shape::kU8},
    {IFLA_TXQLEN, Shape::kU32},
    {IFLA_WEIGHT, Shape::kU32},
    {IFLA_OPERSTATE, Shape::kU8},
    {IFLA_LINKMODE, Shape::kU8},
    {IFLA_LINKINFO, Shape::kNested},
    {IFLA_NET_NS_PID, Shape::kU32},
    {IFLA_NET_NS_FD, Shape::kU32},
    {IFLA_IFALIAS, Shape::kMaxBytes, 255},
    {IFLA_AF_SPEC, Shape::kNested},
    {IFLA_EXT_MASK, Shape::kU32},
    {IFLA_PROMISCUITY, Shape::kU32},
    {IFLA_GROUP, Shape::kU32},
    {IFLA_ALT_IFNAME, Shape::kText, 127},
    {IFLA_TARGET_NETNSID, Shape::kU32},
};

constexpr uint8_t kXdpAttachedNone = 0;

// linux/if_link.h: rtnl_link_stats64 as of 6.x, with rx_nohandler and rx_otherhost_dropped.
constexpr size_t kStats64Size = 25 * sizeof(uint64_t);
constexpr size_t kStatsSize = 24 * sizeof(uint32_t);

// rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped, tx_dropped: the first eight of both structs.
std::array<uint64_t, 8> StatsHead(const Stack::LinkCounters& c) {
  return {c.rx_packets, c.tx_packets, c.rx_bytes, c.tx_bytes, 0, 0, c.rx_dropped, c.tx_dropped};
}

template <typename Word>
void AppendStats(MessageWriter& w, uint16_t type, size_t size, const Stack::LinkCounters& counters) {
  Buffer bytes(size);
  size_t at = 0;
  for (const uint64_t v : StatsHead(counters)) {
    const auto word = static_cast<Word>(v);
    std::memcpy(bytes.data() + at, &word, sizeof word);
    at += sizeof word;
  }
  w.Attr(type, bytes);
}

void AppendXdpNone(MessageWriter& w) {
  const size_t nest = w.BeginNest(IFLA_XDP);
  w.U8(IFLA_XDP_ATTACHED, kXdpAttachedNone);
  w.EndNest(nest);
}

bool VirtualFunction(uint16_t type) {
  return type == IFLA_NUM_VF || type == IFLA_VFINFO_LIST || type == IFLA_VF_PORTS || type == IFLA_PORT_SELF;
}

// The settings of the address families. What is skipped as statistics are the IPv6 ones in there; the device's own always come.
void CopyAfSpec(MessageWriter& w, bool skip_stats, Bytes value) {
  if (!skip_stats) return w.Attr(IFLA_AF_SPEC, value);
  const size_t nest = w.BeginNest(IFLA_AF_SPEC);
  ForEachAttribute(value, [&](uint16_t family, Bytes settings) {
    if (family != AF_INET6) return w.Attr(family, settings);
    const size_t inner = w.BeginNest(family);
    ForEachAttribute(settings, [&](uint16_t type, Bytes v) {
      if (type != IFLA_INET6_STATS && type != IFLA_INET6_ICMP6STATS) w.Attr(type, v);
    });
    w.EndNest(inner);
  });
  w.EndNest(nest);
}

// One attribute of the kernel's own message, changed where our stack knows better.
void CopyLinkAttribute(MessageWriter& w, const LinkConfig& link, const Stack::LinkCounters& counters, uint32_t ext_mask,
                       uint16_t type, Bytes value) {
  switch (type) {
    case IFLA_STATS64:
      return AppendStats<uint64_t>(w, type, std::max(value.size(), kStats64Size), counters);
    case IFLA_STATS:
      return AppendStats<uint32_t>(w, type, std::max(value.size(), kStatsSize), counters);
    case IFLA_AF_SPEC:
      return CopyAfSpec(w, (ext_mask & RTEXT_FILTER_SKIP_STATS) != 0, value);
    case IFLA_OPERSTATE:
      return w.U8(type, link.operstate);
    case IFLA_CARRIER:
      return w.U8(type, link.carrier ? 1 : 0);
    case IFLA_QDISC:
      // The kernel's own loopback may be down (noop); ours never is.
      return link.loopback() ? w.Text(type, "noqueue") : w.Attr(type, value);
    case IFLA_XDP:
      return AppendXdpNone(w);  // what receives our frames is no program of the sandbox's
    case IFLA_EVENT:            // only notifications have these
    case IFLA_NEW_NETNSID:
    case IFLA_NEW_IFINDEX:
      return;
    default:
      if (VirtualFunction(type) && (ext_mask & RTEXT_FILTER_VF) == 0) return;
      w.Attr(type, value);
  }
}

ifinfomsg LinkHeader(const LinkConfig& link, uint32_t change) {
  return {.ifi_family = AF_UNSPEC, .ifi_type = link.type, .ifi_index = link.index, .ifi_flags = link.flags, .ifi_change = change};
}

// The IPv6 part that a device has in the kernel; address generation mode EUI-64.
void AppendInet6Spec(MessageWriter& w) {
  const size_t af_spec = w.BeginNest(IFLA_AF_SPEC);
  const size_t inet6 = w.BeginNest(AF_INET6);
  w.U32(IFLA_INET6_FLAGS, 0x80000000);  // IF_READY
  w.Attr(IFLA_INET6_TOKEN, std::array<uint8_t, 16>{});
  w.U8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_EUI64);
  w.EndNest(inet6);
  w.EndNest(af_spec);
}

// A device that the kernel does not have, or of which only the fields are known.
void ComposeLink(const LinkConfig& link, const Stack::LinkCounters& counters, uint32_t change, Buffer* out) {
  MessageWriter w(out, RTM_NEWLINK);
  w.Header(LinkHeader(link, change));
  w.Text(IFLA_IFNAME, link.name);
  w.U32(IFLA_TXQLEN, link.tx_queue_len);
  w.U8(IFLA_OPERSTATE, link.operstate);
  w.U8(IFLA_LINKMODE, 0);
  w.U32(IFLA_MTU, link.mtu);
  w.U32(IFLA_MIN_MTU, link.loopback() ? 0 : 68);
  w.U32(IFLA_MAX_MTU, link.loopback() ? 0 : 65535);
  w.U32(IFLA_GROUP, 0);
  w.U32(IFLA_PROMISCUITY, 0);
  w.U32(IFLA_NUM_TX_QUEUES, 1);
  w.U32(IFLA_GSO_MAX_SEGS, 65535);
  w.U32(IFLA_GSO_MAX_SIZE, 65536);
  w.U32(IFLA_NUM_RX_QUEUES, 1);
  w.U8(IFLA_CARRIER, link.carrier ? 1 : 0);
  w.U32(IFLA_CARRIER_CHANGES, 0);
  w.U32(IFLA_CARRIER_UP_COUNT, 0);
  w.U32(IFLA_CARRIER_DOWN_COUNT, 0);
  w.U8(IFLA_PROTO_DOWN, 0);
  w.Attr(IFLA_ADDRESS, link.mac.bytes);
  w.Attr(IFLA_BROADCAST, link.broadcast.bytes);
  AppendStats<uint64_t>(w, IFLA_STATS64, kStats64Size, counters);
  AppendStats<uint32_t>(w, IFLA_STATS, kStatsSize, counters);
  AppendXdpNone(w);
  w.Text(IFLA_QDISC, "noqueue");
  AppendInet6Spec(w);
  w.Attr(IFLA_MAP, std::array<uint8_t, 32>{});
}

// The AF_INET6 part of IFLA_AF_SPEC.
Bytes Inet6Spec(const LinkConfig& link) {
  Bytes found;
  ForEachAttribute(FindAttribute(link.netlink, sizeof(ifinfomsg), IFLA_AF_SPEC), [&](uint16_t type, Bytes value) {
    if (type == AF_INET6) found = value;
  });
  return found;
}

// What a dump of family AF_INET6 gives: the device as IPv6 sees it.
void AppendInet6Link(const LinkConfig& link, Buffer* out) {
  MessageWriter w(out, RTM_NEWLINK);
  ifinfomsg header = LinkHeader(link, 0);
  header.ifi_family = AF_INET6;
  w.Header(header);
  w.Text(IFLA_IFNAME, link.name);
  w.Attr(IFLA_ADDRESS, link.mac.bytes);
  w.U32(IFLA_MTU, link.mtu);
  const Bytes lower = FindAttribute(link.netlink, sizeof(ifinfomsg), IFLA_LINK);
  if (!lower.empty()) w.Attr(IFLA_LINK, lower);
  w.U8(IFLA_OPERSTATE, link.operstate);
  w.Attr(IFLA_PROTINFO | NLA_F_NESTED, Inet6Spec(link));
}

std::string_view LinkKind(const LinkConfig& link) {
  std::string_view kind;
  ForEachAttribute(FindAttribute(link.netlink, sizeof(ifinfomsg), IFLA_LINKINFO), [&](uint16_t type, Bytes value) {
    if (type == IFLA_INFO_KIND) kind = Attribute{.present = true, .value = value}.text();
  });
  return kind;
}

struct LinkFilter {
  uint32_t ext_mask = 0;
  int32_t master = 0;  // 0: all, -1: those without one
  std::string kind;

  bool Accepts(const LinkConfig& link) const {
    if (master != 0) {
      const Bytes attribute = FindAttribute(link.netlink, sizeof(ifinfomsg), IFLA_MASTER);
      const auto has = LoadPrefix<int32_t>(attribute);
      if (master == -1 ? has != 0 : has != master) return false;
    }
    return kind.empty() || LinkKind(link) == kind;
  }
};

Errno ReadLinkFilter(Request& r, LinkFilter* filter) {
  if (r.strict) {
    if (r.payload().size() < sizeof(ifinfomsg)) return r.Refuse(Errno::kEINVAL, "the header of a link dump is too short");
    const auto header = r.Fixed<ifinfomsg>();
    if (header.ifi_type != 0 || header.ifi_flags != 0 || header.ifi_change != 0) {
      return r.Refuse(Errno::kEINVAL, "a link dump takes no values in its header");
    }
    if (header.ifi_index != 0) return r.Refuse(Errno::kEINVAL, "a link dump cannot be filtered by device index");
  }
  AttributeTable table;
  // Without strict checking a request may have the short general header, and errors in attributes do not matter.
  const bool full = r.payload().size() >= sizeof(ifinfomsg);
  const Errno e = full ? r.Parse<ifinfomsg>(&table, IFLA_MAX, kLinkRules, r.strict)
                       : r.Parse<rtgenmsg>(&table, IFLA_MAX, kLinkRules, r.strict);
  if (e != Errno::kOk) {
    if (r.strict) return e;
    r.ack = {};
    return Errno::kOk;
  }
  for (int type = 1; r.strict && type <= table.max(); ++type) {
    if (table[type] && type != IFLA_EXT_MASK && type != IFLA_MASTER && type != IFLA_LINKINFO && type != IFLA_TARGET_NETNSID) {
      return r.Refuse(Errno::kEINVAL, "a link dump cannot be filtered by this attribute");
    }
  }
  if (table[IFLA_TARGET_NETNSID])
    return r.Refuse(Errno::kEINVAL, "other network namespaces cannot be asked", table[IFLA_TARGET_NETNSID]);
  if (table[IFLA_EXT_MASK]) filter->ext_mask = table[IFLA_EXT_MASK].u32();
  if (table[IFLA_MASTER]) filter->master = static_cast<int32_t>(table[IFLA_MASTER].u32());
  ForEachAttribute(table[IFLA_LINKINFO].value, [&](uint16_t type, Bytes value) {
    if (type == IFLA_INFO_KIND) filter->kind = Attribute{.present = true, .value = value}.text();
  });
  return Errno::kOk;
}

Errno FindRequestedLink(Request& r, const AttributeTable& table, const NetConfig& config, const LinkConfig** link) {
  const auto header = r.Fixed<ifinfomsg>();
  *link = nullptr;
  if (table[IFLA_TARGET_NETNSID])
    return r.Refuse(Errno::kEINVAL, "other network namespaces cannot be asked", table[IFLA_TARGET_NETNSID]);
  if (header.ifi_index > 0) {
    *link = FindLink(config, header.ifi_index);
  } else if (header.ifi_index < 0) {
    return r.Refuse(Errno::kEINVAL, "a device index is above zero");
  } else if (table[IFLA_IFNAME]) {
    *link = FindLink(config, table[IFLA_IFNAME].text());
  } else if (table[IFLA_ALT_IFNAME]) {
    *link = FindLink(config, table[IFLA_ALT_IFNAME].text());
  } else {
    return Errno::kEINVAL;
  }
  return *link != nullptr ? Errno::kOk : Errno::kENODEV;
}

// What cannot be changed from inside: everything but these.
Errno RefuseOtherAttributes(Request& r, const AttributeTable& table, const LinkConfig& link) {
  for (int type = 1; type <= table.max(); ++type) {
    if (!table[type]) continue;
    switch (type) {
      case IFLA_MTU:
      case IFLA_TXQLEN:
      case IFLA_ADDRESS:
      case IFLA_EXT_MASK:
      case IFLA_ALT_IFNAME:
        break;
      case IFLA_IFNAME:
        if (FindLink(*r.backend.config(), table[type].text()) != &link) {
          return r.Refuse(Errno::kEOPNOTSUPP, "sluice: devices are not renamed from inside", table[type]);
        }
        break;
      default:
        return r.Refuse(Errno::kEOPNOTSUPP,
                        "sluice: of a device only up/down, mtu, txqueuelen and address are changed from inside", table[type]);
    }
  }
  return Errno::kOk;
}

Errno ReadLinkFlags(Request& r, const LinkConfig& link, LinkChange* change) {
  const auto header = r.Fixed<ifinfomsg>();
  if (header.ifi_flags == 0 && header.ifi_change == 0) return Errno::kOk;
  const uint32_t mask = header.ifi_change != 0 ? header.ifi_change : ~0u;
  return FlagsToChange(link, header.ifi_flags, mask, change, &r.ack.message);
}

}  // namespace

Errno FlagsToChange(const LinkConfig& link, uint32_t flags, uint32_t mask, LinkChange* change, std::string* why) {
  constexpr uint32_t kSettable = IFF_UP | IFF_DEBUG | IFF_NOTRAILERS | IFF_NOARP | IFF_DYNAMIC | IFF_MULTICAST | IFF_PORTSEL |
                                 IFF_AUTOMEDIA | IFF_PROMISC | IFF_ALLMULTI;
  const uint32_t differs = (flags ^ link.flags) & mask & kSettable;
  if ((differs & ~uint32_t{IFF_UP}) != 0) {
    *why = "sluice: of a device's flags only up/down is changed from inside";
    return Errno::kEOPNOTSUPP;
  }
  if ((mask & IFF_UP) == 0) return Errno::kOk;
  change->has_up = true;
  change->up = (flags & IFF_UP) != 0;
  if (!link.loopback() || change->up) return Errno::kOk;
  *why = "sluice: the loopback is always up";
  return Errno::kEOPNOTSUPP;
}

const LinkConfig* FindLink(const NetConfig& config, IfIndex index) {
  const auto it = std::find_if(config.links.begin(), config.links.end(), [=](const LinkConfig& l) { return l.index == index; });
  return it != config.links.end() ? &*it : nullptr;
}

const LinkConfig* FindLink(const NetConfig& config, std::string_view name) {
  if (name.empty()) return nullptr;
  for (const LinkConfig& link : config.links) {
    if (link.name == name) return &link;
    bool found = false;
    ForEachAttribute(FindAttribute(link.netlink, sizeof(ifinfomsg), IFLA_PROP_LIST), [&](uint16_t type, Bytes value) {
      found |= type == IFLA_ALT_IFNAME && Attribute{.present = true, .value = value}.text() == name;
    });
    if (found) return &link;
  }
  return nullptr;
}

void AppendLink(const LinkConfig& link, const Stack::LinkCounters& counters, uint32_t ext_mask, uint32_t change, Buffer* out) {
  if (!WellFormed(link.netlink, sizeof(ifinfomsg))) return ComposeLink(link, counters, change, out);
  MessageWriter w(out, RTM_NEWLINK);
  w.Header(LinkHeader(link, change));
  const Bytes attributes = Bytes(link.netlink).subspan(sizeof(nlmsghdr) + sizeof(ifinfomsg));
  // Flags of attribute types (nested) are kept: programs do not look, but a differential test does.
  size_t at = 0;
  while (attributes.size() - at >= sizeof(nlattr)) {
    const auto a = LoadPrefix<nlattr>(attributes.subspan(at));
    if (a.nla_len < sizeof(nlattr) || a.nla_len > attributes.size() - at) break;
    const Bytes value = attributes.subspan(at + sizeof(nlattr), a.nla_len - sizeof(nlattr));
    const auto type = static_cast<uint16_t>(a.nla_type & NLA_TYPE_MASK);
    if ((a.nla_type & NLA_F_NESTED) != 0) {
      w.Attr(a.nla_type, value);
    } else {
      CopyLinkAttribute(w, link, counters, ext_mask, type, value);
    }
    at += std::min(Align4(a.nla_len), attributes.size() - at);
  }
}

Errno DumpLinks(Request& r) {
  const uint8_t family = r.Fixed<rtgenmsg>().rtgen_family;
  if (family == AF_BRIDGE) return DumpNothing(r);
  const auto config = r.backend.config();
  if (family == AF_INET6) {
    r.dump = std::make_unique<ConfigDump>(config, [](const NetConfig& c, size_t i, Buffer* out) {
      if (i >= c.links.size()) return false;
      AppendInet6Link(c.links[i], out);
      return true;
    });
    return Errno::kOk;
  }
  LinkFilter filter;
  if (const Errno e = ReadLinkFilter(r, &filter); e != Errno::kOk) return e;
  const bool filtered = filter.master != 0 || !filter.kind.empty();
  r.dump = std::make_unique<ConfigDump>(config, [filter, &backend = r.backend](const NetConfig& c, size_t i, Buffer* out) {
    if (i >= c.links.size()) return false;
    const LinkConfig& link = c.links[i];
    if (filter.Accepts(link)) AppendLink(link, backend.link_counters(link.index), filter.ext_mask, 0, out);
    return true;
  });
  if (filtered) r.dump_flags = NLM_F_DUMP_FILTERED;
  return Errno::kOk;
}

Errno GetLink(Request& r) {
  AttributeTable table;
  if (r.strict) {
    const auto header = r.Fixed<ifinfomsg>();
    if (r.payload().size() < sizeof(ifinfomsg)) return r.Refuse(Errno::kEINVAL, "the header of a link request is too short");
    if (header.ifi_type != 0 || header.ifi_flags != 0 || header.ifi_change != 0) {
      return r.Refuse(Errno::kEINVAL, "a link request takes only the index in its header");
    }
  }
  if (const Errno e = r.Parse<ifinfomsg>(&table, IFLA_MAX, kLinkRules, r.strict); e != Errno::kOk) return e;
  for (int type = 1; r.strict && type <= table.max(); ++type) {
    if (table[type] && type != IFLA_IFNAME && type != IFLA_ALT_IFNAME && type != IFLA_EXT_MASK && type != IFLA_TARGET_NETNSID) {
      return r.Refuse(Errno::kEINVAL, "a link request cannot have this attribute");
    }
  }
  const auto config = r.backend.config();
  const LinkConfig* link = nullptr;
  if (const Errno e = FindRequestedLink(r, table, *config, &link); e != Errno::kOk) return e;
  const uint32_t ext_mask = table[IFLA_EXT_MASK] ? table[IFLA_EXT_MASK].u32() : 0;
  AppendLink(*link, r.backend.link_counters(link->index), ext_mask, 0, &r.replies.emplace_back());
  return Errno::kOk;
}

Errno SetLink(Request& r) {
  if (r.Fixed<rtgenmsg>().rtgen_family == AF_BRIDGE) return Errno::kEOPNOTSUPP;
  AttributeTable table;
  if (const Errno e = r.Parse<ifinfomsg>(&table, IFLA_MAX, kLinkRules, false); e != Errno::kOk) return e;
  const auto config = r.backend.config();
  const LinkConfig* link = nullptr;
  const Errno found = FindRequestedLink(r, table, *config, &link);
  const bool create = r.header.nlmsg_type == RTM_NEWLINK && (r.header.nlmsg_flags & NLM_F_CREATE) != 0;
  if (create && link == nullptr) return r.Refuse(Errno::kEOPNOTSUPP, "sluice: devices are not made from inside");
  if (found != Errno::kOk) return r.header.nlmsg_type == RTM_NEWLINK ? Errno::kENODEV : found;
  if (create && (r.header.nlmsg_flags & NLM_F_EXCL) != 0) return Errno::kEEXIST;
  if (const Errno e = RefuseOtherAttributes(r, table, *link); e != Errno::kOk) return e;

  LinkChange change{.ifindex = link->index};
  if (const Errno e = ReadLinkFlags(r, *link, &change); e != Errno::kOk) return e;
  if (table[IFLA_MTU]) change.has_mtu = true, change.mtu = table[IFLA_MTU].u32();
  if (table[IFLA_TXQLEN]) change.has_txqlen = true, change.txqlen = table[IFLA_TXQLEN].u32();
  if (table[IFLA_ADDRESS]) {
    if (table[IFLA_ADDRESS].value.size() < change.address.size())
      return r.Refuse(Errno::kEINVAL, "the hardware address is too short", table[IFLA_ADDRESS]);
    change.has_address = true;
    std::copy_n(table[IFLA_ADDRESS].value.begin(), change.address.size(), change.address.begin());
  }
  if (change.has_up || change.has_mtu || change.has_txqlen || change.has_address) r.Change(NetChangeKind::kSetLink).link = change;
  return Errno::kOk;
}

}  // namespace sluice::netlink
