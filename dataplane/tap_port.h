// A Port over one queue of a TAP device that somebody with the right opened (tap_device.h). Needs no privilege. What the kernel
// sends into the device is received here, what is transmitted here the kernel receives from it.
//
// One system call per frame in both directions (the device has no other way), but a frame may be a super-segment of 64 KiB:
// partial checksums and GSO pass in the virtio-net header, as on the packet port. Without that header (--gso=false) checksums are
// finished and GSO frames cut here.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "dataplane/packet_port.h"
#include "dataplane/port.h"
#include "dataplane/tap_device.h"
#include "xdp/unique_fd.h"

namespace sluice {

struct TapPortOptions {
  bool software_gso = true;  // without a virtio-net header: take GSO frames and cut them here
};

class TapPort final : public Port {
 public:
  // `pool` outlives the port and every frame received.
  TapPort(UniqueFd fd, const TapFacts& facts, const TapPortOptions& options, BlockPool& pool);

  LinkFeatures features() const override;
  size_t Transmit(std::span<Packet> burst) override;
  IfIndex ifindex() const override { return facts_.ifindex; }
  std::string_view kind() const override { return "tap"; }
  size_t Receive(std::span<Packet> out) override;
  std::vector<int> wait_fds() const override { return {fd_.get()}; }
  bool ArmWakeup() override { return !dead_; }
  int tx_wait_fd() const override { return blocked_ ? fd_.get() : -1; }
  bool tx_pending() const override { return cut_next_ < cut_.size(); }
  bool dead() const override { return dead_; }
  PortStats stats() const override { return stats_; }
  std::vector<std::string> describe() const override;

 private:
  // As on the packet port: a small block for most frames, and a large one behind it into which a super-segment spills.
  static constexpr size_t kSmallBlock = 2048, kMiddleFrame = 16384 - Packet::kHeadroom;
  static constexpr size_t kSmallFrame = kSmallBlock - Packet::kHeadroom;
  static constexpr size_t kTxPieces = Packet::kMaxSlices + 2;

  enum class Read : uint8_t { kFrame, kDropped, kNone };
  Read ReadFrame(Packet* out);
  bool MakePacket(size_t size, Packet* out);
  bool Describe(const VnetHeader& header, Packet* frame) const;

  enum class Sent : uint8_t { kDone, kLater };
  Sent SendFrame(Packet& frame);
  ssize_t Write(const Packet& frame);
  bool FlushCut();
  bool TakesWhole(const Packet& frame) const;
  void DropAll(std::span<Packet> burst);

  UniqueFd fd_;
  TapFacts facts_;
  TapPortOptions options_;
  BlockPool& pool_;
  const size_t vnet_len_;
  BlockRef small_, big_;     // of the next frame
  std::vector<Packet> cut_;  // segments of a frame already taken, in order
  size_t cut_next_ = 0;
  bool udp_gso_ = true;  // until the kernel refuses the type (before 6.2)
  bool blocked_ = false;
  bool dead_ = false;
  PortStats stats_;
};

}  // namespace sluice
