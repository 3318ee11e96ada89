#include "sentry/message_control.h"

#include <linux/errqueue.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <string.h>
#include <sys/socket.h>

#include <algorithm>

#include "sentry/sockaddr.h"

namespace sluice {
namespace {

constexpr int kUdpSegment = 103, kUdpGro = 104;

template <typename T>
bool Load(Bytes data, T* out) {
  if (data.size() < sizeof *out) return false;
  memcpy(out, data.data(), sizeof *out);
  return true;
}

Errno ParseIp(int type, Bytes data, DatagramSend* how) {
  int value = 0;
  switch (type) {
    case IP_PKTINFO: {
      in_pktinfo info;
      if (data.size() != sizeof info || !Load(data, &info)) return Errno::kEINVAL;
      how->ifindex = info.ipi_ifindex;
      if (info.ipi_spec_dst.s_addr != 0) how->source = IpAddress::V4(ntohl(info.ipi_spec_dst.s_addr));
      return Errno::kOk;
    }
    case IP_TTL:
      if (data.size() != sizeof value || !Load(data, &value) || value < 1 || value > 255) return Errno::kEINVAL;
      how->ttl = static_cast<uint8_t>(value);
      return Errno::kOk;
    case IP_TOS:
      if (data.size() == 1) {
        value = data[0];
      } else if (data.size() != sizeof value || !Load(data, &value)) {
        return Errno::kEINVAL;
      }
      if (value < 0 || value > 255) return Errno::kEINVAL;
      how->tos = static_cast<uint8_t>(value);
      return Errno::kOk;
    default:
      return Errno::kEINVAL;
  }
}

Errno ParseIpv6(int type, Bytes data, DatagramSend* how) {
  int value = 0;
  switch (type) {
    case IPV6_PKTINFO: {
      in6_pktinfo info;
      if (!Load(data, &info)) return Errno::kEINVAL;
      how->ifindex = static_cast<IfIndex>(info.ipi6_ifindex);
      IpAddress source = IpAddress::FromBytes({info.ipi6_addr.s6_addr, 16});
      if (!source.IsAny()) how->source = source;
      return Errno::kOk;
    }
    case IPV6_HOPLIMIT:
      if (data.size() != sizeof value || !Load(data, &value) || value < -1 || value > 255) return Errno::kEINVAL;
      if (value >= 0) how->ttl = static_cast<uint8_t>(value);
      return Errno::kOk;
    case IPV6_TCLASS:
      if (data.size() != sizeof value || !Load(data, &value) || value < -1 || value > 255) return Errno::kEINVAL;
      if (value >= 0) how->tos = static_cast<uint8_t>(value);
      return Errno::kOk;
    default:
      return Errno::kEINVAL;
  }
}

Errno ParseOne(int family, int level, int type, Bytes data, DatagramSend* how) {
  if (level == SOL_SOCKET) return type == SCM_RIGHTS || type == SCM_CREDENTIALS ? Errno::kOk : Errno::kEINVAL;
  if (level == SOL_UDP && type == kUdpSegment) {
    uint16_t size = 0;
    if (data.size() != sizeof size || !Load(data, &size)) return Errno::kEINVAL;
    how->gso_size = size;
    return Errno::kOk;
  }
  if (level == IPPROTO_IP && family == AF_INET) return ParseIp(type, data, how);
  if (level == IPPROTO_IPV6 && family == AF_INET6) return ParseIpv6(type, data, how);
  return Errno::kOk;  // Linux skips levels that are not the socket's own
}

// What an answer sends back of the options it came with (linux ip_options_echo): record route and time stamps. Source routes do
// not reach a socket.
std::vector<uint8_t> ReturnOptions(Bytes options) {
  constexpr uint8_t kEnd = 0, kNop = 1, kRecordRoute = 7, kTimestamp = 68;
  std::vector<uint8_t> out;
  while (!options.empty() && options[0] != kEnd) {
    const size_t length = options[0] == kNop || options.size() < 2 ? 1 : std::clamp<size_t>(options[1], 2, options.size());
    if (options[0] == kRecordRoute || options[0] == kTimestamp)
      out.insert(out.end(), options.begin(), options.begin() + static_cast<ptrdiff_t>(length));
    options = options.subspan(length);
  }
  while (out.size() % 4 != 0) out.push_back(kEnd);
  return out;
}

}  // namespace

Errno ParseSendControl(int family, Bytes control, DatagramSend* how) {
  while (control.size() >= sizeof(cmsghdr)) {
    cmsghdr h;
    memcpy(&h, control.data(), sizeof h);
    if (h.cmsg_len < sizeof h || h.cmsg_len > control.size()) return Errno::kEINVAL;
    Bytes data = control.subspan(sizeof h, h.cmsg_len - sizeof h);
    if (Errno e = ParseOne(family, h.cmsg_level, h.cmsg_type, data, how); e != Errno::kOk) return e;
    control = control.subspan(std::min(CMSG_ALIGN(h.cmsg_len), control.size()));
  }
  return Errno::kOk;
}

void ControlBuilder::Add(int level, int type, const void* data, size_t size) {
  size_t at = bytes_.size();
  if (at + sizeof(cmsghdr) > capacity_) {
    truncated_ = true;
    return;
  }
  size_t length = CMSG_LEN(size);
  if (at + length > capacity_) {
    truncated_ = true;
    length = capacity_ - at;
  }
  cmsghdr h{};
  h.cmsg_len = length;
  h.cmsg_level = level;
  h.cmsg_type = type;
  bytes_.resize(std::min(at + CMSG_ALIGN(length), capacity_));
  memcpy(bytes_.data() + at, &h, sizeof h);
  memcpy(bytes_.data() + at + sizeof h, data, length - sizeof h);
}

void AddReceiveControl(const DatagramSocket& socket, int family, const DatagramMeta& meta, ControlBuilder* out) {
  auto on = [&socket](SockOpt option) {
    int64_t value = 0;
    return socket.GetOption(option, &value) == Errno::kOk && value != 0;
  };
  IpAddress to = meta.destination.address.Unmapped();
  if (to.is_v4() && on(SockOpt::kIpPktInfo)) {
    in_pktinfo info{};
    info.ipi_ifindex = meta.ifindex;
    info.ipi_addr.s_addr = info.ipi_spec_dst.s_addr = htonl(to.v4());
    if (meta.answer_from.is_v4()) info.ipi_spec_dst.s_addr = htonl(meta.answer_from.v4());
    out->Add(IPPROTO_IP, IP_PKTINFO, info);
  }
  if (family == AF_INET && on(SockOpt::kIpRecvTtl)) out->Add(IPPROTO_IP, IP_TTL, static_cast<int>(meta.ttl));
  if (family == AF_INET && on(SockOpt::kIpRecvTos)) out->Add(IPPROTO_IP, IP_TOS, meta.tos);
  if (family == AF_INET && meta.ip_options) {
    const std::vector<uint8_t>& options = *meta.ip_options;
    if (on(SockOpt::kIpRecvOpts)) out->Add(IPPROTO_IP, IP_RECVOPTS, options.data(), options.size());
    const std::vector<uint8_t> back = on(SockOpt::kIpRetOpts) ? ReturnOptions(options) : std::vector<uint8_t>();
    if (!back.empty()) out->Add(IPPROTO_IP, IP_RETOPTS, back.data(), back.size());
  }
  if (family == AF_INET && on(SockOpt::kIpRecvOrigDstAddr)) {
    Sockaddr a = FormatSockaddr(meta.destination, AF_INET);
    out->Add(IPPROTO_IP, 20 /* IP_ORIGDSTADDR */, a.bytes.data(), a.length);
  }
  if (family == AF_INET6) {
    if (on(SockOpt::kIpv6RecvPktInfo)) {
      in6_pktinfo info{};
      IpAddress mapped = meta.destination.address.Mapped();
      if (mapped.is_v6()) memcpy(info.ipi6_addr.s6_addr, mapped.bytes().data(), 16);
      info.ipi6_ifindex = static_cast<unsigned>(meta.ifindex);
      out->Add(IPPROTO_IPV6, IPV6_PKTINFO, info);
    }
    if (on(SockOpt::kIpv6RecvHopLimit)) out->Add(IPPROTO_IPV6, IPV6_HOPLIMIT, static_cast<int>(meta.ttl));
    if (on(SockOpt::kIpv6RecvTclass)) out->Add(IPPROTO_IPV6, IPV6_TCLASS, static_cast<int>(meta.tos));
  }
  if (meta.gro_size != 0 && on(SockOpt::kUdpGro)) out->Add(SOL_UDP, kUdpGro, static_cast<int>(meta.gro_size));
}

void AddErrorControl(int family, const SocketError& error, ControlBuilder* out) {
  sock_extended_err e{};
  e.ee_errno = static_cast<uint32_t>(ToInt(error.error));
  e.ee_origin = error.origin;
  e.ee_type = error.type;
  e.ee_code = error.code;
  e.ee_info = error.info;
  uint8_t body[sizeof e + sizeof(sockaddr_in6)] = {};
  memcpy(body, &e, sizeof e);
  size_t length = sizeof e + (family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6));
  if (error.offender.address) {
    Sockaddr a = FormatSockaddr(error.offender, family);
    memcpy(body + sizeof e, a.bytes.data(), a.length);
  }
  if (family == AF_INET) {
    out->Add(IPPROTO_IP, IP_RECVERR, body, length);
  } else {
    out->Add(IPPROTO_IPV6, IPV6_RECVERR, body, length);
  }
}

}  // namespace sluice
