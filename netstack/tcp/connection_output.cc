// Output: what may be sent, and the frames themselves. RFC 9293 3.7-3.8, 6675 5, 1122 4.2.3.4 (silly windows).
#include <algorithm>
#include <utility>

#include "netstack/tcp/connection.h"
#include "netstack/wire/checksum.h"

namespace sluice::tcp {
namespace {

constexpr uint32_t kMaxFrameBytes = 65535;  // IPv4 total length
constexpr uint32_t kInlinePayload = 68;     // fits beside the largest header in the smallest block
constexpr uint32_t kChecksumOffset = 16;

// Pacing, as Linux: a paced super-segment lasts about a millisecond, longer where the round trip is short (tcp_tso_autosize); the
// first ten segments leave at once.
constexpr int kBurstShift = 10;
constexpr uint32_t kUnpacedSegments = 10;
// A timer fires up to a tick of the wheel late. So much is caught up with.
constexpr Duration kTimerLag = Duration(1 << 17);
// Enough that a device that paces does not run dry while our timer is late (as TCP small queues on Linux).
constexpr Duration kAhead = Duration::Milliseconds(1);

}  // namespace

bool Connection::EnsureRoute() {
  IpLayer& ip = *engine_.ctx.ip;
  if (route_.ok() && route_.generation == ip.generation()) return true;
  RouteQuery q;
  q.destination = key.remote;
  q.source = key.local;
  q.ifindex = bound_ifindex != 0 ? bound_ifindex : scope_;
  q.tos = tos_;
  q.mark = mark_;
  q.flow_hash = hash;
  q.dont_route = dont_route_;
  q.any_source = freebind_ || transparent_;
  Route r = ip.Lookup(q);
  if (!r.ok()) {
    soft_error_ = r.error;
    route_.error = r.error;
    return false;
  }
  const bool changed = r.mtu != route_.mtu;
  UseRoute(r);
  if (changed) UpdateMss();
  return true;
}

void Connection::UseRoute(const Route& route) {
  route_ = route;
  pacing_ahead_ = engine_.ctx.ip->Paces(route) ? kAhead : Duration();
  UpdatePaced();
}

void Connection::UpdateMss() {
  const uint32_t headers = (key.remote.is_v4() ? 20u : 40u) + kHeaderSize;
  uint32_t mss = route_.mtu > headers ? route_.mtu - headers : kMinMss;
  if (route_.ok() && mtu_.high > route_.mtu) mtu_.high = route_.mtu;
  if (mtu_.enabled) mss = std::min(mss, std::max(mtu_.low, headers + kMinMss) - headers);
  if (user_mss_ != 0) mss = std::min(mss, user_mss_);
  if (peer_mss_ != 0) mss = std::min(mss, peer_mss_);
  mss_ = std::max<uint32_t>(
      mss, static_cast<uint32_t>(std::max(sysctls().tcp_min_snd_mss, 40)) - 40 + (timestamps_ ? kTimestampOptionSize : 0));
  const uint32_t effective = mss_ - (timestamps_ ? kTimestampOptionSize : 0);
  if (effective != cw_.mss && cw_.mss != 0 && cw_.cwnd != 0) {
    cw_.cwnd = std::max<uint32_t>(effective, static_cast<uint32_t>(uint64_t{cw_.cwnd} * effective / cw_.mss));
  }
  cw_.mss = effective;
}

uint32_t Connection::OptionBytes() const {
  uint32_t n = timestamps_ ? kTimestampOptionSize : 0;
  uint32_t blocks = sack_ ? sacks_.count() + (has_dsack_ ? 1u : 0u) : 0;
  if (blocks > 0) {
    blocks = std::min(blocks, timestamps_ ? 3u : 4u);
    n += 4 + 8 * blocks;
  }
  return n;
}

// What one segment carries now: options are paid by the payload, and a peer with a tiny window gets at most half of it.
uint32_t Connection::CurrentMss() const {
  const uint32_t options = OptionBytes();
  uint32_t mss = mss_ > options + 8 ? mss_ - options : 8;
  const uint32_t half = snd_.max_wnd > 536 ? snd_.max_wnd / 2 : snd_.max_wnd;
  if (half != 0 && mss > half) mss = std::max(half, 48u);
  return mss;
}

uint32_t Connection::MaxBurst() const {
  const uint32_t mss = CurrentMss();
  IpLayer& ip = *engine_.ctx.ip;
  if (!ip.GsoPossible(route_)) return mss;
  const uint32_t headers = 40 + kMaxHeaderSize;
  const uint32_t most = std::min(ip.GsoMaxSize(route_), kMaxFrameBytes);
  if (most <= headers + mss) return mss;
  const uint32_t whole = (most - headers) / mss;
  return (paced_ ? std::min(whole, PacedSegments(most, mss)) : whole) * mss;
}

uint32_t Connection::PacedSegments(uint32_t most, uint32_t mss) const {
  uint64_t bytes = PacingRate() >> kBurstShift;
  const int64_t shift = rtt_.has_min() ? rtt_.min_rtt().us() >> sysctls().tcp_tso_rtt_log : 32;
  if (shift < 32 && sysctls().tcp_tso_rtt_log != 0) bytes += most >> shift;
  const uint32_t least = cc_->MinBurstSegments(cw_);
  return static_cast<uint32_t>(std::max<uint64_t>(std::min<uint64_t>(bytes, most) / mss,
                                                  least != 0 ? least : static_cast<uint32_t>(sysctls().tcp_min_tso_segs)));
}

// Without a model the rate leads the window (linux tcp_update_pacing_rate).
uint64_t Connection::PacingRate() const {
  uint64_t rate = cw_.pacing_rate;
  if (!model_ && rtt_.valid()) {
    const bool early = cw_.cwnd < cw_.ssthresh / 2;
    const auto percent = static_cast<uint64_t>(early ? sysctls().tcp_pacing_ss_ratio : sysctls().tcp_pacing_ca_ratio);
    const auto srtt_us = static_cast<uint64_t>(std::max<int64_t>(rtt_.srtt().us(), 1));
    rate = uint64_t{std::max(cw_.cwnd, sent_.out_bytes())} * percent * 10'000 / srtt_us;
  }
  rate = std::min(rate, max_pacing_rate_);
  return rate != 0 ? rate : kUnpaced;
}

void Connection::UpdatePaced() { paced_ = model_ || max_pacing_rate_ != kUnpaced || pacing_ahead_ > Duration(); }

bool Connection::PacingHolds() {
  if (!paced_) return false;
  const Instant at = next_departure_ - pacing_ahead_;
  if (at <= now()) return false;
  Arm(kPacing, at);
  return true;
}

void Connection::AdvanceDeparture(uint32_t length) {
  const uint64_t rate = PacingRate();
  if (rate == kUnpaced || totals_.data_segs_out < kUnpacedSegments) return;
  const double ns = static_cast<double>(length) * 1e9 / static_cast<double>(rate);
  next_departure_ = std::max(next_departure_, now() - kTimerLag) + Duration(static_cast<int64_t>(std::min(ns, 1e18)));
}

// draft-cheng-iccrg-delivery-rate-estimation-00 3.2
SendStamp Connection::StampNow() {
  SendStamp s;
  s.sent_at = Departure();
  if (sent_.out_bytes() == 0) first_sent_at_ = delivered_at_ = s.sent_at;
  s.delivered_at = delivered_at_;
  s.first_sent_at = first_sent_at_;
  s.delivered = totals_.delivered;
  s.app_limited = app_limited_until_ != 0;
  return s;
}

// 3.4: there is room in the window and nothing to fill it with.
void Connection::NoteAppLimited() {
  const uint32_t in_flight = InFlight();
  if (Unsent() >= CurrentMss() || in_flight >= cw_.cwnd || sent_.has_unsent_loss()) return;
  app_limited_until_ = std::max<uint64_t>(1, totals_.delivered + in_flight);
}

SeqNum Connection::WriteEnd() const {
  const bool syn_out = state_ == State::kSynSent || state_ == State::kSynReceived;
  return (syn_out ? snd_.iss + 1 : snd_.una) + static_cast<uint32_t>(sndq_.size());
}

uint32_t Connection::SentData() const {
  if (state_ == State::kSynSent || (state_ == State::kSynReceived && !early())) return 0;
  return (snd_.nxt - snd_.una) - (fin_sent_ ? 1 : 0);
}

HeaderSpec Connection::MakeHeader(SeqNum seq, uint8_t flags) {
  HeaderSpec h;
  h.source_port = key.local_port;
  h.destination_port = key.remote_port;
  h.seq = seq;
  h.flags = flags;
  if ((flags & kAck) != 0) h.ack = rcv_.nxt;
  if ((flags & kSyn) == 0) {
    const uint32_t window = (flags & kRst) != 0 ? 0 : SelectWindow();
    h.window = static_cast<uint16_t>(std::min(window >> rcv_.wscale, 65535u));
  }
  if (timestamps_) {
    h.has_timestamps = true;
    h.ts_val = TimestampNow();
    h.ts_ecr = ts_recent_;
  }
  if (sack_ && (flags & (kSyn | kRst)) == 0 && (has_dsack_ || sacks_.count() > 0)) {
    const uint8_t room = timestamps_ ? 3 : 4;
    if (has_dsack_) h.sack[h.sack_count++] = dsack_;
    for (uint8_t i = 0; i < sacks_.count() && h.sack_count < room; ++i) h.sack[h.sack_count++] = sacks_[i];
    has_dsack_ = false;
  }
  return h;
}

// Builds one frame, a super-segment where the payload exceeds `mss`, and hands it to IP. False where there was no memory.
bool Connection::Emit(HeaderSpec& h, uint32_t payload_offset, uint32_t payload_length, uint32_t mss, bool new_data) {
  if (!EnsureRoute()) return false;
  const uint8_t ecn = (h.flags & kSyn) == 0 && StampEcn(&h, new_data) ? kEcnEct0 : kEcnNotEct;
  const uint32_t header_len = HeaderLength(h);
  bool inline_payload = payload_length <= kInlinePayload;
  Packet p = Packet::Allocate(pool(), header_len + (inline_payload ? payload_length : 0));
  if (!p) return false;
  uint8_t* header = p.Append(header_len);
  if (payload_length > 0) {
    if (inline_payload) {
      sndq_.CopyOut(payload_offset, {p.Append(payload_length), payload_length});
    } else if (sndq_.Gather(payload_offset, payload_length, &p) < payload_length) {
      // More pieces than a frame holds: copy.
      p = Packet::Allocate(pool(), header_len + payload_length);
      if (!p) return false;
      header = p.Append(header_len);
      sndq_.CopyOut(payload_offset, {p.Append(payload_length), payload_length});
    }
  }
  WriteHeader(h, header);
  if (new_data) ecn_.queue_cwr = false;  // said
  const uint32_t tcp_length = header_len + payload_length;
  wire::StoreSum(header + kChecksumOffset, wire::PseudoHeaderSum(key.local, key.remote, kIpProtoTcp, tcp_length));
  p.offload.checksum = ChecksumState::kPartial;
  p.offload.csum_start = 0;
  p.offload.csum_offset = kChecksumOffset;
  uint32_t segments = 1;
  if (payload_length > mss && mss > 0) {
    p.offload.gso = key.remote.is_v4() ? GsoType::kTcpV4 : GsoType::kTcpV6;
    p.offload.gso_size = static_cast<uint16_t>(mss);
    p.offload.hdr_len = static_cast<uint16_t>(header_len);
    p.offload.ecn = (h.flags & kCwr) != 0;
    segments = (payload_length + mss - 1) / mss;
  }
  if (pacing_ahead_ > Duration() && payload_length > 0) p.departure = Departure();
  IpSend how;
  how.source = key.local;
  how.destination = key.remote;
  how.protocol = kIpProtoTcp;
  if (key.remote.is_v4()) {
    how.ttl = ttl_ > 0 ? static_cast<uint8_t>(ttl_) : static_cast<uint8_t>(sysctls().ip_default_ttl);
    how.tos = tos_ | ecn;
    how.dont_fragment = pmtu_discover_ != 0;
    how.ignore_df = pmtu_discover_ == 0;
  } else {
    how.ttl = ttl_ > 0 ? static_cast<uint8_t>(ttl_) : route_.hoplimit != 0 ? static_cast<uint8_t>(route_.hoplimit) : 64;
    how.tos = static_cast<uint8_t>((tclass_ > 0 ? tclass_ & ~kEcnMask : 0) | ecn);
  }
  totals_.segs_out += segments;
  engine_.Count(Counter::kTcpOutSegs, segments);
  if ((h.flags & kAck) != 0) {
    ack_now_ = ack_scheduled_ = false;
    Disarm(kDelayedAck);
    last_ack_sent_ = rcv_.nxt;
    if (quick_acks_ > 0) --quick_acks_;
  }
  const Errno e = engine_.ctx.ip->Send(std::move(p), route_, how);
  // A frame that IP refused counts as lost on the way; a refusal for its size means that the path's MTU shrank under us.
  if (e == Errno::kEMSGSIZE) route_.generation = 0;
  return true;
}

void Connection::SendSyn() {
  if (!EnsureRoute()) return;
  const bool answer = state_ == State::kSynReceived;
  HeaderSpec h = MakeHeader(snd_.iss, static_cast<uint8_t>(answer ? kSyn | kAck | (ecn_.ok ? kEce : 0) : kSyn | EcnSynFlags()));
  h.mss = AdvertisedMss(route_, key.remote.family());
  h.has_timestamps = answer ? timestamps_ : sysctls().tcp_timestamps;
  h.ts_val = TimestampNow();
  h.ts_ecr = answer ? ts_recent_ : 0;
  h.sack_permitted = answer ? sack_ : sysctls().tcp_sack;
  h.has_window_scale = answer ? scaling_ : sysctls().tcp_window_scaling;
  h.window_scale = rcv_.wscale;
  h.window = static_cast<uint16_t>(std::min(rcv_.wnd, 65535u));
  if (retransmit_stamp_ == 0 && retransmits_ > 0) retransmit_stamp_ = std::max(1u, h.ts_val);
  if (fast_open_ == nullptr) {
    Emit(h, 0, 0, 0);
    return;
  }
  h.fast_open = std::exchange(fast_open_->option, FastOpenCookie{});
  const uint32_t data = std::exchange(fast_open_->next_data, 0);
  if (!Emit(h, 0, data, 0) || data == 0) return;
  ++totals_.data_segs_out;
  totals_.bytes_sent += data;
}

// Of a segment without text (as linux tcp_acceptable_seq): behind a window that the peer took back it would drop it, and with it
// what the segment acknowledges.
SeqNum Connection::AcceptableSeq() const {
  const SeqNum edge = snd_.una + snd_.wnd;
  if (snd_.nxt <= edge || (scaling_ && snd_.nxt - edge < 1u << rcv_.wscale)) return snd_.nxt;
  return edge;
}

void Connection::SendAckNow() {
  HeaderSpec h = MakeHeader(AcceptableSeq(), kAck);
  if (!Emit(h, 0, 0, 0)) {  // no memory or no route: try once more later
    ack_scheduled_ = true;
    Arm(kDelayedAck, now() + kMaxDelayedAck);
    ack_now_ = false;
  }
}

void Connection::SendResetNow() {
  HeaderSpec h = MakeHeader(AcceptableSeq(), static_cast<uint8_t>(kRst | kAck));
  Emit(h, 0, 0, 0);
  engine_.Count(Counter::kTcpOutRsts);
}

// One frame of queued bytes, the FIN included where it is in reach.
bool Connection::SendPayload(SeqNum seq, uint32_t length, bool fin, bool push, uint32_t mss) {
  uint8_t flags = kAck;
  if (push) flags |= kPsh;
  if (fin) flags |= kFin;
  HeaderSpec h = MakeHeader(seq, flags);
  if (snd_.up > seq) {  // RFC 6093
    h.flags |= kUrg;
    h.urgent = static_cast<uint16_t>(std::min<uint32_t>(snd_.up - seq, 65535));
  }
  if (!Emit(h, seq - snd_.una, length, mss, length > 0 && snd_.nxt <= seq)) return false;
  if (length > 0) {
    const uint32_t segments = (length + mss - 1) / mss;
    totals_.data_segs_out += segments;
    totals_.bytes_sent += length;
  }
  return true;
}

// Sends [start, start + length) of what was queued; a retransmission where it was sent before.
bool Connection::SendRange(SeqNum start, uint32_t length, bool retransmission, uint32_t mss) {
  const SeqNum end = start + length;
  const SeqNum data_end = WriteEnd();
  const bool fin = fin_queued_ && end > data_end;
  const uint32_t data = fin ? data_end - start : length;
  if (!SendPayload(start, data, fin, data > 0 && end >= data_end, mss)) return false;
  const SendStamp stamp = StampNow();
  if (paced_) AdvanceDeparture(data);
  if (retransmission) {
    mtu_.size = 0;  // what comes of a probe now says nothing
    const uint32_t segments = std::max(1u, (data + mss - 1) / mss);
    sent_.OnRetransmit(start, end, stamp);
    totals_.retransmitted += segments;
    totals_.bytes_retransmitted += data;
    engine_.Count(Counter::kTcpRetransSegs, segments);
    if (undo_retransmitted_ >= 0) undo_retransmitted_ += length;
    if (retransmit_stamp_ == 0 && timestamps_) retransmit_stamp_ = std::max(1u, TimestampNow());
    prr_out_ += length;
    return true;
  }
  sent_.OnSend(start, end, stamp);
  snd_.nxt = Max(snd_.nxt, end);
  if (fin) fin_sent_ = true;
  prr_out_ += length;
  return true;
}

// Retransmissions, adjacent lost ranges as one frame. False where cwnd or memory ended it.
bool Connection::SendLost() {
  if (!sent_.has_unsent_loss()) return true;
  SeqNum from = snd_.una;
  while (auto piece = sent_.NextLost(from)) {
    if (PacingHolds()) return false;
    const uint32_t in_flight = InFlight();
    const uint32_t mss = CurrentMss();
    uint32_t length = std::min(piece->end - piece->start, MaxBurst());
    const uint32_t room = cw_.cwnd > in_flight ? cw_.cwnd - in_flight : 0;
    if (room < std::min(length, mss) && in_flight > 0) return false;
    if (length > room) length = std::max(room / mss * mss, std::min(mss, length));
    // Never beyond the window, but for the first byte that the peer misses (RFC 9293 3.8.6.2.1 with a window that shrank).
    const SeqNum edge = snd_.una + snd_.wnd;
    if (piece->start != snd_.una) {
      if (piece->start >= edge) return true;
      length = std::min(length, edge - piece->start);
    } else if (snd_.wnd < length) {
      length = std::max(std::min(length, mss), std::min(length, snd_.wnd));
    }
    if (!SendRange(piece->start, length, true)) return false;
    from = piece->start + length;
  }
  return true;
}

// RFC 9293 3.7.4 with Minshall's variant: only one small segment may be out, full ones do not matter.
bool Connection::NagleAllows(uint32_t length) const {
  if (length >= CurrentMss()) return true;
  if (fin_queued_) return true;
  if (cork_ || more_) return false;
  if (nodelay_) return true;
  return !(sent_.out_bytes() > 0 && minshall_ > snd_.una);
}

void Connection::PushUnsent() {
  if (!CanSendData()) return;
  push_end_ = WriteEnd();
  push_due_ = true;
  output_due_ = true;
  MarkWork();
}

void Connection::SendNew(bool probe) {
  if (!probe && mtu_.enabled && SendMtuProbe() == Probing::kWait) return;
  const uint32_t mss = CurrentMss();
  const uint32_t burst = MaxBurst();
  bool rwnd_limited = false;
  bool first = true, held = false;
  while (Unsent() > 0 || FinUnsent()) {
    if (!probe && PacingHolds()) {
      held = true;
      break;
    }
    const uint32_t unsent = Unsent();
    const uint32_t in_flight = InFlight();
    const SeqNum edge = snd_.una + snd_.wnd;
    const uint32_t wnd_room = edge > snd_.nxt ? edge - snd_.nxt : 0;
    uint32_t cwnd_room = cw_.cwnd > in_flight ? cw_.cwnd - in_flight : 0;
    if (probe) {
      if (!first) break;
      cwnd_room = std::max(cwnd_room, mss);
    }
    first = false;
    uint32_t length = std::min({unsent, burst, probe ? mss : burst});
    if (snd_.up > snd_.nxt) length = std::min(length, mss);
    if (wnd_room < std::min(unsent + (unsent == 0 ? 1 : 0), mss) && !(probe && wnd_room > 0)) {
      rwnd_limited = true;
      break;
    }
    length = std::min(length, wnd_room);
    if (cwnd_room < std::min(length, mss) && in_flight > 0) {
      cwnd_limited_ = true;
      break;
    }
    if (length > cwnd_room) {
      // Wait for a larger share of the window: a burst costs as much as a segment (as linux tcp_tso_should_defer).
      cwnd_limited_ = true;
      length = std::max(std::min(mss, length), cwnd_room / mss * mss);
      if (!probe && ca_state_ < CaState::kRecovery && in_flight > 0 && length < std::min(burst, cw_.cwnd / 3)) break;
    }
    if (length < unsent) {
      if (length > mss) length -= length % mss;
      if (length == wnd_room && length < mss && !probe) rwnd_limited = true;
    } else if (!probe) {
      const uint32_t tail = length % mss;
      if (tail != 0 && !NagleAllows(tail)) {
        push_due_ = push_due_ && push_end_ > snd_.nxt;
        length = std::max(length - tail, push_due_ ? std::min(push_end_ - snd_.nxt, length) : 0);
      }
      if (length == 0 && !FinUnsent()) break;
    }
    const bool fin = FinMayLeave() && length == unsent && wnd_room > length;
    if (length == 0 && !fin) break;
    if (!SendRange(snd_.nxt, length + (fin ? 1 : 0), false)) {
      // No memory: frames on their way will free some.
      if (!Armed(kRetransmit)) Arm(kRetransmit, now() + MinRto());
      return;
    }
    OnDataSent(length);
  }
  if (early()) return;  // the timer is the SYN,ACK's
  if (rwnd_limited && sent_.out_bytes() == 0 && retransmit_use_ != RetransmitUse::kPersist) {
    retransmit_use_ = RetransmitUse::kPersist;
    Arm(kRetransmit, now() + BackedOffRto());
  } else if (sent_.out_bytes() == 0 && Unsent() > 0 && !held &&
             !Armed(kRetransmit)) {  // CORK or MSG_MORE holds a part: not for ever
    retransmit_use_ = RetransmitUse::kPersist;
    Arm(kRetransmit, now() + MinRto());
  }
  if (rwnd_limited != rwnd_limited_now_) {
    if (rwnd_limited)
      rwnd_since_ = now();
    else
      rwnd_limited_ += now() - rwnd_since_;
    rwnd_limited_now_ = rwnd_limited;
  }
}

void Connection::OnDataSent(uint32_t length) {
  if (length % CurrentMss() != 0) minshall_ = snd_.nxt;
  // An answer within the delayed-ACK time: the exchange is interactive, ACKs can ride on data.
  if (now() - last_data_received_ < ato_ && pingpong_ < 3) ++pingpong_;
  last_data_sent_ = now();
  if (!busy_now_) {
    busy_now_ = true;
    busy_since_ = now();
  }
}

// RFC 5681 4.1 as Linux (tcp_cwnd_restart): the window decays with each timeout that passed in silence.
void Connection::RestartAfterIdle() {
  if (!sysctls().tcp_slow_start_after_idle || sent_.out_bytes() > 0 || last_data_sent_ == Instant()) return;
  Duration idle = now() - last_data_sent_;
  if (idle <= rto_) return;
  cc_->OnIdle(idle);
  const uint32_t restart = std::min(10 * cw_.mss, cw_.cwnd);
  cw_.ssthresh = std::max(cw_.ssthresh, (cw_.cwnd >> 1) + (cw_.cwnd >> 2));
  while (idle > rto_ && cw_.cwnd > restart) {
    cw_.cwnd >>= 1;
    idle = idle - rto_;
  }
  cw_.cwnd = std::max(cw_.cwnd, restart);
}

void Connection::Output() {
  output_due_ = false;
  if (!CanSendData() || !EnsureRoute()) {
    if (CanSendData() && (Unsent() > 0 || FinUnsent() || sent_.out_bytes() > 0) && !Armed(kRetransmit))
      Arm(kRetransmit, now() + rto_);
    return;
  }
  const uint32_t out_before = sent_.out_bytes();
  const uint32_t retransmitted_before = sent_.retransmitted_bytes();
  if (out_before == 0 && Unsent() > 0) {
    if (model_)
      cc_->OnTransmitStart(cw_, app_limited_until_ != 0, now());
    else
      RestartAfterIdle();
  }
  if (early() || SendLost())
    SendNew(false);
  else if (sent_.has_unsent_loss())
    cwnd_limited_ = true;
  NoteAppLimited();
  if (sent_.out_bytes() > out_before || sent_.retransmitted_bytes() > retransmitted_before) {
    if (out_before == 0 || retransmit_use_ != RetransmitUse::kTimeout || !Armed(kRetransmit)) ArmRetransmit();
    ArmProbe();
  } else if (sent_.has_unsent_loss() && !Armed(kRetransmit)) {  // no memory
    ArmRetransmit();
  }
}

void Connection::Flush() {
  if (dead_) return;
  if (output_due_) {
    Output();
    // Below the limit by what was sent now, not by an acknowledgment.
    if (unsent_limit_ != UINT32_MAX && !dead_) NotifyState();
  }
  if (dead_) return;
  if (ack_now_ && Synchronized()) SendAckNow();
  AdjustReceiveBuffer();
}

// Linux sizes the send buffer by what the congestion window can use, twice (tcp_sndbuf_expand).
void Connection::GrowSendBuffer() {
  if (sndbuf_locked_ || !memory().MayGrow()) return;
  const uint64_t window = std::max(cw_.cwnd, 10 * cw_.mss);
  const auto most = static_cast<uint64_t>(std::max(sysctls().tcp_wmem[2], 4096));
  sndbuf_ = std::max(sndbuf_, static_cast<uint32_t>(std::min(most, 4 * window)));
}

}  // namespace sluice::tcp
