// What a stack is given of the operating system: randomness and the time.
#pragma once

#include <array>
#include <cstdint>

#include "base/rng.h"
#include "base/time.h"

namespace sluice {

// CLOCK_MONOTONIC, which the worker counts by, too.
Instant MonotonicNow();

// getrandom. One thread. Reads 256 bytes at a time; what was given out is not kept.
class SystemRng final : public SecureRng {
 public:
  void Fill(MutableBytes out) override;

 private:
  void Refill();
  std::array<uint8_t, 256> buffer_{};
  size_t at_ = buffer_.size();
};

}  // namespace sluice
