#include "netstack/tcp/cubic.h"

#include <algorithm>
#include <cmath>

namespace sluice::tcp {
namespace {

constexpr double kC = 0.4;                                // RFC 9438 4.1
constexpr double kBeta = 0.7;                             // 4.6
constexpr double kAlpha = 3 * (1 - kBeta) / (1 + kBeta);  // 4.3

// RFC 9406 4.3
constexpr Duration kMinRttThreshold = Duration::Milliseconds(4);
constexpr Duration kMaxRttThreshold = Duration::Milliseconds(16);
constexpr int kMinRttDivisor = 8;
constexpr uint16_t kRttSamples = 8;
constexpr uint32_t kCssGrowthDivisor = 4;
constexpr uint8_t kCssRounds = 5;
constexpr uint32_t kMinHystartSegments = 16;  // below, leaving slow start early costs more than it saves

}  // namespace

void Cubic::OnAck(CongestionWindow& w, const AckEvent& ack) {
  if (w.in_slow_start()) ObserveRtt(w, ack);
  if (!ack.cwnd_limited) return;
  if (w.in_slow_start())
    SlowStart(w, ack);
  else
    Avoid(w, ack);
}

void Cubic::SlowStart(CongestionWindow& w, const AckEvent& ack) {
  uint32_t step = ack.acked;
  if (in_css_) {
    css_credit_ += step;
    step = css_credit_ / kCssGrowthDivisor;
    css_credit_ -= step * kCssGrowthDivisor;
  }
  w.cwnd += std::min(step, w.ssthresh - w.cwnd);
}

void Cubic::StartRound(SeqNum end) {
  last_round_min_ = round_min_;
  round_min_ = Duration::Max();
  samples_ = 0;
  round_end_ = end;
  round_started_ = true;
}

// RFC 9406 4.2
void Cubic::ObserveRtt(CongestionWindow& w, const AckEvent& ack) {
  if (!round_started_ || ack.una > round_end_) {
    if (in_css_ && ++css_rounds_ >= kCssRounds) {
      w.ssthresh = w.cwnd;
      return;
    }
    StartRound(ack.nxt);
  }
  if (ack.rtt < Duration()) return;
  round_min_ = std::min(round_min_, ack.rtt);
  ++samples_;
  if (samples_ < kRttSamples || w.cwnd < kMinHystartSegments * w.mss) return;
  if (in_css_) {
    if (round_min_ < css_baseline_) {  // the growth was a jitter
      css_baseline_ = Duration::Max();
      in_css_ = false;
    }
    return;
  }
  if (round_min_ == Duration::Max() || last_round_min_ == Duration::Max()) return;
  const Duration threshold = std::clamp(last_round_min_ / kMinRttDivisor, kMinRttThreshold, kMaxRttThreshold);
  if (round_min_ >= last_round_min_ + threshold) {
    css_baseline_ = round_min_;
    in_css_ = true;
    css_rounds_ = 0;
    css_credit_ = 0;
  }
}

void Cubic::StartEpoch(const CongestionWindow& w, Instant now) {
  const double cwnd = static_cast<double>(w.cwnd) / w.mss;
  in_epoch_ = true;
  epoch_start_ = now;
  credit_ = 0;
  w_est_ = cwnd;
  if (cwnd < w_max_) {
    k_ = std::cbrt((w_max_ - cwnd) / kC);
  } else {
    k_ = 0;
    w_max_ = cwnd;
  }
}

// RFC 9438 4.2-4.5
void Cubic::Avoid(CongestionWindow& w, const AckEvent& ack) {
  if (!in_epoch_) StartEpoch(w, ack.now);
  const double cwnd = static_cast<double>(w.cwnd) / w.mss;
  const double t = static_cast<double>((ack.now - epoch_start_ + ack.srtt).ns()) * 1e-9;
  const double offset = t - k_;
  double target = w_max_ + kC * offset * offset * offset;
  target = std::clamp(target, cwnd, 1.5 * cwnd);
  const double acked = static_cast<double>(ack.acked) / w.mss;
  w_est_ += (w_est_ >= w_max_ ? 1.0 : kAlpha) * acked / cwnd;
  const double grow = std::max((target - cwnd) / cwnd * acked, std::min(w_est_ - cwnd, acked / 2));
  credit_ += std::max(grow, acked / (100 * cwnd));  // in the plateau: slowly on
  const double whole = std::floor(credit_ * w.mss);
  if (whole >= 1) {
    w.cwnd += static_cast<uint32_t>(std::min(whole, 1e8));
    credit_ -= whole / w.mss;
  }
}

uint32_t Cubic::Ssthresh(const CongestionWindow& w, Instant) {
  const double cwnd = static_cast<double>(w.cwnd) / w.mss;
  prior_w_max_ = w_max_;
  w_max_ = cwnd < w_max_ ? cwnd * (1 + kBeta) / 2 : cwnd;  // 4.7 fast convergence
  in_epoch_ = false;
  return std::max(static_cast<uint32_t>(w.cwnd * kBeta), 2 * w.mss);
}

void Cubic::OnTimeout() {
  in_epoch_ = false;
  in_css_ = false;
  round_started_ = false;
  round_min_ = last_round_min_ = css_baseline_ = Duration::Max();
}

void Cubic::OnUndo() {
  w_max_ = std::max(w_max_, prior_w_max_);
  in_epoch_ = false;
}

void Cubic::OnIdle(Duration idle) {
  if (in_epoch_) epoch_start_ = epoch_start_ + idle;  // 5.8: the curve stands still while nothing is sent
}

}  // namespace sluice::tcp
