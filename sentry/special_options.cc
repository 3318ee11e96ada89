#include "sentry/special_options.h"

#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <string>

#include "netstack/sysctls.h"
#include "sentry/broker_protocol.h"
#include "sentry/inet_stand_in.h"
#include "sentry/options.h"
#include "sentry/sockaddr.h"

namespace sluice {
namespace {

using S = Special;

void Put(const void* data, size_t size, uint32_t capacity, OptionValue* out) {
  const uint8_t* p = static_cast<const uint8_t*>(data);
  out->bytes.assign(p, p + std::min<size_t>(size, capacity));
  out->length = static_cast<uint32_t>(out->bytes.size());
}
template <typename T>
Errno Put(const T& value, uint32_t capacity, OptionValue* out) {
  Put(&value, sizeof value, capacity, out);
  return Errno::kOk;
}
template <typename T>
bool Load(Bytes data, T* out) {
  if (data.size() < sizeof *out) return false;
  memcpy(out, data.data(), sizeof *out);
  return true;
}

Errno PutSocketInt(InetStandIn& s, SockOpt option, uint32_t capacity, OptionValue* out) {
  int64_t value = 0;
  if (Errno e = s.socket()->GetOption(option, &value); e != Errno::kOk) return e;
  return Put(static_cast<int>(value), capacity, out);
}

// -- timeouts

Errno SetTimeout(InetStandIn& s, bool receive, Bytes value, int p) {
  timeval tv;
  if (!Load(value, &tv)) return Errno::kEINVAL;
  if (tv.tv_usec < 0 || tv.tv_usec >= 1000000) return Errno::kEDOM;
  // On P: native reads and writes obey it by themselves. Accepts are not native, and a listener has a bound of its own there.
  if (p >= 0 && !s.listening() && setsockopt(p, SOL_SOCKET, receive ? SO_RCVTIMEO : SO_SNDTIMEO, &tv, sizeof tv) != 0)
    return static_cast<Errno>(errno);
  Duration d{0};
  if (tv.tv_sec < 0) {
    d = Duration::Nanoseconds(1);  // Linux: a negative time is no waiting at all
  } else {
    d = Duration::Microseconds(std::min<int64_t>(tv.tv_sec, 1000000000) * 1000000 + tv.tv_usec);
  }
  StandInOptions& o = s.stand_in_options();
  (receive ? o.receive_timeout : o.send_timeout) = d;
  (receive ? o.receive_timeout_raw : o.send_timeout_raw) = tv.tv_sec < 0 ? timeval{0, 0} : tv;
  return Errno::kOk;
}

// -- multicast

Errno Membership(InetStandIn& s, const GroupRequest& request, bool join) {
  return join ? s.datagram()->JoinGroup(request) : s.datagram()->LeaveGroup(request);
}

Errno IpMembership(InetStandIn& s, Bytes value, bool join) {
  GroupRequest r;
  ip_mreqn full{};
  ip_mreq small{};
  if (Load(value, &full)) {
    r.ifindex = full.imr_ifindex;
  } else if (Load(value, &small)) {
    memcpy(&full, &small, sizeof small);
  } else {
    return Errno::kEINVAL;
  }
  r.group = IpAddress::V4(ntohl(full.imr_multiaddr.s_addr));
  if (full.imr_address.s_addr != 0) r.interface = IpAddress::V4(ntohl(full.imr_address.s_addr));
  return Membership(s, r, join);
}

Errno IpSourceMembership(InetStandIn& s, Bytes value, bool join) {
  ip_mreq_source m;
  if (!Load(value, &m)) return Errno::kEINVAL;
  GroupRequest r;
  r.group = IpAddress::V4(ntohl(m.imr_multiaddr.s_addr));
  r.source = IpAddress::V4(ntohl(m.imr_sourceaddr.s_addr));
  if (m.imr_interface.s_addr != 0) r.interface = IpAddress::V4(ntohl(m.imr_interface.s_addr));
  return Membership(s, r, join);
}

Errno Ipv6Membership(InetStandIn& s, Bytes value, bool join) {
  ipv6_mreq m;
  if (!Load(value, &m)) return Errno::kEINVAL;
  GroupRequest r;
  r.group = IpAddress::FromBytes({m.ipv6mr_multiaddr.s6_addr, 16});
  r.ifindex = static_cast<IfIndex>(m.ipv6mr_interface);
  return Membership(s, r, join);
}

IpAddress AddressOf(const sockaddr_storage& a) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(&a);
  if (a.ss_family == AF_INET) return IpAddress::FromBytes({bytes + 4, 4});
  if (a.ss_family == AF_INET6) return IpAddress::FromBytes({bytes + 8, 16});
  return IpAddress();
}

Errno GenericMembership(InetStandIn& s, Bytes value, bool join, bool with_source) {
  GroupRequest r;
  if (with_source) {
    group_source_req m;
    if (!Load(value, &m)) return Errno::kEINVAL;
    r.ifindex = static_cast<IfIndex>(m.gsr_interface);
    r.group = AddressOf(m.gsr_group);
    r.source = AddressOf(m.gsr_source);
  } else {
    group_req m;
    if (!Load(value, &m)) return Errno::kEINVAL;
    r.ifindex = static_cast<IfIndex>(m.gr_interface);
    r.group = AddressOf(m.gr_group);
  }
  if (!r.group) return Errno::kEADDRNOTAVAIL;
  return Membership(s, r, join);
}

Errno SetMulticastInterface(InetStandIn& s, Bytes value) {
  ip_mreqn full{};
  in_addr address{};
  if (Load(value, &full)) {
    address = full.imr_address;
  } else if (value.size() >= sizeof(ip_mreq)) {
    memcpy(&full, value.data(), sizeof(ip_mreq));
    address = full.imr_address;
  } else if (!Load(value, &address)) {
    return Errno::kEINVAL;
  }
  return s.datagram()->SetMulticastInterface(address.s_addr == 0 ? IpAddress() : IpAddress::V4(ntohl(address.s_addr)),
                                             full.imr_ifindex);
}

// -- the device

Errno BindToDevice(InetStandIn& s, Bytes value, uint32_t length, uint16_t rights) {
  int64_t bound = 0;
  if (s.socket()->GetOption(SockOpt::kBindToIfIndex, &bound) == Errno::kOk && bound != 0 && (rights & calls::kRightNetRaw) == 0) {
    return Errno::kEPERM;
  }
  std::string name(reinterpret_cast<const char*>(value.data()), std::min<size_t>({value.size(), length, 15}));
  name.resize(strnlen(name.c_str(), name.size()));
  if (name.empty()) return s.socket()->SetOption(SockOpt::kBindToIfIndex, 0);
  for (const LinkConfig& link : s.engine().stack().config().links) {
    if (link.name == name) return s.socket()->SetOption(SockOpt::kBindToIfIndex, link.index);
  }
  return Errno::kENODEV;
}

Errno GetBoundDevice(InetStandIn& s, uint32_t capacity, OptionValue* out) {
  int64_t bound = 0;
  if (Errno e = s.socket()->GetOption(SockOpt::kBindToIfIndex, &bound); e != Errno::kOk) return e;
  if (bound == 0) return Errno::kOk;  // length 0
  for (const LinkConfig& link : s.engine().stack().config().links) {
    if (link.index != bound) continue;
    if (capacity < 16) return Errno::kEINVAL;
    Put(link.name.c_str(), link.name.size() + 1, capacity, out);
    return Errno::kOk;
  }
  return Errno::kENODEV;
}

// -- TCP

Errno GetTcpInfo(InetStandIn& s, uint32_t capacity, OptionValue* out) {
  TcpInfo i = s.stream()->info();
  tcp_info t{};
  t.tcpi_state = i.state;
  t.tcpi_ca_state = i.ca_state;
  t.tcpi_retransmits = i.retransmits;
  t.tcpi_probes = i.probes;
  t.tcpi_backoff = i.backoff;
  t.tcpi_options = i.options;
  t.tcpi_snd_wscale = i.snd_wscale & 0xf;
  t.tcpi_rcv_wscale = i.rcv_wscale & 0xf;
  t.tcpi_delivery_rate_app_limited = i.delivery_rate_app_limited;
  t.tcpi_fastopen_client_fail = i.fastopen_client_fail & 3;
#define COPY(name) t.tcpi_##name = i.name
  COPY(rto);
  COPY(ato);
  COPY(snd_mss);
  COPY(rcv_mss);
  COPY(unacked);
  COPY(sacked);
  COPY(lost);
  COPY(retrans);
  COPY(last_data_sent);
  COPY(last_data_recv);
  COPY(last_ack_recv);
  COPY(pmtu);
  COPY(rcv_ssthresh);
  COPY(rtt);
  COPY(rttvar);
  COPY(snd_ssthresh);
  COPY(snd_cwnd);
  COPY(advmss);
  COPY(reordering);
  COPY(rcv_rtt);
  COPY(rcv_space);
  COPY(total_retrans);
  COPY(pacing_rate);
  COPY(max_pacing_rate);
  COPY(bytes_acked);
  COPY(bytes_received);
  COPY(segs_out);
  COPY(segs_in);
  COPY(notsent_bytes);
  COPY(min_rtt);
  COPY(data_segs_in);
  COPY(data_segs_out);
  COPY(delivery_rate);
  COPY(busy_time);
  COPY(rwnd_limited);
  COPY(sndbuf_limited);
  COPY(delivered);
  COPY(delivered_ce);
  COPY(bytes_sent);
  COPY(bytes_retrans);
  COPY(dsack_dups);
  COPY(reord_seen);
  COPY(rcv_ooopack);
  COPY(snd_wnd);
#undef COPY
  return Put(t, capacity, out);
}

// Nothing, of length 0, where the congestion control is no model.
Errno GetTcpModelInfo(InetStandIn& s, uint32_t capacity, OptionValue* out) {
  const std::optional<TcpModelInfo> m = s.stream()->info().model;
  if (!m) return Errno::kOk;
  tcp_bbr_info b{};
  b.bbr_bw_lo = static_cast<uint32_t>(m->bandwidth);
  b.bbr_bw_hi = static_cast<uint32_t>(m->bandwidth >> 32);
  b.bbr_min_rtt = m->min_rtt_us;
  b.bbr_pacing_gain = m->pacing_gain;
  b.bbr_cwnd_gain = m->cwnd_gain;
  return Put(b, capacity, out);
}

Errno GetLinger(InetStandIn& s, uint32_t capacity, OptionValue* out) {
  linger l = s.stand_in_options().linger;
  if (s.stream() != nullptr) {
    std::optional<int> seconds = s.stream()->linger();
    l.l_onoff = seconds ? 1 : 0;
    l.l_linger = seconds.value_or(0);
  }
  return Put(l, capacity, out);
}

Errno GetPeerName(InetStandIn& s, uint32_t capacity, OptionValue* out) {
  std::optional<Endpoint> remote = s.socket()->remote();
  if (!remote) return Errno::kENOTCONN;
  Sockaddr a = FormatSockaddr(*remote, s.family());
  if (capacity > a.length) return Errno::kEINVAL;
  Put(a.bytes.data(), a.length, capacity, out);
  return Errno::kOk;
}

Errno GetError(InetStandIn& s, uint32_t capacity, int p, OptionValue* out) {
  if (p >= 0) ClearNativeError(p);
  return Put(ToInt(s.TakePendingError()), capacity, out);
}

}  // namespace

