// Frames from one thread to another. Blocks of packet memory belong to a thread, so a frame is copied into the ring by its sender
// and out of it into memory of the receiver's pool.
#pragma once

#include "base/spsc_byte_ring.h"
#include "netstack/packet.h"

namespace sluice {

class FrameRing {
 public:
  explicit FrameRing(size_t bytes) : ring_(bytes) {}

  // Sender: false where there is no room. `tag` and `word` are passed on for the receiver; the packet stays as it is.
  bool Send(const Packet& packet, uint8_t tag = 0, uint32_t word = 0);

  // Receiver.
  bool empty() const { return ring_.empty(); }
  struct Received {
    bool any = false;  // there was one; `packet` is empty where the pool was exhausted
    Packet packet;
    uint8_t tag = 0;
    uint32_t word = 0;
  };
  Received Receive(BlockPool& pool);

 private:
  SpscByteRing ring_;
};

// Room for some super-segments.
inline constexpr size_t kFrameRingBytes = 512 << 10;

}  // namespace sluice
