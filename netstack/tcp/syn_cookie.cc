#include "netstack/tcp/syn_cookie.h"

#include <array>
#include <cstring>

namespace sluice::tcp {
namespace {

// What occurs on the Internet; the cookie names the largest that does not exceed the peer's.
constexpr std::array<uint16_t, 8> kMssTable{216, 536, 1220, 1300, 1360, 1440, 1460, 8960};
constexpr uint32_t kCountBits = 5, kMssBits = 3, kMacBits = 24;
constexpr uint32_t kMacMask = (1u << kMacBits) - 1;
constexpr int64_t kPeriodSeconds = 64;
constexpr uint8_t kNoScale = 15;

uint32_t CountOf(Instant now) { return static_cast<uint32_t>(now.ns() / (kPeriodSeconds * 1000000000)); }

}  // namespace

SynCookies::SynCookies(SecureRng& secure) { secure.Fill({reinterpret_cast<uint8_t*>(&key_), sizeof key_}); }

uint32_t SynCookies::Mac(const FlowKey& key, SeqNum irs, uint32_t count, uint32_t mss_index) const {
  std::array<uint8_t, 16 * 2 + 4 + 12> in{};
  std::memcpy(in.data(), key.local.bytes().data(), key.local.bytes().size());
  std::memcpy(in.data() + 16, key.remote.bytes().data(), key.remote.bytes().size());
  StoreBe16(in.data() + 32, key.local_port);
  StoreBe16(in.data() + 34, key.remote_port);
  StoreBe32(in.data() + 36, irs.value());
  StoreBe32(in.data() + 40, count);
  StoreBe32(in.data() + 44, mss_index);
  return static_cast<uint32_t>(SipHash24(key_, in)) & kMacMask;
}

SeqNum SynCookies::Make(const FlowKey& key, SeqNum irs, uint16_t mss, Instant now) const {
  uint32_t index = 0;
  while (index + 1 < kMssTable.size() && kMssTable[index + 1] <= mss) ++index;
  const uint32_t count = CountOf(now);
  const uint32_t low = Mac(key, irs, count, index);
  return SeqNum((count & ((1u << kCountBits) - 1)) << (kMssBits + kMacBits) | index << kMacBits | low);
}

std::optional<uint16_t> SynCookies::Check(const FlowKey& key, SeqNum irs, SeqNum iss, Instant now) const {
  const uint32_t index = iss.value() >> kMacBits & ((1u << kMssBits) - 1);
  const uint32_t sent = iss.value() >> (kMssBits + kMacBits);
  const uint32_t count = CountOf(now);
  for (uint32_t age = 0; age <= 1 && age <= count; ++age) {
    if (((count - age) & ((1u << kCountBits) - 1)) != sent) continue;
    if (Mac(key, irs, count - age, index) == (iss.value() & kMacMask)) return kMssTable[index];
  }
  return std::nullopt;
}

uint32_t SynCookies::EncodeTimestamp(uint32_t timestamp, const Segment& syn, bool ecn) {
  const uint32_t bits =
      (syn.has_window_scale ? syn.window_scale : kNoScale) | (syn.sack_permitted ? 1u << 4 : 0) | (ecn ? 1u << 5 : 0);
  const uint32_t mask = (1u << kTimestampBits) - 1;
  const uint32_t stamped = (timestamp & ~mask) | bits;
  // Never ahead of the clock: a later segment's timestamp would seem to go back.
  return static_cast<int32_t>(stamped - timestamp) > 0 ? stamped - (mask + 1) : stamped;
}

void SynCookies::DecodeTimestamp(uint32_t echo, CookieOptions* out) {
  const uint32_t scale = echo & 15;
  out->has_window_scale = scale != kNoScale;
  out->window_scale = scale == kNoScale ? 0 : static_cast<uint8_t>(scale);
  out->sack = (echo & 1u << 4) != 0;
  out->ecn = (echo & 1u << 5) != 0;
}

}  // namespace sluice::tcp
