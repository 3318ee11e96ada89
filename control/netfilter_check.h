// Packet filters that others set in the namespace (nftables, iptables, tc, XDP, cgroup BPF). The kernel would not see the sandbox's
// packets, so they would be bypassed in silence.
#pragma once

#include <vector>

#include "control/rtnl.h"

namespace sluice {

// In the namespace. Fails with one line that names what was found.
Status CheckPacketFilters(const std::vector<LinkInfo>& devices);

}  // namespace sluice
