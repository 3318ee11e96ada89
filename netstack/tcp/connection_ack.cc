// Acknowledgments: what they free, what they tell of losses, and how the window answers.
// RFC 9293 3.10.7.4 (fifth), 5681, 6582, 6675, 8985, 6937, 5682, 3522, 2883.
#include <algorithm>

#include "netstack/tcp/connection.h"

namespace sluice::tcp {
namespace {

constexpr uint32_t kDupThreshold = 3;

// Without SACK each duplicate ACK stands for one segment that has left the network.
uint32_t RenoSacked(uint32_t dup_acks, uint32_t mss, uint32_t out, uint32_t lost) {
  const uint32_t most = out - std::min(out, lost);
  return std::min<uint32_t>(dup_acks * mss, most > mss ? most - mss : 0);
}

}  // namespace

uint32_t Connection::InFlight() const {
  uint32_t pipe = sent_.in_flight();
  if (!sack_ && dup_acks_ > 0) {
    const uint32_t reno = RenoSacked(dup_acks_, cw_.mss, sent_.out_bytes(), sent_.lost_bytes());
    pipe -= std::min(pipe, reno);
  }
  return pipe;
}

// RFC 9293 3.10.7.4, fifth, ESTABLISHED: SND.UNA =< SEG.ACK =< SND.NXT holds.
void Connection::ProcessAck(const Segment& seg) {
  AckResult r;
  r.prior_in_flight = InFlight();
  r.marked = ecn_.ok && seg.Has(kEce) && sent_.out_bytes() > 0;
  if (r.marked) ForgetPriorWindow();
  last_ack_received_ = now();
  probes_ = 0;
  const bool new_ack = seg.ack > snd_.una;
  const SeqNum prior_una = snd_.una;
  if (new_ack) {
    r.acked = seg.ack - snd_.una;
    sent_.AckTo(seg.ack, &r.delivery, &rack_, now(), rtt_.min_rtt());
    const bool fin_acked = fin_sent_ && seg.ack > WriteEnd();
    const uint32_t data = r.acked - (fin_acked ? 1 : 0);
    sndq_.PopFront(std::min<size_t>(data, sndq_.size()));
    snd_.una = seg.ack;
    if (snd_.up < snd_.una) snd_.up = snd_.una;
    if (minshall_ < snd_.una) minshall_ = snd_.una;
    totals_.bytes_acked += data;
    if (mtu_.size != 0 && mtu_.end <= snd_.una) OnMtuProbeArrived();
  }
  UpdateSendWindow(seg, &r);
  if (sack_ && seg.sack_count > 0) ProcessSackBlocks(seg, &r);
  if (r.delivery.bytes > 0) {
    totals_.delivered += r.delivery.bytes;
    if (r.marked) totals_.delivered_marked += r.delivery.bytes;
    delivered_at_ = now();
    SampleRtt(seg, &r);
    SampleRate(&r);
  }
  r.duplicate = !new_ack && seg.payload_len == 0 && !seg.Has(kFin | kSyn) && !r.window_changed && sent_.out_bytes() > 0 &&
                seg.ack == prior_una;
  if (tlp_outstanding_) CompleteProbe(seg, r);
  if (new_ack) {
    retransmits_ = ca_state_ == CaState::kLoss ? retransmits_ : 0;
    backoff_ = 0;
    soft_error_ = Errno::kOk;
    if (frto_) CheckSpuriousTimeout(seg, r);
  }
  AdvanceRecovery(seg, &r);
  DetectLoss(&r);
  if (r.newly_lost > 0 && ca_state_ < CaState::kRecovery && !OnMtuProbeLost()) EnterRecovery(r.marked);
  if (r.marked && ca_state_ < CaState::kCwr) EnterCwr();
  if (model_) {
    if (r.delivery.bytes > 0) RunModel(r);
  } else if (ca_state_ == CaState::kRecovery || ca_state_ == CaState::kCwr) {
    ReduceWindow(r);
  } else if (r.delivery.bytes > 0) {
    AckEvent e;
    e.acked = r.delivery.bytes;
    e.in_flight = InFlight();
    e.cwnd_limited = cwnd_limited_ || (cw_.in_slow_start() && cw_.cwnd < 2 * r.prior_in_flight);
    e.rtt = r.rtt;
    e.srtt = rtt_.srtt();
    e.una = snd_.una, e.nxt = snd_.nxt;
    e.now = now();
    cc_->OnAck(cw_, e);
    cw_.cwnd = std::min(cw_.cwnd, cw_.limit);
  }
  cwnd_limited_ = false;
  if (new_ack) {
    if (!(sent_.out_bytes() > 0 && retransmit_use_ == RetransmitUse::kTimeout)) {
      ArmRetransmit();
    } else {
      deadlines_[kRetransmit] = now() + BackedOffRto();  // only ever later: the wheel finds out by itself
      if (!timer_.pending()) Arm(kRetransmit, deadlines_[kRetransmit]);
    }
    if (rtt_.valid()) ArmProbe();
    if (sent_.out_bytes() == 0 && busy_now_ && Unsent() == 0) {
      busy_now_ = false;
      busy_ += now() - busy_since_;
    }
    GrowSendBuffer();
    if (!route_.local) engine_.ctx.ip->ConfirmNeighbor(route_);
  } else if (retransmit_use_ == RetransmitUse::kPersist && r.window_changed) {
    backoff_ = 0;
    if (snd_.wnd > 0) {
      Disarm(kRetransmit);
      retransmit_use_ = RetransmitUse::kNone;
    }
  }
  output_due_ = true;
  MarkWork();
}

// RFC 9293 3.10.7.4: the window of the segment is newer than ours.
void Connection::UpdateSendWindow(const Segment& seg, AckResult* r) {
  const uint32_t window = uint32_t{seg.window} << (seg.Has(kSyn) ? 0 : snd_.wscale);
  const bool newer = r->acked > 0 || snd_.wl1 < seg.seq || (snd_.wl1 == seg.seq && (snd_.wl2 <= seg.ack && window > snd_.wnd)) ||
                     (snd_.wl1 <= seg.seq && window == 0 && snd_.wl2 <= seg.ack);
  if (!newer) return;
  snd_.wl1 = seg.seq;
  snd_.wl2 = seg.ack;
  if (window == snd_.wnd) return;
  snd_.wnd = window;
  r->window_changed = true;
  snd_.max_wnd = std::max(snd_.max_wnd, window);
}

// RFC 2018, RFC 2883.
void Connection::ProcessSackBlocks(const Segment& seg, AckResult* r) {
  size_t first = 0;
  const SackBlock& head = seg.sack[0];
  const bool below = head.end <= seg.ack;
  const bool inside = seg.sack_count > 1 && seg.sack[1].start <= head.start && head.end <= seg.sack[1].end;
  if (head.start < head.end && (below || inside)) {
    first = 1;
    r->dsack = true;
    ++totals_.dsack_dups;
    engine_.Count(Counter::kTcpDSACKRecv);
    if (undo_possible_ && undo_retransmitted_ > 0 && undo_marker_ <= head.start) {
      undo_retransmitted_ = std::max<int64_t>(0, undo_retransmitted_ - (head.end - head.start));
    }
    if (reorder_mult_ < 16) ++reorder_mult_;  // RFC 8985 6.2 step 4
  }
  for (size_t i = first; i < seg.sack_count; ++i) {
    const SackBlock& b = seg.sack[i];
    // Blocks outside of what is out are a broken or hostile peer's.
    if (!(b.start < b.end) || b.start < snd_.una || snd_.nxt < b.end) continue;
    sent_.Sack(b.start, b.end, &r->delivery, &rack_, now(), rtt_.min_rtt());
  }
  if (r->delivery.reordered) {
    reorder_seen_ = true;
    ++totals_.reorderings;
  }
}

void Connection::SampleRtt(const Segment& seg, AckResult* r) {
  if (r->delivery.latest_sent && !r->delivery.any_retransmitted) {
    r->rtt = now() - *r->delivery.latest_sent;  // for the congestion control: without the peer's delay
    rtt_.Sample(now() - *r->delivery.earliest_sent, snd_.una, snd_.nxt, MinRto());
  } else if (timestamps_ && seg.has_timestamps && seg.ts_ecr != 0 && r->acked > 0) {
    const auto ms = static_cast<int32_t>(TimestampNow() - seg.ts_ecr);
    if (ms < 0) return;
    r->rtt = Duration::Milliseconds(std::max(ms, 1));
    rtt_.Sample(r->rtt, snd_.una, snd_.nxt, MinRto());
  } else {
    return;
  }
  rto_ = rtt_.Rto(MinRto());
}

// draft-cheng-iccrg-delivery-rate-estimation-00 3.3: over the longer of the times in which the newest piece's round trip was sent
// and was acknowledged, as acknowledgments may come compressed.
void Connection::SampleRate(AckResult* r) {
  if (app_limited_until_ != 0 && totals_.delivered > app_limited_until_) app_limited_until_ = 0;
  if (!r->delivery.has_newest) return;
  const SendStamp& newest = r->delivery.newest;
  first_sent_at_ = newest.sent_at;
  const Duration interval = std::max(newest.sent_at - newest.first_sent_at, now() - newest.delivered_at);
  if (interval < rtt_.min_rtt() || interval <= Duration()) return;
  r->rate_delivered = totals_.delivered - newest.delivered;
  r->rate_interval = interval;
  const bool faster = static_cast<double>(r->rate_delivered) * static_cast<double>(rate_interval_.ns()) >=
                      static_cast<double>(rate_delivered_) * static_cast<double>(interval.ns());
  if (newest.app_limited && !faster) return;
  rate_delivered_ = r->rate_delivered;
  rate_interval_ = interval;
  rate_app_limited_ = newest.app_limited;
}

void Connection::RunModel(const AckResult& r) {
  const SendStamp& newest = r.delivery.newest;
  RateSample s;
  s.total_delivered = totals_.delivered;
  s.prior_delivered = newest.delivered;
  s.delivered = r.rate_delivered;
  s.interval = r.rate_interval;
  s.acked = r.delivery.bytes;
  s.lost = r.newly_lost;
  s.prior_in_flight = r.prior_in_flight;
  s.in_flight = InFlight();
  s.rtt = r.rtt;
  s.srtt = rtt_.srtt();
  s.queued = Departure() - now();
  s.app_limited = newest.app_limited;
  s.ack_delayed = s.acked <= cw_.mss && s.prior_delivered + s.acked == s.total_delivered;
  s.state = ca_state_;
  s.now = now();
  if (cc_->OnSample(cw_, s)) app_limited_until_ = std::max<uint64_t>(1, totals_.delivered + s.in_flight);
  cw_.cwnd = std::min(cw_.cwnd, cw_.limit);
}

Duration Connection::ReorderWindow() const {
  const bool enough = sent_.sacked_bytes() >= kDupThreshold * cw_.mss || sent_.sacked_runs() >= kDupThreshold;
  if (!reorder_seen_ && (ca_state_ >= CaState::kRecovery || enough)) return Duration();
  return std::min(rtt_.min_rtt() / 4 * reorder_mult_, rtt_.srtt());
}

void Connection::DetectLoss(AckResult* r) {
  if (sack_) {
    if (sent_.sacked_bytes() == 0 && ca_state_ < CaState::kRecovery) return;
    Duration wait;
    r->newly_lost = sent_.DetectLost(rack_, ReorderWindow(), now(), &wait);
    if (ca_state_ == CaState::kOpen && sent_.sacked_bytes() > 0) ca_state_ = CaState::kDisorder;
    if (wait > Duration()) Arm(kLossProbe, now() + wait);
    return;
  }
  if (!r->duplicate) return;
  ++dup_acks_;
  if (ca_state_ == CaState::kOpen) ca_state_ = CaState::kDisorder;
  if (dup_acks_ != kDupThreshold || ca_state_ >= CaState::kRecovery) return;
  const bool probe = mtu_.size != 0 && snd_.una == mtu_.start;
  r->newly_lost = sent_.MarkHeadLost(probe ? mtu_.end - mtu_.start : cw_.mss);
}

void Connection::SaveForUndo() {
  undo_marker_ = snd_.una;
  undo_possible_ = true;
  undo_retransmitted_ = 0;
  retransmit_stamp_ = 0;
  prior_cwnd_ = cw_.cwnd;
  prior_ssthresh_ = cw_.ssthresh;
}

// After a mark the reduction was right, whatever becomes of the retransmissions (as linux prior_ssthresh = 0).
void Connection::ForgetPriorWindow() { prior_cwnd_ = prior_ssthresh_ = 0; }

// One congestion event, however it showed (as linux tcp_init_cwnd_reduction).
void Connection::BeginReduction() {
  cw_.ssthresh = cc_->Ssthresh(cw_, now());
  recovery_point_ = snd_.nxt;
  prr_delivered_ = prr_out_ = 0;
  recover_fs_ = std::max(InFlight() + sent_.lost_bytes(), cw_.mss);
  tlp_outstanding_ = false;
  ecn_.queue_cwr = ecn_.ok;
}

void Connection::EnterRecovery(bool marked) {
  engine_.Count(sack_ ? Counter::kTcpSackRecovery : Counter::kTcpRenoRecovery);
  // After a mark of the same window the reduction goes on.
  const bool reduced = ca_state_ == CaState::kCwr;
  if (!reduced) {
    SaveForUndo();
    BeginReduction();
  }
  if (reduced || marked) {
    undo_possible_ = false;
    ForgetPriorWindow();
  }
  if (reduced) recovery_point_ = snd_.nxt;
  ca_state_ = CaState::kRecovery;
  tlp_outstanding_ = frto_ = false;
}

// RFC 5681 equation 4, RFC 6298 5.
void Connection::EnterLoss() {
  const bool first = ca_state_ < CaState::kLoss || retransmits_ == 0;
  if (first) {
    // For a mark of this window it is reduced already.
    const bool reduced = ca_state_ == CaState::kCwr && snd_.una < recovery_point_;
    if (ca_state_ <= CaState::kCwr && !reduced) {
      SaveForUndo();
    } else {
      undo_possible_ = false;
    }
    if (!reduced) cw_.ssthresh = cc_->Ssthresh(cw_, now());
    cc_->OnTimeout();
    frto_ = sysctls().tcp_frto != 0 && sent_.out_bytes() > 0 && !sent_.front().ever_retransmitted;
    frto_end_ = snd_.nxt;
  } else {
    frto_ = false;
  }
  // A peer that SACKed what it now acts as not having (RFC 2018 8).
  const bool reneged = sent_.front().sacked;
  sent_.MarkAllLost(reneged);
  dup_acks_ = 0;
  recovery_point_ = snd_.nxt;
  ecn_.queue_cwr = ecn_.ok;
  cw_.cwnd = cw_.mss;
  ca_state_ = CaState::kLoss;
  tlp_outstanding_ = false;
  rack_.valid = false;
}

void Connection::LeaveRecovery() {
  // A model has none; its control may have been replaced on the way.
  const bool limited = cw_.ssthresh < CongestionWindow{}.ssthresh;
  if (!model_ && limited && (ca_state_ == CaState::kRecovery || ca_state_ == CaState::kCwr)) cw_.cwnd = cw_.ssthresh;
  ca_state_ = CaState::kOpen;
  dup_acks_ = 0;
  retransmits_ = 0;
  undo_possible_ = false;
  retransmit_stamp_ = 0;
  frto_ = false;
}

// RFC 3522 by timestamps, RFC 2883 by DSACK: all retransmissions were needless.
bool Connection::MayUndo(const Segment& seg) const {
  if (!undo_possible_) return false;
  if (timestamps_ && seg.has_timestamps && retransmit_stamp_ != 0 && seg.ts_ecr != 0 && seg.ack > undo_marker_ &&
      static_cast<int32_t>(seg.ts_ecr - retransmit_stamp_) < 0) {
    return true;
  }
  return totals_.bytes_retransmitted > 0 && undo_retransmitted_ == 0 && retransmit_stamp_ != 0;
}

void Connection::Undo() {
  engine_.Count(Counter::kTcpUndos);
  sent_.ClearLost();
  if (!model_) cw_.cwnd = std::max(cw_.cwnd, prior_cwnd_);
  if (prior_ssthresh_ != 0) cc_->OnUndo();
  if (prior_ssthresh_ > cw_.ssthresh) {
    cw_.ssthresh = prior_ssthresh_;
    ecn_.queue_cwr = false;
  }
  retransmits_ = 0;
  undo_possible_ = false;
  retransmit_stamp_ = 0;
  frto_ = false;
  reorder_seen_ = true;
  ca_state_ = sent_.sacked_bytes() > 0 ? CaState::kDisorder : CaState::kOpen;
  dup_acks_ = 0;
}

// RFC 5682: after a timeout the first ACK covers something that was not sent again.
void Connection::CheckSpuriousTimeout(const Segment&, const AckResult& r) {
  if (ca_state_ != CaState::kLoss || !frto_) return;
  // Only the head was sent again, so an ACK for later data that was never retransmitted proves that the originals arrived.
  if (r.delivery.latest_sent && r.delivery.bytes > 0 && !r.delivery.any_retransmitted) {
    Undo();
    return;
  }
  if (snd_.una >= frto_end_) frto_ = false;
}

void Connection::AdvanceRecovery(const Segment& seg, AckResult* r) {
  if (ca_state_ == CaState::kOpen) return;
  if (r->acked == 0) {
    if (r->dsack && ca_state_ >= CaState::kRecovery && MayUndo(seg)) Undo();
    return;
  }
  if (ca_state_ >= CaState::kRecovery && MayUndo(seg)) return Undo();
  if (ca_state_ == CaState::kDisorder) {
    if (sent_.sacked_bytes() == 0) {
      ca_state_ = CaState::kOpen;
      dup_acks_ = 0;
    }
    return;
  }
  if (ca_state_ == CaState::kCwr) {
    // Beyond the last byte, so that what says "reduced" has arrived.
    if (snd_.una > recovery_point_) return LeaveRecovery();
    dup_acks_ = 0;
    return;
  }
  if (snd_.una >= recovery_point_) return LeaveRecovery();
  if (sack_) return;
  // RFC 6582 3.2 step 3: a partial ACK tells of the next hole.
  dup_acks_ -= std::min(dup_acks_, r->acked / std::max(cw_.mss, 1u));
  if (ca_state_ == CaState::kRecovery) r->newly_lost += sent_.MarkHeadLost(cw_.mss);
}

// RFC 6937 3.1, with the slow start reduction bound while retransmissions make progress.
void Connection::ReduceWindow(const AckResult& r) {
  const uint32_t delivered = sack_ ? r.delivery.bytes : std::max(r.delivery.bytes, r.duplicate ? cw_.mss : 0);
  if (delivered == 0) return;
  prr_delivered_ += delivered;
  const uint32_t pipe = InFlight();
  int64_t send = 0;
  if (pipe > cw_.ssthresh) {
    send = static_cast<int64_t>((uint64_t{prr_delivered_} * cw_.ssthresh + recover_fs_ - 1) / recover_fs_) - prr_out_;
  } else {
    int64_t limit = std::max<int64_t>(int64_t{prr_delivered_} - prr_out_, delivered);
    if (r.acked > 0 && r.newly_lost == 0) limit += cw_.mss;
    send = std::min<int64_t>(int64_t{cw_.ssthresh} - pipe, limit);
  }
  // The fast retransmission itself always leaves.
  if (prr_out_ == 0) send = std::max<int64_t>(send, cw_.mss);
  cw_.cwnd = pipe + static_cast<uint32_t>(std::max<int64_t>(send, 0));
  cw_.cwnd = std::max(cw_.cwnd, cw_.mss);
}

// RFC 8985 7.4: what became of the tail probe.
void Connection::CompleteProbe(const Segment& seg, const AckResult& r) {
  if (r.dsack && tlp_retransmitted_ && seg.sack[0].end == tlp_end_) {  // the original had arrived
    tlp_outstanding_ = false;
    return;
  }
  if (seg.ack < tlp_end_) return;
  if (tlp_retransmitted_ && !r.dsack && ca_state_ == CaState::kOpen &&
      !(timestamps_ && seg.has_timestamps && retransmit_stamp_ != 0 &&
        static_cast<int32_t>(seg.ts_ecr - retransmit_stamp_) < 0)) {
    // The probe repaired a loss: one reduction, as if it had been seen by ACKs.
    cw_.ssthresh = cc_->Ssthresh(cw_, now());
    ecn_.queue_cwr = ecn_.ok;
    if (!model_) cw_.cwnd = std::max(cw_.ssthresh, cw_.mss);
  }
  tlp_outstanding_ = false;
  if (ca_state_ == CaState::kOpen) retransmit_stamp_ = 0;
}

}  // namespace sluice::tcp
