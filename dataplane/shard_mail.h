// Mail between the workers of one host: frames that came to another worker's queue, copies of group frames and ARP, and packets
// that another shard may have a socket for (netstack/shard.h). Rings of one writer and one reader each, bounded; what finds no
// room is dropped and counted. The receiver is woken where its thread sleeps.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "dataplane/frame_ring.h"
#include "dataplane/worker.h"
#include "netstack/shard.h"

namespace sluice {

// What the workers of a host share. Outlives them.
class ShardHub {
 public:
  // 1 to ShardPeers::kMax.
  ShardHub(uint32_t shards, const wire::SteeringKey& key, bool ports_have_homes);

  const uint32_t shards;
  const wire::SteeringKey key;
  const bool ports_have_homes;  // netstack/shard.h

 private:
  friend class ShardMailbox;
  static constexpr size_t kSpaces = 6, kPorts = 65536;
  FrameRing& ring(uint32_t from, uint32_t to) { return *rings_[from * shards + to]; }
  std::atomic<ShardSet>& holders(PortSpace space, uint16_t port) { return holders_[static_cast<size_t>(space) * kPorts + port]; }

  std::vector<std::unique_ptr<FrameRing>> rings_;
  std::vector<Worker*> workers_;
  const std::unique_ptr<std::atomic<ShardSet>[]> holders_;
};

struct ShardMailStats {
  uint64_t frames_sent = 0;   // that came to a wrong queue
  uint64_t copies_sent = 0;   // of group frames and ARP
  uint64_t packets_sent = 0;  // for sockets of other shards
  uint64_t received = 0;
  uint64_t dropped = 0;  // no room in the ring of the receiver, or no memory here
};

// One worker's end. Joins the worker's stack to the host: before its first socket.
class ShardMailbox final : public ShardPeers, private TurnTask {
 public:
  ShardMailbox(ShardHub& hub, uint32_t self, Worker& worker, BlockPool& pool);
  ~ShardMailbox() override;

  // A received frame for another shard. `answered`: a copy, which that shard learns from and does not answer.
  void SendFrame(uint32_t to, const Packet& frame, bool answered);
  // Wakes whom SendFrame sent to since.
  void WakeReceivers();
  // Called before the packets of other shards that have come are delivered: what the program closed before it had one of them
  // sent is closed. Worker's thread, or before it runs.
  void set_before_packets(std::function<void()> work) { before_packets_ = std::move(work); }
  // Worker's thread, or when it does not run.
  const ShardMailStats& stats() const { return stats_; }

  ShardSet Holders(PortSpace space, uint16_t port) const override;
  void Hold(PortSpace space, uint16_t port) override;
  bool HoldAlone(PortSpace space, uint16_t port) override;
  void Release(PortSpace space, uint16_t port) override;
  void Forward(uint32_t to, const Packet& packet, ShardSet seen) override;
  void ForwardRaw(uint32_t to, const Packet& packet, bool error) override;

 private:
  enum Tag : uint8_t { kFrame, kAnswered, kPacket, kRaw };
  ShardSet bit() const { return ShardSet{1} << self(); }
  bool OnTurn() override;
  bool HasWork() const override;
  void Deliver(FrameRing::Received mail, bool* prepared);
  bool Send(uint32_t to, const Packet& packet, Tag tag, uint32_t word);

  ShardHub& hub_;
  Worker& worker_;
  BlockPool& pool_;
  std::function<void()> before_packets_;
  ShardSet to_wake_ = 0;
  ShardMailStats stats_;
};

}  // namespace sluice
