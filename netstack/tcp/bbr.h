// BBR, version 1 (draft-cardwell-iccrg-bbr-congestion-control-00, and Linux's tcp_bbr): a model of the path, made of the most
// bandwidth that was delivered and the least round trip, sets pacing rate and window; losses say nothing. Without the detection
// of policers.
#pragma once

#include <array>

#include "netstack/tcp/congestion.h"

namespace sluice::tcp {

// The largest of the samples of the last `window` units of time, by three candidates of descending value and ascending age.
class WindowedMax {
 public:
  uint64_t value() const { return best_[0].value; }
  void Update(uint32_t window, uint32_t now, uint64_t value);

 private:
  struct Sample {
    uint64_t value = 0;
    uint32_t at = 0;
  };
  std::array<Sample, 3> best_;
};

class Bbr final : public CongestionControl {
 public:
  std::string_view name() const override { return "bbr"; }
  bool is_model() const override { return true; }
  void OnAck(CongestionWindow&, const AckEvent&) override {}
  uint32_t Ssthresh(const CongestionWindow& w, Instant now) override;
  void OnTimeout() override;
  void OnUndo() override;
  void OnStart(CongestionWindow& w, Duration srtt, Duration min_rtt, Instant now) override;
  bool OnSample(CongestionWindow& w, const RateSample& s) override;
  void OnTransmitStart(CongestionWindow& w, bool app_limited, Instant now) override;
  uint32_t MinBurstSegments(const CongestionWindow& w) const override;
  std::optional<TcpModelInfo> model_info() const override;

 private:
  enum class Mode : uint8_t { kStartup, kDrain, kProbeBandwidth, kProbeRtt };

  void UpdateBandwidth(const RateSample& s);
  void UpdateAggregation(const CongestionWindow& w, const RateSample& s);
  void UpdateCycle(const CongestionWindow& w, const RateSample& s);
  void CheckFull(const RateSample& s);
  void CheckDrain(CongestionWindow& w, const RateSample& s);
  bool UpdateMinRtt(CongestionWindow& w, const RateSample& s);
  void EndProbeRtt(CongestionWindow& w, Instant now);
  void LeaveProbeRtt(Instant now);
  void EnterProbeBandwidth(Instant now);
  void SetPacingRate(CongestionWindow& w, double gain, Duration srtt);
  void PaceByRtt(CongestionWindow& w, Duration srtt);
  void SetWindow(CongestionWindow& w, const RateSample& s);
  bool Recover(CongestionWindow& w, const RateSample& s);
  void SaveWindow(const CongestionWindow& w);
  double PacingGain() const;
  double WindowGain() const;
  uint64_t InFlightTarget(const CongestionWindow& w, double gain) const;
  uint64_t Quantized(const CongestionWindow& w, uint64_t bytes) const;
  uint64_t BandwidthDelay(const CongestionWindow& w, double gain) const;
  uint64_t Burst(const CongestionWindow& w) const;
  uint64_t InNetwork(const CongestionWindow& w, const RateSample& s, uint32_t in_flight) const;

  WindowedMax bandwidth_;  // over round trips
  Duration min_rtt_ = Duration::Max();
  Instant min_rtt_at_;
  Instant probe_rtt_until_;  // zero: the window is not small yet
  Instant cycle_began_;
  uint64_t round_end_ = 0;  // a round trip ends when a piece that was sent at this count of delivered bytes is
  uint64_t full_bandwidth_ = 0;
  uint32_t rounds_ = 0;
  uint32_t saved_window_ = 0;
  // How many more bytes than the bandwidth explains come in one piece of acknowledgments: the largest of five to ten round trips.
  Instant epoch_began_;
  uint64_t epoch_acked_ = 0;
  std::array<uint32_t, 2> extra_acked_{};
  uint8_t extra_rounds_ = 0, extra_slot_ = 0;
  Mode mode_ = Mode::kStartup;
  CaState last_state_ = CaState::kOpen;
  uint8_t cycle_ = 0;
  uint8_t full_rounds_ = 0;
  bool full_ = false;  // STARTUP has filled the pipe once
  bool round_start_ = false;
  bool conserve_ = false;  // the first round trip of a recovery: a packet out for one that came in
  bool idle_restart_ = false;
  bool probe_rtt_round_ = false;
  bool seen_rtt_ = false;
};

}  // namespace sluice::tcp
