// Options, with Linux's units, limits and errors.
#include <algorithm>

#include "netstack/tcp/connection.h"

namespace sluice::tcp {
namespace {

bool InRange(int64_t v, int64_t low, int64_t high) { return v >= low && v <= high; }

constexpr int kMinReceiveBuffer = 2304, kMinSendBuffer = 4608;
constexpr int64_t kMaxKeepIdle = 32767, kMaxKeepInterval = 32767, kMaxKeepCount = 127, kMaxSynCount = 127, kMaxFinTimeout = 120;

// TCP_DEFER_ACCEPT counts SYN,ACK retransmissions; programs speak seconds (as linux secs_to_retrans).
int SecondsToRetransmissions(int64_t seconds) {
  int count = 0;
  if (seconds > 0) {
    int64_t period = 1, timeout = 1;
    count = 1;
    while (seconds > period && count < 255) {
      ++count;
      timeout = std::min<int64_t>(timeout * 2, 120);
      period += timeout;
    }
  }
  return count;
}
int64_t RetransmissionsToSeconds(int count) {
  int64_t period = 0, timeout = 1;
  for (int i = 0; i < count; ++i) {
    period += timeout;
    timeout = std::min<int64_t>(timeout * 2, 120);
  }
  return period;
}

}  // namespace

Errno Connection::SetOption(SockOpt option, int64_t v) {
  const bool on = v != 0;
  switch (option) {
    case SockOpt::kReuseAddr:
      reuse_address = on;
      return Errno::kOk;
    case SockOpt::kReusePort:
      reuse_port = on;
      return Errno::kOk;
    case SockOpt::kKeepAlive:
      if (on && !keep_alive_ && Synchronized()) Arm(kKeepAlive, now() + KeepIdle());
      if (!on && keep_alive_ && !orphan_) Disarm(kKeepAlive);
      keep_alive_ = on;
      return Errno::kOk;
    case SockOpt::kDontRoute:
      dont_route_ = on;
      route_.generation = 0;
      return Errno::kOk;
    case SockOpt::kBroadcast:
      broadcast_ = on;
      return Errno::kOk;  // kept, and of no consequence, as on Linux
    case SockOpt::kRcvBuf:
      v = std::min<int64_t>(std::max<int64_t>(v, 0), sysctls().rmem_max);
      [[fallthrough]];
    case SockOpt::kRcvBufForce:
      rcvbuf_ = static_cast<uint32_t>(std::clamp<int64_t>(std::max<int64_t>(v, 0) * 2, kMinReceiveBuffer, 0x7ffffffe));
      rcvbuf_locked_ = true;
      window_clamp_ = user_window_clamp_ != 0 ? std::min(user_window_clamp_, rcvbuf_ / 2) : rcvbuf_ / 2;
      rcv_ssthresh_ = Synchronized() ? std::max(rcv_ssthresh_, std::min(window_clamp_, 65535u)) : rcv_ssthresh_;
      return Errno::kOk;
    case SockOpt::kSndBuf:
      v = std::min<int64_t>(std::max<int64_t>(v, 0), sysctls().wmem_max);
      [[fallthrough]];
    case SockOpt::kSndBufForce:
      sndbuf_ = static_cast<uint32_t>(std::clamp<int64_t>(std::max<int64_t>(v, 0) * 2, kMinSendBuffer, 0x7ffffffe));
      sndbuf_locked_ = true;
      NotifyState();
      return Errno::kOk;
    case SockOpt::kRcvLowat:
      if (v < 0) v = 0x7fffffff;
      rcv_lowat_ = v == 0 ? 1 : static_cast<int32_t>(std::min<int64_t>(v, std::max<int64_t>(1, rcvbuf_ / 2)));
      NotifyState();
      return Errno::kOk;
    case SockOpt::kMark:
      mark_ = static_cast<uint32_t>(v);
      route_.generation = 0;
      return Errno::kOk;
    case SockOpt::kPriority:
      priority_ = static_cast<int32_t>(v);
      return Errno::kOk;
    case SockOpt::kMaxPacingRate:
      max_pacing_rate_ = static_cast<uint64_t>(v);
      UpdatePaced();
      return Errno::kOk;
    case SockOpt::kOobInline:
      oob_inline_ = on;
      return Errno::kOk;
    case SockOpt::kBindToIfIndex:
      if (v < 0) return Errno::kEINVAL;
      bound_ifindex = static_cast<IfIndex>(v);
      route_.generation = 0;
      return Errno::kOk;
    case SockOpt::kIpTos:
      if (!InRange(v, 0, 255)) return Errno::kEINVAL;
      tos_ = static_cast<uint8_t>((v & ~3) | (tos_ & 3));  // the ECN bits are TCP's own
      return Errno::kOk;
    case SockOpt::kIpTtl:
    case SockOpt::kIpv6UnicastHops:
      if (v != -1 && !InRange(v, option == SockOpt::kIpTtl ? 1 : 0, 255)) return Errno::kEINVAL;
      ttl_ = static_cast<int16_t>(v);
      return Errno::kOk;
    case SockOpt::kIpv6Tclass:
      if (!InRange(v, -1, 255)) return Errno::kEINVAL;
      tclass_ = static_cast<int16_t>(v);
      return Errno::kOk;
    case SockOpt::kIpMtuDiscover:
    case SockOpt::kIpv6MtuDiscover:
      if (!InRange(v, 0, 5)) return Errno::kEINVAL;
      pmtu_discover_ = static_cast<uint8_t>(v);
      return Errno::kOk;
    case SockOpt::kIpRecvErr:
    case SockOpt::kIpv6RecvErr:
      recv_err_ = on;
      return Errno::kOk;
    case SockOpt::kIpFreebind:
    case SockOpt::kIpv6Freebind:
      freebind_ = on;
      return Errno::kOk;
    case SockOpt::kIpTransparent:
      transparent_ = on;
      return Errno::kOk;
    case SockOpt::kIpBindAddressNoPort:
      bind_no_port_ = on;
      return Errno::kOk;
    case SockOpt::kIpMinTtl:
    case SockOpt::kIpv6MinHopCount:
      if (!InRange(v, 0, 255)) return Errno::kEINVAL;
      min_ttl_ = static_cast<uint8_t>(v);
      return Errno::kOk;
    case SockOpt::kIpLocalPortRange: {
      const auto low = static_cast<uint32_t>(v) & 0xffff, high = static_cast<uint32_t>(v) >> 16;
      if (low != 0 && high != 0 && low > high) return Errno::kEINVAL;
      port_range_ = static_cast<uint32_t>(v);
      return Errno::kOk;
    }
    case SockOpt::kIpv6V6Only:
      if (family_ != Family::kIpv6) return Errno::kENOPROTOOPT;
      if (bound_port != 0) return Errno::kEINVAL;
      v6_only = on;
      return Errno::kOk;
    case SockOpt::kTcpNoDelay:
      nodelay_ = on;
      if (on) PushUnsent();  // what waits under a cork, too, as Linux has it
      return Errno::kOk;
    case SockOpt::kTcpCork:
      cork_ = on;
      if (on) return Errno::kOk;
      more_ = false;
      // Corked again before the output comes to it, what is there now goes all the same.
      if (NagleAllows(1)) PushUnsent();
      output_due_ = true, MarkWork();
      return Errno::kOk;
    case SockOpt::kTcpMaxSeg:
      if (v != 0 && !InRange(v, kMinMss, 32767)) return Errno::kEINVAL;
      user_mss_ = static_cast<uint32_t>(v);
      return Errno::kOk;
    case SockOpt::kTcpKeepIdle:
      if (!InRange(v, 1, kMaxKeepIdle)) return Errno::kEINVAL;
      keep_idle_ = static_cast<int32_t>(v);
      if (keep_alive_ && Synchronized()) {
        Arm(kKeepAlive, std::max(now(), std::max(last_data_received_, last_ack_received_) + KeepIdle()));
      }
      return Errno::kOk;
    case SockOpt::kTcpKeepIntvl:
      if (!InRange(v, 1, kMaxKeepInterval)) return Errno::kEINVAL;
      keep_interval_ = static_cast<int32_t>(v);
      return Errno::kOk;
    case SockOpt::kTcpKeepCnt:
      if (!InRange(v, 1, kMaxKeepCount)) return Errno::kEINVAL;
      keep_count_ = static_cast<int32_t>(v);
      return Errno::kOk;
    case SockOpt::kTcpSynCnt:
      if (!InRange(v, 1, kMaxSynCount)) return Errno::kEINVAL;
      syn_count_ = static_cast<int32_t>(v);
      return Errno::kOk;
    case SockOpt::kTcpLinger2:
      linger2_ = v < 0 ? -1 : v > kMaxFinTimeout ? 0 : static_cast<int32_t>(v);
      return Errno::kOk;
    case SockOpt::kTcpDeferAccept:
      defer_accept_ = SecondsToRetransmissions(v);
      return Errno::kOk;
    case SockOpt::kTcpWindowClamp:
      if (v == 0) {
        if (state_ != State::kClosed) return Errno::kEINVAL;
        user_window_clamp_ = 0;
        return Errno::kOk;
      }
      user_window_clamp_ = static_cast<uint32_t>(std::clamp<int64_t>(v, kMinReceiveBuffer / 2, 0x7fffffff));
      window_clamp_ = std::min(user_window_clamp_, rcvbuf_ / 2);
      rcv_ssthresh_ = std::min(rcv_ssthresh_, window_clamp_);
      return Errno::kOk;
    case SockOpt::kTcpQuickAck:
      if (on) {
        pingpong_ = 0;
        if (ack_scheduled_ && Synchronized()) AckSoon();
      } else {
        pingpong_ = 3;
      }
      return Errno::kOk;
    case SockOpt::kTcpUserTimeout:
      if (!InRange(v, 0, 0x7fffffff)) return Errno::kEINVAL;
      user_timeout_ms_ = static_cast<int32_t>(v);
      return Errno::kOk;
    case SockOpt::kTcpNotSentLowat:
      notsent_lowat_ = static_cast<uint32_t>(v);
      NotifyState();
      return Errno::kOk;
    case SockOpt::kTcpFastOpen:
    case SockOpt::kTcpFastOpenConnect:
    case SockOpt::kTcpFastOpenNoCookie:
      return SetFastOpenOption(option, v);
    case SockOpt::kTcpThinLinearTimeouts:
      if (!InRange(v, 0, 1)) return Errno::kEINVAL;
      thin_linear_ = on;
      return Errno::kOk;
    default:
      return Errno::kENOPROTOOPT;
  }
}

Errno Connection::GetOption(SockOpt option, int64_t* value) const {
  auto give = [value](int64_t v) {
    *value = v;
    return Errno::kOk;
  };
  switch (option) {
    case SockOpt::kReuseAddr:
      return give(reuse_address);
    case SockOpt::kReusePort:
      return give(reuse_port);
    case SockOpt::kKeepAlive:
      return give(keep_alive_);
    case SockOpt::kDontRoute:
      return give(dont_route_);
    case SockOpt::kBroadcast:
      return give(broadcast_);
    case SockOpt::kRcvBuf:
    case SockOpt::kRcvBufForce:
      return give(rcvbuf_);
    case SockOpt::kSndBuf:
    case SockOpt::kSndBufForce:
      return give(sndbuf_);
    case SockOpt::kRcvLowat:
      return give(rcv_lowat_);
    case SockOpt::kMark:
      return give(mark_);
    case SockOpt::kPriority:
      return give(priority_);
    case SockOpt::kMaxPacingRate:
      return give(static_cast<int64_t>(max_pacing_rate_));
    case SockOpt::kOobInline:
      return give(oob_inline_);
    case SockOpt::kBindToIfIndex:
      return give(bound_ifindex);
    case SockOpt::kIpTos:
      return give(tos_);
    case SockOpt::kIpTtl:
      return give(ttl_ > 0 ? ttl_ : sysctls().ip_default_ttl);
    case SockOpt::kIpv6UnicastHops:
      return give(ttl_ >= 0 ? ttl_ : 64);
    case SockOpt::kIpv6Tclass:
      return give(tclass_ >= 0 ? tclass_ : 0);
    case SockOpt::kIpMtuDiscover:
    case SockOpt::kIpv6MtuDiscover:
      return give(pmtu_discover_);
    case SockOpt::kIpMtu:
    case SockOpt::kIpv6Mtu:
      if (!Synchronized() || !route_.ok()) return Errno::kENOTCONN;
      return give(route_.mtu);
    case SockOpt::kIpRecvErr:
    case SockOpt::kIpv6RecvErr:
      return give(recv_err_);
    case SockOpt::kIpFreebind:
    case SockOpt::kIpv6Freebind:
      return give(freebind_);
    case SockOpt::kIpTransparent:
      return give(transparent_);
    case SockOpt::kIpBindAddressNoPort:
      return give(bind_no_port_);
    case SockOpt::kIpMinTtl:
    case SockOpt::kIpv6MinHopCount:
      return give(min_ttl_);
    case SockOpt::kIpLocalPortRange:
      return give(port_range_);
    case SockOpt::kIpv6V6Only:
      return family_ == Family::kIpv6 ? give(v6_only) : Errno::kENOPROTOOPT;
    case SockOpt::kTcpNoDelay:
      return give(nodelay_);
    case SockOpt::kTcpCork:
      return give(cork_);
    case SockOpt::kTcpMaxSeg:
      if ((state_ == State::kClosed || state_ == State::kListen) && user_mss_ != 0) return give(user_mss_);
      return give(Synchronized() ? CurrentMss() : 536);
    case SockOpt::kTcpKeepIdle:
      return give(KeepIdle().seconds());
    case SockOpt::kTcpKeepIntvl:
      return give(KeepInterval().seconds());
    case SockOpt::kTcpKeepCnt:
      return give(KeepProbes());
    case SockOpt::kTcpSynCnt:
      return give(syn_count_ > 0 ? syn_count_ : sysctls().tcp_syn_retries);
    case SockOpt::kTcpLinger2:
      return give(linger2_ < 0 ? -1 : linger2_ > 0 ? linger2_ : sysctls().tcp_fin_timeout_s);
    case SockOpt::kTcpDeferAccept:
      return give(RetransmissionsToSeconds(defer_accept_));
    case SockOpt::kTcpWindowClamp:
      return give(user_window_clamp_ != 0 ? user_window_clamp_ : window_clamp_);
    case SockOpt::kTcpQuickAck:
      return give(pingpong_ < 3);
    case SockOpt::kTcpUserTimeout:
      return give(user_timeout_ms_);
    case SockOpt::kTcpNotSentLowat:
      return give(notsent_lowat_ >= 0 ? notsent_lowat_ : 0);
    case SockOpt::kTcpFastOpen:
      return give(fast_open_backlog_);
    case SockOpt::kTcpFastOpenConnect:
      return give(fast_open_connect_);
    case SockOpt::kTcpFastOpenNoCookie:
      return give(fast_open_no_cookie_);
    case SockOpt::kTcpThinLinearTimeouts:
      return give(thin_linear_);
    default:
      return Errno::kENOPROTOOPT;
  }
}

// --- taken over by a socket of another stack

struct Connection::AllSettings final : StreamSettings {
  StreamOptions options;
  bool reuse_address, reuse_port, v6_only;
  IfIndex ifindex;
  uint8_t pingpong;  // TCP_QUICKACK
  uint64_t max_pacing_rate;
  std::string congestion_control;
};

std::shared_ptr<const StreamSettings> Connection::Settings() const {
  auto all = std::make_shared<AllSettings>();
  all->options = *this;
  all->reuse_address = reuse_address, all->reuse_port = reuse_port, all->v6_only = v6_only;
  all->ifindex = bound_ifindex;
  all->pingpong = pingpong_;
  all->max_pacing_rate = max_pacing_rate_;
  all->congestion_control = cc_->name();
  return all;
}

void Connection::TakeSettings(const StreamSettings& settings) {
  const auto& all = static_cast<const AllSettings&>(settings);
  static_cast<StreamOptions&>(*this) = all.options;
  reuse_address = all.reuse_address, reuse_port = all.reuse_port, v6_only = all.v6_only;
  bound_ifindex = all.ifindex;
  pingpong_ = all.pingpong;
  max_pacing_rate_ = all.max_pacing_rate;
  (void)SetCongestionControl(all.congestion_control);
  UpdatePaced();
}

}  // namespace sluice::tcp
