// Internal: SIOCETHTOOL (linux/ethtool.h), the queries that programs make to learn about a device.
#pragma once

#include "sentry/netlink/if_ioctl.h"

namespace sluice::netlink {

inline constexpr uint16_t kEthtoolRead = 64;  // bytes of the request that any answer depends on

// Bytes that the answer to a request may have.
size_t EthtoolRoom(Bytes request);

IoctlResult Ethtool(const LinkConfig& link, Bytes request, const Caller& caller);

}  // namespace sluice::netlink
