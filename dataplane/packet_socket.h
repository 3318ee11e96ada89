// The privileged half of the packet port: makes the AF_PACKET socket that an unprivileged PacketPort then uses.
// Needs CAP_NET_RAW and CAP_NET_ADMIN (buffers, mark) over the namespace of the calling thread.
#pragma once

#include <cstdint>
#include <string>

#include "base/errno.h"
#include "netstack/ip/address.h"
#include "xdp/unique_fd.h"

namespace sluice {

struct PacketSocketOptions {
  bool vnet_header = true;       // false: --gso=false; no offload metadata passes the socket
  uint32_t mark = 0;             // SO_MARK of what is sent; the egress silencing program lets it out
  int receive_buffer = 8 << 20;  // bytes as SO_RCVBUF takes them (the kernel doubles it)
  int send_buffer = 4 << 20;
};

// Plain values: they are passed to the process that uses the socket beside the descriptor.
struct PacketSocketFacts {
  IfIndex ifindex = 0;
  uint32_t mtu = 1500;
  uint32_t gso_max_size = 65536;     // of the device; the kernel segments what is above it in software
  bool vnet_header = false;          // what was reached
  bool vnet_header_refused = false;  // wanted, and the kernel has none for this socket
  bool device_tso = false;           // the device cuts segments itself: whole frames pass a veth
  int receive_buffer = 0;            // what was reached, as getsockopt gives it
  int send_buffer = 0;
};

struct PacketSocket {
  UniqueFd fd;  // non-blocking, close-on-exec, bound
  PacketSocketFacts facts;
};

// On failure `error` says what was tried and what to do about it.
Errno OpenPacketSocket(IfIndex ifindex, const PacketSocketOptions& options, PacketSocket* out, std::string* error);

// What the kernel says of a device: MTU, GSO bound, link type, driver. Used by the port choice too.
struct DeviceFacts {
  IfIndex ifindex = 0;
  std::string name;
  std::string kind;    // IFLA_INFO_KIND: "veth", "macvlan" ... empty for hardware
  std::string driver;  // of ethtool: "veth", "ixgbe" ...
  uint32_t mtu = 1500;
  uint32_t gso_max_size = 65536;
  uint16_t arp_type = 1;
  bool up = false;
  bool tso = false;  // ethtool: generic or TCP segmentation by the device
  uint32_t rx_queues = 1;
};
Errno ReadDeviceFacts(IfIndex ifindex, DeviceFacts* out, std::string* error);

}  // namespace sluice
