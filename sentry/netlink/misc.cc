// What programs ask beside devices, addresses and routes: per-device settings, queueing disciplines, namespace ids.
#include <linux/net_namespace.h>
#include <linux/netconf.h>
#include <linux/pkt_sched.h>

#include <charconv>

#include "sentry/netlink/server_impl.h"

namespace sluice::netlink {
namespace {

struct NetconfKey {
  uint16_t attribute;
  const char* name;  // below net.ipv4.conf.DEV or net.ipv6.conf.DEV
  bool ipv4, ipv6;
};
constexpr NetconfKey kNetconfKeys[] = {{NETCONFA_FORWARDING, "forwarding", true, true},
                                       {NETCONFA_RP_FILTER, "rp_filter", true, false},
                                       {NETCONFA_MC_FORWARDING, "mc_forwarding", true, true},
                                       {NETCONFA_BC_FORWARDING, "bc_forwarding", true, false},
                                       {NETCONFA_PROXY_NEIGH, "proxy_arp", true, false},
                                       {NETCONFA_PROXY_NEIGH, "proxy_ndp", false, true},
                                       {NETCONFA_IGNORE_ROUTES_WITH_LINKDOWN, "ignore_routes_with_linkdown", true, true}};

// A key of the mirror; absent or unreadable: 0, the kernel's default for all of these.
uint32_t SysctlValue(const NetConfig& config, const std::string& key) {
  const auto it = config.sysctls.find(key);
  uint32_t value = 0;
  if (it != config.sysctls.end()) std::from_chars(it->second.data(), it->second.data() + it->second.size(), value);
  return value;
}

void AppendNetconf(const NetConfig& config, int af, int32_t ifindex, std::string_view device, Buffer* out) {
  MessageWriter w(out, RTM_NEWNETCONF);
  w.Header(netconfmsg{.ncm_family = static_cast<uint8_t>(af)});
  w.U32(NETCONFA_IFINDEX, static_cast<uint32_t>(ifindex));
  const std::string prefix = std::string(af == AF_INET ? "net.ipv4.conf." : "net.ipv6.conf.") + std::string(device) + ".";
  for (const NetconfKey& key : kNetconfKeys) {
    if (af == AF_INET ? key.ipv4 : key.ipv6) w.U32(key.attribute, SysctlValue(config, prefix + key.name));
  }
}

// Devices, then "all" and "default", of one family. False behind the last.
bool NetconfStep(const NetConfig& config, int af, size_t index, Buffer* out) {
  const size_t n = config.links.size();
  if (index < n) {
    AppendNetconf(config, af, config.links[index].index, config.links[index].name, out);
  } else if (index == n) {
    AppendNetconf(config, af, NETCONFA_IFINDEX_ALL, "all", out);
  } else if (index == n + 1) {
    AppendNetconf(config, af, NETCONFA_IFINDEX_DEFAULT, "default", out);
  } else {
    return false;
  }
  return true;
}

// Every device has the one discipline that queues nothing: what the kernel may have there never sees our frames.
void AppendQdisc(const LinkConfig& link, Buffer* out) {
  MessageWriter w(out, RTM_NEWQDISC);
  w.Header(tcmsg{.tcm_family = AF_UNSPEC, .tcm_ifindex = link.index, .tcm_handle = 0, .tcm_parent = TC_H_ROOT, .tcm_info = 2});
  w.Text(TCA_KIND, "noqueue");
}

}  // namespace

Errno DumpNothing(Request& r) {
  r.dump = std::make_unique<ListDump>(std::vector<Buffer>{});
  return Errno::kOk;
}

Errno DumpNetconf(Request& r) {
  const int af = r.Fixed<rtgenmsg>().rtgen_family;
  if (r.strict && (r.payload().size() < sizeof(netconfmsg) || r.payload().size() > Align4(sizeof(netconfmsg)))) {
    return r.Refuse(Errno::kEINVAL, "a dump of device settings takes only the family");
  }
  r.dump = std::make_unique<ConfigDump>(r.backend.config(), [af](const NetConfig& c, size_t i, Buffer* out) {
    if (af == AF_INET || af == AF_INET6) return NetconfStep(c, af, i, out);
    const size_t per_family = c.links.size() + 2;
    return i < per_family ? NetconfStep(c, AF_INET, i, out) : NetconfStep(c, AF_INET6, i - per_family, out);
  });
  return Errno::kOk;
}

Errno GetNetconf(Request& r) {
  static constexpr AttributeRule kRules[] = {{NETCONFA_IFINDEX, Shape::kU32}};
  const int af = r.Fixed<rtgenmsg>().rtgen_family;
  if (af != AF_INET && af != AF_INET6) return Errno::kEOPNOTSUPP;
  AttributeTable table;
  if (const Errno e = r.Parse<netconfmsg>(&table, NETCONFA_MAX, kRules, r.strict); e != Errno::kOk) return e;
  if (!table[NETCONFA_IFINDEX]) return Errno::kEINVAL;
  const auto ifindex = static_cast<int32_t>(table[NETCONFA_IFINDEX].u32());
  const auto config = r.backend.config();
  std::string_view device = ifindex == NETCONFA_IFINDEX_ALL ? "all" : ifindex == NETCONFA_IFINDEX_DEFAULT ? "default" : "";
  if (device.empty()) {
    const LinkConfig* link = FindLink(*config, ifindex);
    if (link == nullptr) return Errno::kENODEV;
    device = link->name;
  }
  AppendNetconf(*config, af, ifindex, device, &r.replies.emplace_back());
  return Errno::kOk;
}

Errno DumpQdiscs(Request& r) {
  // The kernel's dump does not filter by device either; tc does so itself
  r.dump = std::make_unique<ConfigDump>(r.backend.config(), [](const NetConfig& c, size_t i, Buffer* out) {
    if (i >= c.links.size()) return false;
    AppendQdisc(c.links[i], out);
    return true;
  });
  return Errno::kOk;
}

Errno GetQdisc(Request& r) {
  const auto header = r.Fixed<tcmsg>();
  const auto config = r.backend.config();
  const LinkConfig* link = FindLink(*config, header.tcm_ifindex);
  if (link == nullptr) return Errno::kENODEV;
  if (header.tcm_parent != TC_H_ROOT && (header.tcm_parent != 0 || header.tcm_handle != 0)) return Errno::kENOENT;
  AppendQdisc(*link, &r.replies.emplace_back());
  return Errno::kOk;
}

// No other namespace has an id here.
Errno GetNsid(Request& r) {
  AttributeTable table;
  if (const Errno e = r.Parse<rtgenmsg>(&table, NETNSA_MAX, {}, false); e != Errno::kOk) return e;
  if (!table[NETNSA_PID] && !table[NETNSA_FD] && !table[NETNSA_NSID]) return Errno::kEINVAL;
  MessageWriter w(&r.replies.emplace_back(), RTM_NEWNSID);
  w.Header(rtgenmsg{.rtgen_family = AF_UNSPEC});
  w.U32(NETNSA_NSID, static_cast<uint32_t>(NETNSA_NSID_NOT_ASSIGNED));
  return Errno::kOk;
}

}  // namespace sluice::netlink
