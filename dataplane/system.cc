#include "dataplane/system.h"

#include <sys/random.h>
#include <time.h>

#include <algorithm>
#include <cstring>

namespace sluice {

Instant MonotonicNow() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return Instant(now.tv_sec * int64_t{1000000000} + now.tv_nsec);
}

void SystemRng::Fill(MutableBytes out) {
  while (!out.empty()) {
    if (at_ == buffer_.size()) Refill();
    const size_t n = std::min(out.size(), buffer_.size() - at_);
    std::memcpy(out.data(), buffer_.data() + at_, n);
    // What was given out must not be found in memory later.
    std::memset(buffer_.data() + at_, 0, n);
    at_ += n;
    out = out.subspan(n);
  }
}

void SystemRng::Refill() {
  size_t have = 0;
  while (have < buffer_.size()) {
    const ssize_t n = getrandom(buffer_.data() + have, buffer_.size() - have, 0);
    if (n > 0) have += static_cast<size_t>(n);
  }
  at_ = 0;
}

}  // namespace sluice
