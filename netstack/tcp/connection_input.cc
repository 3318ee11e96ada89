// RFC 9293 3.10.7, SEGMENT ARRIVES: one function per step. With RFC 7323 (PAWS) and RFC 5961 (blind attacks).
#include <algorithm>

#include "netstack/tcp/connection.h"

namespace sluice::tcp {

bool Connection::Synchronized() const {
  switch (state_) {
    case State::kEstablished:
    case State::kFinWait1:
    case State::kFinWait2:
    case State::kCloseWait:
    case State::kClosing:
    case State::kLastAck:
      return true;
    default:
      return false;
  }
}

bool Connection::CanSendData() const {
  switch (state_) {
    case State::kEstablished:
    case State::kCloseWait:
    case State::kFinWait1:
    case State::kClosing:
    case State::kLastAck:
      return true;
    default:
      return early();
  }
}

void Connection::Input(const Segment& seg, Packet packet, const IpInfo& info) {
  totals_.segs_in += seg.segments;
  if (min_ttl_ != 0 && info.ttl < min_ttl_) {
    engine_.Count(Counter::kDropTcpMinTtl);
    return;
  }
  ingress_ = info.ifindex;
  const size_t unread = rcvq_.size();
  if (state_ == State::kEstablished && FastPath(seg, packet)) {
    NotifyState(rcvq_.size() > unread ? uint32_t{kReadable} : 0);
    return;
  }
  if (state_ == State::kSynSent)
    InputSynSent(seg, std::move(packet));
  else
    InputSynchronized(seg, std::move(packet));
  if (!dead_) NotifyState(rcvq_.size() > unread ? uint32_t{kReadable} : 0);
}

// Header prediction: the next segment in order, or a plain ACK; nothing unusual. Everything else takes the long way.
bool Connection::FastPath(const Segment& seg, Packet& packet) {
  if ((seg.flags & ~kPsh) != kAck || seg.seq != rcv_.nxt || seg.sack_count != 0 || snd_.nxt < seg.ack || seg.ack < snd_.una)
    return false;
  if (seg.payload_len > WindowNow() || read_shutdown_ || orphan_ || urgent_valid_ || early_fin_) return false;
  if (timestamps_) {
    if (!seg.has_timestamps || static_cast<int32_t>(seg.ts_val - ts_recent_) < 0) return false;
    if (seg.seq <= last_ack_sent_) {
      ts_recent_ = seg.ts_val;
      ts_recent_at_ = now();
    }
  }
  const bool pure_ack = seg.payload_len == 0;
  const bool news = seg.ack > snd_.una || (uint32_t{seg.window} << snd_.wscale) != snd_.wnd || pure_ack;
  if (news)
    ProcessAck(seg);
  else
    last_ack_received_ = now();
  if (!pure_ack) ProcessText(seg, std::move(packet));
  return true;
}

// 3.10.7.3
void Connection::InputSynSent(const Segment& seg, Packet packet) {
  if (seg.Has(kAck)) {  // first: check the ACK bit
    const bool acceptable = snd_.iss < seg.ack && seg.ack <= snd_.nxt;
    const bool timestamp_ok = !(seg.has_timestamps && seg.ts_ecr != 0) || static_cast<int32_t>(TimestampNow() - seg.ts_ecr) >= 0;
    if (!acceptable || !timestamp_ok) {
      return AnswerReset(seg);
    }
  }
  if (seg.Has(kRst)) {  // second
    if (seg.Has(kAck)) {
      engine_.Count(Counter::kTcpAttemptFails);
      Fail(Errno::kECONNREFUSED);
    }
    return;
  }
  if (!seg.Has(kSyn)) return;
  // fourth: the SYN
  Handshake shake;
  shake.iss = snd_.iss;
  shake.irs = seg.seq;
  shake.peer_mss = seg.mss != 0 ? seg.mss : 536;
  shake.window = seg.window;
  shake.scaling = seg.has_window_scale && sysctls().tcp_window_scaling;
  shake.snd_wscale = seg.window_scale;
  shake.rcv_wscale = rcv_.wscale;
  shake.timestamps = seg.has_timestamps && sysctls().tcp_timestamps;
  shake.sack = seg.sack_permitted && sysctls().tcp_sack;
  shake.ecn = EcnAgreed(seg);
  shake.ts_recent = seg.ts_val;
  shake.ts_offset = ts_offset_;
  shake.rcv_wnd = rcv_.wnd;
  if (!seg.Has(kAck)) {  // simultaneous open
    ApplyHandshake(shake);
    SetState(State::kSynReceived);
    snd_.nxt = snd_.iss + 1;
    retransmits_ = 0;
    if (fast_open_ != nullptr) fast_open_->ForgetSyn();
    SendSyn();
    Arm(kRetransmit, now() + BackedOffRto());
    return;
  }
  if (retransmits_ == 0) {
    rtt_.Sample(now() - last_data_sent_, snd_.una, snd_.nxt, MinRto());
    rto_ = rtt_.Rto(MinRto());
  }
  ApplyHandshake(shake);
  snd_.una = seg.ack;
  snd_.wl1 = seg.seq;
  snd_.wl2 = seg.ack;
  Established(seg);
  if (fast_open_ != nullptr) TakeFastOpenSynAck(seg);
  AckSoon();
  // Data or a FIN in the SYN,ACK (3.10.7.3, fifth).
  if (seg.payload_len > 0 || seg.Has(kFin)) {
    Segment rest = seg;
    rest.seq = seg.seq + 1;
    rest.flags &= static_cast<uint8_t>(~kSyn);
    if (orphan_ && NewData(rest)) return AbortOnData(rest);
    if (ProcessText(rest, std::move(packet)) && rest.Has(kFin)) ProcessFin(rest.seq + rest.payload_len);
  } else {
    EnterQuickAck(16);
  }
}

// The reset that a segment gets for which there is no connection (any more).
void Connection::AnswerReset(const Segment& seg) {
  IpInfo info;
  info.source = key.remote, info.destination = key.local, info.ifindex = ingress_;
  engine_.SendReset(seg, info);
}

// What both SYNs said becomes the connection's parameters.
void Connection::ApplyHandshake(const Handshake& s) {
  rcv_.irs = s.irs;
  rcv_.nxt = rcv_.wup = copied_ = drs_start_ = s.irs + 1;
  last_ack_sent_ = rcv_.nxt;
  rcv_.wnd = s.rcv_wnd;
  scaling_ = s.scaling;
  snd_.wscale = s.scaling ? s.snd_wscale : 0;
  rcv_.wscale = s.scaling ? s.rcv_wscale : 0;
  if (!scaling_) window_clamp_ = std::min(window_clamp_, 65535u);
  timestamps_ = s.timestamps;
  sack_ = s.sack;
  ecn_ = {};
  ecn_.ok = s.ecn;
  ts_recent_ = s.ts_recent;
  ts_recent_at_ = now();
  ts_offset_ = s.ts_offset;
  peer_mss_ = std::max<uint32_t>(s.peer_mss, static_cast<uint32_t>(std::max(sysctls().tcp_min_snd_mss, 48)));
  snd_.wnd = s.window;  // of a SYN: not scaled
  snd_.max_wnd = s.window;
  snd_.wl1 = s.irs;
  StartMtuSearch();
  UpdateMss();
  const uint32_t initial = route_.initcwnd != 0 ? route_.initcwnd : 10;
  cw_.cwnd = initial * cw_.mss;
  if (retransmits_ > 1) cw_.cwnd = cw_.mss;  // RFC 6298 5.7 / 5681 3.1: the SYN was lost
  rcv_mss_ = std::min({mss_, std::max(rcv_.wnd / 2, 88u), 536u});
  rcv_ssthresh_ = std::max(rcv_.wnd, rcv_ssthresh_);
  drs_space_ = std::max(rcv_.wnd, 1u);
  drs_time_ = now();
  snd_.up = snd_.iss + 1;
  minshall_ = snd_.iss + 1;
}

void Connection::Established(const Segment&) {
  SetState(fin_queued_ ? State::kFinWait1 : State::kEstablished);
  was_connected_ = true;
  Disarm(kRetransmit);
  retransmit_use_ = RetransmitUse::kNone;
  retransmits_ = backoff_ = 0;
  retransmit_stamp_ = 0;
  soft_error_ = Errno::kOk;
  snd_.nxt = Max(snd_.nxt, snd_.una);
  sent_.Clear();
  last_ack_received_ = last_data_received_ = now();
  last_data_sent_ = Instant();
  StartControl();
  GrowSendBuffer();
  if (keep_alive_) Arm(kKeepAlive, now() + KeepIdle());
  output_due_ = true;
  MarkWork();
}

// 3.10.7.4
void Connection::InputSynchronized(const Segment& seg, Packet packet) {
  if (state_ == State::kClosed || state_ == State::kListen) return;
  if (!seg.Has(kAck | kRst | kSyn) && !early()) return;  // worth no answer, wherever it lies (as linux)
  if (early() && !CheckEarly(seg)) return;
  if (!CheckSequence(seg)) return;
  if (!CheckReset(seg)) return;
  if (!CheckSyn(seg)) return;
  if (!CheckAck(seg) || dead_) return;
  CheckCwr(seg);
  CheckUrgent(seg);
  if (orphan_ && NewData(seg) && (state_ == State::kFinWait1 || state_ == State::kFinWait2)) return AbortOnData(seg);
  if (seg.length() > 0 && seg.end() <= rcv_.nxt) {
    ReportOld(seg);
    return AckSoon();
  }
  switch (state_) {
    case State::kEstablished:
    case State::kFinWait1:
    case State::kFinWait2:
      if (!ProcessText(seg, std::move(packet))) return;
      break;
    default:
      break;  // after the peer's FIN there is no text
  }
  if (seg.Has(kFin)) {
    if (seg.payload_len == 0 && rcv_.nxt < seg.seq) CheckMark(seg);
    return ProcessFin(seg.seq + seg.payload_len);
  }
  if (early_fin_ && *early_fin_ <= rcv_.nxt) ProcessFin(*early_fin_);
}

// Or a FIN behind data that is missing.
bool Connection::NewData(const Segment& seg) const { return seg.length() > 0 && seg.seq + seg.payload_len > rcv_.nxt; }

// Data for a reader that has gone (RFC 1122 4.2.2.13): the peer must learn that it is lost.
void Connection::AbortOnData(const Segment& seg) {
  engine_.Count(Counter::kTcpAbortOnData);
  AnswerReset(seg);
  Die();
}

// Of a segment that is not taken: what came before (as linux tcp_send_dupack).
void Connection::ReportOld(const Segment& seg) {
  if (seg.length() == 0 || rcv_.nxt <= seg.seq) return;
  EnterQuickAck(16);
  SendDsack(seg.seq, seg.end() < rcv_.nxt ? seg.end() : rcv_.nxt);
}

// RFC 7323 5.3. False where the segment is too old, and was answered.
bool Connection::CheckPaws(const Segment& seg) {
  if (!timestamps_ || !seg.has_timestamps || seg.Has(kRst) || now() - ts_recent_at_ >= kPawsExpiry) return true;
  const auto late = static_cast<int32_t>(ts_recent_ - seg.ts_val);
  if (late <= kPawsSlack) return true;
  // A reordered pure ACK is common: where it repeats what is known it is taken, where others have overtaken it there is no need
  // for an answer.
  if (seg.Has(kAck) && seg.length() == 0 && seg.seq <= rcv_.nxt) {
    const uint32_t window = uint32_t{seg.window} << snd_.wscale;
    const bool opens = snd_.wl1 < seg.seq || (snd_.wl1 == seg.seq && (window > snd_.wnd || window == 0));
    const bool news = seg.ack != snd_.una || opens || late > rto_.ms() * 6 / 5;
    if (seg.seq == rcv_.nxt && !news) return true;
    if (seg.seq < rcv_.nxt) {
      engine_.Count(Counter::kDropTcpPaws);
      return false;
    }
  }
  engine_.Count(Counter::kDropTcpPaws);
  if (seg.Has(kSyn)) return ChallengeSyn();
  ReportOld(seg);
  SendChallengeAck(seg.length() == 0);
  return false;
}

// first: acceptability (3.10.7.4 table), with PAWS before.
bool Connection::CheckSequence(const Segment& seg) {
  if (!CheckPaws(seg)) return false;
  const uint32_t window = WindowNow();
  const SeqNum edge = rcv_.nxt + window;
  const bool ok = seg.length() == 0 ? (seg.seq <= (window == 0 ? rcv_.nxt : edge) && rcv_.wup <= seg.seq)
                                    : (rcv_.wup <= seg.end() && (window == 0 ? seg.seq <= edge : seg.seq < edge));
  if (ok) return true;
  if (seg.Has(kRst)) {
    if (seg.seq == rcv_.nxt - 1 && fin_received_) return true;  // a reset that answers our FIN (as linux tcp_reset_check)
    engine_.Count(Counter::kDropTcpOutOfWindow);
    return false;
  }
  if (seg.Has(kSyn)) return ChallengeSyn();
  ReportOld(seg);
  engine_.Count(Counter::kDropTcpOutOfWindow);
  SendChallengeAck(seg.length() == 0);
  return false;
}

// RFC 7323 4.3
void Connection::RememberTimestamp(const Segment& seg) {
  if (!timestamps_ || !seg.has_timestamps || last_ack_sent_ < seg.seq) return;
  if (static_cast<int32_t>(seg.ts_val - ts_recent_) >= 0 || now() - ts_recent_at_ >= kPawsExpiry) {
    ts_recent_ = seg.ts_val;
    ts_recent_at_ = now();
  }
}

// second: RST (RFC 5961 3.2: only the exact number resets, others in the window are challenged).
bool Connection::CheckReset(const Segment& seg) {
  if (!seg.Has(kRst)) return true;
  bool exact = seg.seq == rcv_.nxt || (fin_received_ && seg.seq == rcv_.nxt - 1);
  if (!exact && sack_ && sacks_.count() > 0) {  // right behind the highest SACK block is what the peer has sent last
    for (size_t i = 0; i < sacks_.count(); ++i)
      exact |= seg.seq == sacks_[i].end && ooo_ && !ooo_->empty() && seg.seq == ooo_->highest();
  }
  if (!exact) {
    SendChallengeAck(true);
    return false;
  }
  const Errno error = state_ == State::kCloseWait ? Errno::kEPIPE : Errno::kECONNRESET;
  if (state_ == State::kEstablished || state_ == State::kCloseWait)
    engine_.Count(Counter::kTcpEstabResets);
  else if (state_ == State::kSynReceived)
    engine_.Count(Counter::kTcpAttemptFails);
  LeaveFastOpenQueue(true);
  Fail(error);
  return false;
}

// fourth: SYN in the window (RFC 5961 4.2).
bool Connection::CheckSyn(const Segment& seg) {
  if (!seg.Has(kSyn)) return true;
  if (state_ == State::kSynReceived && seg.Has(kAck) && seg.seq == rcv_.irs && seg.length() == 1 && seg.ack == snd_.nxt) {
    // Simultaneous open: the peer's SYN,ACK repeats the SYN that we know (3.5, figure 7).
    snd_.una = seg.ack;
    snd_.wnd = seg.window;
    snd_.max_wnd = std::max(snd_.max_wnd, snd_.wnd);
    snd_.wl1 = seg.seq;
    snd_.wl2 = seg.ack;
    Established(seg);
    AckSoon();
    return false;
  }
  return ChallengeSyn();
}

bool Connection::ChallengeSyn() {
  engine_.Count(Counter::kTcpSynChallenge);
  SendChallengeAck(true);
  return false;
}

// fifth: the ACK field.
bool Connection::CheckAck(const Segment& seg) {
  if (!seg.Has(kAck)) return false;
  if (state_ == State::kSynReceived) {
    if (!(snd_.iss < seg.ack && seg.ack <= snd_.nxt)) {
      AnswerReset(seg);
      return false;
    }
    if (early()) {
      CompleteFastOpen(seg);
    } else {
      snd_.una = snd_.iss + 1;
      snd_.wnd = uint32_t{seg.window} << snd_.wscale;
      snd_.max_wnd = std::max(snd_.max_wnd, snd_.wnd);
      snd_.wl1 = seg.seq;
      snd_.wl2 = seg.ack;
      Established(seg);
    }
  }
  if (snd_.nxt < seg.ack) {  // acknowledges what was not sent
    SendChallengeAck(true);
    return false;
  }
  if (seg.ack < snd_.una) {
    // RFC 5961 5.2: older than any window that the peer can have seen, or than the connection.
    if (seg.ack < snd_.una - static_cast<uint32_t>(std::min<uint64_t>(snd_.max_wnd, Acknowledged()))) {
      SendChallengeAck(true);
      return false;
    }
    if (sack_ && seg.sack_count > 0) {  // an old ACK may carry new SACK blocks
      AckResult r;
      r.prior_in_flight = InFlight();
      ProcessSackBlocks(seg, &r);
      output_due_ = true;
      MarkWork();
    }
    return true;
  }
  RememberTimestamp(seg);
  ProcessAck(seg);
  StateAfterAck(seg);
  return !dead_;
}

// What the peer has acknowledged so far, SYN of an active open and FIN included (linux bytes_acked).
uint64_t Connection::Acknowledged() const {
  return totals_.bytes_acked + (active_open_ ? 1 : 0) + (fin_sent_ && snd_.una == snd_.nxt ? 1 : 0);
}

// fifth, continued: what an acknowledged FIN means.
void Connection::StateAfterAck(const Segment& seg) {
  if (!fin_sent_ || snd_.una != snd_.nxt || !sndq_.empty()) return;
  switch (state_) {
    case State::kFinWait1: {
      SetState(State::kFinWait2);
      if (!orphan_) return;
      if (linger2_ < 0) {
        SendResetNow();
        return Die();
      }
      if (NewData(seg)) return AbortOnData(seg);
      const Duration wait = Duration::Seconds(linger2_ > 0 ? linger2_ : sysctls().tcp_fin_timeout_s);
      if (seg.Has(kFin)) return Arm(kKeepAlive, now() + wait);  // it is processed next
      if (wait > kTimeWaitLength) return Arm(kKeepAlive, now() + wait - kTimeWaitLength);
      return EnterTimeWait(State::kFinWait2, wait);
    }
    case State::kClosing:
      return EnterTimeWait(State::kTimeWait, kTimeWaitLength);
    case State::kLastAck:
      return Die();
    default:
      return;
  }
}

// sixth: URG (RFC 6093: the mark is after the urgent byte; applications see the byte before it, as Linux).
void Connection::CheckUrgent(const Segment& seg) {
  if (!seg.Has(kUrg) || seg.urgent == 0) return;
  if (state_ != State::kEstablished && state_ != State::kFinWait1 && state_ != State::kFinWait2) return;
  const SeqNum up = seg.seq + (seg.urgent - 1u);
  if (up < copied_ || (urgent_valid_ && up <= rcv_.up)) return;
  rcv_.up = up;
  urgent_valid_ = true;
  NotifyState(kUrgent);
}

// eighth: FIN.
void Connection::ProcessFin(SeqNum fin) {
  if (fin_received_) {
    if (fin + 1 <= rcv_.nxt) AckSoon();
    return;
  }
  early_fin_.reset();
  if (fin != rcv_.nxt) {  // text is missing before it
    if (rcv_.nxt < fin) {
      early_fin_ = fin;
      if (sack_) sacks_.Add(fin, fin + 1);
    }
    AckSoon();
    return;
  }
  rcv_.nxt = fin + 1;
  fin_received_ = true;
  AckSoon();
  ooo_.reset();
  sacks_.Clear();
  switch (state_) {
    case State::kSynReceived:
    case State::kEstablished:
      SetState(State::kCloseWait);
      break;
    case State::kFinWait1:
      SetState(State::kClosing);
      break;
    case State::kFinWait2:
      SendAckNow();
      EnterTimeWait(State::kTimeWait, kTimeWaitLength);
      break;
    default:
      break;
  }
}

// RFC 5961 7, and Linux's limit per connection for what is out of the window.
void Connection::SendChallengeAck(bool rate_limited) {
  if (rate_limited) {
    const Duration gap = Duration::Milliseconds(sysctls().tcp_invalid_ratelimit_ms);
    if (last_oow_ack_ != Instant() && now() - last_oow_ack_ < gap) {
      engine_.Count(Counter::kTcpAckSkipped);
      return;
    }
    last_oow_ack_ = now();
    if (!engine_.AllowChallengeAck()) return;
    engine_.Count(Counter::kTcpChallengeAck);
  }
  if (state_ == State::kSynReceived) {
    HeaderSpec h = MakeHeader(AcceptableSeq(), kAck);
    Emit(h, 0, 0, 0);
    return;
  }
  AckSoon();
}

// ICMP, validated against the window (RFC 5927 4.1).
void Connection::IcmpError(const IcmpErrorInfo& e) {
  if (e.transport.size() < 8 || dead_) return;
  const SeqNum seq(LoadBe32(e.transport.data() + 4));
  if (!(snd_.una <= seq && seq <= snd_.nxt)) {
    engine_.Count(Counter::kDropTcpIcmpOutOfWindow);
    return;
  }
  if (e.too_big) {
    if (pmtu_discover_ == 0 || !EnsureRoute() || e.mtu >= route_.mtu) return;
    engine_.ctx.ip->UpdatePathMtu(route_, key.remote, e.mtu);
    route_.generation = 0;
    const uint32_t before = mss_;
    if (!EnsureRoute()) return;
    if (route_.mtu > e.mtu) {  // the IP layer bounds what it believes; so do we
      return;
    }
    UpdateMss();
    if (wrote_early() && retransmits_ == 0) return OnSynTimeout();  // the SYN goes without its data
    if (mss_ >= before || !CanSendData()) return;
    // What was sent in larger pieces did not arrive: again, without blaming congestion.
    sent_.MarkAllLost(false);
    output_due_ = true;
    MarkWork();
    return;
  }
  if (e.error == Errno::kOk) return;
  if (state_ == State::kSynSent || (state_ == State::kSynReceived && !early())) {
    if (!e.hard && !recv_err_ && e.error != Errno::kEHOSTUNREACH && e.error != Errno::kENETUNREACH) {
      soft_error_ = e.error;
      return;
    }
    engine_.Count(Counter::kTcpAttemptFails);
    Fail(e.error);
    return;
  }
  // RFC 1122 4.2.3.9: an established connection survives; Linux reports at once only where IP_RECVERR asks for it.
  if (recv_err_) {
    SetError(e.error);
    NotifyState(kError);
  } else {
    soft_error_ = e.error;
  }
}

}  // namespace sluice::tcp
