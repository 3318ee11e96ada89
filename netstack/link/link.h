// What the stack knows of a device: where frames go. Implemented by the dataplane (and by tests).
#pragma once

#include <cstddef>
#include <span>

#include "netstack/packet.h"

namespace sluice {

struct LinkFeatures {
  bool tx_checksum = false;  // takes ChecksumState::kPartial
  bool gso = false;          // takes GSO frames whole (TCP over IPv4 and IPv6) - by device or by the port's software cut
  bool udp_gso = false;
  uint32_t gso_max_size = 65400;  // bytes of IP packet in one frame; below 64 KiB with slack
  bool paces = false;             // frames leave at their Packet::departure
  bool queues = true;             // what the link does not take at once waits in the device's queue; false: it is dropped
  bool rx_checksum = false;       // Offload::checksum of received frames is meaningful
};

class Link {
 public:
  virtual ~Link() = default;
  virtual LinkFeatures features() const = 0;
  // Sends the first frames of `burst` (complete Ethernet frames); returns how many were taken (moved from). The rest stays with
  // the caller, who tries again when the link can take more (Stack::Flush is called again).
  virtual size_t Transmit(std::span<Packet> burst) = 0;
};

}  // namespace sluice
