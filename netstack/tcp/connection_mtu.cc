// Packetization layer path MTU discovery (RFC 4821), as linux tcp_mtu_probe and tcp_mtu_probing: what to do where a router on the
// way drops what is too large, and says nothing. MTUs are those of IP packets.
#include <algorithm>

#include "netstack/tcp/connection.h"

namespace sluice::tcp {
namespace {

constexpr uint32_t kLeastWindow = 11;  // segments, below which there is more to lose than to gain
constexpr uint32_t kReordering = 3;

}  // namespace

// Payload that fits, of a segment with the options that each has.
uint32_t Connection::MtuToMss(uint32_t mtu) const {
  const uint32_t headers = MssToMtu(0);
  return mtu > headers ? mtu - headers : 0;
}

uint32_t Connection::MssToMtu(uint32_t mss) const {
  return mss + (key.remote.is_v4() ? 20 : 40) + kHeaderSize + (timestamps_ ? kTimestampOptionSize : 0);
}

void Connection::StartMtuSearch() {
  mtu_ = {};
  mtu_.enabled = sysctls().tcp_mtu_probing > 1;
  mtu_.low = MssToMtu(static_cast<uint32_t>(std::max(sysctls().tcp_base_mss, 0)));
  mtu_.high = HighestMtu();
  mtu_.since = now();
}

// What the peer takes.
uint32_t Connection::HighestMtu() const {
  const uint32_t mss = user_mss_ != 0 ? std::min(peer_mss_, user_mss_) : peer_mss_;
  return mss + (key.remote.is_v4() ? 20 : 40) + kHeaderSize;
}

// Several timeouts in a row: large segments may be what is lost. First the base size, then half of it each time.
void Connection::SuspectBlackHole() {
  if (sysctls().tcp_mtu_probing == 0) return;
  if (!mtu_.enabled) {
    mtu_.enabled = true;
    mtu_.since = now();
  } else {
    uint32_t mss = std::min(MtuToMss(mtu_.low) / 2, static_cast<uint32_t>(std::max(sysctls().tcp_base_mss, 0)));
    mss = std::max({mss, static_cast<uint32_t>(std::max(sysctls().tcp_mtu_probe_floor, 0)),
                    static_cast<uint32_t>(std::max(sysctls().tcp_min_snd_mss, 0))});
    mtu_.low = MssToMtu(mss);
  }
  UpdateMss();
}

// Sends a segment that is larger than those that are known to arrive, where there is enough behind it to tell its loss from
// others'. kWait: not yet, and nothing else may take its place.
Connection::Probing Connection::SendMtuProbe() {
  if (!mtu_.enabled || mtu_.size != 0 || ca_state_ != CaState::kOpen || sacks_.count() > 0 || has_dsack_) return Probing::kNone;
  const uint32_t mss = CurrentMss();
  if (cw_.cwnd < kLeastWindow * mss || snd_.up > snd_.nxt) return Probing::kNone;
  const uint32_t size = MtuToMss((mtu_.high + mtu_.low) / 2);
  if (size > MtuToMss(mtu_.high) || mtu_.high < mtu_.low + static_cast<uint32_t>(std::max(sysctls().tcp_probe_threshold, 1))) {
    SearchMtuAgain();
    return Probing::kNone;
  }
  const uint32_t needed = size + (kReordering + 1) * mss;
  if (Unsent() < needed || snd_.wnd < needed) return Probing::kNone;
  if (snd_.nxt + needed > snd_.una + snd_.wnd) return Probing::kWait;
  const uint32_t in_flight = InFlight();
  if (in_flight + 2 * mss > cw_.cwnd) return in_flight == 0 ? Probing::kNone : Probing::kWait;
  if (PacingHolds()) return Probing::kNone;
  mtu_.start = snd_.nxt;
  mtu_.end = snd_.nxt + size;
  if (!SendRange(snd_.nxt, size, false, size)) return Probing::kNone;
  OnDataSent(mss);  // no small segment, whatever its length
  mtu_.size = MssToMtu(size);
  cw_.cwnd -= mss;
  return Probing::kSent;
}

// The way may have changed.
void Connection::SearchMtuAgain() {
  const Duration interval = Duration::Seconds(std::max(sysctls().tcp_probe_interval, 0));
  if (now() - mtu_.since < interval) return;
  mtu_.low = MssToMtu(CurrentMss());
  mtu_.high = std::min(HighestMtu(), route_.mtu);
  mtu_.since = now();
}

void Connection::OnMtuProbeArrived() {
  const uint32_t cwnd = cw_.cwnd;
  mtu_.low = mtu_.size;
  mtu_.size = 0;
  UpdateMss();
  cw_.cwnd = std::max(cwnd, cw_.mss);  // as many bytes, not as many segments
  engine_.Count(Counter::kTcpMTUPSuccess);
}

// The probe alone is missing: it was too large, and says nothing of congestion.
bool Connection::OnMtuProbeLost() {
  if (mtu_.size == 0 || snd_.una != mtu_.start || ca_state_ > CaState::kDisorder) return false;
  mtu_.high = mtu_.size - 1;
  mtu_.size = 0;
  cw_.cwnd += cw_.mss;
  engine_.Count(Counter::kTcpMTUPFail);
  return true;
}

}  // namespace sluice::tcp
