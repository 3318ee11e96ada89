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

#include "sentry/netlink/message.h"

namespace sluice {
namespace {

using netlink::AddressSize;
using netlink::Buffer;
using netlink::MessageWriter;
using netlink::NetAddress;
using netlink::NetChange;
using netlink::NetChangeKind;
using netlink::NetChangeResult;
using netlink::NetName;

class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() {
    if (fd_ >= 0) close(fd_);
  }
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  int get() const { return fd_; }
  bool ok() const { return fd_ >= 0; }

 private:
  int fd_;
};

// ---- judgement of a caller ----

struct Credentials {
  uint64_t effective = 0;  // capabilities
  uint64_t euid = 0;
};

bool ParseNumber(std::string_view text, int base, uint64_t* value) {
  return std::from_chars(text.data(), text.data() + text.size(), *value, base).ec == std::errc();
}

bool ReadCredentials(pid_t tid, Credentials* out) {
  const std::string path = "/proc/" + std::to_string(tid) + "/status";
  const Fd file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.ok()) return false;
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
  return ParseNumber(std::string_view(text).substr(euid + 1), 10, &out->euid) &&
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

void PutAddress(MessageWriter& w, uint16_t type, const NetAddress& a) {
  if (a.family != 0) w.Attr(type, Bytes(a.bytes).first(AddressSize(a.family)));
}

void PutName(MessageWriter& w, uint16_t type, const NetName& name) {
  if (name[0] != 0) w.Text(type, name.data());
}

void Build(const netlink::AddressChange& c, MessageWriter& w) {
  w.Header(ifaddrmsg{.ifa_family = c.family,
                     .ifa_prefixlen = c.prefix_len,
                     .ifa_flags = static_cast<uint8_t>(c.flags),
                     .ifa_scope = c.scope,
                     .ifa_index = static_cast<uint32_t>(c.ifindex)});
  PutAddress(w, IFA_LOCAL, c.local);
  PutAddress(w, IFA_ADDRESS, c.address);
  PutAddress(w, IFA_BROADCAST, c.broadcast);
  PutName(w, IFA_LABEL, c.label);
  if (c.flags > 0xff) w.U32(IFA_FLAGS, c.flags);
  if (c.has_cacheinfo) w.Struct(IFA_CACHEINFO, ifa_cacheinfo{.ifa_prefered = c.preferred, .ifa_valid = c.valid});
  if (c.route_priority != 0) w.U32(IFA_RT_PRIORITY, c.route_priority);
  if (c.proto != 0) w.U8(IFA_PROTO, c.proto);
}

// The gateway in the route's own family, or another family's as RTA_VIA.
void PutGateway(MessageWriter& w, int family, const NetAddress& gateway) {
  if (gateway.family == 0) return;
  if (gateway.family == family) return PutAddress(w, RTA_GATEWAY, gateway);
  Buffer via;
  const uint16_t af = gateway.family;
  via.insert(via.end(), netlink::AsBytes(af).begin(), netlink::AsBytes(af).end());
  via.insert(via.end(), gateway.bytes.begin(), gateway.bytes.begin() + static_cast<ptrdiff_t>(AddressSize(af)));
  w.Attr(RTA_VIA, via);
}

void PutNextHops(MessageWriter& w, const netlink::RouteChange& c) {
  Buffer list;
  for (int i = 0; i < c.next_hop_count; ++i) {
    const netlink::NextHopChange& hop = c.next_hops[static_cast<size_t>(i)];
    Buffer attributes;
    {
      MessageWriter inner(&attributes, 0);
      PutGateway(inner, c.family, hop.gateway);
    }
    const Bytes body = Bytes(attributes).subspan(sizeof(nlmsghdr));
    const rtnexthop header{.rtnh_len = static_cast<uint16_t>(sizeof(rtnexthop) + body.size()),
                           .rtnh_flags = hop.flags,
                           .rtnh_hops = hop.hops,
                           .rtnh_ifindex = hop.ifindex};
    list.insert(list.end(), netlink::AsBytes(header).begin(), netlink::AsBytes(header).end());
    list.insert(list.end(), body.begin(), body.end());
  }
  w.Attr(RTA_MULTIPATH, list);
}

void Build(const netlink::RouteChange& c, MessageWriter& w) {
  w.Header(rtmsg{.rtm_family = c.family,
                 .rtm_dst_len = c.dst_len,
                 .rtm_tos = c.tos,
                 .rtm_table = static_cast<uint8_t>(c.table < 256 ? c.table : uint32_t{RT_TABLE_UNSPEC}),
                 .rtm_protocol = c.protocol,
                 .rtm_scope = c.scope,
                 .rtm_type = c.type,
                 .rtm_flags = c.flags});
  if (c.table >= 256) w.U32(RTA_TABLE, c.table);
  PutAddress(w, RTA_DST, c.dst);
  PutAddress(w, RTA_PREFSRC, c.prefsrc);
  if (c.has_priority) w.U32(RTA_PRIORITY, c.priority);
  if (c.has_pref) w.U8(RTA_PREF, c.pref);
  if (c.expires != 0) w.U32(RTA_EXPIRES, c.expires);
  if (c.metric_mask != 0) {
    const size_t nest = w.BeginNest(RTA_METRICS | NLA_F_NESTED);
    for (uint16_t i = 1; i < c.metrics.size(); ++i) {
      if ((c.metric_mask & (1u << i)) != 0) w.U32(i, c.metrics[i]);
    }
    w.EndNest(nest);
  }
  if (c.next_hop_count != 0) return PutNextHops(w, c);
  PutGateway(w, c.family, c.gateway);
  if (c.oif != 0) w.U32(RTA_OIF, static_cast<uint32_t>(c.oif));
}

void Build(const netlink::RuleChange& c, MessageWriter& w) {
  w.Header(fib_rule_hdr{.family = c.family,
                        .dst_len = c.dst_len,
                        .src_len = c.src_len,
                        .tos = c.tos,
                        .table = static_cast<uint8_t>(c.table < 256 ? c.table : uint32_t{RT_TABLE_UNSPEC}),
                        .action = c.action,
                        .flags = c.invert ? uint32_t{FIB_RULE_INVERT} : 0});
  if (c.table >= 256) w.U32(FRA_TABLE, c.table);
  PutAddress(w, FRA_SRC, c.src);
  PutAddress(w, FRA_DST, c.dst);
  PutName(w, FRA_IIFNAME, c.iif);
  PutName(w, FRA_OIFNAME, c.oif);
  if (c.has_priority) w.U32(FRA_PRIORITY, c.priority);
  if (c.has_fwmark) w.U32(FRA_FWMARK, c.fwmark);
  if (c.has_fwmask) w.U32(FRA_FWMASK, c.fwmask);
  if (c.goto_target != 0) w.U32(FRA_GOTO, c.goto_target);
  if (c.protocol != 0) w.U8(FRA_PROTOCOL, c.protocol);
}

void Build(const netlink::NeighborChange& c, MessageWriter& w) {
  w.Header(ndmsg{.ndm_family = c.family, .ndm_ifindex = c.ifindex, .ndm_state = c.state, .ndm_flags = c.flags});
  PutAddress(w, NDA_DST, c.dst);
  if (c.has_lladdr) w.Attr(NDA_LLADDR, c.lladdr);
}

void Build(const netlink::LinkChange& c, MessageWriter& w) {
  w.Header(ifinfomsg{.ifi_family = AF_UNSPEC,
                     .ifi_index = c.ifindex,
                     .ifi_flags = c.has_up && c.up ? uint32_t{IFF_UP} : 0,
                     .ifi_change = c.has_up ? uint32_t{IFF_UP} : 0});
  if (c.has_mtu) w.U32(IFLA_MTU, c.mtu);
  if (c.has_txqlen) w.U32(IFLA_TXQLEN, c.txqlen);
  if (c.has_address) w.Attr(IFLA_ADDRESS, c.address);
}

void Build(const NetChange& change, MessageWriter& w) {
  switch (change.kind) {
    case NetChangeKind::kNone:
      return;
    case NetChangeKind::kNewAddress:
    case NetChangeKind::kDeleteAddress:
      return Build(change.address, w);
    case NetChangeKind::kNewRoute:
    case NetChangeKind::kDeleteRoute:
      return Build(change.route, w);
    case NetChangeKind::kNewRule:
    case NetChangeKind::kDeleteRule:
      return Build(change.rule, w);
    case NetChangeKind::kNewNeighbor:
    case NetChangeKind::kDeleteNeighbor:
      return Build(change.neighbor, w);
    case NetChangeKind::kSetLink:
      return Build(change.link, w);
  }
}

NetChangeResult Failure(int error, std::string_view message = {}) {
  NetChangeResult result{.error = static_cast<uint16_t>(error)};
  std::copy_n(message.begin(), std::min(message.size(), result.message.size() - 1), result.message.begin());
  return result;
}

// The kernel's NLMSG_ERROR with its extended acknowledgement. The request is not repeated in it (NETLINK_CAP_ACK).
NetChangeResult ReadAck(Bytes message) {
  const auto header = netlink::LoadPrefix<nlmsghdr>(message);
  const auto error = netlink::LoadPrefix<nlmsgerr>(message.subspan(sizeof header));
  NetChangeResult result = Failure(-error.error);
  if ((header.nlmsg_flags & NLM_F_ACK_TLVS) == 0) return result;
  const Bytes text = netlink::FindAttribute(message, sizeof(nlmsgerr), NLMSGERR_ATTR_MSG);
  return Failure(-error.error, netlink::Attribute{.present = true, .value = text}.text());
}

}  // namespace

