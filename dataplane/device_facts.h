// What the kernel says of a device: MTU, GSO bound, link type, driver, queues. Needs no right.
#pragma once

#include <cstdint>
#include <string>

#include "base/errno.h"
#include "netstack/ip/address.h"

namespace sluice {

struct DeviceFacts {
  IfIndex ifindex = 0;
  std::string name;
  std::string kind;    // IFLA_INFO_KIND: "veth", "macvlan" ... empty for hardware
  std::string driver;  // of ethtool: "veth", "ixgbe" ...
  uint32_t mtu = 1500;
  uint32_t gso_max_size = 65536;
  uint16_t arp_type = 1;
  bool up = false;
  bool tso = false;        // ethtool: generic or TCP segmentation by the device
  uint32_t rx_queues = 1;  // in use
};
Errno ReadDeviceFacts(IfIndex ifindex, DeviceFacts* out, std::string* error);

}  // namespace sluice
