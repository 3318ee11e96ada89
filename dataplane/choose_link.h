// `--link=auto`: which port serves a device best.
#pragma once

#include <string>

#include "dataplane/packet_socket.h"

namespace sluice {

enum class LinkKind : uint8_t { kPacket, kXdp, kTap };  // kTap is never chosen: its device is made for it

struct LinkChoice {
  LinkKind kind = LinkKind::kPacket;
  std::string reason;  // for the log
};

// The rule, from measurements (docs/architecture.md):
// - veth, macvlan, ipvlan, bridge, bond, VLAN, tun and other software devices: packet. A super-segment of 64 KiB passes whole in
//   both directions with its metadata (146 Gbps of frames sent per core on a veth); AF_XDP has to cut each one to send it, and
//   native mode takes the peer's TSO away.
// - hardware whose driver has native XDP: xdp. Nothing is saved by super-segments there that the driver's zero copy does not save
//   more of. Where the driver turns out to have no native mode, opening says so and the caller goes on with packet.
// - `gso` off: packet on software devices too (AF_PACKET without header is slower per frame than AF_XDP copy mode, 1.6 against
//   1.1 us, but receives super-segments whole).
LinkChoice ChooseLink(const DeviceFacts& device);

}  // namespace sluice
