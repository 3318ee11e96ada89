// Timers: one wheel timer per connection stands for all slots. A deadline that moves later only changes a field; the wheel timer
// fires at the old time, finds nothing due and goes to the earliest deadline.
#include <algorithm>

#include "netstack/tcp/connection.h"

namespace sluice::tcp {

namespace {
constexpr Duration kMaxPersist = kMaxRto;
constexpr uint32_t kMaxBackoff = 16;
}  // namespace

void Connection::OnTimer(void* self) { static_cast<Connection*>(self)->RunTimers(); }

void Connection::Arm(Slot slot, Instant deadline) {
  deadlines_[slot] = deadline;
  if (!timer_.pending() || deadline < timer_.deadline()) engine_.ctx.timers.Schedule(timer_, deadline);
}

void Connection::RunTimers() {
  for (int i = 0; i < kSlotCount; ++i) {
    if (dead_ || deadlines_[i] > now()) continue;
    const auto slot = static_cast<Slot>(i);
    Disarm(slot);
    switch (slot) {
      case kRetransmit:
        OnRetransmitTimeout();
        break;
      case kLossProbe:
        OnLossProbeTimeout();
        break;
      case kDelayedAck:
        OnDelayedAckTimeout();
        break;
      case kKeepAlive:
        OnKeepAliveTimeout();
        break;
      case kPacing:
        output_due_ = true;
        MarkWork();
        break;
      case kSlotCount:
        break;
    }
  }
  if (dead_) return;
  const Instant earliest = *std::min_element(deadlines_.begin(), deadlines_.end());
  if (earliest != Instant::Max()) engine_.ctx.timers.Schedule(timer_, earliest);
}

Duration Connection::MinRto() const { return Duration::Milliseconds(sysctls().tcp_min_rto_ms); }

// RFC 6298 5.5
Duration Connection::BackedOffRto() const {
  const uint32_t shift = std::min<uint32_t>(backoff_, kMaxBackoff);
  return std::min(rto_ * (int64_t{1} << shift), kMaxRto);
}

// Called after each transmission and acknowledgment: what, if anything, must happen if the peer stays silent.
void Connection::ArmRetransmit() {
  if (early()) return;  // the timer is the SYN,ACK's
  if (sent_.out_bytes() > 0) {
    retransmit_use_ = RetransmitUse::kTimeout;
    Arm(kRetransmit, now() + BackedOffRto());
    return;
  }
  Disarm(kRetransmit);
  retransmit_use_ = RetransmitUse::kNone;
}

void Connection::OnRetransmitTimeout() {
  if (early()) return OnFastOpenTimeout();
  if (state_ == State::kSynSent || state_ == State::kSynReceived) return OnSynTimeout();
  if (retransmit_use_ == RetransmitUse::kPersist) return OnPersistTimeout();
  if (sent_.out_bytes() == 0) {  // nothing is out: frames that found no memory or no route try again
    MarkWork();
    output_due_ = true;
    return;
  }
  const bool exhausted = RetriesExhausted();
  DetectBlackhole(exhausted);
  if (exhausted) {
    engine_.Count(Counter::kTcpAbortOnTimeout);
    return Fail(soft_error_ != Errno::kOk ? soft_error_ : Errno::kETIMEDOUT);
  }
  if (retransmits_ == 0) first_retransmit_at_ = now();
  engine_.Count(Counter::kTcpTimeouts);
  EnterLoss();
  if (retransmits_ < 255) ++retransmits_;
  if (backoff_ < kMaxBackoff && !(thin_linear_ && retransmits_ <= 6 && sent_.out_bytes() < 4 * mss_)) ++backoff_;
  if (retransmits_ >= sysctls().tcp_retries1) {  // the way may have changed, or be a hole for large segments
    route_.generation = 0;
    SuspectBlackHole();
  }
  // RFC 6298 5.4: the first lost segment leaves whatever the window says.
  const uint32_t length = std::min(sent_.front().length(), std::max<uint32_t>(CurrentMss(), 1));
  SendRange(sent_.front().start, length, true);
  Arm(kRetransmit, now() + BackedOffRto());
  retransmit_use_ = RetransmitUse::kTimeout;
  Disarm(kLossProbe);
  MarkWork();
}

int Connection::OrphanRetries(bool alive) const {
  int retries = sysctls().tcp_orphan_retries;
  if (soft_error_ != Errno::kOk && !alive) return 0;
  if (retries == 0 && alive) retries = 8;
  return retries;
}

// RFC 1122 4.2.3.5 with Linux's measure: time as if `tcp_retries2` timeouts with exponential backoff from the minimum had passed.
bool Connection::RetriesExhausted() {
  if (retransmits_ == 0) return false;
  const Duration silent = now() - first_retransmit_at_;
  if (user_timeout_ms_ > 0) return silent >= Duration::Milliseconds(user_timeout_ms_);
  int limit = sysctls().tcp_retries2;
  if (orphan_) {
    limit = OrphanRetries(BackedOffRto() < kMaxRto);
    if (retransmits_ >= limit) return true;
  }
  Duration allowed;
  Duration step = MinRto();
  for (int i = 0; i < std::min(limit, 40); ++i) {
    allowed += step;
    step = std::min(step * 2, kMaxRto);
  }
  return silent >= allowed;
}

// SYN-SENT, and SYN-RECEIVED after a simultaneous open.
void Connection::OnSynTimeout() {
  const int limit = syn_count_ > 0 ? syn_count_ : sysctls().tcp_syn_retries;
  const bool expired = user_timeout_ms_ > 0 && now() - probe_since_ >= Duration::Milliseconds(user_timeout_ms_);
  DetectBlackhole(retransmits_ >= limit || expired);
  if (retransmits_ >= limit || expired) {
    engine_.Count(Counter::kTcpAttemptFails);
    return Fail(soft_error_ != Errno::kOk ? soft_error_ : Errno::kETIMEDOUT);
  }
  ++retransmits_;
  if (backoff_ < kMaxBackoff) ++backoff_;
  ++totals_.retransmitted;
  engine_.Count(Counter::kTcpRetransSegs);
  engine_.Count(Counter::kTcpSynRetrans);
  route_.generation = 0;
  SendSyn();
  Arm(kRetransmit, now() + BackedOffRto());
}

// RFC 9293 3.8.6.1. Also ends the wait of what CORK or MSG_MORE held back.
void Connection::OnPersistTimeout() {
  if (sent_.out_bytes() > 0) return ArmRetransmit();
  if (Unsent() == 0 && !FinUnsent()) return;
  if (probes_ == 0) probe_since_ = now();
  const bool expired = user_timeout_ms_ > 0 && probes_ > 0 && now() - probe_since_ >= Duration::Milliseconds(user_timeout_ms_);
  int limit = sysctls().tcp_retries2;
  if (orphan_) limit = OrphanRetries(BackedOffRto() < kMaxRto);
  if (probes_ >= std::max(limit, 1) || expired) {
    engine_.Count(Counter::kTcpAbortOnTimeout);
    return Fail(soft_error_ != Errno::kOk ? soft_error_ : Errno::kETIMEDOUT);
  }
  const uint32_t room = snd_.una + snd_.wnd > snd_.nxt ? (snd_.una + snd_.wnd) - snd_.nxt : 0;
  if (room > 0 && (Unsent() > 0 || FinUnsent())) {
    SendNew(true);
  } else {
    // One number below the window: the peer must answer with its window and cannot take it for data.
    HeaderSpec h = MakeHeader(snd_.una - 1, kAck);
    Emit(h, 0, 0, 0);
    engine_.Count(Counter::kTcpWinProbe);
    if (probes_ < 255) ++probes_;
  }
  if (sent_.out_bytes() > 0) return;
  if (backoff_ < kMaxBackoff) ++backoff_;
  retransmit_use_ = RetransmitUse::kPersist;
  Arm(kRetransmit, now() + std::min(BackedOffRto(), kMaxPersist));
}

// RFC 8985 7: the tail is probed before the retransmission timer collapses the window.
void Connection::ArmProbe() {
  const bool in_order = ca_state_ == CaState::kCwr && sent_.sacked_bytes() == 0;
  if (ca_state_ != CaState::kOpen && !in_order) return;  // the slot serves RACK's reordering timer then
  if (!sack_ || tlp_outstanding_ || sent_.out_bytes() == 0 || !rtt_.valid() || sysctls().tcp_early_retrans == 0) {
    return Disarm(kLossProbe);
  }
  Duration pto = rtt_.srtt() * 2;
  if (sent_.out_bytes() <= CurrentMss())
    pto += MinRto();  // a lone segment may wait for the peer's delayed ACK
  else
    pto += Duration::Milliseconds(2);
  const Instant at = now() + pto;
  if (Armed(kRetransmit) && at >= deadlines_[kRetransmit]) return Disarm(kLossProbe);
  Arm(kLossProbe, at);
}

void Connection::OnLossProbeTimeout() {
  if (sent_.out_bytes() == 0) return;
  if (ca_state_ != CaState::kOpen && !(ca_state_ < CaState::kRecovery && !sent_.has_unsent_loss() && sent_.sacked_bytes() == 0)) {
    // The reordering timer of RACK (RFC 8985 6.3).
    AckResult r;
    r.prior_in_flight = InFlight();
    DetectLoss(&r);
    if (r.newly_lost > 0) {
      if (ca_state_ < CaState::kRecovery && !OnMtuProbeLost()) EnterRecovery(false);
      output_due_ = true;
      MarkWork();
    }
    return;
  }
  if (tlp_outstanding_) return;
  engine_.Count(Counter::kTcpLossProbes);
  const SeqNum before = snd_.nxt;
  tlp_end_ = snd_.nxt;
  const uint32_t room = snd_.una + snd_.wnd > snd_.nxt ? (snd_.una + snd_.wnd) - snd_.nxt : 0;
  if (Unsent() > 0 && room > 0) SendNew(true);
  if (snd_.nxt == before) {
    const uint32_t length = std::min(sent_.back().length(), std::max<uint32_t>(CurrentMss(), 1));
    if (!SendRange(sent_.back().end - length, length, true)) return;
    tlp_retransmitted_ = true;
  } else {
    tlp_end_ = snd_.nxt;
    tlp_retransmitted_ = false;
  }
  tlp_outstanding_ = true;
  ArmRetransmit();
}

void Connection::OnDelayedAckTimeout() {
  if (!ack_scheduled_) return;
  // The application did not answer in time: give it less next time (as linux tcp_delack_timer_handler).
  if (pingpong_ < 3) {
    ato_ = std::min(ato_ * 2, rto_);
  } else {
    pingpong_ = 0;
    ato_ = kMinDelayedAck;
  }
  engine_.Count(Counter::kTcpDelayedAcks);
  AckSoon();
}

Duration Connection::KeepIdle() const { return Duration::Seconds(keep_idle_ > 0 ? keep_idle_ : sysctls().tcp_keepalive_time_s); }
Duration Connection::KeepInterval() const {
  return Duration::Seconds(keep_interval_ > 0 ? keep_interval_ : sysctls().tcp_keepalive_intvl_s);
}
int Connection::KeepProbes() const { return keep_count_ > 0 ? keep_count_ : sysctls().tcp_keepalive_probes; }

// RFC 9293 3.8.4; FIN-WAIT-2 of an orphan.
void Connection::OnKeepAliveTimeout() {
  if (state_ == State::kFinWait2 && orphan_) {
    if (linger2_ >= 0) {
      const Duration left = Duration::Seconds(linger2_ > 0 ? linger2_ : sysctls().tcp_fin_timeout_s) - kTimeWaitLength;
      if (left > Duration()) return EnterTimeWait(State::kFinWait2, left);
    }
    SendResetNow();
    return Die();
  }
  if (!keep_alive_ || !Synchronized() || state_ == State::kTimeWait) return;
  const Instant heard = std::max(last_data_received_, last_ack_received_);
  if (sent_.out_bytes() > 0 || Unsent() > 0) return Arm(kKeepAlive, now() + KeepIdle());  // the other timers watch
  if (now() - heard < KeepIdle()) return Arm(kKeepAlive, heard + KeepIdle());
  const bool expired =
      user_timeout_ms_ > 0 ? probes_ > 0 && now() - heard >= Duration::Milliseconds(user_timeout_ms_) : probes_ >= KeepProbes();
  if (expired) {
    SendResetNow();
    engine_.Count(Counter::kTcpAbortOnTimeout);
    return Fail(soft_error_ != Errno::kOk ? soft_error_ : Errno::kETIMEDOUT);
  }
  HeaderSpec h = MakeHeader(snd_.una - 1, kAck);
  Emit(h, 0, 0, 0);
  engine_.Count(Counter::kTcpKeepAlive);
  if (probes_ < 255) ++probes_;
  Arm(kKeepAlive, now() + KeepInterval());
}

}  // namespace sluice::tcp
