// Internal: SIOCADDRT and SIOCDELRT (struct rtentry, linux/route.h).
#pragma once

#include "sentry/netlink/if_ioctl.h"

namespace sluice::netlink {

IoctlResult RouteIoctl(const NetConfig& config, uint32_t request, Bytes argument, Bytes device, const Caller& caller);

}  // namespace sluice::netlink
