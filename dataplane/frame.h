// Where the headers of an Ethernet frame lie, and the pseudo header they give. Shared by segmentation, coalescing and the ports.
#pragma once

#include <cstdint>

#include "base/bytes.h"
#include "netstack/packet.h"

namespace sluice {

inline constexpr uint8_t kProtocolTcp = 6;
inline constexpr uint8_t kProtocolUdp = 17;
inline constexpr size_t kEthernetHeader = 14;

struct FrameHeaders {
  uint16_t network = 0;    // offset of the IP header
  uint16_t transport = 0;  // offset of the TCP or UDP header
  uint32_t end = 0;        // first byte behind the IP packet by its length field (before any Ethernet padding)
  uint8_t protocol = 0;
  bool v6 = false;
  bool fragment = false;  // an IPv4 fragment: there may be no transport header
};

// `headers` is the front of a frame of `frame_size` bytes. False where it is no whole IPv4 or IPv6 header with TCP or UDP
// directly behind it (up to two VLAN tags before). Every offset that is set lies inside `headers`.
bool LocateHeaders(Bytes headers, size_t frame_size, FrameHeaders* out);

// The sum (wire/checksum.h: folded, in memory order, not inverted) of the pseudo header of a packet with `length` transport
// bytes.
uint16_t PseudoHeaderSum(Bytes frame, const FrameHeaders& headers, uint32_t length);

// Puts the 802.1Q tag of `has_vlan` into the frame. False where there is no headroom.
[[nodiscard]] bool InsertVlanTag(Packet& frame);

}  // namespace sluice
