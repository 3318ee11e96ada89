// Where a capture sees the frames of a stack: each once, when it comes from a device, when it is queued for one, and when it is
// looped back.
#pragma once

#include "netstack/packet.h"

namespace sluice {

class FrameTap {
 public:
  enum class Direction : uint8_t { kIn = 1, kOut = 2 };  // as pcapng numbers them

  virtual ~FrameTap() = default;
  // `frame` begins with its Ethernet header, but on the loopback (`ifindex` is kLoopbackIfIndex) with its IP header. Checksums
  // and segments that the device makes are not made yet. Must not add or remove taps.
  virtual void OnFrame(IfIndex ifindex, Direction direction, const Packet& frame) = 0;
};

}  // namespace sluice
