// Congestion control: the interface and its implementations. All windows in bytes.
// RFC 5681 (slow start, congestion avoidance), 9438 (CUBIC), 9406 (HyStart++).
#pragma once

#include <cstdint>
#include <string_view>

#include "base/seq_num.h"
#include "base/time.h"

namespace sluice::tcp {

struct CongestionWindow {
  uint32_t cwnd = 0;
  uint32_t ssthresh = 0x7fffffff;
  uint32_t mss = 536;
  uint32_t limit = 1u << 30;
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
};

// Where a connection keeps its congestion control, without an allocation.
inline constexpr size_t kCongestionStorage = 160;

// True where the name is known ("cubic", "reno").
bool KnownCongestionControl(std::string_view name);
// Makes it in `storage` (kCongestionStorage bytes, aligned to 8); nullptr where the name is unknown.
CongestionControl* MakeCongestionControl(std::string_view name, void* storage);

}  // namespace sluice::tcp
