// Configurations made by hand, for programs that link the stack: what `ip link`, `ip addr add` and `ip route add` would make of
// them. The sentry does not need this: it mirrors the kernel's tables.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "netstack/config.h"

namespace sluice {

struct Prefix {
  IpAddress address;  // as written: host bits are kept
  uint8_t length = 0;
  // IPv4; the bits behind `length` cleared.
  IpAddress network() const;
};

// "10.0.0.1/24", or "10.0.0.1" for one address; none where it is no address or the length does not fit.
std::optional<Prefix> ParsePrefix(std::string_view text);

// An Ethernet device that is up. `ifindex` is that of the port that joins it (Port::ifindex), and not the loopback's, which is 1.
void AddDevice(NetConfig* config, IfIndex ifindex, std::string_view name, const MacAddress& mac, uint32_t mtu);
// An IPv4 address with its local, broadcast and on-link routes.
void AddAddress(NetConfig* config, IfIndex ifindex, const Prefix& prefix);
// `gateway` none: on-link. The default route: Prefix{IpAddress::Any(Family::kIpv4), 0}.
void AddRoute(NetConfig* config, const Prefix& to, const IpAddress& gateway, IfIndex ifindex, uint32_t metric = 0);

}  // namespace sluice
