// Whether spinning pays is not to be known beforehand: it saves the worker's own wake-ups, which cost much where the programs it
// talks to run on other cores and next to nothing where all share one, and it takes processor time. So it is tried: for one epoch
// now and then the worker does the other thing, and stays with it where more work got done; where neither is better it sleeps.
// Pure; one thread.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/time.h"

namespace sluice {

class SpinChoice {
 public:
  static constexpr Duration kEpoch = Duration::Milliseconds(20);
  static constexpr int kFirstInterval = 4, kMaxInterval = 64;  // epochs between trials; doubled by each that changed nothing
  // Where one is so much better than the other it need not be asked again soon: every trial of the worse costs an epoch.
  static constexpr double kClearly = 1.25;
  static constexpr int kClearInterval = 16;
  static constexpr int kBeforeFirst = 2;

  bool spin() const { return spin_; }
  bool Due(Instant now) const { return now - began_ >= kEpoch; }

  // At the end of a turn that had work, where Due. `progress` grows with the work (and may wrap): bytes that went through the
  // ports, say.
  void EndEpoch(Instant now, uint64_t progress) {
    const Duration took = now - began_;
    const auto done = std::max(int64_t{0}, static_cast<int64_t>(progress - progress_));  // a port that goes takes its count along
    const double rate = static_cast<double>(done) / static_cast<double>(took.ns());
    began_ = now;
    progress_ = progress;
    // There was nothing to do for a while, so how much was done says nothing.
    if (took > kEpoch * 2) {
      trial_ = false;
      spin_ = home_;
    } else if (trial_) {
      EndTrial(rate);
    } else {
      home_rate_ = home_rate_ == 0 ? rate : (home_rate_ * 3 + rate) / 4;
      if (--left_ <= 0) {
        trial_ = true;
        spin_ = !home_;
      }
    }
  }

 private:
  void EndTrial(double rate) {
    trial_ = false;
    const bool clear = rate > home_rate_ * kClearly || rate * kClearly < home_rate_;
    if (rate > home_rate_ * 1.1) {
      home_ = spin_;
      home_rate_ = rate;
      interval_ = kFirstInterval;
    } else {
      interval_ = std::min(interval_ * 2, kMaxInterval);
    }
    if (clear) interval_ = std::max(interval_, kClearInterval);
    spin_ = home_;
    left_ = interval_;
  }

  bool home_ = false, spin_ = false, trial_ = false;
  int interval_ = kFirstInterval, left_ = kBeforeFirst;
  double home_rate_ = 0;
  Instant began_;
  uint64_t progress_ = 0;
};

}  // namespace sluice
