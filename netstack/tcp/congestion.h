// Congestion control: the interface and its implementations. All windows in bytes.
// RFC 5681 (slow start, congestion avoidance), 9438 (CUBIC), 9406 (HyStart++); draft-cardwell-iccrg-bbr-congestion-control-00 and
// draft-cheng-iccrg-delivery-rate-estimation-00 (BBR). Rates in bytes per second.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "base/seq_num.h"
#include "base/time.h"
#include "netstack/socket/socket.h"

namespace sluice::tcp {

// As linux tcp_ca_state, for TCP_INFO.
enum class CaState : uint8_t { kOpen = 0, kDisorder = 1, kCwr = 2, kRecovery = 3, kLoss = 4 };

inline constexpr uint64_t kUnpaced = ~uint64_t{0};

struct CongestionWindow {
  uint32_t cwnd = 0;
  uint32_t ssthresh = 0x7fffffff;
  uint32_t mss = 536;
  uint32_t limit = 1u << 30;
  uint64_t pacing_rate = kUnpaced;  // set by a model; otherwise it follows from the window
  bool in_slow_start() const { return cwnd < ssthresh; }
};

// An acknowledgment of new data outside of recovery.
struct AckEvent {
  uint32_t acked = 0;         // bytes delivered
  uint32_t in_flight = 0;     // after it
  bool cwnd_limited = false;  // the sender was held back by cwnd
  Duration rtt{-1};           // newest sample, negative where there is none
  Duration srtt{};
  SeqNum una, nxt;
  Instant now;
};

// What one acknowledgment tells a model of the path, in recovery too.
struct RateSample {
  uint64_t total_delivered = 0;  // with this ACK
  uint64_t prior_delivered = 0;  // when the newest piece that it delivered was sent
  uint64_t delivered = 0;        // since then, within `interval`
  Duration interval{-1};         // negative: no sample
  uint32_t acked = 0;            // by this ACK, SACKed bytes included
  uint32_t lost = 0;             // newly judged lost
  uint32_t prior_in_flight = 0, in_flight = 0;
  Duration rtt{-1};          // newest, negative where there is none
  Duration srtt{};           // zero where there is none
  Duration queued{};         // how long what was sent still waits for its departure in the device's fq
  bool app_limited = false;  // that piece was sent while the program had no more to send
  bool ack_delayed = false;  // a lone segment: the peer may have waited with its ACK
  CaState state = CaState::kOpen;
  Instant now;
};

class CongestionControl {
 public:
  virtual ~CongestionControl() = default;
  virtual std::string_view name() const = 0;
  virtual void OnAck(CongestionWindow& w, const AckEvent& ack) = 0;
  // A congestion event begins: the new ssthresh.
  virtual uint32_t Ssthresh(const CongestionWindow& w, Instant now) = 0;
  virtual void OnTimeout() {}
  // The event was spurious and the windows were put back.
  virtual void OnUndo() {}
  // Sending starts again after the connection was idle for `idle`.
  virtual void OnIdle(Duration /*idle*/) {}

  // --- A model sets window and pacing rate itself by OnSample. OnAck, the proportional rate reduction, the ends of recovery and
  // the decay after idle times leave the window alone then (linux tcp_congestion_ops::cong_control).
  virtual bool is_model() const { return false; }
  // The connection is established, or changes to this control.
  virtual void OnStart(CongestionWindow& /*w*/, Duration /*srtt*/, Duration /*min_rtt*/, Instant /*now*/) {}
  // True where the connection counts as limited by its program from now on: what is sent says nothing about the path.
  virtual bool OnSample(CongestionWindow& /*w*/, const RateSample& /*sample*/) { return false; }
  // The first piece leaves after nothing was in flight.
  virtual void OnTransmitStart(CongestionWindow& /*w*/, bool /*app_limited*/, Instant /*now*/) {}
  // Of a paced super-segment; 0: net.ipv4.tcp_min_tso_segs.
  virtual uint32_t MinBurstSegments(const CongestionWindow& /*w*/) const { return 0; }
  virtual std::optional<TcpModelInfo> model_info() const { return std::nullopt; }
};

// Where a connection keeps its congestion control, without an allocation.
inline constexpr size_t kCongestionStorage = 224;

// True where the name is known ("cubic", "reno", "bbr").
bool KnownCongestionControl(std::string_view name);
// Makes it in `storage` (kCongestionStorage bytes, aligned to 8); nullptr where the name is unknown.
CongestionControl* MakeCongestionControl(std::string_view name, void* storage);

}  // namespace sluice::tcp
