// What `ss` and TCP_INFO show.
#include <algorithm>

#include "netstack/tcp/connection.h"

namespace sluice::tcp {
namespace {

constexpr uint8_t kInfoTimestamps = 1, kInfoSack = 2, kInfoWindowScale = 4, kInfoEcn = 8, kInfoEcnSeen = 16, kInfoSynData = 32;

uint32_t Segments(uint64_t bytes, uint32_t mss) { return static_cast<uint32_t>((bytes + mss - 1) / std::max(mss, 1u)); }
uint32_t Age(Instant now, Instant then) { return then == Instant() ? 0 : static_cast<uint32_t>((now - then).ms()); }

}  // namespace

TcpInfo Connection::info() const {
  TcpInfo i;
  i.state = static_cast<uint8_t>(state_);
  i.congestion_control = cc_->name();
  if (state_ == State::kListen) {
    i.unacked = static_cast<uint32_t>(listen_->accept_count);
    i.sacked = static_cast<uint32_t>(listen_->backlog);
    return i;
  }
  const uint32_t mss = std::max(cw_.mss, 1u);
  i.ca_state = static_cast<uint8_t>(ca_state_);
  i.retransmits = retransmits_;
  i.probes = probes_;
  i.backoff = backoff_;
  i.options = static_cast<uint8_t>((timestamps_ ? kInfoTimestamps : 0) | (sack_ ? kInfoSack : 0) |
                                   (scaling_ ? kInfoWindowScale : 0) | (ecn_.ok ? kInfoEcn : 0) | (ecn_.seen ? kInfoEcnSeen : 0));
  if (fast_open_ != nullptr) {
    if (fast_open_->data_acked) i.options |= kInfoSynData;
    i.fastopen_client_fail = static_cast<uint8_t>(fast_open_->failure);
  }
  i.snd_wscale = snd_.wscale;
  i.rcv_wscale = rcv_.wscale;
  i.delivery_rate_app_limited = rate_app_limited_;
  i.rto = static_cast<uint32_t>(BackedOffRto().us());
  i.ato = static_cast<uint32_t>(ato_.us());
  i.snd_mss = mss;
  i.rcv_mss = rcv_mss_;
  i.unacked = Segments(sent_.out_bytes(), mss);
  i.sacked = Segments(sent_.sacked_bytes(), mss);
  i.lost = Segments(sent_.lost_bytes(), mss);
  i.retrans = Segments(sent_.retransmitted_bytes(), mss);
  i.last_data_sent = Age(now(), last_data_sent_);
  i.last_data_recv = Age(now(), last_data_received_);
  i.last_ack_recv = Age(now(), last_ack_received_);
  i.pmtu = route_.mtu;
  i.rcv_ssthresh = rcv_ssthresh_;
  i.rtt = static_cast<uint32_t>(rtt_.srtt().us());
  i.rttvar = static_cast<uint32_t>(rtt_.rttvar().us());
  i.snd_ssthresh = cw_.ssthresh >= 0x7fffffff ? 0x7fffffff : cw_.ssthresh / mss;
  i.snd_cwnd = cw_.cwnd / mss;
  i.advmss = route_.ok() ? AdvertisedMss(route_, key.remote.family()) : 536;
  i.reordering = reorder_seen_ ? 3u + reorder_mult_ : static_cast<uint32_t>(sysctls().tcp_reordering);
  i.rcv_rtt = static_cast<uint32_t>(rcv_rtt_.us());
  i.rcv_space = drs_space_;
  i.total_retrans = totals_.retransmitted;
  i.pacing_rate = PacingRate();
  i.max_pacing_rate = max_pacing_rate_;
  i.bytes_acked = totals_.bytes_acked;
  i.bytes_received = totals_.bytes_received;
  i.segs_out = totals_.segs_out;
  i.segs_in = totals_.segs_in;
  i.notsent_bytes = Synchronized() ? Unsent() : 0;
  i.min_rtt = rtt_.has_min() ? static_cast<uint32_t>(rtt_.min_rtt().us()) : ~0u;
  i.data_segs_in = totals_.data_segs_in;
  i.data_segs_out = totals_.data_segs_out;
  if (rate_interval_ > Duration()) {
    i.delivery_rate =
        static_cast<uint64_t>(static_cast<double>(rate_delivered_) * 1e9 / static_cast<double>(rate_interval_.ns()));
  }
  i.busy_time = static_cast<uint64_t>((busy_ + (busy_now_ ? now() - busy_since_ : Duration())).us());
  i.rwnd_limited = static_cast<uint64_t>((rwnd_limited_ + (rwnd_limited_now_ ? now() - rwnd_since_ : Duration())).us());
  i.sndbuf_limited = static_cast<uint64_t>((sndbuf_limited_ + (sndbuf_limited_now_ ? now() - sndbuf_since_ : Duration())).us());
  i.delivered = Segments(totals_.delivered, mss);
  i.delivered_ce = Segments(totals_.delivered_marked, mss);
  i.model = cc_->model_info();
  i.bytes_sent = totals_.bytes_sent;
  i.bytes_retrans = totals_.bytes_retransmitted;
  i.dsack_dups = totals_.dsack_dups;
  i.reord_seen = totals_.reorderings;
  i.rcv_ooopack = totals_.ooo_packets;
  i.snd_wnd = snd_.wnd;
  i.rcv_wnd = WindowNow();
  return i;
}

SocketInfo Connection::Describe(bool with_tcp_info) const {
  SocketInfo s{};
  s.family = family_;
  s.protocol = kIpProtoTcp;
  s.state = state();
  s.local = local();
  if (key.remote_port != 0) s.remote = FromWire(key.remote, key.remote_port);
  s.ifindex = bound_ifindex;
  s.v6_only = v6_only;
  if (state_ == State::kListen) {
    s.receive_queue = static_cast<uint32_t>(listen_->accept_count);
    s.send_queue = s.backlog = static_cast<uint32_t>(listen_->backlog);
  } else {
    s.receive_queue = static_cast<uint32_t>(rcvq_.size());
    s.send_queue = static_cast<uint32_t>(unacked_bytes());
  }
  const Slot slot = Armed(kRetransmit) ? kRetransmit : Armed(kLossProbe) ? kLossProbe : kKeepAlive;
  if (Armed(slot)) {  // numbered as /proc/net/tcp: 1 retransmission, 2 keepalive, 4 zero window probe
    s.timer = slot == kKeepAlive ? 2 : retransmit_use_ == RetransmitUse::kPersist ? 4 : 1;
    s.timer_ms = static_cast<uint32_t>(std::max<int64_t>(0, (deadlines_[slot] - now()).ms()));
  }
  s.retransmits = retransmits_;
  if (with_tcp_info) s.tcp = info();
  return s;
}

}  // namespace sluice::tcp