bool SpecialIsInt(Special special) {
  switch (special) {
    case S::kPriority:
    case S::kOobInline:
    case S::kReceiveLowWater:
    case S::kTimestamp:
    case S::kTimestampNs:
    case S::kMulticastIf6:
      return true;
    default:
      return false;
  }
}

Errno GetSpecialOption(InetStandIn& s, Special special, uint32_t capacity, int p, OptionValue* out) {
  StandInOptions& o = s.stand_in_options();
  switch (special) {
    case S::kPriority:
      return PutSocketInt(s, SockOpt::kPriority, capacity, out);
    case S::kOobInline:
      return PutSocketInt(s, SockOpt::kOobInline, capacity, out);
    case S::kReceiveLowWater:
      return PutSocketInt(s, SockOpt::kRcvLowat, capacity, out);
    case S::kPacingRate: {
      int64_t rate = 0;
      if (Errno e = s.socket()->GetOption(SockOpt::kMaxPacingRate, &rate); e != Errno::kOk) return e;
      if (capacity >= sizeof(uint64_t)) return Put(static_cast<uint64_t>(rate), capacity, out);
      return Put(static_cast<uint32_t>(std::min<uint64_t>(static_cast<uint64_t>(rate), UINT32_MAX)), capacity, out);
    }
    case S::kOne:
      return Put(1, capacity, out);
    case S::kType:
      return Put(s.type(), capacity, out);
    case S::kDomain:
      return Put(s.family(), capacity, out);
    case S::kProtocol:
      return Put(s.protocol(), capacity, out);
    case S::kAcceptConn:
      return Put(s.stream() != nullptr && s.stream()->listening() ? 1 : 0, capacity, out);
    case S::kError:
      return GetError(s, capacity, p, out);
    case S::kPeerName:
      return GetPeerName(s, capacity, out);
    case S::kPeerCred:
      return Put(ucred{0, static_cast<uid_t>(-1), static_cast<gid_t>(-1)}, capacity, out);
    case S::kCookie:
      return capacity < 8 ? Errno::kEINVAL : Put(s.cookie(), capacity, out);
    case S::kLinger:
      return GetLinger(s, capacity, out);
    case S::kReceiveTimeout:
      return Put(o.receive_timeout_raw, capacity, out);
    case S::kSendTimeout:
      return Put(o.send_timeout_raw, capacity, out);
    case S::kTimestamp:
      return Put(o.timestamp ? 1 : 0, capacity, out);
    case S::kTimestampNs:
      return Put(o.timestamp_ns ? 1 : 0, capacity, out);
    case S::kBindToDevice:
      return GetBoundDevice(s, capacity, out);
    case S::kMulticastIf: {
      const IpAddress address = s.datagram()->multicast_interface().address;
      return Put(in_addr{address.is_v4() ? htonl(address.v4()) : INADDR_ANY}, capacity, out);
    }
    case S::kMulticastIf6:
      return Put(static_cast<int>(s.datagram()->multicast_interface().ifindex), capacity, out);
    case S::kIpOptions:
      return Errno::kOk;  // none: length 0
    case S::kTcpInfo:
      return GetTcpInfo(s, capacity, out);
    case S::kTcpModelInfo:
      return GetTcpModelInfo(s, capacity, out);
    case S::kTcpFastOpenKey: {
      const std::vector<uint8_t> keys = s.stream()->fast_open_keys();
      Put(keys.data(), keys.size(), capacity, out);
      return Errno::kOk;
    }
    case S::kTcpCongestion: {
      char name[16] = {};
      std::string current = s.stream()->congestion_control();
      memcpy(name, current.data(), std::min<size_t>(current.size(), 15));
      return Put(name, capacity, out);
    }
    default:
      return Errno::kENOPROTOOPT;
  }
}

