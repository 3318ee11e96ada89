#include "sentry/netlink/testing/kernel.h"

#include <linux/fib_rules.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <thread>

#include "sentry/netlink/server_impl.h"

namespace sluice::netlink::testing {
namespace {

struct TypeInfo {
  size_t header;                   // of the family
  std::vector<uint16_t> left_out;  // attributes that differ by themselves
};

TypeInfo InfoOf(uint16_t type) {
  switch (type) {
    case RTM_NEWLINK:
    case RTM_DELLINK:
      return {sizeof(ifinfomsg), {IFLA_STATS, IFLA_STATS64, IFLA_AF_SPEC, IFLA_PROTINFO}};
    case RTM_NEWADDR:
    case RTM_DELADDR:
      return {sizeof(ifaddrmsg), {}};
    case RTM_NEWROUTE:
    case RTM_DELROUTE:
      return {sizeof(rtmsg), {RTA_CACHEINFO}};
    case RTM_NEWRULE:
      return {sizeof(fib_rule_hdr), {}};
    case RTM_NEWNEIGH:
      return {sizeof(ndmsg), {NDA_CACHEINFO, NDA_PROBES}};
    case NLMSG_DONE:
      return {sizeof(int), {NLMSGERR_ATTR_MSG}};
    default:
      return {4, {}};
  }
}

std::string Hex(Bytes bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (const uint8_t b : bytes) out += {kDigits[b >> 4], kDigits[b & 15]};
  return out;
}

bool Final(Bytes message) {
  const auto h = LoadPrefix<nlmsghdr>(message);
  return h.nlmsg_type == NLMSG_DONE || h.nlmsg_type == NLMSG_ERROR || (h.nlmsg_flags & NLM_F_MULTI) == 0;
}

template <typename Fn>
void ForEachRecorded(uint16_t get, Fn fn) {
  const rtmsg header{};
  for (const Buffer& m : AskKernel(NETLINK_ROUTE, MakeRequest(get, NLM_F_DUMP, AsBytes(header)), {})) {
    if (LoadPrefix<nlmsghdr>(m).nlmsg_type >= NLMSG_MIN_TYPE) fn(m);
  }
}

IpAddress AddressIn(Bytes message, size_t header, uint16_t type) {
  return IpAddress::FromBytes(FindAttribute(message, header, type));
}

uint32_t NumberIn(Bytes message, size_t header, uint16_t type) {
  return LoadPrefix<uint32_t>(FindAttribute(message, header, type));
}

std::string TextIn(Bytes message, size_t header, uint16_t type) {
  return std::string(Attribute{.present = true, .value = FindAttribute(message, header, type)}.text());
}

LinkConfig ToLink(const Buffer& m) {
  const auto h = LoadPrefix<ifinfomsg>(Bytes(m).subspan(sizeof(nlmsghdr)));
  LinkConfig link;
  link.index = h.ifi_index;
  link.flags = h.ifi_flags;
  link.type = h.ifi_type;
  link.name = TextIn(m, sizeof h, IFLA_IFNAME);
  link.mtu = NumberIn(m, sizeof h, IFLA_MTU);
  link.tx_queue_len = NumberIn(m, sizeof h, IFLA_TXQLEN);
  link.operstate = static_cast<uint8_t>(NumberIn(m, sizeof h, IFLA_OPERSTATE));
  link.carrier = NumberIn(m, sizeof h, IFLA_CARRIER) != 0;
  const Bytes mac = FindAttribute(m, sizeof h, IFLA_ADDRESS);
  std::copy_n(mac.begin(), std::min<size_t>(mac.size(), 6), link.mac.bytes.begin());
  link.attached = true;
  link.netlink = m;
  return link;
}

AddressConfig ToAddress(const Buffer& m) {
  const auto h = LoadPrefix<ifaddrmsg>(Bytes(m).subspan(sizeof(nlmsghdr)));
  AddressConfig a;
  a.ifindex = static_cast<IfIndex>(h.ifa_index);
  a.peer = AddressIn(m, sizeof h, IFA_ADDRESS);
  a.local = AddressIn(m, sizeof h, IFA_LOCAL);
  if (!a.local) a.local = a.peer;
  a.broadcast = AddressIn(m, sizeof h, IFA_BROADCAST);
  a.prefix_len = h.ifa_prefixlen;
  a.scope = h.ifa_scope;
  a.flags = NumberIn(m, sizeof h, IFA_FLAGS);
  a.label = TextIn(m, sizeof h, IFA_LABEL);
  a.netlink = m;
  return a;
}

RouteConfig ToRoute(const Buffer& m) {
  const auto h = LoadPrefix<rtmsg>(Bytes(m).subspan(sizeof(nlmsghdr)));
  RouteConfig r;
  r.dst = AddressIn(m, sizeof h, RTA_DST);
  if (!r.dst) r.dst = IpAddress::Any(ToFamily(h.rtm_family));
  r.prefix_len = h.rtm_dst_len;
  r.table = NumberIn(m, sizeof h, RTA_TABLE);
  r.type = h.rtm_type;
  r.scope = h.rtm_scope;
  r.protocol = h.rtm_protocol;
  r.tos = h.rtm_tos;
  r.priority = NumberIn(m, sizeof h, RTA_PRIORITY);
  r.prefsrc = AddressIn(m, sizeof h, RTA_PREFSRC);
  if (!FindAttribute(m, sizeof h, RTA_OIF).empty()) {
    r.next_hops.push_back({.gateway = AddressIn(m, sizeof h, RTA_GATEWAY),
                           .ifindex = static_cast<IfIndex>(NumberIn(m, sizeof h, RTA_OIF)),
                           .flags = h.rtm_flags & 0xff});
  }
  r.netlink = m;
  return r;
}

RuleConfig ToRule(const Buffer& m) {
  const auto h = LoadPrefix<fib_rule_hdr>(Bytes(m).subspan(sizeof(nlmsghdr)));
  RuleConfig r;
  r.family = ToFamily(h.family);
  r.priority = NumberIn(m, sizeof h, FRA_PRIORITY);
  r.table = NumberIn(m, sizeof h, FRA_TABLE);
  r.src = AddressIn(m, sizeof h, FRA_SRC);
  r.dst = AddressIn(m, sizeof h, FRA_DST);
  r.src_len = h.src_len;
  r.dst_len = h.dst_len;
  r.fwmark = NumberIn(m, sizeof h, FRA_FWMARK);
  r.fwmask = NumberIn(m, sizeof h, FRA_FWMASK);
  r.action = h.action;
  r.netlink = m;
  return r;
}

}  // namespace

bool InNewNetns(const std::function<void()>& body) {
  bool entered = false;
  std::thread thread([&] {
    entered = unshare(CLONE_NEWNET) == 0;
    if (entered) body();
  });
  thread.join();
  return entered;
}

int Shell(const std::string& command) { return std::system(command.c_str()); }

Buffer MakeRequest(uint16_t type, uint16_t flags, Bytes header, const std::function<void(MessageWriter&)>& attributes) {
  Buffer out;
  MessageWriter w(&out, type, static_cast<uint16_t>(NLM_F_REQUEST | flags), 77);
  w.Raw(header);
  if (attributes) attributes(w);
  w.Finish();
  return out;
}

void Split(Bytes datagram, Messages* out) {
  while (WellFormed(datagram, 0)) {
    const size_t length = LoadPrefix<nlmsghdr>(datagram).nlmsg_len;
    out->emplace_back(datagram.begin(), datagram.begin() + static_cast<ptrdiff_t>(length));
    datagram = datagram.subspan(std::min(Align4(length), datagram.size()));
  }
}

Messages AskKernel(int protocol, Bytes request, const SocketOptions& options) {
  Messages out;
  const int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
  for (const auto& [name, on] : {std::pair{NETLINK_GET_STRICT_CHK, options.strict},
                                 {NETLINK_EXT_ACK, options.ext_ack},
                                 {NETLINK_CAP_ACK, options.cap_ack}}) {
    const int value = on ? 1 : 0;
    setsockopt(fd, SOL_NETLINK, name, &value, sizeof value);
  }
  // The kernel answers within send and recv: nothing waits, and no answer is told by EAGAIN.
  if (send(fd, request.data(), request.size(), 0) == static_cast<ssize_t>(request.size())) {
    Buffer buffer(65536);
    while (out.empty() || !Final(out.back())) {
      const ssize_t n = recv(fd, buffer.data(), buffer.size(), MSG_DONTWAIT);
      if (n <= 0) break;
      Split(Bytes(buffer).first(static_cast<size_t>(n)), &out);
    }
  }
  close(fd);
  return out;
}

Messages AskServer(NetlinkServer& server, int protocol, Bytes request, const SocketOptions& options, const Caller& caller) {
  Messages out;
  Errno error = Errno::kOk;
  const auto socket = server.NewSocket(SOCK_RAW, protocol, &error);
  for (const auto& [name, on] : {std::pair{NETLINK_GET_STRICT_CHK, options.strict},
                                 {NETLINK_EXT_ACK, options.ext_ack},
                                 {NETLINK_CAP_ACK, options.cap_ack}}) {
    const int value = on ? 1 : 0;
    error = socket->SetOption(name, AsBytes(value), caller);
  }
  error = socket->Send(request, {}, caller);
  if (error != Errno::kOk) return out;
  Reply reply;
  while ((out.empty() || !Final(out.back())) && socket->NextReply(&reply)) Split(reply.bytes, &out);
  return out;
}

NetConfig RecordConfig() {
  NetConfig config;
  ForEachRecorded(RTM_GETLINK, [&](const Buffer& m) { config.links.push_back(ToLink(m)); });
  ForEachRecorded(RTM_GETADDR, [&](const Buffer& m) { config.addresses.push_back(ToAddress(m)); });
  ForEachRecorded(RTM_GETROUTE, [&](const Buffer& m) { config.routes.push_back(ToRoute(m)); });
  ForEachRecorded(RTM_GETRULE, [&](const Buffer& m) {
    RuleConfig rule = ToRule(m);
    if (rule.family != Family::kNone) config.rules.push_back(std::move(rule));
  });
  ForEachRecorded(RTM_GETNEIGH, [&](const Buffer& m) {
    const auto h = LoadPrefix<ndmsg>(Bytes(m).subspan(sizeof(nlmsghdr)));
    if ((h.ndm_state & NUD_PERMANENT) == 0) return;
    NeighborConfig n{.ifindex = h.ndm_ifindex, .address = AddressIn(m, sizeof h, NDA_DST), .state = h.ndm_state};
    const Bytes mac = FindAttribute(m, sizeof h, NDA_LLADDR);
    std::copy_n(mac.begin(), std::min<size_t>(mac.size(), 6), n.mac.bytes.begin());
    config.neighbors.push_back(n);
  });
  return config;
}

std::string Describe(Bytes message, bool sorted) {
  const auto header = LoadPrefix<nlmsghdr>(message);
  std::string out = "type " + std::to_string(header.nlmsg_type) + " seq " + std::to_string(header.nlmsg_seq);
  const bool status = header.nlmsg_type == NLMSG_DONE || header.nlmsg_type == NLMSG_ERROR;
  // Whether a text comes along is ours to decide; its presence shows in the flags.
  const int hidden = status ? NLM_F_ACK_TLVS : 0;
  out += " flags " + std::to_string(header.nlmsg_flags & ~hidden);
  if (header.nlmsg_type == NLMSG_ERROR) {
    const auto error = LoadPrefix<nlmsgerr>(message.subspan(sizeof header));
    const size_t fixed =
        sizeof(nlmsgerr) + ((header.nlmsg_flags & NLM_F_CAPPED) != 0 ? 0 : error.msg.nlmsg_len - sizeof(nlmsghdr));
    out += " error " + std::to_string(error.error) + " of " + std::to_string(error.msg.nlmsg_type);
    if ((header.nlmsg_flags & NLM_F_ACK_TLVS) == 0) return out;
    const Bytes offset = FindAttribute(message, Align4(fixed), NLMSGERR_ATTR_OFFS);
    return offset.empty() ? out : out + " at " + std::to_string(LoadPrefix<uint32_t>(offset));
  }
  const TypeInfo info = InfoOf(header.nlmsg_type);
  const size_t fixed = std::min(info.header, message.size() - sizeof header);
  out += " header " + Hex(message.subspan(sizeof header, fixed)) + "\n";
  const size_t skip = sizeof header + Align4(fixed);
  std::vector<std::pair<uint16_t, std::string>> lines;
  if (message.size() > skip) {
    ForEachAttribute(message.subspan(skip), [&](uint16_t type, Bytes value) {
      const bool left_out = std::find(info.left_out.begin(), info.left_out.end(), type) != info.left_out.end();
      lines.emplace_back(type, left_out ? "(" + std::to_string(value.size()) + " bytes)" : Hex(value));
    });
  }
  if (status) return out;
  if (sorted) std::sort(lines.begin(), lines.end());
  for (const auto& [type, text] : lines) out += "  " + std::to_string(type) + ": " + text + "\n";
  return out;
}

}  // namespace sluice::netlink::testing
