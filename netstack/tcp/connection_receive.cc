// Receiving: queues, the window that is offered, when to acknowledge, and how the receive buffer grows.
// RFC 9293 3.8.6 and 3.10.7.4 (seventh), 5681 4.2, 2018, 2883; dynamic right-sizing as Linux.
#include <algorithm>
#include <utility>

#include "netstack/tcp/connection.h"

namespace sluice::tcp {
namespace {

// Half of the buffer is offered: the other half is for what blocks pin beyond their payload (tcp_adv_win_scale = 1).
uint32_t WindowOf(uint64_t space) { return static_cast<uint32_t>(space / 2); }

// What peers so near send ahead of its readers is no help: it waits in the device's queue and is colder than the core's caches
// when it is read. So all of them together get buffers of so much, but each a useful one.
constexpr Duration kNear = Duration::Milliseconds(2);
constexpr uint64_t kNearBuffers = 4 << 20, kLeastNearBuffer = 256 << 10;

constexpr uint8_t kMaxQuickAcks = 16;
constexpr uint8_t kInteractive = 3;  // pingpong_ from here on: delay ACKs

}  // namespace

uint32_t Connection::WindowNow() const {
  const int64_t left = static_cast<int32_t>((rcv_.wup + rcv_.wnd).value() - rcv_.nxt.value());
  return left > 0 ? static_cast<uint32_t>(left) : 0;
}

uint32_t Connection::FreeWindow() const {
  const uint32_t used = ReceiveMemory();
  return used >= rcvbuf_ ? 0 : WindowOf(rcvbuf_ - used);
}

// RFC 9293 3.8.6.2.2 (silly windows) in Linux's form; a window once offered is never taken back.
uint32_t Connection::SelectWindow() {
  const uint32_t current = WindowNow();
  const uint32_t full = std::min(window_clamp_, WindowOf(rcvbuf_));
  const uint32_t mss = std::max(1u, std::min(rcv_mss_, full));
  uint32_t free = FreeWindow();
  if (free < full / 2) {
    quick_acks_ = 0;
    if (memory().pressure()) rcv_ssthresh_ = std::min(rcv_ssthresh_, 4 * mss);
    free &= ~((1u << rcv_.wscale) - 1);
    if (free < full / 16 || free < mss) free = 0;
  }
  free = std::min(free, rcv_ssthresh_);
  uint32_t window;
  if (rcv_.wscale > 0) {
    const uint32_t unit = 1u << rcv_.wscale;
    window = (free + unit - 1) & ~(unit - 1);
  } else {
    window = WindowNow();
    if (window <= free - std::min(free, mss) || window > free)
      window = free / mss * mss;
    else if (mss == full && free > window + full / 2)
      window = free;
  }
  if (window < current) window = (current + (1u << rcv_.wscale) - 1) >> rcv_.wscale << rcv_.wscale;
  window = std::min(window, 65535u << rcv_.wscale);
  rcv_.wnd = window;
  rcv_.wup = rcv_.nxt;
  return window;
}

void Connection::MeasureReceiveMss(const Segment& seg) {
  const uint32_t size = seg.segment_size;
  if (size >= rcv_mss_) {
    rcv_mss_ = std::min<uint32_t>(size, std::max<uint32_t>(mss_, 536));
  } else if (rcv_mss_ > 536 && size >= 536 && seg.segments > 1) {
    rcv_mss_ = size;
  }
}

void Connection::EnterQuickAck(uint32_t segments) {
  const uint32_t quick = std::max<uint32_t>(2, rcv_.wnd / (2 * std::max(rcv_mss_, 1u)));
  quick_acks_ = std::max(quick_acks_, static_cast<uint8_t>(std::min({quick, segments, uint32_t{kMaxQuickAcks}})));
  pingpong_ = 0;
  ato_ = kMinDelayedAck;
}

// RFC 5681 4.2 with Linux's timing: at once for the second full segment, in quick-ack mode and for what fills or makes holes.
void Connection::ScheduleAck(const Segment& seg) {
  MeasureReceiveMss(seg);
  if (ato_ == Duration()) {
    EnterQuickAck(kMaxQuickAcks);
  } else {
    const Duration gap = now() - last_data_received_;
    if (gap <= kMinDelayedAck / 2) {
      ato_ = ato_ / 2 + kMinDelayedAck / 2;
    } else if (gap < ato_) {
      ato_ = std::min(ato_ / 2 + gap, std::max(rto_, kMinDelayedAck));
    } else if (gap > rto_) {
      EnterQuickAck(kMaxQuickAcks);  // the sender may be in slow start again
    }
  }
  last_data_received_ = now();
  const uint32_t unacked = rcv_.nxt - rcv_.wup;
  const bool quick = quick_acks_ > 0 && pingpong_ < kInteractive;
  if (unacked > rcv_mss_ || quick || (ooo_ && !ooo_->empty())) return AckSoon();
  ack_scheduled_ = true;
  short_owed_ = seg.payload_len < rcv_mss_;
  Duration delay = ato_;
  if (delay > kMinDelayedAck) {
    Duration most = pingpong_ >= kInteractive ? kMaxDelayedAck : Duration::Milliseconds(500);
    if (rtt_.valid()) most = std::min(most, std::max(rtt_.srtt(), kMinDelayedAck));
    delay = std::min(delay, most);
  }
  const Instant at = now() + delay;
  if (!Armed(kDelayedAck) || at < deadlines_[kDelayedAck]) Arm(kDelayedAck, at);
}

void Connection::SendDsack(SeqNum start, SeqNum end) {
  if (!sack_ || !sysctls().tcp_dsack) return;
  dsack_ = {start, end};
  has_dsack_ = true;
  engine_.Count(Counter::kTcpDSACKSent);
}

// Takes the payload [header_len, header_len + length) of the packet to the receive queue.
void Connection::QueueInOrder(SeqNum seq, uint32_t length, Packet packet, uint32_t header_len) {
  Slice pieces[Packet::kMaxSlices + 1];
  size_t count = 0;
  uint32_t skip = header_len, left = length;
  const auto linear = static_cast<uint32_t>(packet.linear_size());
  if (skip < linear) {
    const uint32_t n = std::min(linear - skip, left);
    pieces[count++] = packet.LinearSlice(skip, n);
    left -= n;
    skip = linear;
  }
  skip -= linear;
  for (size_t i = 0; i < packet.slice_count() && left > 0; ++i) {
    const Slice& s = packet.slice(i);
    if (skip >= s.length) {
      skip -= s.length;
      continue;
    }
    const uint32_t n = std::min(s.length - skip, left);
    pieces[count++] = s.Sub(skip, n);
    left -= n;
    skip = 0;
  }
  packet = Packet();  // the queue shall see which blocks are its alone
  const bool in_order = seq == rcv_.nxt;
  if (!in_order && !ooo_) ooo_ = std::make_unique<Reassembly>(&memory());
  for (size_t i = 0; i < count; ++i) {
    const uint32_t n = pieces[i].length;
    if (in_order)
      rcvq_.Append(std::move(pieces[i]), pool());
    else
      ooo_->Insert(seq, std::move(pieces[i]), pool());
    seq += n;
  }
  if (in_order) rcv_.nxt = seq;
}

// Gives up what came out of order until it pins at most `limit` bytes. False where nothing went.
bool Connection::PruneOutOfOrder(size_t limit) {
  if (!ooo_ || ooo_->Prune(limit) == 0) return false;
  if (ooo_->empty())
    sacks_.Clear();
  else
    sacks_.Trim(ooo_->highest());
  return true;
}

// How many of the next `length` bytes the memory of all connections has room for (as linux tcp_data_queue): at least a segment
// where nothing is queued. What came out of order goes first.
uint32_t Connection::Admit(uint32_t length) {
  size_t room = memory().Room(ReceiveMemory());
  if (room < length && PruneOutOfOrder(0)) room = memory().Room(ReceiveMemory());
  if (room >= length) return length;
  memory_dropped_ = true;
  engine_.Count(Counter::kDropTcpMemory);
  return room < rcv_mss_ && !rcvq_.empty() ? 0 : static_cast<uint32_t>(room);
}

void Connection::QueueOutOfOrder(const Segment& seg, Packet packet) {
  ++totals_.ooo_packets;
  engine_.Count(Counter::kTcpOFOQueue);
  CheckMark(seg);
  const SeqNum end = seg.seq + seg.payload_len;
  if (ooo_ && ooo_->memory() + rcvq_.memory() > rcvbuf_ && (ooo_->empty() || ooo_->highest() < end)) {
    engine_.Count(Counter::kDropTcpReceiveBuffer);  // beyond the buffer only what fills holes is worth its memory
    return AckSoon();
  }
  if (memory().Room(ReceiveMemory()) < seg.payload_len) {
    engine_.Count(Counter::kDropTcpMemory);
    return AckSoon();
  }
  const size_t before = ooo_ ? ooo_->bytes() : 0;
  QueueInOrder(seg.seq, seg.payload_len, std::move(packet), seg.header_len);
  if (ooo_->bytes() == before) {
    SendDsack(seg.seq, end);
  } else if (sack_) {
    sacks_.Add(seg.seq, end);
  }
  if (ReceiveMemory() > rcvbuf_) {
    const size_t room = rcvbuf_ > rcvq_.memory() ? rcvbuf_ - rcvq_.memory() : 0;
    if (PruneOutOfOrder(room)) engine_.Count(Counter::kDropTcpReceiveBuffer);
  }
  pingpong_ = 0;
  if (!sack_) {
    SendAckNow();  // each duplicate ACK counts for such a peer
  } else {
    AckSoon();
  }
}

// RFC 9293 3.10.7.4, seventh. False where the segment was dropped.
bool Connection::ProcessText(const Segment& seg, Packet packet) {
  if (seg.payload_len == 0) return true;
  ++totals_.data_segs_in;
  SeqNum start = seg.seq;
  SeqNum end = seg.seq + seg.payload_len;
  uint32_t skip = seg.header_len;
  if (end <= rcv_.nxt) {  // all of it came before
    if (seg.Has(kFin)) CheckMark(seg);
    EnterQuickAck(kMaxQuickAcks);
    SendDsack(start, end);
    AckSoon();
    return true;
  }
  const SeqNum edge = rcv_.nxt + WindowNow();
  // RFC 9293 3.10.7.4: "trimmed to the window". What a zero window lets in is nothing but the probe's answer.
  if (start >= edge) {
    EnterQuickAck(kMaxQuickAcks);
    engine_.Count(Counter::kDropTcpOutOfWindow);
    AckSoon();
    return false;
  }
  if (edge < end) end = edge;
  if (start < rcv_.nxt) {
    SendDsack(start, rcv_.nxt);
    skip += rcv_.nxt - start;
    start = rcv_.nxt;
  }
  Segment part = seg;
  part.seq = start;
  part.payload_len = end - start;
  part.header_len = static_cast<uint8_t>(seg.header_len);
  if (start != rcv_.nxt) {
    QueueOutOfOrder(part, std::move(packet));
    return true;
  }
  const SeqNum before = rcv_.nxt;
  const uint32_t admitted = Admit(end - start);
  if (admitted < end - start) AckSoon();
  if (admitted == 0) return false;
  QueueInOrder(start, admitted, std::move(packet), skip);
  if (ooo_ && !ooo_->empty()) {
    const SackBlock again = ooo_->Below(rcv_.nxt);
    if (again.start != again.end && !has_dsack_) SendDsack(again.start, again.end);
    rcv_.nxt = ooo_->Drain(rcv_.nxt, &rcvq_, pool());
    sacks_.Advance(rcv_.nxt);
    if (ooo_->empty()) {
      ooo_.reset();
      sacks_.Clear();
    }
    AckSoon();  // RFC 5681 4.2: a filled hole
  } else if (early_fin_) {
    sacks_.Advance(rcv_.nxt);
  }
  const uint32_t got = rcv_.nxt - before;
  totals_.bytes_received += got;
  if (!memory().pressure()) rcv_ssthresh_ = std::min(window_clamp_, rcv_ssthresh_ + std::min(2 * got, 1u << 20));
  MeasureReceiveRtt(seg);
  CheckMark(seg);
  ScheduleAck(seg);
  if (pingpong_ < 255 && last_data_sent_ != Instant() && now() - last_data_sent_ > ato_ * 4 && pingpong_ > 0 && seg.segments > 1)
    pingpong_ = 0;
  return true;
}

// Round-trip time as a receiver sees it: how long until our timestamp comes back on data, or until a window was filled.
void Connection::MeasureReceiveRtt(const Segment& seg) {
  if (timestamps_ && seg.has_timestamps && seg.ts_ecr != 0) {
    if (seg.ts_ecr == rcv_rtt_ecr_ || seg.payload_len < rcv_mss_) return;
    rcv_rtt_ecr_ = seg.ts_ecr;
    const auto ms = static_cast<int32_t>(TimestampNow() - seg.ts_ecr);
    if (ms < 0 || ms > 120000) return;
    const Duration sample = std::max(Duration::Milliseconds(ms), Duration::Microseconds(100));
    rcv_rtt_ = rcv_rtt_ == Duration() ? sample : std::min(sample, (rcv_rtt_ * 7 + sample) / 8);
    return;
  }
  if (rcv_rtt_time_ != Instant() && rcv_.nxt < rcv_rtt_seq_) return;
  if (rcv_rtt_time_ != Instant()) {
    const Duration sample = now() - rcv_rtt_time_;
    rcv_rtt_ = rcv_rtt_ == Duration() ? sample : std::min(rcv_rtt_, sample);
  }
  rcv_rtt_seq_ = rcv_.nxt + rcv_.wnd;
  rcv_rtt_time_ = now();
}

// Dynamic right-sizing: the buffer follows twice what the application took in one round trip (as linux tcp_rcv_space_adjust).
void Connection::AdjustReceiveBuffer() {
  if (rcv_rtt_ == Duration() || now() - drs_time_ < rcv_rtt_) return;
  const uint32_t copied = copied_ - drs_start_;
  const size_t readers = copied > 0 ? engine_.CountReader(&reader_mark_) : 1;
  if (copied > drs_space_) {
    if (sysctls().tcp_moderate_rcvbuf && !rcvbuf_locked_ && !memory().pressure()) {
      uint64_t window = 2 * uint64_t{copied} + 16 * uint64_t{mss_};
      const uint64_t grow = window * (copied - drs_space_) / std::max(drs_space_, 1u);
      window += 2 * std::min(grow, window);
      auto most = static_cast<uint64_t>(std::max(sysctls().tcp_rmem[2], 4096));
      if (rcv_rtt_ < kNear) most = std::min(most, std::max(kLeastNearBuffer, kNearBuffers / readers));
      const auto wanted = static_cast<uint32_t>(std::min(most, 2 * window));
      if (wanted > rcvbuf_) {
        rcvbuf_ = wanted;
        window_clamp_ = user_window_clamp_ != 0 ? std::min(user_window_clamp_, WindowOf(wanted)) : WindowOf(wanted);
      }
    }
    drs_space_ = copied;
  }
  drs_start_ = copied_;
  drs_time_ = now();
}

void Connection::Consume(size_t n) {
  rcvq_.PopFront(n);
  copied_ += static_cast<uint32_t>(n);
  if (urgent_valid_ && rcv_.up < copied_) urgent_valid_ = false;
  last_events_ &= events() | ~static_cast<uint32_t>(kReadable | kUrgent);
  if (!Synchronized() || fin_received_) return;
  if (std::exchange(memory_dropped_, false)) return AckSoon();
  const uint32_t current = WindowNow();
  // A window update where it at least doubles (as linux tcp_cleanup_rbuf): smaller ones ride on other segments.
  if (ack_scheduled_ && rcv_.nxt - rcv_.wup > rcv_mss_) return AckSoon();
  // Read to the last byte and no answer is in sight: the peer need not wait for the timer.
  if (ack_scheduled_ && rcvq_.empty() && pingpong_ < kInteractive && (quick_acks_ > 0 || short_owed_)) return AckSoon();
  if (2 * uint64_t{current} > std::min(window_clamp_, WindowOf(rcvbuf_))) return;
  const uint32_t full = std::min(window_clamp_, WindowOf(rcvbuf_));
  uint32_t free = std::min(FreeWindow(), rcv_ssthresh_);
  if (free < full / 16 || free < std::min(rcv_mss_, full)) free = 0;
  if (free > 0 && free >= 2 * current) AckSoon();
}

}  // namespace sluice::tcp