Errno SetSpecialOption(InetStandIn& s, Special special, Bytes value, uint32_t length, int number, uint16_t rights, int p) {
  StandInOptions& o = s.stand_in_options();
  switch (special) {
    case S::kPriority:
      if ((number < 0 || number > 6) && (rights & (calls::kRightNetAdmin | calls::kRightNetRaw)) == 0) return Errno::kEPERM;
      return s.socket()->SetOption(SockOpt::kPriority, number);
    case S::kOobInline:
    case S::kReceiveLowWater: {
      Errno e = s.socket()->SetOption(special == S::kOobInline ? SockOpt::kOobInline : SockOpt::kRcvLowat, number);
      if (e == Errno::kOk && p >= 0)
        setsockopt(p, SOL_SOCKET, special == S::kOobInline ? SO_OOBINLINE : SO_RCVLOWAT, &number, sizeof number);
      return e;
    }
    case S::kPacingRate: {
      uint64_t rate = 0;
      uint32_t small = 0;
      if (length >= sizeof rate && Load(value, &rate)) {
      } else if (Load(value, &small)) {
        rate = small == UINT32_MAX ? UINT64_MAX : small;
      } else {
        return Errno::kEINVAL;
      }
      return s.socket()->SetOption(SockOpt::kMaxPacingRate, static_cast<int64_t>(rate));
    }
    case S::kLinger: {
      linger l;
      if (!Load(value, &l)) return Errno::kEINVAL;
      if (s.stream() != nullptr) s.stream()->SetLinger(l.l_onoff != 0 ? std::optional<int>(l.l_linger) : std::nullopt);
      l.l_onoff = l.l_onoff != 0 ? 1 : 0;
      s.stand_in_options().linger = l;
      return Errno::kOk;
    }
    case S::kReceiveTimeout:
      return SetTimeout(s, true, value, p);
    case S::kSendTimeout:
      return SetTimeout(s, false, value, p);
    case S::kTimestamp:
      o.timestamp = number != 0;
      if (o.timestamp) o.timestamp_ns = false;
      return Errno::kOk;
    case S::kTimestampNs:
      o.timestamp_ns = number != 0;
      if (o.timestamp_ns) o.timestamp = false;
      return Errno::kOk;
    case S::kBindToDevice:
      return BindToDevice(s, value, length, rights);
    case S::kIpOptions:
      return length == 0 ? Errno::kOk : Errno::kENOPROTOOPT;
    case S::kMulticastIf:
      return SetMulticastInterface(s, value);
    case S::kMulticastIf6:
      return s.datagram()->SetMulticastInterface(IpAddress(), number);
    case S::kIpJoin:
      return IpMembership(s, value, true);
    case S::kIpLeave:
      return IpMembership(s, value, false);
    case S::kIpJoinSource:
      return IpSourceMembership(s, value, true);
    case S::kIpLeaveSource:
      return IpSourceMembership(s, value, false);
    case S::kIpv6Join:
      return Ipv6Membership(s, value, true);
    case S::kIpv6Leave:
      return Ipv6Membership(s, value, false);
    case S::kJoin:
      return GenericMembership(s, value, true, false);
    case S::kLeave:
      return GenericMembership(s, value, false, false);
    case S::kJoinSource:
      return GenericMembership(s, value, true, true);
    case S::kLeaveSource:
      return GenericMembership(s, value, false, true);
    case S::kIcmpFilter: {
      uint32_t mask = 0;
      if (!Load(value, &mask)) return Errno::kEINVAL;
      return s.datagram()->SetIcmpFilter(mask);
    }
    case S::kTcpFastOpenKey:
      return s.stream()->SetFastOpenKeys(value.first(std::min<size_t>(value.size(), length)));
    case S::kTcpCongestion: {
      if (length < 1) return Errno::kEINVAL;
      std::string name(reinterpret_cast<const char*>(value.data()), std::min<size_t>({value.size(), length, 15}));
      name.resize(strnlen(name.c_str(), name.size()));
      return s.stream()->SetCongestionControl(name);
    }
    default:
      return Errno::kENOPROTOOPT;
  }
}

}  // namespace sluice
