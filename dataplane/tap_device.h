// The privileged half of the tap port: makes a TAP device in the namespace of the calling thread and opens its queues. The other
// end of the device is that namespace's kernel. Needs CAP_NET_ADMIN over it and /dev/net/tun.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/errno.h"
#include "netstack/wire/steering.h"
#include "xdp/unique_fd.h"

namespace sluice {

struct TapOptions {
  std::string name;         // of the device that is made; a name that is taken is refused
  uint32_t queues = 1;      // descriptors; the kernel spreads flows over them, and keeps one where it was sent last
  bool vnet_header = true;  // false: --gso=false; no offload metadata passes the device
  // With it a frame comes to the queue that wire::SteeringHash of it says (needs CAP_BPF).
  std::optional<wire::SteeringKey> steering = {};
};

// Plain values: they are passed to the process that uses the queues beside the descriptors.
struct TapFacts {
  IfIndex ifindex = 0;  // that the port's frames carry: the kernel's device, unless its maker says otherwise
  uint32_t mtu = 1500;  // of the kernel's device
  bool vnet_header = false;
  bool udp_gso = false;  // the kernel hands over UDP super-segments (6.2)
  char name[16] = {};    // of the kernel's device
};

struct TapQueues {
  std::vector<UniqueFd> fds;  // non-blocking, close-on-exec; the device goes with the last of them
  TapFacts facts;
};

// The device is made down and without address. On failure `error` says what was tried and what to do about it.
Errno OpenTap(const TapOptions& options, TapQueues* out, std::string* error);

}  // namespace sluice
