#include "sentry/options.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#include <algorithm>
#include <string_view>

#include "netstack/sysctls.h"
#include "sentry/broker_protocol.h"
#include "sentry/inet_stand_in.h"
#include "sentry/special_options.h"

namespace sluice {
namespace {

using S = Special;

// Protocols that have the option, and what it takes.
constexpr uint8_t kStream = 1, kUdp = 2, kPing = 4, kRaw = 8, kAll = 15, kDatagrams = kUdp | kPing | kRaw;
constexpr uint8_t kReadOnly = 1, kWriteOnly = 2;
enum class Need : uint8_t { kNone, kNetAdmin, kNetRawOrAdmin };

struct Entry {
  int level;
  int name;
  const char* level_text;
  const char* text;
  uint8_t protocols;
  SockOpt option;  // where special is kNone
  S special = S::kNone;
  uint8_t access = 0;
  Need need = Need::kNone;
};

#define OPT(level, name, protocols, option, ...) \
  {level, name, #level, #name, protocols, SockOpt::option, S::kNone __VA_OPT__(, ) __VA_ARGS__}
#define SPECIAL(level, name, protocols, special, ...) \
  {level, name, #level, #name, protocols, SockOpt::kCount, S::special __VA_OPT__(, ) __VA_ARGS__}

// Numbers that older headers lack.
#define SOL_IPV6 41
#undef SOL_IP
#define SOL_IP 0
#undef SOL_TCP
#define SOL_TCP 6
#undef SOL_UDP
#define SOL_UDP 17
#undef SOL_RAW
#define SOL_RAW 255
enum : int {
  IP_LOCAL_PORT_RANGE_ = 51,
  TCP_NODELAY = 1,
  TCP_MAXSEG,
  TCP_CORK,
  TCP_KEEPIDLE,
  TCP_KEEPINTVL,
  TCP_KEEPCNT,
  TCP_SYNCNT,
  TCP_LINGER2,
  TCP_DEFER_ACCEPT,
  TCP_WINDOW_CLAMP,
  TCP_INFO,
  TCP_QUICKACK,
  TCP_CONGESTION,
  TCP_THIN_LINEAR_TIMEOUTS = 16,
  TCP_USER_TIMEOUT = 18,
  TCP_FASTOPEN = 23,
  TCP_NOTSENT_LOWAT = 25,
  TCP_CC_INFO = 26,
  TCP_SAVE_SYN = 27,
  TCP_FASTOPEN_CONNECT = 30,
  TCP_FASTOPEN_KEY = 33,
  TCP_FASTOPEN_NO_COOKIE = 34,
  UDP_CORK = 1,
  UDP_NO_CHECK6_TX = 101,
  UDP_NO_CHECK6_RX = 102,
  UDP_SEGMENT = 103,
  UDP_GRO = 104,
  ICMP_FILTER = 1,
};
#ifndef IPV6_MINHOPCOUNT
#define IPV6_MINHOPCOUNT 73
#endif
#ifndef IPV6_FREEBIND
#define IPV6_FREEBIND 78
#endif
#ifndef IP_LOCAL_PORT_RANGE
#define IP_LOCAL_PORT_RANGE 51
#endif
#ifndef SO_BINDTOIFINDEX
#define SO_BINDTOIFINDEX 62
#endif

constexpr Entry kTable[] = {
    OPT(SOL_SOCKET, SO_REUSEADDR, kAll, kReuseAddr),
    OPT(SOL_SOCKET, SO_REUSEPORT, kAll, kReusePort),
    OPT(SOL_SOCKET, SO_KEEPALIVE, kAll, kKeepAlive),
    OPT(SOL_SOCKET, SO_BROADCAST, kAll, kBroadcast),
    OPT(SOL_SOCKET, SO_DONTROUTE, kAll, kDontRoute),
    OPT(SOL_SOCKET, SO_RCVBUF, kAll, kRcvBuf),
    OPT(SOL_SOCKET, SO_SNDBUF, kAll, kSndBuf),
    OPT(SOL_SOCKET, SO_RCVBUFFORCE, kAll, kRcvBufForce, kWriteOnly, Need::kNetAdmin),
    OPT(SOL_SOCKET, SO_SNDBUFFORCE, kAll, kSndBufForce, kWriteOnly, Need::kNetAdmin),
    OPT(SOL_SOCKET, SO_MARK, kAll, kMark, 0, Need::kNetRawOrAdmin),
    SPECIAL(SOL_SOCKET, SO_PRIORITY, kAll, kPriority),  // above 6: judged by value
    SPECIAL(SOL_SOCKET, SO_OOBINLINE, kAll, kOobInline),
    OPT(SOL_SOCKET, SO_NO_CHECK, kUdp, kNoCheck),
    OPT(SOL_SOCKET, SO_INCOMING_CPU, kAll, kIncomingCpu),
    SPECIAL(SOL_SOCKET, SO_MAX_PACING_RATE, kAll, kPacingRate),
    OPT(SOL_SOCKET, SO_BINDTOIFINDEX, kAll, kBindToIfIndex),
    SPECIAL(SOL_SOCKET, SO_RCVLOWAT, kAll, kReceiveLowWater),
    SPECIAL(SOL_SOCKET, SO_SNDLOWAT, kAll, kOne, kReadOnly),
    SPECIAL(SOL_SOCKET, SO_TYPE, kAll, kType, kReadOnly),
    SPECIAL(SOL_SOCKET, SO_DOMAIN, kAll, kDomain, kReadOnly),
    SPECIAL(SOL_SOCKET, SO_PROTOCOL, kAll, kProtocol, kReadOnly),
    SPECIAL(SOL_SOCKET, SO_ACCEPTCONN, kAll, kAcceptConn, kReadOnly),
    SPECIAL(SOL_SOCKET, SO_ERROR, kAll, kError, kReadOnly),
    SPECIAL(SOL_SOCKET, SO_PEERNAME, kAll, kPeerName, kReadOnly),
    SPECIAL(SOL_SOCKET, SO_PEERCRED, kAll, kPeerCred, kReadOnly),
    SPECIAL(SOL_SOCKET, SO_COOKIE, kAll, kCookie, kReadOnly),
    SPECIAL(SOL_SOCKET, SO_LINGER, kAll, kLinger),
    SPECIAL(SOL_SOCKET, SO_RCVTIMEO, kAll, kReceiveTimeout),
    SPECIAL(SOL_SOCKET, SO_SNDTIMEO, kAll, kSendTimeout),
    SPECIAL(SOL_SOCKET, SO_TIMESTAMP, kDatagrams, kTimestamp),
    SPECIAL(SOL_SOCKET, SO_TIMESTAMPNS, kDatagrams, kTimestampNs),
    SPECIAL(SOL_SOCKET, SO_BINDTODEVICE, kAll, kBindToDevice),

    OPT(SOL_IP, IP_TOS, kAll, kIpTos),
    OPT(SOL_IP, IP_TTL, kAll, kIpTtl),
    OPT(SOL_IP, IP_HDRINCL, kRaw, kIpHdrIncl),
    SPECIAL(SOL_IP, IP_OPTIONS, kAll, kIpOptions),
    OPT(SOL_IP, IP_RECVOPTS, kDatagrams, kIpRecvOpts),
    OPT(SOL_IP, IP_RETOPTS, kDatagrams, kIpRetOpts),
    OPT(SOL_IP, IP_PKTINFO, kDatagrams, kIpPktInfo),
    OPT(SOL_IP, IP_MTU_DISCOVER, kAll, kIpMtuDiscover),
    OPT(SOL_IP, IP_RECVERR, kAll, kIpRecvErr),
    OPT(SOL_IP, IP_RECVTTL, kDatagrams, kIpRecvTtl),
    OPT(SOL_IP, IP_RECVTOS, kDatagrams, kIpRecvTos),
    OPT(SOL_IP, IP_MTU, kAll, kIpMtu, kReadOnly),
    OPT(SOL_IP, IP_FREEBIND, kAll, kIpFreebind),
    OPT(SOL_IP, IP_TRANSPARENT, kAll, kIpTransparent, 0, Need::kNetRawOrAdmin),
    OPT(SOL_IP, IP_RECVORIGDSTADDR, kDatagrams, kIpRecvOrigDstAddr),
    OPT(SOL_IP, IP_MINTTL, kAll, kIpMinTtl),
    OPT(SOL_IP, IP_BIND_ADDRESS_NO_PORT, kAll, kIpBindAddressNoPort),
    OPT(SOL_IP, IP_LOCAL_PORT_RANGE, kAll, kIpLocalPortRange),
    OPT(SOL_IP, IP_MULTICAST_TTL, kDatagrams, kIpMulticastTtl),
    OPT(SOL_IP, IP_MULTICAST_LOOP, kDatagrams, kIpMulticastLoop),
    OPT(SOL_IP, IP_MULTICAST_ALL, kDatagrams, kIpMulticastAll),
    SPECIAL(SOL_IP, IP_MULTICAST_IF, kDatagrams, kMulticastIf),
    SPECIAL(SOL_IP, IP_ADD_MEMBERSHIP, kDatagrams, kIpJoin, kWriteOnly),
    SPECIAL(SOL_IP, IP_DROP_MEMBERSHIP, kDatagrams, kIpLeave, kWriteOnly),
    SPECIAL(SOL_IP, IP_ADD_SOURCE_MEMBERSHIP, kDatagrams, kIpJoinSource, kWriteOnly),
    SPECIAL(SOL_IP, IP_DROP_SOURCE_MEMBERSHIP, kDatagrams, kIpLeaveSource, kWriteOnly),
    SPECIAL(SOL_IP, MCAST_JOIN_GROUP, kDatagrams, kJoin, kWriteOnly),
    SPECIAL(SOL_IP, MCAST_LEAVE_GROUP, kDatagrams, kLeave, kWriteOnly),
    SPECIAL(SOL_IP, MCAST_JOIN_SOURCE_GROUP, kDatagrams, kJoinSource, kWriteOnly),
    SPECIAL(SOL_IP, MCAST_LEAVE_SOURCE_GROUP, kDatagrams, kLeaveSource, kWriteOnly),

    OPT(SOL_IPV6, IPV6_V6ONLY, kAll, kIpv6V6Only),
    OPT(SOL_IPV6, IPV6_UNICAST_HOPS, kAll, kIpv6UnicastHops),
    OPT(SOL_IPV6, IPV6_TCLASS, kAll, kIpv6Tclass),
    OPT(SOL_IPV6, IPV6_RECVPKTINFO, kDatagrams, kIpv6RecvPktInfo),
    OPT(SOL_IPV6, IPV6_RECVTCLASS, kDatagrams, kIpv6RecvTclass),
    OPT(SOL_IPV6, IPV6_RECVHOPLIMIT, kDatagrams, kIpv6RecvHopLimit),
    OPT(SOL_IPV6, IPV6_MTU_DISCOVER, kAll, kIpv6MtuDiscover),
    OPT(SOL_IPV6, IPV6_MTU, kAll, kIpv6Mtu),
    OPT(SOL_IPV6, IPV6_RECVERR, kAll, kIpv6RecvErr),
    OPT(SOL_IPV6, IPV6_MULTICAST_HOPS, kDatagrams, kIpv6MulticastHops),
    OPT(SOL_IPV6, IPV6_MULTICAST_LOOP, kDatagrams, kIpv6MulticastLoop),
    OPT(SOL_IPV6, IPV6_FREEBIND, kAll, kIpv6Freebind),
    OPT(SOL_IPV6, IPV6_AUTOFLOWLABEL, kAll, kIpv6AutoFlowLabel),
    OPT(SOL_IPV6, IPV6_MINHOPCOUNT, kAll, kIpv6MinHopCount),
    SPECIAL(SOL_IPV6, IPV6_MULTICAST_IF, kDatagrams, kMulticastIf6),
    SPECIAL(SOL_IPV6, IPV6_ADD_MEMBERSHIP, kDatagrams, kIpv6Join, kWriteOnly),
    SPECIAL(SOL_IPV6, IPV6_DROP_MEMBERSHIP, kDatagrams, kIpv6Leave, kWriteOnly),
    SPECIAL(SOL_IPV6, MCAST_JOIN_GROUP, kDatagrams, kJoin, kWriteOnly),
    SPECIAL(SOL_IPV6, MCAST_LEAVE_GROUP, kDatagrams, kLeave, kWriteOnly),

    OPT(SOL_TCP, TCP_NODELAY, kStream, kTcpNoDelay),
    OPT(SOL_TCP, TCP_MAXSEG, kStream, kTcpMaxSeg),
    OPT(SOL_TCP, TCP_CORK, kStream, kTcpCork),
    OPT(SOL_TCP, TCP_KEEPIDLE, kStream, kTcpKeepIdle),
    OPT(SOL_TCP, TCP_KEEPINTVL, kStream, kTcpKeepIntvl),
    OPT(SOL_TCP, TCP_KEEPCNT, kStream, kTcpKeepCnt),
    OPT(SOL_TCP, TCP_SYNCNT, kStream, kTcpSynCnt),
    OPT(SOL_TCP, TCP_LINGER2, kStream, kTcpLinger2),
    OPT(SOL_TCP, TCP_DEFER_ACCEPT, kStream, kTcpDeferAccept),
    OPT(SOL_TCP, TCP_WINDOW_CLAMP, kStream, kTcpWindowClamp),
    SPECIAL(SOL_TCP, TCP_INFO, kStream, kTcpInfo, kReadOnly),
    OPT(SOL_TCP, TCP_QUICKACK, kStream, kTcpQuickAck),
    SPECIAL(SOL_TCP, TCP_CONGESTION, kStream, kTcpCongestion),
    SPECIAL(SOL_TCP, TCP_CC_INFO, kStream, kTcpModelInfo, kReadOnly),
    OPT(SOL_TCP, TCP_THIN_LINEAR_TIMEOUTS, kStream, kTcpThinLinearTimeouts),
    OPT(SOL_TCP, TCP_USER_TIMEOUT, kStream, kTcpUserTimeout),
    OPT(SOL_TCP, TCP_FASTOPEN, kStream, kTcpFastOpen),
    OPT(SOL_TCP, TCP_FASTOPEN_CONNECT, kStream, kTcpFastOpenConnect),
    SPECIAL(SOL_TCP, TCP_FASTOPEN_KEY, kStream, kTcpFastOpenKey),
    OPT(SOL_TCP, TCP_FASTOPEN_NO_COOKIE, kStream, kTcpFastOpenNoCookie),
    OPT(SOL_TCP, TCP_NOTSENT_LOWAT, kStream, kTcpNotSentLowat),
    OPT(SOL_TCP, TCP_SAVE_SYN, kStream, kTcpSaveSyn),

    OPT(SOL_UDP, UDP_CORK, kUdp, kUdpCork),
    OPT(SOL_UDP, UDP_SEGMENT, kUdp, kUdpSegment),
    OPT(SOL_UDP, UDP_GRO, kUdp, kUdpGro),
    OPT(SOL_UDP, UDP_NO_CHECK6_TX, kUdp, kUdpNoCheck6Tx),
    OPT(SOL_UDP, UDP_NO_CHECK6_RX, kUdp, kUdpNoCheck6Rx),
    SPECIAL(SOL_RAW, ICMP_FILTER, kRaw, kIcmpFilter, kWriteOnly),
};

uint8_t ProtocolBit(const InetStandIn& s) {
  if (s.type() == SOCK_STREAM) return kStream;
  if (s.type() == SOCK_RAW) return kRaw;
  return s.protocol() == IPPROTO_UDP ? kUdp : kPing;
}

const Entry* Lookup(const InetStandIn& s, int level, int name) {
  if (level == SOL_IPV6 && s.family() != AF_INET6) return nullptr;
  for (const Entry& e : kTable) {
    if (e.level == level && e.name == name && (e.protocols & ProtocolBit(s)) != 0) return &e;
  }
  return nullptr;
}

// An integer as the level takes it: IPPROTO_IP also from one byte (ip_setsockopt).
Errno ReadInt(int level, Bytes value, uint32_t length, int* out) {
  if (length >= sizeof *out && value.size() >= sizeof *out) {
    memcpy(out, value.data(), sizeof *out);
    return Errno::kOk;
  }
  if (level != SOL_IP) return Errno::kEINVAL;
  *out = value.empty() ? 0 : value[0];
  return Errno::kOk;
}

void WriteInt(int level, int value, uint32_t capacity, OptionValue* out) {
  if (level == SOL_IP && capacity < sizeof value && capacity > 0 && value >= 0 && value <= 255) {
    out->bytes = {static_cast<uint8_t>(value)};
  } else {
    out->bytes.resize(std::min<size_t>(capacity, sizeof value));
    memcpy(out->bytes.data(), &value, out->bytes.size());
  }
  out->length = static_cast<uint32_t>(out->bytes.size());
}

Errno CheckRights(Need need, uint16_t rights) {
  if (need == Need::kNone || (rights & calls::kRightNetAdmin) != 0) return Errno::kOk;
  return need == Need::kNetRawOrAdmin && (rights & calls::kRightNetRaw) != 0 ? Errno::kOk : Errno::kEPERM;
}

// As Linux has it: a level that is another protocol's ends in ip_getsockopt or ipv6_getsockopt, which say different things.
Errno UnknownToGet(const InetStandIn& s, int level) {
  const uint8_t protocol = ProtocolBit(s);
  const bool own = (level == SOL_TCP && protocol == kStream) || (level == SOL_UDP && protocol == kUdp) || level == SOL_SOCKET ||
                   level == SOL_IP;
  return own || s.family() == AF_INET6 ? Errno::kENOPROTOOPT : Errno::kEOPNOTSUPP;
}

}  // namespace

Errno GetSocketOption(InetStandIn& s, int level, int name, uint32_t capacity, int p, OptionValue* out) {
  const Entry* e = Lookup(s, level, name);
  if (e == nullptr) return UnknownToGet(s, level);
  if ((e->access & kWriteOnly) != 0) return Errno::kENOPROTOOPT;
  if (e->special != S::kNone) return GetSpecialOption(s, e->special, capacity, p, out);
  int64_t value = 0;
  if (Errno error = s.socket()->GetOption(e->option, &value); error != Errno::kOk) return error;
  WriteInt(level, static_cast<int>(value), capacity, out);
  return Errno::kOk;
}

Errno SetSocketOption(InetStandIn& s, int level, int name, Bytes value, uint32_t length, uint16_t rights, int p) {
  const Entry* e = Lookup(s, level, name);
  if (e == nullptr || (e->access & kReadOnly) != 0) return Errno::kENOPROTOOPT;
  int number = 0;
  bool is_int = e->special == S::kNone || SpecialIsInt(e->special);
  if (is_int) {
    if (Errno error = ReadInt(level, value, length, &number); error != Errno::kOk) return error;
  }
  // A mark of zero is what there is anyway.
  if (Errno error = CheckRights(e->need, rights); error != Errno::kOk) return error;
  if (e->special != S::kNone) return SetSpecialOption(s, e->special, value, length, number, rights, p);
  const Errno error = s.socket()->SetOption(e->option, number);
  if (error != Errno::kOk) return error;
  const bool send = e->option == SockOpt::kSndBuf || e->option == SockOpt::kSndBufForce;
  if (send || e->option == SockOpt::kRcvBuf || e->option == SockOpt::kRcvBufForce) {
    (send ? s.stand_in_options().send_buffer : s.stand_in_options().receive_buffer) = std::max(number, 1);
    s.OnBufferOptions(p);
  }
  return Errno::kOk;
}

bool SocketOptionNeedsRights(int level, int name) {
  return std::any_of(std::begin(kTable), std::end(kTable), [=](const Entry& e) {
    return e.level == level && e.name == name &&
           (e.need != Need::kNone || e.special == S::kBindToDevice || e.special == S::kPriority);
  });
}

std::string DescribeSocketOptions() {
  std::string text =
      "# Socket options\n\n"
      "Every option that getsockopt and setsockopt know inside a sandbox, printed from the table that the code uses\n"
      "(sentry/options.cc). All others give ENOPROTOOPT, as Linux says it of options that it does not have.\n\n"
      "| level | option | sockets | access | needs |\n|---|---|---|---|---|\n";
  for (const Entry& e : kTable) {
    std::string sockets;
    auto add = [&](uint8_t bit, const char* word) {
      if ((e.protocols & bit) != 0) sockets += (sockets.empty() ? "" : ", ") + std::string(word);
    };
    if (e.protocols == kAll) {
      sockets = "all";
    } else {
      add(kStream, "TCP");
      add(kUdp, "UDP");
      add(kPing, "ping");
      add(kRaw, "raw");
    }
    const char* access = e.access == kReadOnly ? "get" : e.access == kWriteOnly ? "set" : "get, set";
    const char* need = e.need == Need::kNetAdmin        ? "CAP_NET_ADMIN"
                       : e.need == Need::kNetRawOrAdmin ? "CAP_NET_RAW or CAP_NET_ADMIN"
                                                        : "";
    text += "| " + std::string(e.level_text) + " | " + e.text + " | " + sockets + " | " + access + " | " + need + " |\n";
  }
  return text;
}

}  // namespace sluice
