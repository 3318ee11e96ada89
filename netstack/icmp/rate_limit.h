// Rate limits of ICMP errors (RFC 1812 4.3.2.8), as Linux has them: a bucket for all, and one per target.
#pragma once

#include <algorithm>
#include <array>

#include "base/rng.h"
#include "base/time.h"
#include "netstack/ip/address.h"
#include "netstack/sysctls.h"

namespace sluice {

class IcmpRateLimit {
 public:
  // Targets share buckets by a keyed hash, so that memory is bounded; a collision only limits more.
  bool Allow(const IpAddress& target, Instant now, const Sysctls& s, const SipKey& key) {
    Bucket& per_target = targets_[SipHash24(key, target.bytes()) % targets_.size()];
    const Duration interval = Duration::Milliseconds(s.icmp_ratelimit_ms);
    constexpr int64_t kTargetBurst = 6;  // XRLIM_BURST_FACTOR
    if (interval.ns() > 0 && !per_target.Check(now, interval, kTargetBurst)) return false;
    if (s.icmp_msgs_per_sec > 0 && !all_.Check(now, Duration::Seconds(1) / s.icmp_msgs_per_sec, std::max(1, s.icmp_msgs_burst))) {
      return false;
    }
    if (interval.ns() > 0) per_target.Take(interval);
    if (s.icmp_msgs_per_sec > 0) all_.Take(Duration::Seconds(1) / s.icmp_msgs_per_sec);
    return true;
  }

 private:
  struct Bucket {
    Instant last;
    int64_t credit = -1;  // nanoseconds; -1: fresh, full
    bool Check(Instant now, Duration interval, int64_t burst) {
      const int64_t full = interval.ns() * burst;
      credit = credit < 0 ? full : std::min(full, credit + (now - last).ns());
      last = now;
      return credit >= interval.ns();
    }
    void Take(Duration interval) { credit -= interval.ns(); }
  };
  Bucket all_;
  std::array<Bucket, 256> targets_;
};

}  // namespace sluice