bool HasCapabilityOverNetns(pid_t tid, int netns_fd, int capability) {
  Credentials caller;
  if (!ReadCredentials(tid, &caller)) return false;
  const std::string path = "/proc/" + std::to_string(tid) + "/ns/user";
  const Fd caller_ns(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  Fd ns(ioctl(netns_fd, NS_GET_USERNS));
  if (!caller_ns.ok()) return false;
  const bool capable = capability >= 0 && capability < 64 && ((caller.effective >> capability) & 1) != 0;
  // From the owner upwards: a capability counts in the caller's own namespace and those below it; who made a namespace has all of
  // them in it.
  while (ns.ok()) {
    if (SameFile(ns.get(), caller_ns.get())) return capable;
    uid_t owner = 0;
    const bool has_owner = ioctl(ns.get(), NS_GET_OWNER_UID, &owner) == 0;
    Fd parent(ioctl(ns.get(), NS_GET_PARENT));
    if (parent.ok() && has_owner && owner == caller.euid && SameFile(parent.get(), caller_ns.get())) return true;
    ns = std::move(parent);
  }
  return false;
}

NetChanger::NetChanger(const NetChangeLimits& limits, std::string* error)
    : counts_{{{.limit = limits.addresses, .dump_type = RTM_GETADDR},
               {.limit = limits.routes, .dump_type = RTM_GETROUTE},
               {.limit = limits.rules, .dump_type = RTM_GETRULE},
               {.limit = limits.neighbors, .dump_type = RTM_GETNEIGH}}} {
  fd_ = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
  const int on = 1;
  if (fd_ < 0 || setsockopt(fd_, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on) != 0 ||
      setsockopt(fd_, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof on) != 0) {
    *error = std::string("cannot open a rtnetlink socket for changes of the namespace: ") + std::strerror(errno);
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }
}

NetChanger::~NetChanger() {
  if (fd_ >= 0) close(fd_);
}

NetChangeResult NetChanger::Apply(const NetChange& change, bool allowed) {
  if (!allowed) return Failure(EPERM);
  if (fd_ < 0) return Failure(EIO, "sluice: the namespace cannot be changed");
  if (!Valid(change)) return Failure(EINVAL, "sluice: the request has a value that cannot be");
  Count* count = CountOf(change.kind);
  const bool adds = count != nullptr && !Deletes(change.kind);
  if (adds && !WithinLimit(*count)) return Failure(ENOBUFS, "sluice: the namespace holds as many of these as it may");

  Buffer message;
  {
    const auto create = Deletes(change.kind) || change.kind == NetChangeKind::kSetLink
                            ? uint16_t{0}
                            : static_cast<uint16_t>(change.nl_flags & (NLM_F_REPLACE | NLM_F_EXCL | NLM_F_CREATE | NLM_F_APPEND));
    MessageWriter w(&message, MessageType(change.kind), static_cast<uint16_t>(NLM_F_REQUEST | NLM_F_ACK | create), ++seq_);
    Build(change, w);
  }
  const NetChangeResult result = Transact(message);
  if (result.error == 0) {
    if (adds) ++count->added;
    // Deleting, replacing and setting a device down may take objects away: the sum is an upper bound until it is counted again.
    for (Count& c : counts_) c.recount |= !adds || (change.nl_flags & NLM_F_REPLACE) != 0;
  }
  return result;
}

// A request is answered within sendmsg, so nothing here waits.
NetChangeResult NetChanger::Transact(std::vector<uint8_t>& message) {
  const sockaddr_nl kernel{.nl_family = AF_NETLINK};
  const ssize_t sent =
      sendto(fd_, message.data(), message.size(), MSG_DONTWAIT, reinterpret_cast<const sockaddr*>(&kernel), sizeof kernel);
  if (sent < 0) return Failure(errno);
  std::array<uint8_t, 4096> buffer;
  for (;;) {
    const ssize_t n = recv(fd_, buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Failure(EIO, "sluice: the kernel did not answer");
    const Bytes answer(buffer.data(), static_cast<size_t>(n));
    const auto header = netlink::LoadPrefix<nlmsghdr>(answer);
    if (!netlink::WellFormed(answer, sizeof(nlmsgerr)) || header.nlmsg_type != NLMSG_ERROR || header.nlmsg_seq != seq_) continue;
    return ReadAck(answer);
  }
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
  Buffer request;
  {
    MessageWriter w(&request, dump_type, NLM_F_REQUEST | NLM_F_DUMP, ++seq_);
    w.Header(rtmsg{});
  }
  const sockaddr_nl kernel{.nl_family = AF_NETLINK};
  if (sendto(fd_, request.data(), request.size(), MSG_DONTWAIT, reinterpret_cast<const sockaddr*>(&kernel), sizeof kernel) < 0)
    return 0;
  std::array<uint8_t, 32768> buffer;
  uint32_t count = 0;
  for (;;) {
    const ssize_t n = recv(fd_, buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return count;
    Bytes rest(buffer.data(), static_cast<size_t>(n));
    while (netlink::WellFormed(rest, 0)) {
      const auto header = netlink::LoadPrefix<nlmsghdr>(rest);
      if (header.nlmsg_seq == seq_ && (header.nlmsg_type == NLMSG_DONE || header.nlmsg_type == NLMSG_ERROR)) return count;
      if (header.nlmsg_seq == seq_) ++count;
      rest = rest.subspan(std::min(netlink::Align4(header.nlmsg_len), rest.size()));
    }
  }
}

}  // namespace sluice
