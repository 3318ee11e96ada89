// Several stacks that act as one host: what each of them (a "shard", one per worker) knows of the others.
//
// All have the same configuration. The frames of a flow come to its home, wire::SteeringHash modulo the number of shards, and an
// active open chooses a local port that makes its flow one of its own shard. What is not at home (a socket that only one shard
// has, an unconnected socket whose answers come anywhere, a connection from a port that the program chose) is found by who holds
// the local port: a packet that nobody in a shard has is passed on to the others that may have it, and the last one answers as a
// host does that has no such socket. So a flow costs nothing but its home's own work, and whatever else at most a copy per
// packet.
//
// A port that several shards hold is a group, as with SO_REUSEPORT: each flow belongs to the socket of its home. Or, with
// `ports_have_homes`, a UDP port or an echo identifier is held by one shard alone: what shares it is in one stack, so binding and
// the choice of a receiver are as on one host.
#pragma once

#include <cstdint>

#include "netstack/packet.h"
#include "netstack/wire/steering.h"

namespace sluice {

using ShardSet = uint32_t;  // bits by number

// kTcpAway: local ports of flows that are not at home. kEcho: identifiers of ping sockets. kGroup: multicast groups, by a hash.
// kRaw: protocols of raw sockets.
enum class PortSpace : uint8_t { kTcp, kTcpAway, kUdp, kEcho, kGroup, kRaw };

struct FlowEnds {
  IpAddress local, remote;
  uint16_t local_port = 0, remote_port = 0;
};

// One per shard; its methods are called by that shard's thread. Implemented by the dataplane, which knows threads.
class ShardPeers {
 public:
  static constexpr uint32_t kMax = 32;

  ShardPeers(uint32_t self, uint32_t count, const wire::SteeringKey& key, bool ports_have_homes)
      : self_(self), count_(count), key_(key), ports_have_homes_(ports_have_homes) {}
  virtual ~ShardPeers() = default;

  uint32_t self() const { return self_; }
  uint32_t count() const { return count_; }
  const wire::SteeringKey& key() const { return key_; }
  ShardSet all() const { return count_ == kMax ? ~ShardSet{0} : (ShardSet{1} << count_) - 1; }
  ShardSet others() const { return all() & ~(ShardSet{1} << self_); }
  uint32_t Home(const FlowEnds& f) const {
    return wire::SteeringHash(key_, f.local, f.local_port, f.remote, f.remote_port) % count_;
  }
  bool IsHome(const FlowEnds& f) const { return Home(f) == self_; }
  bool ports_have_homes() const { return ports_have_homes_; }
  // Where a datagram socket is bound. Not the number modulo the shards: programs have even ports and the odd ones beside them.
  uint32_t PortHome(uint16_t port) const { return PortHome(port, count_); }
  static uint32_t PortHome(uint16_t port, uint32_t count) { return (port * 0x9e3779b1u >> 16) % count; }

  virtual ShardSet Holders(PortSpace space, uint16_t port) const = 0;
  virtual void Hold(PortSpace space, uint16_t port) = 0;
  // Holds the port unless another shard does.
  virtual bool HoldAlone(PortSpace space, uint16_t port) = 0;
  virtual void Release(PortSpace space, uint16_t port) = 0;

  // `packet`, at its IP header, goes to the other shard's Stack::InputForwarded; it is copied, or dropped and counted. `seen`:
  // shards that have had it.
  virtual void Forward(uint32_t to, const Packet& packet, ShardSet seen) = 0;
  // As Forward, to Stack::InputRaw: what raw sockets are to see. `error`: an ICMP error about a packet of their protocol.
  virtual void ForwardRaw(uint32_t to, const Packet& packet, bool error) = 0;

 private:
  const uint32_t self_, count_;
  const wire::SteeringKey key_;
  const bool ports_have_homes_;
};

}  // namespace sluice
