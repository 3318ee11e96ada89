// CUBIC (RFC 9438) with HyStart++ (RFC 9406) as its slow start. Windows in bytes; the curve is computed in segments and seconds.
#pragma once

#include "netstack/tcp/congestion.h"

namespace sluice::tcp {

class Cubic final : public CongestionControl {
 public:
  std::string_view name() const override { return "cubic"; }
  void OnAck(CongestionWindow& w, const AckEvent& ack) override;
  uint32_t Ssthresh(const CongestionWindow& w, Instant now) override;
  void OnTimeout() override;
  void OnUndo() override;
  void OnIdle(Duration idle) override;

 private:
  void SlowStart(CongestionWindow& w, const AckEvent& ack);
  void Avoid(CongestionWindow& w, const AckEvent& ack);
  void StartEpoch(const CongestionWindow& w, Instant now);
  void StartRound(SeqNum end);
  void ObserveRtt(CongestionWindow& w, const AckEvent& ack);

  // The curve.
  double w_max_ = 0;        // segments
  double prior_w_max_ = 0;  // to undo
  double k_ = 0;            // seconds
  double w_est_ = 0;        // segments: what Reno would have (4.3)
  double credit_ = 0;       // fraction of a segment
  Instant epoch_start_;
  bool in_epoch_ = false;
  // HyStart++
  Duration last_round_min_ = Duration::Max();
  Duration round_min_ = Duration::Max();
  Duration css_baseline_ = Duration::Max();
  SeqNum round_end_;
  uint16_t samples_ = 0;
  uint8_t css_rounds_ = 0;
  bool in_css_ = false;
  bool round_started_ = false;
  uint32_t css_credit_ = 0;
};

}  // namespace sluice::tcp
