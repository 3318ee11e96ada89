#include "netstack/ip/address.h"

#include <charconv>
#include <cstdio>

namespace sluice {
namespace {

bool ParseV4(std::string_view text, uint8_t out[4]) {
  for (int i = 0; i < 4; ++i) {
    unsigned v = 0;
    const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), v);
    const size_t digits = static_cast<size_t>(end - text.data());
    if (ec != std::errc() || v > 255 || digits > 3 || (digits > 1 && text[0] == '0')) return false;
    out[i] = static_cast<uint8_t>(v);
    text.remove_prefix(digits);
    if (i < 3) {
      if (text.empty() || text[0] != '.') return false;
      text.remove_prefix(1);
    }
  }
  return text.empty();
}

// RFC 4291 2.2: groups, one "::", an IPv4 tail.
bool ParseV6(std::string_view text, uint8_t out[16]) {
  uint8_t head[16] = {}, tail[16] = {};
  size_t head_n = 0, tail_n = 0;
  bool gap = false;
  if (text.starts_with("::")) {
    gap = true;
    text.remove_prefix(2);
  } else if (text.starts_with(":")) {
    return false;
  }
  while (!text.empty()) {
    uint8_t* to = gap ? tail : head;
    size_t& n = gap ? tail_n : head_n;
    const size_t colon = text.find(':');
    const std::string_view group = text.substr(0, colon);
    if (colon == std::string_view::npos && group.find('.') != std::string_view::npos) {
      if (head_n + tail_n > 12 || !ParseV4(group, to + n)) return false;
      n += 4;
      break;
    }
    unsigned v = 0;
    const auto [end, ec] = std::from_chars(group.data(), group.data() + group.size(), v, 16);
    if (ec != std::errc() || end != group.data() + group.size() || group.size() > 4 || head_n + tail_n > 14) return false;
    StoreBe16(to + n, static_cast<uint16_t>(v));
    n += 2;
    if (colon == std::string_view::npos) break;
    text.remove_prefix(colon + 1);
    if (text.empty()) return false;  // ends with a single colon
    if (text[0] == ':') {
      if (gap) return false;
      gap = true;
      text.remove_prefix(1);
    }
  }
  if (gap ? head_n + tail_n > 14 : head_n != 16) return false;
  std::memset(out, 0, 16);
  std::memcpy(out, head, head_n);
  if (tail_n > 0) std::memcpy(out + 16 - tail_n, tail, tail_n);
  return true;
}

std::string FormatV4(const uint8_t* b) {
  char text[16];
  std::snprintf(text, sizeof text, "%u.%u.%u.%u", b[0], b[1], b[2], b[3]);
  return text;
}

// RFC 5952: the longest run of two or more zero groups is shortened, the first of equals.
std::string FormatV6(const IpAddress& a) {
  const uint8_t* b = a.bytes().data();
  if (a.IsV4Mapped()) return "::ffff:" + FormatV4(b + 12);
  int best = -1, best_len = 1;
  for (int i = 0; i < 8;) {
    int n = 0;
    while (i + n < 8 && LoadBe16(b + 2 * (i + n)) == 0) ++n;
    if (n > best_len) best = i, best_len = n;
    i += n > 0 ? n : 1;
  }
  std::string s;
  for (int i = 0; i < 8; ++i) {
    if (i == best) {
      s += "::";
      i += best_len - 1;
      continue;
    }
    if (!s.empty() && s.back() != ':') s += ':';
    char group[5];
    std::snprintf(group, sizeof group, "%x", LoadBe16(b + 2 * i));
    s += group;
  }
  return s;
}

}  // namespace

std::string ToString(const MacAddress& m) {
  char text[18];
  std::snprintf(text, sizeof text, "%02x:%02x:%02x:%02x:%02x:%02x", m.bytes[0], m.bytes[1], m.bytes[2], m.bytes[3], m.bytes[4],
                m.bytes[5]);
  return text;
}

IpAddress IpAddress::Loopback(Family f) {
  if (f == Family::kIpv4) return V4(127, 0, 0, 1);
  IpAddress r = Any(f);
  if (f == Family::kIpv6) r.bytes_[15] = 1;
  return r;
}

std::optional<IpAddress> IpAddress::Parse(std::string_view text) {
  IpAddress r;
  if (ParseV4(text, r.bytes_.data())) {
    r.family_ = Family::kIpv4;
    return r;
  }
  r = {};
  if (!ParseV6(text, r.bytes_.data())) return std::nullopt;
  r.family_ = Family::kIpv6;
  return r;
}

bool IpAddress::IsAny() const { return family_ != Family::kNone && bytes_ == std::array<uint8_t, 16>{}; }

bool IpAddress::IsLoopback() const { return is_v4() ? bytes_[0] == 127 : is_v6() && *this == Loopback(Family::kIpv6); }

bool IpAddress::IsMulticast() const { return is_v4() ? (bytes_[0] & 0xf0) == 0xe0 : is_v6() && bytes_[0] == 0xff; }

bool IpAddress::IsLinkLocal() const {
  return is_v4() ? bytes_[0] == 169 && bytes_[1] == 254 : is_v6() && bytes_[0] == 0xfe && (bytes_[1] & 0xc0) == 0x80;
}

bool IpAddress::IsV4Mapped() const { return is_v6() && LoadBe64(bytes_.data()) == 0 && LoadBe32(bytes_.data() + 8) == 0xffff; }

IpAddress IpAddress::Unmapped() const { return IsV4Mapped() ? FromBytes({bytes_.data() + 12, 4}) : *this; }

IpAddress IpAddress::Mapped() const {
  if (!is_v4()) return *this;
  IpAddress r = Any(Family::kIpv6);
  r.bytes_[10] = r.bytes_[11] = 0xff;
  std::memcpy(r.bytes_.data() + 12, bytes_.data(), 4);
  return r;
}

bool IpAddress::InPrefix(const IpAddress& prefix, int prefix_len) const {
  if (family_ != prefix.family_ || family_ == Family::kNone) return false;
  if (is_v4()) return prefix_len <= 0 || ((v4() ^ prefix.v4()) >> (32 - prefix_len)) == 0;
  for (int i = 0; prefix_len > 0; ++i, prefix_len -= 8) {
    const uint8_t differ = bytes_[static_cast<size_t>(i)] ^ prefix.bytes_[static_cast<size_t>(i)];
    if (prefix_len >= 8 ? differ != 0 : (differ >> (8 - prefix_len)) != 0) return false;
  }
  return true;
}

std::string ToString(const IpAddress& a) {
  if (a.is_v4()) return FormatV4(a.bytes().data());
  return a.is_v6() ? FormatV6(a) : "none";
}

std::string ToString(const Endpoint& e) {
  const std::string port = ":" + std::to_string(e.port);
  return e.address.is_v6() ? "[" + ToString(e.address) + "]" + port : ToString(e.address) + port;
}

}  // namespace sluice
