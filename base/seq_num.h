// TCP sequence numbers: comparison modulo 2^32 (RFC 9293 3.4). Two numbers compare as long as they are less than 2^31 apart.
#pragma once

#include <cstdint>

namespace sluice {

class SeqNum {
 public:
  constexpr SeqNum() = default;
  constexpr explicit SeqNum(uint32_t v) : v_(v) {}

  constexpr uint32_t value() const { return v_; }
  constexpr bool operator==(const SeqNum&) const = default;
  constexpr bool operator<(SeqNum o) const { return static_cast<int32_t>(v_ - o.v_) < 0; }
  constexpr bool operator<=(SeqNum o) const { return static_cast<int32_t>(v_ - o.v_) <= 0; }
  constexpr bool operator>(SeqNum o) const { return o < *this; }
  constexpr bool operator>=(SeqNum o) const { return o <= *this; }
  constexpr SeqNum operator+(uint32_t n) const { return SeqNum(v_ + n); }
  constexpr SeqNum operator-(uint32_t n) const { return SeqNum(v_ - n); }
  // Distance from `o` to this; meaningful where o <= *this.
  constexpr uint32_t operator-(SeqNum o) const { return v_ - o.v_; }
  constexpr SeqNum& operator+=(uint32_t n) {
    v_ += n;
    return *this;
  }
  // True where this lies in [start, start + size).
  constexpr bool InWindow(SeqNum start, uint32_t size) const { return v_ - start.v_ < size; }

 private:
  uint32_t v_ = 0;
};

constexpr SeqNum Max(SeqNum a, SeqNum b) { return a < b ? b : a; }
constexpr SeqNum Min(SeqNum a, SeqNum b) { return a < b ? a : b; }

}  // namespace sluice
