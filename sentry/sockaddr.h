// Socket addresses as the system calls have them, to and from Endpoints. man 7 ip, man 7 ipv6.
#pragma once

#include <array>
#include <cstdint>

#include "base/bytes.h"
#include "base/errno.h"
#include "netstack/ip/address.h"

namespace sluice {

struct Sockaddr {
  std::array<uint8_t, 28> bytes{};
  uint32_t length = 0;
  Bytes view() const { return {bytes.data(), length}; }
};

// For a socket of `family` (AF_INET, AF_INET6): EINVAL where it is too short, EAFNOSUPPORT where it is of another family.
// `for_bind`: AF_UNSPEC with the any-address is taken as AF_INET, as Linux does.
Errno ParseSockaddr(Bytes name, int family, bool for_bind, Endpoint* out);
// sa_family, or -1 where there is none.
int SockaddrFamily(Bytes name);
Sockaddr FormatSockaddr(const Endpoint& endpoint, int family);

}  // namespace sluice
