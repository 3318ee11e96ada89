// Randomness, always passed in. Rng is fast and predictable (jitter, hashes' salts in tests); SecureRng is for what a peer must
// not guess (initial sequence numbers' secret, ports, IP ids, cookies).
#pragma once

#include <cstdint>

#include "base/bytes.h"

namespace sluice {

class Rng {  // xoshiro256**
 public:
  explicit Rng(uint64_t seed);
  uint64_t Next();
  uint32_t Uniform(uint32_t bound);  // [0, bound)

 private:
  uint64_t s_[4];
};

class SecureRng {
 public:
  virtual ~SecureRng() = default;
  virtual void Fill(MutableBytes out) = 0;
  uint32_t Next32() {
    uint32_t v;
    Fill({reinterpret_cast<uint8_t*>(&v), sizeof v});
    return v;
  }
};

struct SipKey {
  uint64_t k0 = 0, k1 = 0;
};
uint64_t SipHash24(const SipKey& key, Bytes data);

}  // namespace sluice
