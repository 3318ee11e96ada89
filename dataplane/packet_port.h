// A Port over an AF_PACKET socket that somebody with the right opened (packet_socket.h). Needs no privilege.
//
// Receive: one recvmmsg per burst. Every slot offers a 2 KiB block and, behind it, a 64 KiB one, so that small frames (ACKs, MTU
// frames) hold small memory and stay in few cache lines, while a super-frame lands whole. A frame that spills over is made linear
// by copying its first 2 KiB in front of the rest (about 40 ns), one of middle size by moving it to a block of its size. The
// number of slots offered follows the size of frames, so that a burst stays within the cache.
//
// Transmit: one sendmmsg per burst, headers and payload slices gathered by the kernel, virtio-net header for offloads. Without
// that header (--gso=false) checksums are finished and GSO frames cut here.
#pragma once

#include <linux/if_packet.h>
#include <sys/socket.h>

#include <array>
#include <string>
#include <vector>

#include "dataplane/packet_socket.h"
#include "dataplane/port.h"
#include "xdp/unique_fd.h"

namespace sluice {

struct PacketPortOptions {
  bool software_gso = true;  // without a virtio-net header: take GSO frames and cut them here
};

// struct virtio_net_hdr (virtio 1.2, 5.1.6), native byte order. The kernel's own header is not C++.
struct VnetHeader {
  uint8_t flags = 0;
  uint8_t gso_type = 0;
  uint16_t hdr_len = 0;
  uint16_t gso_size = 0;
  uint16_t csum_start = 0;
  uint16_t csum_offset = 0;
};
static_assert(sizeof(VnetHeader) == 10);

// False where the header does not fit the frame. Sets frame->offload otherwise.
bool ParseVnetHeader(const VnetHeader& header, Packet* frame);
VnetHeader MakeVnetHeader(const Offload& offload);

class PacketPort final : public Port {
 public:
  // `pool` outlives the port and every frame received.
  PacketPort(UniqueFd fd, const PacketSocketFacts& facts, const PacketPortOptions& options, BlockPool& pool);
  ~PacketPort() override;

  LinkFeatures features() const override;
  size_t Transmit(std::span<Packet> burst) override;
  IfIndex ifindex() const override { return facts_.ifindex; }
  std::string_view kind() const override { return "packet"; }
  size_t Receive(std::span<Packet> out) override;
  std::vector<int> wait_fds() const override { return {fd_.get()}; }
  bool ArmWakeup() override;
  bool tx_pending() const override { return !cut_.empty(); }
  int tx_wait_fd() const override { return tx_blocked_on_socket_ ? fd_.get() : -1; }
  bool dead() const override { return dead_; }
  PortStats stats() const override;
  PortFaults faults() const override;
  std::vector<std::string> describe() const override;

 private:
  static constexpr size_t kSlots = 32;
  static constexpr size_t kSmallBlock = 2048, kMiddleFrame = 16384 - Packet::kHeadroom;
  static constexpr size_t kSmallFrame = kSmallBlock - Packet::kHeadroom;
  static constexpr size_t kBurstBytes = 256 << 10;
  static constexpr size_t kTxBatch = 32;
  static constexpr size_t kTxPieces = Packet::kMaxSlices + 2;  // virtio-net header, linear region, slices
  static constexpr int kFullRetries = 3;

  struct RxSlot {
    BlockRef small, big;
    sockaddr_ll from;
    alignas(cmsghdr) std::array<uint8_t, CMSG_SPACE(sizeof(tpacket_auxdata))> control;
    std::array<iovec, 2> pieces;
  };

  bool RefillSlot(size_t i);
  void OfferSlot(size_t i);
  int ReceiveMessages(size_t count);
  void DropOne();
  bool TakeFrame(size_t i, Packet* out);
  bool MakePacket(RxSlot& slot, size_t size, Packet* out);
  void ParseAuxdata(msghdr& message, Packet* frame) const;
  void OnSocketError(int error);
  void CheckDevice();
  void ReadKernelDrops() const;

  size_t TransmitBatch(std::span<Packet> burst, bool with_offload);
  void FillMessage(size_t i, Packet& frame, bool with_offload);
  bool FlushCut();
  bool NeedsCut(const Packet& frame) const;
  bool OnSendError(int error, Packet& head);

  UniqueFd fd_;
  PacketSocketFacts facts_;
  PacketPortOptions options_;
  BlockPool& pool_;
  const size_t vnet_len_;

  std::array<RxSlot, kSlots> slots_;
  std::array<mmsghdr, kSlots> rx_messages_{};
  size_t average_frame_ = 1500;

  std::array<mmsghdr, kTxBatch> tx_messages_{};
  std::array<VnetHeader, kTxBatch> tx_headers_{};
  std::array<std::array<iovec, kTxPieces>, kTxBatch> tx_pieces_{};
  std::vector<Packet> cut_;  // segments of frames already taken, in order
  size_t cut_next_ = 0;
  bool udp_gso_ = true;       // until the kernel refuses the type
  int offload_refusals_ = 0;  // EINVAL in a row for frames with metadata; the header is left empty after some
  int full_retries_ = 0;
  bool tx_blocked_on_socket_ = false;
  bool down_ = false;     // ENETDOWN was said and nothing passed since
  bool emptied_ = false;  // the socket's queue was found empty since
  bool dead_ = false;

  mutable PortStats stats_;
  mutable PortFaults faults_;
};

}  // namespace sluice
