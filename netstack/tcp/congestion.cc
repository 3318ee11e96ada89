#include "netstack/tcp/congestion.h"

#include <algorithm>
#include <new>

#include "netstack/tcp/bbr.h"
#include "netstack/tcp/cubic.h"

namespace sluice::tcp {
namespace {

// RFC 5681, with appropriate byte counting (RFC 3465, L = 2 through delivered bytes).
class Reno final : public CongestionControl {
 public:
  std::string_view name() const override { return "reno"; }
  void OnAck(CongestionWindow& w, const AckEvent& ack) override {
    if (!ack.cwnd_limited) return;
    uint32_t acked = ack.acked;
    if (w.in_slow_start()) {
      const uint32_t step = std::min(acked, w.ssthresh - w.cwnd);
      w.cwnd += step;
      acked -= step;
    }
    if (acked == 0) return;
    credit_ += acked;
    while (credit_ >= w.cwnd) {
      credit_ -= w.cwnd;
      w.cwnd += w.mss;
    }
  }
  uint32_t Ssthresh(const CongestionWindow& w, Instant) override { return std::max(w.cwnd / 2, 2 * w.mss); }
  void OnTimeout() override { credit_ = 0; }

 private:
  uint32_t credit_ = 0;
};

static_assert(std::max({sizeof(Reno), sizeof(Cubic), sizeof(Bbr)}) <= kCongestionStorage);

}  // namespace

bool KnownCongestionControl(std::string_view name) { return name == "cubic" || name == "reno" || name == "bbr"; }

CongestionControl* MakeCongestionControl(std::string_view name, void* storage) {
  if (name == "cubic") return new (storage) Cubic;
  if (name == "reno") return new (storage) Reno;
  if (name == "bbr") return new (storage) Bbr;
  return nullptr;
}

}  // namespace sluice::tcp
