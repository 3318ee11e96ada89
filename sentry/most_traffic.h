// Tells a stream that moves most of a sandbox's bytes in one direction from one among many.
#pragma once

#include <cstdint>

namespace sluice {

class MostTraffic {
 public:
  static constexpr uint64_t kWindow = 1 << 20;  // bytes of its own; more than fits into the buffers of one that is not read

  // `own` and `all`: bytes so far. True where of all that went since the last answer at least half were its own; false, too,
  // while it moved too few to tell.
  bool Is(uint64_t own, uint64_t all) {
    if (own - own_ < kWindow) return false;
    const bool most = all - all_ <= 2 * (own - own_);
    own_ = own;
    all_ = all;
    return most;
  }

 private:
  uint64_t own_ = 0, all_ = 0;
};

}  // namespace sluice
