// The Internet checksum (RFC 1071, 1141, 1624).
//
// Sums are one's complement sums of 16-bit words in memory order, folded to 16 bits: they are stored into a header as they lie in
// memory (StoreSum), never byte-swapped.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/bytes.h"
#include "netstack/ip/address.h"
#include "netstack/packet.h"

namespace sluice::wire {

inline uint16_t AddSums(uint16_t a, uint16_t b) {
  const uint32_t s = uint32_t{a} + b;
  return static_cast<uint16_t>((s & 0xffff) + (s >> 16));
}
inline uint16_t LoadSum(const void* p) {
  uint16_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void StoreSum(void* p, uint16_t v) { std::memcpy(p, &v, sizeof v); }

// Continues `initial` with `data`; odd sizes count as padded with a zero byte.
uint16_t OnesSum(Bytes data, uint16_t initial = 0);
// The same without vector instructions (the reference of tests, and what machines without them use).
uint16_t OnesSumScalar(Bytes data, uint16_t initial = 0);
// Of the bytes of `packet` from `from` to its end, slices included.
uint16_t OnesSum(const Packet& packet, size_t from, uint16_t initial = 0);

// RFC 793 / 8200 8.1. Both addresses of one family.
uint16_t PseudoHeaderSum(const IpAddress& source, const IpAddress& destination, uint8_t protocol, uint32_t length);

// The checksum after one 16-bit word (in memory order) changed (RFC 1624, equation 3).
inline uint16_t UpdateChecksum(uint16_t checksum, uint16_t old_word, uint16_t new_word) {
  const uint16_t s = AddSums(static_cast<uint16_t>(~checksum), static_cast<uint16_t>(~old_word));
  return static_cast<uint16_t>(~AddSums(s, new_word));
}

// Completes a kPartial checksum in the frame (the packet becomes kNone). Offload offsets count from packet.data(). False where
// they lie outside of the linear region. `zero_is_ffff`: UDP's rule that a sum of zero is sent as 0xffff.
bool CompleteChecksum(Packet& packet, bool zero_is_ffff);

}  // namespace sluice::wire
