// Addresses. The family is a value, so one code path serves IPv4 and IPv6 (RFC 791, RFC 4291).
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/bytes.h"

namespace sluice {

enum class Family : uint8_t { kNone = 0, kIpv4 = 4, kIpv6 = 6 };

using IfIndex = int32_t;  // as the kernel numbers devices; 0 = none
inline constexpr IfIndex kLoopbackIfIndex = 1;

struct MacAddress {
  std::array<uint8_t, 6> bytes{};
  auto operator<=>(const MacAddress&) const = default;
  bool IsBroadcast() const { return bytes == std::array<uint8_t, 6>{255, 255, 255, 255, 255, 255}; }
  bool IsMulticast() const { return (bytes[0] & 1) != 0; }
};
std::string ToString(const MacAddress&);

// An IPv4 or IPv6 address, or none. 20 bytes, trivially copyable; IPv4 lies in the first four bytes.
class IpAddress {
 public:
  constexpr IpAddress() = default;
  static constexpr IpAddress V4(uint8_t a, uint8_t b, uint8_t c, uint8_t d) {
    IpAddress r;
    r.family_ = Family::kIpv4;
    r.bytes_[0] = a, r.bytes_[1] = b, r.bytes_[2] = c, r.bytes_[3] = d;
    return r;
  }
  static IpAddress V4(uint32_t host_order) {
    IpAddress r;
    r.family_ = Family::kIpv4;
    StoreBe32(r.bytes_.data(), host_order);
    return r;
  }
  // `bytes` holds 4 or 16 bytes in network order; any other size gives the empty address.
  static IpAddress FromBytes(Bytes bytes) {
    IpAddress r;
    if (bytes.size() != 4 && bytes.size() != 16) return r;
    r.family_ = bytes.size() == 4 ? Family::kIpv4 : Family::kIpv6;
    std::memcpy(r.bytes_.data(), bytes.data(), bytes.size());
    return r;
  }
  static IpAddress Any(Family f) {
    IpAddress r;
    r.family_ = f;
    return r;
  }
  static IpAddress Loopback(Family f);
  static std::optional<IpAddress> Parse(std::string_view text);

  Family family() const { return family_; }
  bool is_v4() const { return family_ == Family::kIpv4; }
  bool is_v6() const { return family_ == Family::kIpv6; }
  explicit operator bool() const { return family_ != Family::kNone; }
  Bytes bytes() const { return {bytes_.data(), is_v4() ? size_t{4} : is_v6() ? size_t{16} : size_t{0}}; }
  uint32_t v4() const { return LoadBe32(bytes_.data()); }

  bool IsAny() const;        // 0.0.0.0 or ::
  bool IsLoopback() const;   // 127/8 or ::1
  bool IsMulticast() const;  // 224/4 or ff00::/8
  bool IsLimitedBroadcast() const { return is_v4() && v4() == 0xffffffff; }
  bool IsLinkLocal() const;    // 169.254/16 or fe80::/10
  bool IsV4Mapped() const;     // ::ffff:a.b.c.d
  IpAddress Unmapped() const;  // the IPv4 address inside a v4-mapped one; otherwise this
  IpAddress Mapped() const;    // the v4-mapped form of an IPv4 address; otherwise this

  bool InPrefix(const IpAddress& prefix, int prefix_len) const;

  auto operator<=>(const IpAddress&) const = default;

  template <typename H>
  friend H AbslHashValue(H h, const IpAddress& a) {
    return H::combine_contiguous(std::move(h), a.bytes().data(), a.bytes().size());
  }

 private:
  Family family_ = Family::kNone;
  std::array<uint8_t, 16> bytes_{};
};
std::string ToString(const IpAddress&);

struct Endpoint {
  IpAddress address;
  uint16_t port = 0;
  IfIndex scope = 0;  // sin6_scope_id for link-local IPv6
  auto operator<=>(const Endpoint&) const = default;
};
std::string ToString(const Endpoint&);  // "10.0.0.1:80", "[::1]:80"

}  // namespace sluice
