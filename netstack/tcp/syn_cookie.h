// SYN cookies (RFC 4987 3.6): an initial sequence number that proves the SYN and carries the MSS; scale, SACK and ECN travel in
// the low bits of our timestamp, which the peer echoes.
#pragma once

#include <cstdint>
#include <optional>

#include "base/rng.h"
#include "base/seq_num.h"
#include "netstack/tcp/segment.h"
#include "netstack/tcp/types.h"

namespace sluice::tcp {

struct CookieOptions {
  uint16_t mss = 0;
  bool has_window_scale = false, sack = false, ecn = false;
  uint8_t window_scale = 0;
};

class SynCookies {
 public:
  explicit SynCookies(SecureRng& secure);
  SeqNum Make(const FlowKey& key, SeqNum irs, uint16_t mss, Instant now) const;
  // The MSS that the cookie `iss` carries; nothing where it is not ours or older than two minutes.
  std::optional<uint16_t> Check(const FlowKey& key, SeqNum irs, SeqNum iss, Instant now) const;

  static constexpr uint32_t kTimestampBits = 6;
  static uint32_t EncodeTimestamp(uint32_t timestamp, const Segment& syn, bool ecn);
  static void DecodeTimestamp(uint32_t echo, CookieOptions* out);

 private:
  uint32_t Mac(const FlowKey& key, SeqNum irs, uint32_t count, uint32_t mss_index) const;
  SipKey key_;
};

}  // namespace sluice::tcp
