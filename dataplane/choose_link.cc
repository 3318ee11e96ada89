#include "dataplane/choose_link.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace sluice {

LinkChoice ChooseLink(const DeviceFacts& device) {
  // Drivers with native XDP and AF_XDP zero copy as of kernel 6.1. virtio_net has native XDP but got zero copy later, and its
  // super-segments (TSO) are worth more: packet.
  static constexpr std::array<std::string_view, 7> kZeroCopy = {"i40e", "ice", "ixgbe", "igc", "mlx5_core", "stmmac", "nfp"};
  if (!device.kind.empty()) return {LinkKind::kPacket, device.kind + " passes super-segments whole"};
  if (std::find(kZeroCopy.begin(), kZeroCopy.end(), device.driver) != kZeroCopy.end()) {
    return {LinkKind::kXdp, "driver " + device.driver + " has AF_XDP in the driver"};
  }
  return {LinkKind::kPacket,
          "driver " + (device.driver.empty() ? std::string("unknown") : device.driver) + " is not known for AF_XDP"};
}

}  // namespace sluice
