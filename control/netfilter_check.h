// Packet filters that others set in the namespace (nftables, iptables, tc, XDP, cgroup BPF). The kernel would not see the
// sandbox's packets, so they would be bypassed in silence.
#pragma once

#include <vector>

#include "control/rtnl.h"

namespace sluice {

// In the namespace. Fails with one line that names what was found. The rules by which Docker directs 127.0.0.11:53 to its
// resolver filter nothing: where `resolver` is given they are accepted, and it tells whether they are there.
Status CheckPacketFilters(const std::vector<LinkInfo>& devices, bool* resolver = nullptr);
// The same for what acts on the kernel's sockets of this process's control group, its parents' programs included.
Status CheckControlGroup();

}  // namespace sluice
