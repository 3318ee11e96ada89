// Frames for tests of the dataplane: 10.99.0.1:1000 -> 10.99.0.2:2000 (an address no test device has, so no kernel answers).
#pragma once

#include <cstdint>
#include <vector>

#include "netstack/packet.h"

namespace sluice::testing {

std::vector<uint8_t> Pattern(size_t size, uint32_t seed);

struct FrameSpec {
  std::vector<uint8_t> payload;
  bool udp = false;
  bool v6 = false;
  bool sliced = false;   // payload in slices of odd sizes; else linear
  bool partial = false;  // kPartial with the pseudo header's sum; else complete
  uint16_t gso_size = 0;
  uint16_t source_port = 1000;
  uint32_t seq = 1000;
  uint32_t ack = 77;
  uint8_t flags = 0x10;
  uint16_t ip_id = 0x1234;
  std::vector<uint8_t> tcp_options;  // multiple of four bytes
};
Packet MakeFrame(BlockPool& pool, const FrameSpec& spec);

bool IsTestFrame(const Packet& frame);
size_t HeaderSize(const Packet& frame);
// The payload, after the checksum was found right for what offload says (a wrong one is a test failure).
std::vector<uint8_t> CheckedPayload(const Packet& frame);

}  // namespace sluice::testing
