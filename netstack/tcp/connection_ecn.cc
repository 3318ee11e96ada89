// Explicit Congestion Notification: RFC 3168 6.1, as linux include/net/tcp_ecn.h.
#include <utility>

#include "netstack/tcp/connection.h"

namespace sluice::tcp {

// What a SYN asks for. A way that drops SYNs which ask gets one that does not, if need be (tcp_ecn_fallback).
uint8_t Connection::EcnSynFlags() {
  const int mode = sysctls().tcp_ecn;
  if (retransmits_ == 0) ecn_.ok = mode == 1 || mode == 3 || mode == 4;
  const bool plain = !ecn_.ok || (retransmits_ > 0 && sysctls().tcp_ecn_fallback != 0);
  return plain ? 0 : kEce | kCwr;
}

// 6.1.1: what the peer's SYN or SYN,ACK makes of it. Both flags in a SYN,ACK are a mirror's.
bool Connection::EcnAgreed(const Segment& seg) const { return ecn_.ok && seg.Has(kEce) && seg.Has(kCwr) == !seg.Has(kAck); }

// Of a segment that is not a SYN: the echo until the peer says that it has heard it (6.1.3), and, with the first new data after a
// reduction, that we have (6.1.2). Only new data says that it can be marked.
bool Connection::StampEcn(HeaderSpec* h, bool new_data) const {
  if (!ecn_.ok) return false;
  if (ecn_.demand_cwr) h->flags |= kEce;
  if (new_data && ecn_.queue_cwr) h->flags |= kCwr;
  return new_data;
}

// 6.1.3, of a segment whose text arrived and counts.
void Connection::CheckMark(const Segment& seg) {
  if (!ecn_.ok || fin_received_) return;
  if (seg.ecn == kEcnCe) {
    if (!std::exchange(ecn_.demand_cwr, true)) EnterQuickAck(2);
  } else if (seg.ecn == kEcnNotEct) {
    if (ecn_.seen) EnterQuickAck(2);  // most likely a retransmission
    return;
  }
  ecn_.seen = true;
}

// The peer has reduced its window, to a single segment perhaps: it must not wait for us.
void Connection::CheckCwr(const Segment& seg) {
  if (!ecn_.ok || !seg.Has(kCwr) || fin_received_ || seg.ack < snd_.una) return;
  ecn_.demand_cwr = false;
  if (seg.length() > 0) AckSoon();
}

// 6.1.2: once for each window of data, and nothing is sent again (as linux tcp_enter_cwr).
void Connection::EnterCwr() {
  BeginReduction();
  undo_possible_ = false;
  ForgetPriorWindow();
  ca_state_ = CaState::kCwr;
}

}  // namespace sluice::tcp
