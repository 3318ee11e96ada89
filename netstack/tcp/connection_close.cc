// How a connection ends: FIN, RST, errors, orphans. RFC 9293 3.6, 3.10.4-5; Linux's tcp_close for what the owner's close means.
#include <algorithm>

#include "netstack/tcp/connection.h"

namespace sluice::tcp {

// Leaves every table; the memory goes at the end of the turn where nobody owns it.
void Connection::Die() {
  if (state_ == State::kClosed && !in_table && !holds_port()) return ReleaseIfOrphan();
  EndFastOpen();
  SetState(State::kClosed);
  deadlines_.fill(Instant::Max());
  timer_.Cancel();
  engine_.flows.Remove(this);
  if (!port_bound_ || orphan_) engine_.binds.Remove(this);
  sndq_.Clear();
  sent_.Clear();
  ooo_.reset();
  sacks_.Clear();
  ack_now_ = ack_scheduled_ = output_due_ = false;
  ReleaseIfOrphan();
}

void Connection::ReleaseIfOrphan() {
  if (!orphan_ || dead_) return;
  engine_.RemoveOrphan();
  engine_.Bury(this);
}

void Connection::Fail(Errno error) {
  SetError(error);
  const bool told = !orphan_;
  Die();
  if (told) NotifyState();
}

void Connection::QueueFin() {
  fin_queued_ = true;
  more_ = false;
  output_due_ = true;
  MarkWork();
}

Errno Connection::Shutdown(bool read, bool write) {
  if (state_ == State::kListen) {
    if (read) {
      CloseListener();
      SetState(State::kClosed);
      engine_.binds.Remove(this);
      if (port_bound_) engine_.binds.Add(this, bound_port);
      NotifyState();
    }
    return Errno::kOk;
  }
  if (state_ == State::kSynSent || state_ == State::kSynReceived) {
    if (state_ == State::kSynSent && !wrote_early()) {
      SetError(Errno::kECONNRESET);
      Die();
      NotifyState();
      return Errno::kOk;
    }
  } else if (!Synchronized()) {
    return Errno::kENOTCONN;
  }
  if (read) read_shutdown_ = true;
  if (write && !fin_queued_) {
    // In SYN-RECEIVED the FIN waits for the handshake (RFC 9293 3.10.4).
    if (state_ == State::kEstablished)
      SetState(State::kFinWait1);
    else if (state_ == State::kCloseWait)
      SetState(State::kLastAck);
    QueueFin();
  }
  NotifyState();
  return Errno::kOk;
}

void Connection::Close() {
  observer_ = nullptr;
  switch (state_) {
    case State::kListen:
      CloseListener();
      [[fallthrough]];
    case State::kClosed:
    case State::kTimeWait:
      SetState(State::kClosed);
      deadlines_.fill(Instant::Max());
      timer_.Cancel();
      engine_.flows.Remove(this);
      engine_.binds.Remove(this);
      engine_.Bury(this);
      return;
    case State::kSynSent:
      if (!wrote_early()) return Abort();
      break;
    default:
      break;
  }
  if (!rcvq_.empty()) {
    // RFC 2525 2.17: the peer must learn that what it sent was not read.
    engine_.Count(Counter::kTcpAbortOnClose);
    return Abort();
  }
  if (linger_ && *linger_ == 0) return Vanish(NeedsReset());
  if (!fin_queued_) {
    if (state_ == State::kCloseWait)
      SetState(State::kLastAck);
    else if (state_ == State::kEstablished)
      SetState(State::kFinWait1);
    QueueFin();
  }
  BecomeOrphan();
}

void Connection::BecomeOrphan() {
  const bool room = engine_.AddOrphan() && !(memory().exhausted() && sndq_.memory() > memory().limits().minimum);
  orphan_ = true;
  rcvq_.Clear();
  if (!room) {
    engine_.Count(Counter::kTcpAbortOnMemory);
    SendResetNow();
    return Die();
  }
  if (state_ != State::kFinWait2) return;
  if (linger2_ < 0) {
    SendResetNow();
    return Die();
  }
  const Duration wait = Duration::Seconds(linger2_ > 0 ? linger2_ : sysctls().tcp_fin_timeout_s);
  if (wait > kTimeWaitLength) return Arm(kKeepAlive, now() + wait - kTimeWaitLength);
  EnterTimeWait(State::kFinWait2, wait);
}

// What was sent before goes out before: Linux's send() did not wait for the end of a turn.
void Connection::ResetPeer() {
  if (output_due_) Output();
  SendResetNow();
}

void Connection::Abort() {
  observer_ = nullptr;
  if (state_ == State::kListen || state_ == State::kClosed) return Close();
  Vanish(state_ != State::kSynSent && state_ != State::kTimeWait);
}

// As linux tcp_disconnect: not where both ends have closed and all that is left is an acknowledgment.
bool Connection::NeedsReset() const {
  switch (state_) {
    case State::kSynReceived:
    case State::kEstablished:
    case State::kCloseWait:
    case State::kFinWait1:
    case State::kFinWait2:
      return true;
    case State::kClosing:
    case State::kLastAck:
      return Unsent() > 0 || FinUnsent();
    default:
      return false;
  }
}

void Connection::Vanish(bool reset) {
  if (reset) ResetPeer();
  engine_.AddOrphan();
  orphan_ = true;
  if (state_ == State::kSynSent) engine_.Count(Counter::kTcpAttemptFails);
  Die();
}

// connect(AF_UNSPEC)
Errno Connection::Disconnect() {
  if (state_ == State::kListen) {
    CloseListener();
    SetState(State::kClosed);
  } else if (state_ != State::kClosed) {
    if (NeedsReset()) ResetPeer();
    Die();
  }
  ResetToFresh();
  NotifyState();
  return Errno::kOk;
}

void Connection::ResetToFresh() {
  engine_.flows.Remove(this);
  if (!port_bound_) engine_.binds.Remove(this);
  if (!port_bound_) bound_port = 0;
  if (!address_bound_) bound_address = IpAddress::Any(family_);
  engine_.binds.SetListening(this, false);
  auto_bound = false;
  key = FlowKey{};
  error_ = soft_error_ = Errno::kOk;
  rcvq_.Clear();
  sndq_.Clear();
  sent_.Clear();
  snd_ = SendSequence{};
  rcv_ = ReceiveSequence{};
  rtt_ = RttEstimator();
  rto_ = kInitialRto;
  route_ = Route{};
  cw_ = CongestionWindow{};
  rack_ = RackMark{};
  ca_state_ = CaState::kOpen;
  early_fin_.reset();
  fin_queued_ = fin_sent_ = fin_received_ = read_shutdown_ = was_connected_ = active_open_ = false;
  timestamps_ = sack_ = scaling_ = false;
  more_ = push_due_ = cwnd_limited_ = ack_now_ = ack_scheduled_ = short_owed_ = false;
  ecn_ = {};
  mtu_ = {};
  undo_possible_ = frto_ = tlp_outstanding_ = reorder_seen_ = urgent_valid_ = has_dsack_ = false;
  retransmits_ = backoff_ = probes_ = quick_acks_ = pingpong_ = 0;
  retransmit_use_ = RetransmitUse::kNone;
  ato_ = Duration();
  dup_acks_ = 0;
  prior_cwnd_ = prior_ssthresh_ = retransmit_stamp_ = 0;
  peer_mss_ = 0;
  totals_ = Totals{};
  next_departure_ = first_sent_at_ = delivered_at_ = Instant();
  app_limited_until_ = rate_delivered_ = 0;
  rate_interval_ = Duration();
  rate_app_limited_ = false;
  fast_open_.reset();
  last_data_sent_ = last_data_received_ = last_ack_received_ = Instant();
  rcv_rtt_ = Duration();
  rcv_rtt_time_ = Instant();
  (void)SetCongestionControl(cc_->name());
}

// The connection shrinks to what TIME-WAIT needs. An owner keeps its closed handle.
void Connection::EnterTimeWait(State substate, Duration length) {
  if (ack_now_ && substate == State::kTimeWait) SendAckNow();
  PortHolder& port = *this;
  const bool keep_port = port.holds_port();
  EndFastOpen();
  engine_.flows.Remove(this);
  engine_.AddTimeWait(*this, substate, length);
  if (keep_port) engine_.binds.Remove(this);
  const bool told = !orphan_;
  SetState(State::kClosed);
  deadlines_.fill(Instant::Max());
  timer_.Cancel();
  sndq_.Clear();
  sent_.Clear();
  ack_now_ = ack_scheduled_ = output_due_ = false;
  if (told) {
    closed_by_time_wait_ = true;
    NotifyState();
  } else {
    ReleaseIfOrphan();
  }
}

void Connection::CloseListener() {
  while (listen_->requests != nullptr) {
    Request* r = listen_->requests;
    engine_.FreeRequest(r);
  }
  while (Connection* c = listen_->accept_head) {
    listen_->accept_head = c->next_accept_;
    c->next_accept_ = nullptr;
    c->listener_ = nullptr;
    c->Abort();
  }
  listen_.reset();
  engine_.binds.SetListening(this, false);
  ++engine_.ctx.listening_changes;
}

}  // namespace sluice::tcp
