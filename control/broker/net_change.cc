#include "control/broker/net_change.h"

#include <fcntl.h>
#include <linux/fib_rules.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/nsfs.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <string_view>
#include <utility>

#include "base/unique_fd.h"
#include "sentry/netlink/message.h"

namespace sluice {
namespace {

using netlink::AddressSize;
using netlink::NetAddress;
using netlink::NetChange;
using netlink::NetChangeKind;
using netlink::NetChangeResult;
using netlink::NetName;

// ---- judgement of a caller ----

struct Credentials {
  uint64_t effective = 0;  // capabilities
  uint64_t uid = 0, euid = 0;
};

bool ParseNumber(std::string_view text, int base, uint64_t* value) {
  return std::from_chars(text.data(), text.data() + text.size(), *value, base).ec == std::errc();
}

bool ReadCredentials(pid_t tid, Credentials* out) {
  const std::string path = "/proc/" + std::to_string(tid) + "/status";
  const UniqueFd file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return false;
  std::string text(8192, '\0');
  const ssize_t n = read(file.get(), text.data(), text.size());
  if (n <= 0) return false;
  text.resize(static_cast<size_t>(n));
  // "Uid:\treal\teffective\t..." and "CapEff:\thex". The name in the first line has its newlines escaped.
  const size_t uid = text.find("\nUid:\t");
  const size_t cap = text.find("\nCapEff:\t");
  if (uid == std::string::npos || cap == std::string::npos) return false;
  const size_t euid = text.find('\t', uid + 6);
  if (euid == std::string::npos) return false;
  return ParseNumber(std::string_view(text).substr(uid + 6), 10, &out->uid) &&
         ParseNumber(std::string_view(text).substr(euid + 1), 10, &out->euid) &&
         ParseNumber(std::string_view(text).substr(cap + 9), 16, &out->effective);
}

bool SameFile(int a, int b) {
  struct stat sa, sb;
  return fstat(a, &sa) == 0 && fstat(b, &sb) == 0 && sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
}

// ---- checks of the sentry's struct ----

bool ValidAddress(const NetAddress& a, int family, bool required) {
  if (a.family == 0) return !required;
  return a.family == family && AddressSize(family) != 0;
}

bool ValidName(const NetName& name) {
  const size_t length = strnlen(name.data(), name.size());
  if (length == name.size()) return false;
  return std::all_of(name.data(), name.data() + length, [](unsigned char c) { return c > ' ' && c < 127 && c != '/'; });
}

bool ValidFamily(int family) { return AddressSize(family) != 0; }
size_t Bits(int family) { return AddressSize(family) * 8; }

bool Valid(const netlink::AddressChange& c) {
  return ValidFamily(c.family) && c.prefix_len <= Bits(c.family) && c.ifindex >= 0 && ValidAddress(c.local, c.family, false) &&
         ValidAddress(c.address, c.family, false) && ValidAddress(c.broadcast, c.family, false) && ValidName(c.label);
}

bool ValidGateway(const NetAddress& a) { return a.family == 0 || ValidFamily(a.family); }

bool Valid(const netlink::RouteChange& c) {
  if (!ValidFamily(c.family) || c.dst_len > Bits(c.family) || c.oif < 0 || c.next_hop_count > c.next_hops.size()) return false;
  if (!ValidAddress(c.dst, c.family, c.dst_len != 0) || !ValidAddress(c.prefsrc, c.family, false)) return false;
  if (!ValidGateway(c.gateway) || (c.flags & ~uint32_t{RTNH_F_ONLINK}) != 0) return false;
  constexpr uint32_t kMetrics =
      1u << RTAX_MTU | 1u << RTAX_ADVMSS | 1u << RTAX_HOPLIMIT | 1u << RTAX_INITCWND | 1u << RTAX_INITRWND;
  if ((c.metric_mask & ~kMetrics) != 0) return false;
  return std::all_of(c.next_hops.begin(), c.next_hops.begin() + c.next_hop_count, [](const netlink::NextHopChange& h) {
    return h.ifindex >= 0 && ValidGateway(h.gateway) && (h.flags & ~RTNH_F_ONLINK) == 0;
  });
}

bool Valid(const netlink::RuleChange& c) {
  return ValidFamily(c.family) && c.src_len <= Bits(c.family) && c.dst_len <= Bits(c.family) &&
         ValidAddress(c.src, c.family, c.src_len != 0) && ValidAddress(c.dst, c.family, c.dst_len != 0) && ValidName(c.iif) &&
         ValidName(c.oif);
}

bool Valid(const netlink::NeighborChange& c) {
  return ValidFamily(c.family) && c.ifindex > 0 && ValidAddress(c.dst, c.family, true) && c.flags == 0;
}

bool Valid(const netlink::LinkChange& c) { return c.ifindex > 0; }

bool Valid(const NetChange& change) {
  switch (change.kind) {
    case NetChangeKind::kNone:
      return false;
    case NetChangeKind::kNewAddress:
    case NetChangeKind::kDeleteAddress:
      return Valid(change.address);
    case NetChangeKind::kNewRoute:
    case NetChangeKind::kDeleteRoute:
      return Valid(change.route);
    case NetChangeKind::kNewRule:
    case NetChangeKind::kDeleteRule:
      return Valid(change.rule);
    case NetChangeKind::kNewNeighbor:
    case NetChangeKind::kDeleteNeighbor:
      return Valid(change.neighbor);
    case NetChangeKind::kSetLink:
      return Valid(change.link);
  }
  return false;
}

// ---- building messages ----

uint16_t MessageType(NetChangeKind kind) {
  switch (kind) {
    case NetChangeKind::kNone:
      return NLMSG_NOOP;
    case NetChangeKind::kNewAddress:
      return RTM_NEWADDR;
    case NetChangeKind::kDeleteAddress:
      return RTM_DELADDR;
    case NetChangeKind::kNewRoute:
      return RTM_NEWROUTE;
    case NetChangeKind::kDeleteRoute:
      return RTM_DELROUTE;
    case NetChangeKind::kNewRule:
      return RTM_NEWRULE;
    case NetChangeKind::kDeleteRule:
      return RTM_DELRULE;
    case NetChangeKind::kNewNeighbor:
      return RTM_NEWNEIGH;
    case NetChangeKind::kDeleteNeighbor:
      return RTM_DELNEIGH;
    case NetChangeKind::kSetLink:
      return RTM_SETLINK;
  }
  return NLMSG_NOOP;
}

bool Deletes(NetChangeKind kind) {
  return kind == NetChangeKind::kDeleteAddress || kind == NetChangeKind::kDeleteRoute || kind == NetChangeKind::kDeleteRule ||
         kind == NetChangeKind::kDeleteNeighbor;
}

void PutAddress(NetlinkMessage& m, uint16_t type, const NetAddress& a) {
  if (a.family != 0) m.Attr(type, Bytes(a.bytes).first(AddressSize(a.family)));
}

void PutName(NetlinkMessage& m, uint16_t type, const NetName& name) {
  if (name[0] != 0) m.Attr(type, std::string_view(name.data()));
}

void Build(const netlink::AddressChange& c, NetlinkMessage& m) {
  m.Header(ifaddrmsg{.ifa_family = c.family,
                     .ifa_prefixlen = c.prefix_len,
                     .ifa_flags = static_cast<uint8_t>(c.flags),
                     .ifa_scope = c.scope,
                     .ifa_index = static_cast<uint32_t>(c.ifindex)});
  PutAddress(m, IFA_LOCAL, c.local);
  PutAddress(m, IFA_ADDRESS, c.address);
  PutAddress(m, IFA_BROADCAST, c.broadcast);
  PutName(m, IFA_LABEL, c.label);
  if (c.flags > 0xff) m.Attr(IFA_FLAGS, c.flags);
  if (c.has_cacheinfo) m.Attr(IFA_CACHEINFO, netlink::AsBytes(ifa_cacheinfo{.ifa_prefered = c.preferred, .ifa_valid = c.valid}));
  if (c.route_priority != 0) m.Attr(IFA_RT_PRIORITY, c.route_priority);
  if (c.proto != 0) m.Attr8(IFA_PROTO, c.proto);
}

// The gateway in the route's own family, or another family's as RTA_VIA.
void PutGateway(NetlinkMessage& m, int family, const NetAddress& gateway) {
  if (gateway.family == 0) return;
  if (gateway.family == family) return PutAddress(m, RTA_GATEWAY, gateway);
  const uint16_t af = gateway.family;
  const size_t size = AddressSize(af);
  std::array<uint8_t, sizeof af + 16> via;
  std::memcpy(via.data(), &af, sizeof af);
  std::memcpy(via.data() + sizeof af, gateway.bytes.data(), size);
  m.Attr(RTA_VIA, Bytes(via).first(sizeof af + size));
}

void PutNextHops(NetlinkMessage& m, const netlink::RouteChange& c) {
  nlattr* nest = m.Begin(RTA_MULTIPATH);
  for (int i = 0; i < c.next_hop_count; ++i) {
    const netlink::NextHopChange& hop = c.next_hops[static_cast<size_t>(i)];
    auto* header = static_cast<rtnexthop*>(m.Reserve(sizeof(rtnexthop)));
    *header = {.rtnh_flags = hop.flags, .rtnh_hops = hop.hops, .rtnh_ifindex = hop.ifindex};
    PutGateway(m, c.family, hop.gateway);
    header->rtnh_len = static_cast<uint16_t>(static_cast<uint8_t*>(nlmsg_tail(m.header())) - reinterpret_cast<uint8_t*>(header));
  }
  m.End(nest);
}

void Build(const netlink::RouteChange& c, NetlinkMessage& m) {
  m.Header(rtmsg{.rtm_family = c.family,
                 .rtm_dst_len = c.dst_len,
                 .rtm_tos = c.tos,
                 .rtm_table = static_cast<uint8_t>(c.table < 256 ? c.table : uint32_t{RT_TABLE_UNSPEC}),
                 .rtm_protocol = c.protocol,
                 .rtm_scope = c.scope,
                 .rtm_type = c.type,
                 .rtm_flags = c.flags});
  if (c.table >= 256) m.Attr(RTA_TABLE, c.table);
  PutAddress(m, RTA_DST, c.dst);
  PutAddress(m, RTA_PREFSRC, c.prefsrc);
  if (c.has_priority) m.Attr(RTA_PRIORITY, c.priority);
  if (c.has_pref) m.Attr8(RTA_PREF, c.pref);
  if (c.expires != 0) m.Attr(RTA_EXPIRES, c.expires);
  if (c.metric_mask != 0) {
    nlattr* nest = m.Begin(RTA_METRICS);
    for (uint16_t i = 1; i < c.metrics.size(); ++i) {
      if ((c.metric_mask & (1u << i)) != 0) m.Attr(i, c.metrics[i]);
    }
    m.End(nest);
  }
  if (c.next_hop_count != 0) return PutNextHops(m, c);
  PutGateway(m, c.family, c.gateway);
  if (c.oif != 0) m.Attr(RTA_OIF, static_cast<uint32_t>(c.oif));
}

void Build(const netlink::RuleChange& c, NetlinkMessage& m) {
  m.Header(fib_rule_hdr{.family = c.family,
                        .dst_len = c.dst_len,
                        .src_len = c.src_len,
                        .tos = c.tos,
                        .table = static_cast<uint8_t>(c.table < 256 ? c.table : uint32_t{RT_TABLE_UNSPEC}),
                        .action = c.action,
                        .flags = c.invert ? uint32_t{FIB_RULE_INVERT} : 0});
  if (c.table >= 256) m.Attr(FRA_TABLE, c.table);
  PutAddress(m, FRA_SRC, c.src);
  PutAddress(m, FRA_DST, c.dst);
  PutName(m, FRA_IIFNAME, c.iif);
  PutName(m, FRA_OIFNAME, c.oif);
  if (c.has_priority) m.Attr(FRA_PRIORITY, c.priority);
  if (c.has_fwmark) m.Attr(FRA_FWMARK, c.fwmark);
  if (c.has_fwmask) m.Attr(FRA_FWMASK, c.fwmask);
  if (c.goto_target != 0) m.Attr(FRA_GOTO, c.goto_target);
  if (c.protocol != 0) m.Attr8(FRA_PROTOCOL, c.protocol);
}

void Build(const netlink::NeighborChange& c, NetlinkMessage& m) {
  m.Header(ndmsg{.ndm_family = c.family, .ndm_ifindex = c.ifindex, .ndm_state = c.state, .ndm_flags = c.flags});
  PutAddress(m, NDA_DST, c.dst);
  if (c.has_lladdr) m.Attr(NDA_LLADDR, c.lladdr);
}

void Build(const netlink::LinkChange& c, NetlinkMessage& m) {
  m.Header(ifinfomsg{.ifi_family = AF_UNSPEC,
                     .ifi_index = c.ifindex,
                     .ifi_flags = c.has_up && c.up ? uint32_t{IFF_UP} : 0,
                     .ifi_change = c.has_up ? uint32_t{IFF_UP} : 0});
  if (c.has_mtu) m.Attr(IFLA_MTU, c.mtu);
  if (c.has_txqlen) m.Attr(IFLA_TXQLEN, c.txqlen);
  if (c.has_address) m.Attr(IFLA_ADDRESS, c.address);
}

void Build(const NetChange& change, NetlinkMessage& m) {
  switch (change.kind) {
    case NetChangeKind::kNone:
      return;
    case NetChangeKind::kNewAddress:
    case NetChangeKind::kDeleteAddress:
      return Build(change.address, m);
    case NetChangeKind::kNewRoute:
    case NetChangeKind::kDeleteRoute:
      return Build(change.route, m);
    case NetChangeKind::kNewRule:
    case NetChangeKind::kDeleteRule:
      return Build(change.rule, m);
    case NetChangeKind::kNewNeighbor:
    case NetChangeKind::kDeleteNeighbor:
      return Build(change.neighbor, m);
    case NetChangeKind::kSetLink:
      return Build(change.link, m);
  }
}

NetChangeResult Failure(int error, std::string_view message = {}) {
  NetChangeResult result{.error = static_cast<uint16_t>(error)};
  std::copy_n(message.begin(), std::min(message.size(), result.message.size() - 1), result.message.begin());
  return result;
}

// As ns_capable().
bool Capable(pid_t tid, const Credentials& caller, int netns_fd, int capability) {
  const std::string path = "/proc/" + std::to_string(tid) + "/ns/user";
  const UniqueFd caller_ns(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  UniqueFd ns(ioctl(netns_fd, NS_GET_USERNS));
  if (!caller_ns) return false;
  const bool capable = capability >= 0 && capability < 64 && ((caller.effective >> capability) & 1) != 0;
  // From the owner upwards: a capability counts in the caller's own namespace and those below it; who made a namespace has all of
  // them in it.
  while (ns) {
    if (SameFile(ns.get(), caller_ns.get())) return capable;
    uid_t owner = 0;
    const bool has_owner = ioctl(ns.get(), NS_GET_OWNER_UID, &owner) == 0;
    UniqueFd parent(ioctl(ns.get(), NS_GET_PARENT));
    if (parent && has_owner && owner == caller.euid && SameFile(parent.get(), caller_ns.get())) return true;
    ns = std::move(parent);
  }
  return false;
}

}  // namespace

bool HasCapabilityOverNetns(pid_t tid, int netns_fd, int capability) {
  Credentials caller;
  return ReadCredentials(tid, &caller) && Capable(tid, caller, netns_fd, capability);
}

bool HasCapabilityStillAs(pid_t tid, uint32_t uid, int netns_fd, int capability) {
  Credentials caller;
  return ReadCredentials(tid, &caller) && caller.uid == uid && caller.euid == uid && Capable(tid, caller, netns_fd, capability);
}

NetChanger::NetChanger(const NetChangeLimits& limits, std::string* error)
    : counts_{{{.limit = limits.addresses, .dump_type = RTM_GETADDR},
               {.limit = limits.routes, .dump_type = RTM_GETROUTE},
               {.limit = limits.rules, .dump_type = RTM_GETRULE},
               {.limit = limits.neighbors, .dump_type = RTM_GETNEIGH}}} {
  UniqueFd fd;
  const Status status = NetlinkClient::Open({}, &fd);
  if (status.ok()) {
    client_.emplace(std::move(fd));
  } else {
    *error = status.line();
  }
}

NetChangeResult NetChanger::Apply(const NetChange& change, bool allowed) {
  if (!allowed) return Failure(EPERM);
  if (!ok()) return Failure(EIO, "sluice: the namespace cannot be changed");
  if (!Valid(change)) return Failure(EINVAL, "sluice: the request has a value that cannot be");
  Count* count = CountOf(change.kind);
  const bool adds = count != nullptr && !Deletes(change.kind);
  if (adds && !WithinLimit(*count)) return Failure(ENOBUFS, "sluice: the namespace holds as many of these as it may");

  const bool creates = !Deletes(change.kind) && change.kind != NetChangeKind::kSetLink;
  const int create = creates ? change.nl_flags & (NLM_F_REPLACE | NLM_F_EXCL | NLM_F_CREATE | NLM_F_APPEND) : 0;
  NetlinkMessage message(MessageType(change.kind), static_cast<uint16_t>(NLM_F_REQUEST | NLM_F_ACK | create));
  Build(change, message);
  std::string reason;
  const int error = client_->Transact(message, &reason);
  const NetChangeResult result = Failure(error, reason);
  if (result.error == 0) {
    if (adds) ++count->added;
    // Deleting, replacing and setting a device down may take objects away: the sum is an upper bound until it is counted again.
    for (Count& c : counts_) c.recount |= !adds || (change.nl_flags & NLM_F_REPLACE) != 0;
  }
  return result;
}

NetChanger::Count* NetChanger::CountOf(NetChangeKind kind) {
  switch (kind) {
    case NetChangeKind::kNewAddress:
    case NetChangeKind::kDeleteAddress:
      return &counts_[0];
    case NetChangeKind::kNewRoute:
    case NetChangeKind::kDeleteRoute:
      return &counts_[1];
    case NetChangeKind::kNewRule:
    case NetChangeKind::kDeleteRule:
      return &counts_[2];
    case NetChangeKind::kNewNeighbor:
    case NetChangeKind::kDeleteNeighbor:
      return &counts_[3];
    default:
      return nullptr;
  }
}

// Counts only when the bound may be reached, and not again before something may have gone.
bool NetChanger::WithinLimit(Count& count) {
  const bool first = count.added == 0;
  if (!first && count.added < count.limit) return true;
  if (!count.recount && !first) return false;
  count.added = CountObjects(count.dump_type);
  count.recount = false;
  return count.added < count.limit;
}

uint32_t NetChanger::CountObjects(uint16_t dump_type) {
  NetlinkMessage request(dump_type, NLM_F_REQUEST | NLM_F_DUMP);
  if (dump_type == RTM_GETADDR) {
    request.Header(ifaddrmsg{});
  } else {
    static_assert(sizeof(rtmsg) == sizeof(fib_rule_hdr) && sizeof(rtmsg) == sizeof(ndmsg));
    request.Header(rtmsg{});
  }
  uint32_t count = 0;
  client_->Dump(request, [&](const nlmsghdr*) { ++count; }, [&] { count = 0; });
  return count;
}

}  // namespace sluice
