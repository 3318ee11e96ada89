// Round-trip time and retransmission timeout (RFC 6298), with the mean deviation kept per round trip as Linux does: a sudden fall
// of the RTT does not inflate the timeout, and the deviation decays once per round trip only. All in microseconds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "base/seq_num.h"
#include "netstack/tcp/types.h"

namespace sluice::tcp {

class RttEstimator {
 public:
  bool valid() const { return srtt8_ != 0; }
  Duration srtt() const { return Duration::Microseconds(srtt8_ >> 3); }
  Duration rttvar() const { return Duration::Microseconds(mdev4_ >> 2); }
  Duration min_rtt() const { return Duration::Microseconds(min_rtt_ == kNone ? 0 : min_rtt_); }
  bool has_min() const { return min_rtt_ != kNone; }

  // `una` and `nxt` delimit round trips.
  void Sample(Duration rtt, SeqNum una, SeqNum nxt, Duration min_rto) {
    const int64_t us = std::max<int64_t>(1, rtt.us());
    if (us < min_rtt_) min_rtt_ = us;
    const int64_t floor4 = min_rto.us();
    if (srtt8_ == 0) {
      srtt8_ = us << 3;
      mdev4_ = us << 1;
      rttvar4_ = std::max(mdev4_, floor4);
      mdev_max4_ = rttvar4_;
      round_end_ = nxt;
      return;
    }
    int64_t m = us - (srtt8_ >> 3);
    srtt8_ = std::max<int64_t>(1, srtt8_ + m);
    if (m < 0) {
      m = -m - (mdev4_ >> 2);
      if (m > 0) m >>= 3;  // a falling RTT must not raise the timeout
    } else {
      m -= mdev4_ >> 2;
    }
    mdev4_ = std::max<int64_t>(0, mdev4_ + m);
    if (mdev4_ > mdev_max4_) {
      mdev_max4_ = mdev4_;
      rttvar4_ = std::max(rttvar4_, mdev_max4_);
    }
    if (una > round_end_) {
      if (mdev_max4_ < rttvar4_) rttvar4_ -= (rttvar4_ - mdev_max4_) >> 2;
      round_end_ = nxt;
      mdev_max4_ = floor4;
    }
  }
  Duration Rto(Duration min_rto) const {
    if (!valid()) return kInitialRto;
    const auto rto = Duration::Microseconds((srtt8_ >> 3) + std::max(rttvar4_, min_rto.us()));
    return std::min(rto, kMaxRto);
  }

 private:
  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  int64_t srtt8_ = 0;  // 8 * srtt
  int64_t mdev4_ = 0;  // 4 * mean deviation
  int64_t rttvar4_ = 0;
  int64_t mdev_max4_ = 0;
  int64_t min_rtt_ = kNone;
  SeqNum round_end_;
};

}  // namespace sluice::tcp
