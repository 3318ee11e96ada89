#include "netstack/tcp/bbr.h"

#include <algorithm>

namespace sluice::tcp {
namespace {

constexpr double kHighGain = 2885.0 / 1000;  // 2/ln 2: doubles the rate in each round trip
constexpr double kDrainGain = 1 / kHighGain;
constexpr double kWindowGain = 2;
constexpr std::array<double, 8> kCycle{1.25, 0.75, 1, 1, 1, 1, 1, 1};
constexpr double kMargin = 0.99;  // a little below the bandwidth, for a short queue
constexpr double kFullGrowth = 1.25;
constexpr uint8_t kFullRounds = 3;
constexpr uint32_t kBandwidthRounds = 10;
constexpr Duration kMinRttWindow = Duration::Seconds(10);
constexpr Duration kProbeRttLength = Duration::Milliseconds(200);
constexpr Duration kMostAggregation = Duration::Milliseconds(100);
constexpr uint8_t kExtraRounds = 5;
constexpr uint64_t kEpochSegments = 1u << 20;
constexpr uint32_t kLeastSegments = 4;
constexpr uint32_t kInitialSegments = 10;
constexpr uint64_t kSlowRate = 150'000;  // 1.2 Mbit/s: single segments below
constexpr uint64_t kMostBurst = 65536 - 1 - 320;
constexpr int kBurstShift = 10;  // a burst lasts about a millisecond

uint64_t Over(uint64_t rate, Duration time) {
  return static_cast<uint64_t>(static_cast<double>(rate) * static_cast<double>(time.ns()) * 1e-9);
}

uint64_t Scale(uint64_t v, double gain) { return static_cast<uint64_t>(static_cast<double>(v) * gain); }

}  // namespace

void WindowedMax::Update(uint32_t window, uint32_t now, uint64_t value) {
  const Sample s{value, now};
  if (value >= best_[0].value || now - best_[2].at > window) {  // a new maximum, or nothing of the window is left
    best_.fill(s);
    return;
  }
  if (value >= best_[1].value) {
    best_[1] = best_[2] = s;
  } else if (value >= best_[2].value) {
    best_[2] = s;
  }
  // The best ages: the second follows when it leaves the window; candidates are kept a quarter and a half of the window apart.
  const uint32_t age = now - best_[0].at;
  if (age > window) {
    best_ = {best_[1], best_[2], s};
    if (now - best_[0].at > window) best_ = {best_[1], best_[2], s};
  } else if (best_[1].at == best_[0].at && age > window / 4) {
    best_[1] = best_[2] = s;
  } else if (best_[2].at == best_[1].at && age > window / 2) {
    best_[2] = s;
  }
}

double Bbr::PacingGain() const {
  switch (mode_) {
    case Mode::kStartup:
      return kHighGain;
    case Mode::kDrain:
      return kDrainGain;
    case Mode::kProbeBandwidth:
      return kCycle[cycle_];
    case Mode::kProbeRtt:
      break;
  }
  return 1;
}

double Bbr::WindowGain() const {
  if (mode_ == Mode::kProbeBandwidth) return kWindowGain;
  return mode_ == Mode::kProbeRtt ? 1 : kHighGain;
}

uint32_t Bbr::MinBurstSegments(const CongestionWindow& w) const { return w.pacing_rate < kSlowRate ? 1 : 2; }

uint64_t Bbr::Burst(const CongestionWindow& w) const {
  const uint64_t bytes = std::min(w.pacing_rate >> kBurstShift, kMostBurst);
  return std::max<uint64_t>(bytes / w.mss, MinBurstSegments(w)) * w.mss;
}

uint64_t Bbr::BandwidthDelay(const CongestionWindow& w, double gain) const {
  if (min_rtt_ == Duration::Max()) return uint64_t{kInitialSegments} * w.mss;
  return Scale(Over(bandwidth_.value(), min_rtt_), gain);
}

// Room for what is on its way through the hosts: three bursts; and the bandwidth probe must show where the path is short.
uint64_t Bbr::Quantized(const CongestionWindow& w, uint64_t bytes) const {
  bytes += 3 * Burst(w);
  const uint64_t pair = 2 * uint64_t{w.mss};
  bytes = (bytes + pair - 1) / pair * pair;
  if (mode_ == Mode::kProbeBandwidth && cycle_ == 0) bytes += pair;
  return bytes;
}

uint64_t Bbr::InFlightTarget(const CongestionWindow& w, double gain) const { return Quantized(w, BandwidthDelay(w, gain)); }

// What will be in flight when the next burst departs.
uint64_t Bbr::InNetwork(const CongestionWindow& w, const RateSample& s, uint32_t in_flight) const {
  uint64_t then = in_flight;
  if (PacingGain() > 1) then += Burst(w);
  const uint64_t delivered = Over(bandwidth_.value(), s.queued);
  return then > delivered ? then - delivered : 0;
}

void Bbr::OnStart(CongestionWindow& w, Duration srtt, Duration min_rtt, Instant now) {
  *this = Bbr();
  w.ssthresh = CongestionWindow{}.ssthresh;
  if (min_rtt > Duration()) min_rtt_ = min_rtt;
  min_rtt_at_ = cycle_began_ = epoch_began_ = now;
  w.pacing_rate = kUnpaced;
  PaceByRtt(w, srtt);
}

// Before there is a sample of the bandwidth.
void Bbr::PaceByRtt(CongestionWindow& w, Duration srtt) {
  seen_rtt_ = srtt > Duration();
  const Duration rtt = seen_rtt_ ? srtt : Duration::Milliseconds(1);
  w.pacing_rate = static_cast<uint64_t>(w.cwnd * kHighGain * kMargin * 1e9 / static_cast<double>(rtt.ns()));
}

void Bbr::SetPacingRate(CongestionWindow& w, double gain, Duration srtt) {
  if (!seen_rtt_ && srtt > Duration()) PaceByRtt(w, srtt);
  const uint64_t rate = Scale(bandwidth_.value(), gain * kMargin);
  if (full_ || rate > w.pacing_rate) w.pacing_rate = rate;
}

void Bbr::UpdateBandwidth(const RateSample& s) {
  round_start_ = false;
  if (s.interval <= Duration()) return;
  if (s.prior_delivered >= round_end_) {
    round_end_ = s.total_delivered;
    ++rounds_;
    round_start_ = true;
    conserve_ = false;
  }
  const auto rate = static_cast<uint64_t>(static_cast<double>(s.delivered) * 1e9 / static_cast<double>(s.interval.ns()));
  if (!s.app_limited || rate >= bandwidth_.value()) bandwidth_.Update(kBandwidthRounds, rounds_, rate);
}

void Bbr::UpdateAggregation(const CongestionWindow& w, const RateSample& s) {
  if (s.acked == 0 || s.interval <= Duration()) return;
  if (round_start_ && ++extra_rounds_ >= kExtraRounds) {
    extra_rounds_ = 0;
    extra_slot_ ^= 1;
    extra_acked_[extra_slot_] = 0;
  }
  uint64_t expected = Over(bandwidth_.value(), s.now - epoch_began_);
  if (epoch_acked_ <= expected || epoch_acked_ + s.acked >= kEpochSegments * w.mss) {
    epoch_acked_ = expected = 0;
    epoch_began_ = s.now;
  }
  epoch_acked_ += s.acked;
  const auto extra = static_cast<uint32_t>(std::min<uint64_t>(epoch_acked_ - expected, w.cwnd));
  extra_acked_[extra_slot_] = std::max(extra_acked_[extra_slot_], extra);
}

void Bbr::UpdateCycle(const CongestionWindow& w, const RateSample& s) {
  if (mode_ != Mode::kProbeBandwidth) return;
  const bool whole = s.now - cycle_began_ > min_rtt_;
  const double gain = PacingGain();
  bool next = whole;
  if (gain > 1) {  // until it has filled the path so far, or lost something
    next = whole && (s.lost > 0 || InNetwork(w, s, s.prior_in_flight) >= InFlightTarget(w, gain));
  } else if (gain < 1) {  // until what the probe queued has gone
    next = whole || InNetwork(w, s, s.prior_in_flight) <= InFlightTarget(w, 1);
  }
  if (!next) return;
  cycle_ = static_cast<uint8_t>((cycle_ + 1) % kCycle.size());
  cycle_began_ = s.now;
}

void Bbr::CheckFull(const RateSample& s) {
  if (full_ || !round_start_ || s.app_limited) return;
  if (bandwidth_.value() >= Scale(full_bandwidth_, kFullGrowth)) {
    full_bandwidth_ = bandwidth_.value();
    full_rounds_ = 0;
    return;
  }
  full_ = ++full_rounds_ >= kFullRounds;
}

void Bbr::CheckDrain(CongestionWindow& w, const RateSample& s) {
  if (mode_ == Mode::kStartup && full_) {
    mode_ = Mode::kDrain;
    w.ssthresh = static_cast<uint32_t>(std::min<uint64_t>(InFlightTarget(w, 1), 0x7fffffff));
  }
  if (mode_ == Mode::kDrain && InNetwork(w, s, s.in_flight) <= InFlightTarget(w, 1)) EnterProbeBandwidth(s.now);
}

// Linux and the draft begin at a random phase other than the draining one, so that flows do not probe together. Time since the
// epoch began is as good a die as any here: it is not to be guessed by a peer, and the control stays free of a generator.
void Bbr::EnterProbeBandwidth(Instant now) {
  mode_ = Mode::kProbeBandwidth;
  const auto die = static_cast<uint8_t>(static_cast<uint64_t>(now.ns()) / 1000 % (kCycle.size() - 1));
  cycle_ = die == 0 ? 0 : static_cast<uint8_t>(die + 1);
  cycle_began_ = now;
}

// True while PROBE_RTT keeps the window small.
bool Bbr::UpdateMinRtt(CongestionWindow& w, const RateSample& s) {
  const bool expired = s.now > min_rtt_at_ + kMinRttWindow;
  if (s.rtt >= Duration() && (s.rtt <= min_rtt_ || (expired && !s.ack_delayed))) {
    min_rtt_ = s.rtt;
    min_rtt_at_ = s.now;
  }
  if (expired && !idle_restart_ && mode_ != Mode::kProbeRtt) {
    SaveWindow(w);
    mode_ = Mode::kProbeRtt;
    probe_rtt_until_ = Instant();
  }
  const bool probing = mode_ == Mode::kProbeRtt;
  if (probing) {
    if (probe_rtt_until_ == Instant()) {
      if (s.in_flight <= kLeastSegments * w.mss) {
        probe_rtt_until_ = s.now + kProbeRttLength;
        probe_rtt_round_ = false;
        round_end_ = s.total_delivered;
      }
    } else {
      probe_rtt_round_ |= round_start_;
      if (probe_rtt_round_) EndProbeRtt(w, s.now);
    }
  }
  if (s.interval > Duration()) idle_restart_ = false;
  return probing;
}

void Bbr::EndProbeRtt(CongestionWindow& w, Instant now) {
  if (probe_rtt_until_ == Instant() || now <= probe_rtt_until_) return;
  min_rtt_at_ = now;
  w.cwnd = std::max(w.cwnd, saved_window_);
  LeaveProbeRtt(now);
}

void Bbr::LeaveProbeRtt(Instant now) {
  if (full_)
    EnterProbeBandwidth(now);
  else
    mode_ = Mode::kStartup;
}

void Bbr::SaveWindow(const CongestionWindow& w) {
  const bool steady = last_state_ < CaState::kRecovery && mode_ != Mode::kProbeRtt;
  saved_window_ = steady ? w.cwnd : std::max(saved_window_, w.cwnd);
}

// A recovery begins with the conservation of packets and ends with the window that was there before. True where that decides.
bool Bbr::Recover(CongestionWindow& w, const RateSample& s) {
  if (s.lost > 0) w.cwnd = std::max(w.cwnd - std::min(w.cwnd, s.lost), w.mss);
  if (s.state == CaState::kRecovery && last_state_ != CaState::kRecovery) {
    conserve_ = true;
    round_end_ = s.total_delivered;
    w.cwnd = s.in_flight + s.acked;
  } else if (last_state_ >= CaState::kRecovery && s.state < CaState::kRecovery) {
    w.cwnd = std::max(w.cwnd, saved_window_);
    conserve_ = false;
  }
  last_state_ = s.state;
  if (conserve_) w.cwnd = std::max(w.cwnd, s.in_flight + s.acked);
  return conserve_;
}

void Bbr::SetWindow(CongestionWindow& w, const RateSample& s) {
  const uint64_t least = uint64_t{kLeastSegments} * w.mss;
  if (s.acked > 0 && !Recover(w, s)) {
    uint64_t target = BandwidthDelay(w, WindowGain());
    if (full_) {
      const uint64_t most = Over(bandwidth_.value(), kMostAggregation);
      target += std::min<uint64_t>(std::max(extra_acked_[0], extra_acked_[1]), most);
    }
    target = Quantized(w, target);
    uint64_t cwnd = w.cwnd;
    if (full_)
      cwnd = std::min(cwnd + s.acked, target);
    else if (cwnd < target || s.total_delivered < uint64_t{kInitialSegments} * w.mss)
      cwnd += s.acked;
    w.cwnd = static_cast<uint32_t>(std::min<uint64_t>(std::max(cwnd, least), w.limit));
  }
  if (mode_ == Mode::kProbeRtt) w.cwnd = std::min(w.cwnd, static_cast<uint32_t>(least));
}

bool Bbr::OnSample(CongestionWindow& w, const RateSample& s) {
  UpdateBandwidth(s);
  UpdateAggregation(w, s);
  UpdateCycle(w, s);
  CheckFull(s);
  CheckDrain(w, s);
  const bool probing = UpdateMinRtt(w, s);
  SetPacingRate(w, PacingGain(), s.srtt);
  SetWindow(w, s);
  return probing;
}

void Bbr::OnTransmitStart(CongestionWindow& w, bool app_limited, Instant now) {
  if (!app_limited) return;
  idle_restart_ = true;
  epoch_began_ = now;
  epoch_acked_ = 0;
  // Not faster than the path: the queue that a burst after silence would make is never drained.
  if (mode_ == Mode::kProbeBandwidth) SetPacingRate(w, 1, Duration());
  if (mode_ == Mode::kProbeRtt) EndProbeRtt(w, now);
}

uint32_t Bbr::Ssthresh(const CongestionWindow& w, Instant) {
  SaveWindow(w);
  return w.ssthresh;
}

void Bbr::OnTimeout() {
  last_state_ = CaState::kLoss;
  full_bandwidth_ = 0;
  round_start_ = true;
}

void Bbr::OnUndo() {
  full_bandwidth_ = 0;
  full_rounds_ = 0;
}

std::optional<TcpModelInfo> Bbr::model_info() const {
  TcpModelInfo i;
  i.bandwidth = bandwidth_.value();
  i.min_rtt_us = min_rtt_ == Duration::Max() ? ~0u : static_cast<uint32_t>(min_rtt_.us());
  i.pacing_gain = static_cast<uint32_t>(PacingGain() * 256);
  i.cwnd_gain = static_cast<uint32_t>(WindowGain() * 256);
  return i;
}

}  // namespace sluice::tcp
