// Neighbours of Ethernet devices: RFC 826 resolution with the states of RFC 4861 7.3.2, for IPv4.
// The table is bounded; queues of packets that wait for an answer are bounded per neighbour and in all.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "netstack/link/device.h"
#include "netstack/wire/headers.h"

namespace sluice {

// As linux/neighbour.h.
enum NudState : uint16_t {
  kNudNone = 0,
  kNudIncomplete = 0x01,
  kNudReachable = 0x02,
  kNudStale = 0x04,
  kNudDelay = 0x08,
  kNudProbe = 0x10,
  kNudFailed = 0x20,
  kNudNoArp = 0x40,
  kNudPermanent = 0x80,
};

class NeighborTable;

class Neighbor {
 public:
  Neighbor(NeighborTable& table, Device& device, const IpAddress& address);
  Device& device() const { return device_; }
  const IpAddress& address() const { return address_; }
  const MacAddress& mac() const { return mac_; }
  uint16_t state() const { return state_; }

 private:
  friend class NeighborTable;
  static void OnTimer(void* self);

  NeighborTable& table_;
  Device& device_;
  IpAddress address_;
  MacAddress mac_;
  uint16_t state_ = kNudNone;
  uint8_t header_[wire::kEthernetHeader] = {};  // ready to be pushed
  uint32_t probes_ = 0;
  Instant confirmed_, used_, updated_, reachable_until_;
  Timer timer_;
  std::vector<Packet> pending_;  // at the IP header
  size_t pending_bytes_ = 0;
};

// What the table needs from its surroundings.
class NeighborEvents {
 public:
  virtual ~NeighborEvents() = default;
  // An ARP request for `target` shall go out: to `to` (broadcast or the last known address).
  virtual void SolicitNeighbor(Device& device, const IpAddress& target, const MacAddress& to) = 0;
  // Nobody answered for this packet (at its IP header).
  virtual void NeighborUnreachable(Packet packet) = 0;
  // A Neighbor is about to be destroyed: pointers to it must not be used any more.
  virtual void NeighborGone() = 0;
};

class NeighborTable {
 public:
  static constexpr size_t kMaxNeighbors = 1024;          // gc_thresh3
  static constexpr size_t kMaxPendingPerNeighbor = 101;  // unres_qlen
  static constexpr size_t kMaxPendingBytes = 212992;     // unres_qlen_bytes
  static constexpr size_t kMaxPendingInAll = 1024;

  NeighborTable(StackContext& context, NeighborEvents& events) : context_(context), events_(events) {}

  // Creates it where needed (evicting the longest unused one at the bound; nullptr where all are in use).
  Neighbor* FindOrCreate(Device& device, const IpAddress& address);
  // Pushes the Ethernet header and hands the frame to the device, or keeps it until the neighbour is resolved.
  void Output(Neighbor& neighbor, Packet packet);
  // RFC 4861 7.3.1: a transport made progress.
  void Confirm(Neighbor& neighbor);

  // An ARP message (or a conflict notice) told this mapping. `solicited`: it answers our question, unicast to us.
  // `create`: it asked us, so it will need our answers soon.
  void Learn(Device& device, const IpAddress& address, const MacAddress& mac, bool solicited, bool create);

  void SetPermanent(Device& device, const IpAddress& address, const MacAddress& mac, uint16_t state);
  // Forgets what was permanent, so that a new configuration can tell anew.
  void DropPermanent();
  void RemoveDevice(const Device& device);
  std::vector<NeighborInfo> List() const;
  size_t size() const { return table_.size(); }

 private:
  friend class Neighbor;
  struct Key {
    IfIndex ifindex;
    IpAddress address;
    bool operator==(const Key&) const = default;
    template <typename H>
    friend H AbslHashValue(H h, const Key& k) {
      return H::combine(std::move(h), k.ifindex, k.address);
    }
  };
  void Queue(Neighbor& n, Packet packet);
  void SetMac(Neighbor& n, const MacAddress& mac);
  void SetReachable(Neighbor& n);
  void StartProbe(Neighbor& n, uint16_t state);
  void Probe(Neighbor& n);
  void Fail(Neighbor& n);
  void SendPending(Neighbor& n);
  void DropPending(Neighbor& n, Counter why);
  void Transmit(Neighbor& n, Packet packet);
  void Timeout(Neighbor& n);
  bool Evict();

  StackContext& context_;
  NeighborEvents& events_;
  absl::flat_hash_map<Key, std::unique_ptr<Neighbor>> table_;
  size_t pending_in_all_ = 0;
};

}  // namespace sluice
