// A stack shard: one per worker. Frames in, frames out, time and randomness passed in; no thread, no clock, no system call.
//
// The driver's loop: SetNow, Input for every device's burst, AdvanceTimers, socket work, Flush; then sleep until NextDeadline.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/rng.h"
#include "base/time.h"
#include "base/timer_wheel.h"
#include "netstack/config.h"
#include "netstack/counters.h"
#include "netstack/ip/ip.h"
#include "netstack/link/frame_tap.h"
#include "netstack/link/link.h"
#include "netstack/packet.h"
#include "netstack/shard.h"
#include "netstack/socket/queue_memory.h"
#include "netstack/socket/socket.h"

namespace sluice {

// `net.*` values parsed once per configuration; units as the keys have them. Fields are added beside their users.
struct Sysctls;

class HeldPorts;
struct HeldPortCounts;

// What the layers of one shard share.
struct StackContext {
  Instant now;
  TimerWheel& timers;
  Rng& rng;
  SecureRng& secure;
  Counters& counters;
  BlockPool& pool;
  QueueMemory& stream_memory;    // TCP: what its queues pin, its connections and what stands for them
  QueueMemory& datagram_memory;  // what the receive queues of UDP, ping and raw sockets pin
  IpLayer* ip = nullptr;
  const Sysctls* sysctls = nullptr;
  ShardPeers* peers = nullptr;      // the other stacks of this host, where there are some
  HeldPorts* held_ports = nullptr;  // nullptr: nobody wants to know
  uint64_t listening_changes = 0;   // TCP sockets that began or ceased to listen
  std::vector<FrameTap*> taps;      // mostly none

  void Tap(IfIndex ifindex, FrameTap::Direction direction, const Packet& frame) const {
    for (FrameTap* tap : taps) tap->OnFrame(ifindex, direction, frame);
  }
};

struct NeighborInfo {
  IfIndex ifindex;
  IpAddress address;
  MacAddress mac;
  uint16_t state;  // NUD_*
  Duration confirmed_ago, used_ago, updated_ago;
  uint32_t probes;
};

struct SocketInfo {  // for `ss` and `sluice sockets`
  Family family;
  uint8_t protocol;  // IPPROTO_*
  int state;         // TCP_* states; UDP: 1 connected, 7 otherwise
  Endpoint local;
  Endpoint remote;
  IfIndex ifindex;
  uint32_t receive_queue, send_queue;
  uint32_t backlog;
  uint8_t timer;
  uint32_t timer_ms;
  uint32_t retransmits;
  uint32_t owner;  // cookie set by the owner
  bool v6_only;    // of TCP
  std::optional<TcpInfo> tcp;
};

class Stack {
 public:
  Stack(Instant now, SecureRng& secure, BlockPool& pool);
  ~Stack();

  void ApplyConfig(std::shared_ptr<const NetConfig> config);
  const NetConfig& config() const;
  const std::shared_ptr<const NetConfig>& shared_config() const;
  // See HeldPorts::Publish.
  void PublishHeldPorts(std::span<uint64_t> words, uint16_t peer_port, HeldPortCounts* counts = nullptr);
  // Joins a device (by the index in the configuration) with where its frames go; nullptr detaches. Not owned.
  void AttachLink(IfIndex ifindex, Link* link);
  // Shows every frame to `tap`, which is not owned, until it is removed.
  void AddTap(FrameTap* tap);
  void RemoveTap(FrameTap* tap);

  // This stack is one of several that act as one host (shard.h); nullptr: alone again. Before the first socket. Not owned.
  void JoinShards(ShardPeers* peers);

  void SetNow(Instant now);
  // Complete Ethernet frames from the device `ifindex`.
  void Input(std::span<Packet> burst, IfIndex ifindex);
  // A packet at its IP header that another stack of this host passed on.
  void InputForwarded(Packet packet, ShardSet seen);
  // One that raw sockets here are to see; `error`: an ICMP error that they are to be told.
  void InputRaw(Packet packet, bool error);
  void AdvanceTimers();
  // Hands queued frames to the links, delivers looped-back packets. Returns false where a link did not take all: call again when
  // it is writable.
  bool Flush();
  // What was sent to sockets of this host arrives now, as far as their windows take it; Flush does that for each turn. Not from
  // within input or an observer.
  void DeliverLooped();
  std::optional<Instant> NextDeadline() const;

  // nullptr where memory is at its bound. The caller closes it.
  StreamSocket* NewTcpSocket(Family family);
  DatagramSocket* NewUdpSocket(Family family);
  DatagramSocket* NewPingSocket(Family family);                   // SOCK_DGRAM, IPPROTO_ICMP
  DatagramSocket* NewRawSocket(Family family, uint8_t protocol);  // SOCK_RAW

  Route Lookup(const RouteQuery& query);  // for RTM_GETROUTE
  std::vector<NeighborInfo> Neighbors() const;
  std::vector<SocketInfo> Sockets(bool with_tcp_info) const;
  size_t EstablishedConnections() const;
  uint64_t listening_changes() const;  // grows whenever a TCP socket begins or ceases to listen
  const Counters& counters() const;
  const QueueMemory& stream_memory() const;
  const QueueMemory& datagram_memory() const;
  struct LinkCounters {
    uint64_t rx_packets, rx_bytes, rx_dropped, tx_packets, tx_bytes, tx_dropped;
    uint64_t tx_waiting, tx_waiting_bytes;  // in the device's queue now
    LinkCounters& operator+=(const LinkCounters& o) {
      rx_packets += o.rx_packets, rx_bytes += o.rx_bytes, rx_dropped += o.rx_dropped;
      tx_packets += o.tx_packets, tx_bytes += o.tx_bytes, tx_dropped += o.tx_dropped;
      tx_waiting += o.tx_waiting, tx_waiting_bytes += o.tx_waiting_bytes;
      return *this;
    }
  };
  LinkCounters link_counters(IfIndex ifindex) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice
