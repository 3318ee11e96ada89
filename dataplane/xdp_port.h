// A Port over an AF_XDP socket that somebody with the right opened (xdp/xsk.h). Needs no privilege.
//
// Receive: a frame of one or several descriptors is copied into one pooled linear block and its chunks go straight back to the
// fill ring, so a slow reader never starves the device. Transmit: frames are copied into chunks, cut to segments on the way
// (AF_XDP carries no offload metadata), with checksums finished here.
//
// A local sender leaves the checksum to be finished and nothing says so: exactly the pseudo header's sum in the field is taken
// for that (kPartial) on links with a local peer, and for frames above the MTU, which only a local sender or GRO can have made.
// Where it is not that, the stack checks it.
//
// An AF_XDP socket hears one queue of the device, while its program is there. What the program lets pass, because the frame came
// by a queue that has no socket (`ethtool -L`), and everything while somebody has taken the program off, a packet socket beside
// it hears: HearBeside. Else these frames are lost.
//
// The kernel wakes nobody when the device goes: dead() is found at the next call. Who follows the devices removes the port.
#pragma once

#include <linux/if_xdp.h>

#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "dataplane/gso.h"
#include "dataplane/port.h"
#include "xdp/unique_fd.h"
#include "xdp/xsk.h"

namespace sluice {

struct XdpPortOptions {
  bool software_gso = true;  // take GSO frames and cut them here
};

// What the sockets of one queue share besides the kernel's two rings. The lock is taken once for a burst.
struct XdpShare {
  explicit XdpShare(uint32_t sharers) : sent(sharers) {}
  std::mutex lock;
  std::vector<std::vector<uint64_t>> sent;  // chunks of each that another found in the completion ring
};

class XdpPort final : public Port {
 public:
  // Maps rings and UMEM and fills the fill ring. nullptr with `error` where that fails. `pool` outlives the port. `share`: the
  // same for all sockets of a queue that has several.
  static std::unique_ptr<XdpPort> Create(UniqueFd fd, UniqueFd umem, const XskFacts& facts, const XdpPortOptions& options,
                                         BlockPool& pool, std::string* error, std::shared_ptr<XdpShare> share = nullptr);
  // Of all sockets of a device, one for each pool. `beside`: one for each (HearBeside), or none.
  static Errno CreateQueues(std::vector<Xsk> sockets, const XdpPortOptions& options, std::span<BlockPool* const> pools,
                            std::vector<std::unique_ptr<Port>>* out, std::string* error,
                            std::vector<std::unique_ptr<Port>> beside = {});
  ~XdpPort() override;
  // `packet`: a port over a packet socket of the same device, opened before the program was attached; it only receives. Of
  // several workers: one of its own for each, of one OpenPacketQueues with the workers' key. Before the first Receive.
  void HearBeside(std::unique_ptr<Port> packet);

  LinkFeatures features() const override;
  size_t Transmit(std::span<Packet> burst) override;
  IfIndex ifindex() const override { return facts_.ifindex; }
  std::string_view kind() const override { return "xdp"; }
  size_t Receive(std::span<Packet> out) override;
  std::vector<int> wait_fds() const override;
  bool ArmWakeup() override;
  // Not while the device is down: what waits in the ring goes when it is up and something is sent.
  bool tx_pending() const override { return !down_ && TxUnsent(); }
  bool polled() const override { return true; }
  bool dead() const override { return dead_; }
  PortStats stats() const override;
  PortFaults faults() const override;
  std::vector<std::string> describe() const override;

 private:
  XdpPort(UniqueFd fd, const XskFacts& facts, const XdpPortOptions& options, BlockPool& pool, std::unique_ptr<XskMapping> rings,
          std::shared_ptr<XdpShare> share);

  // A ring that is never empty leaves the socket beside it one turn in so many, and every other one while frames come by it.
  static constexpr uint32_t kBesideTurn = 64;

  size_t ReceiveRing(std::span<Packet> out);
  size_t ReceiveBeside(std::span<Packet> out);
  uint32_t FrameDescriptors(uint32_t first, uint32_t available, size_t* bytes) const;
  bool TakeFrame(uint32_t first, uint32_t count, size_t bytes, Packet* out);
  void SetOffload(Packet* frame) const;
  void Recycle(uint32_t first, uint32_t count);
  bool ValidChunk(uint64_t address, uint32_t length) const;
  void CheckDevice();
  xdp_statistics KernelCounts() const;

  bool TxUnsent() const { return rings_->tx.Room() != rings_->tx.size; }
  std::unique_lock<std::mutex> LockShared() const;
  void ReapCompletions();
  void Reclaim(uint64_t address);
  void Kick();
  enum class Sent : uint8_t { kTaken, kFull, kNever };
  Sent SendFrame(const Packet& frame);
  void SendInChunks(Bytes frame);
  void PushDescriptor(uint64_t address, uint32_t length, bool more);

  UniqueFd fd_;
  XskFacts facts_;
  XdpPortOptions options_;
  BlockPool& pool_;
  std::unique_ptr<XskMapping> rings_;
  std::shared_ptr<XdpShare> share_;  // nullptr: the queue is ours alone
  std::vector<uint64_t> free_tx_;    // chunk addresses, last in first out
  std::vector<uint8_t> scratch_;     // a frame longer than a chunk
  uint32_t tx_head_ = 0;             // producer index, published once per burst
  bool dead_ = false;
  bool down_ = false;  // the last kick said ENETDOWN
  std::unique_ptr<Port> beside_;
  int beside_fd_ = -1;
  uint32_t turns_ = 0;        // of Receive
  bool beside_busy_ = false;  // the last look there found frames
  PortStats stats_;
  PortFaults faults_;  // but for what the kernel counts
};

}  // namespace sluice
