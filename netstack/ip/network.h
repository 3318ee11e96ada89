// The link, ARP and IP layers of a shard in one object: what the protocols see as IpLayer. Split by topic over
// link/ethernet.cc, ip/lookup.cc, ip/ipv4_input.cc, ip/ipv4_output.cc, ip/loopback.cc, icmp/icmp*.cc.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "netstack/icmp/rate_limit.h"
#include "netstack/ip/path_mtu.h"
#include "netstack/ip/reassembly.h"
#include "netstack/ip/route_table.h"
#include "netstack/link/device.h"
#include "netstack/link/neighbor_table.h"
#include "netstack/stack.h"

namespace sluice {

// Raw sockets see every packet of their protocol besides the protocol itself.
class RawReceiver {
 public:
  virtual ~RawReceiver() = default;
  // `packet` is at its IP header. True where a socket took a copy.
  virtual bool RawInput(const Packet& packet, const IpInfo& info) = 0;
  virtual void RawError(const IcmpErrorInfo& error) = 0;
};

// Ping sockets: echo replies by identifier.
class PingReceiver {
 public:
  virtual ~PingReceiver() = default;
  virtual void EchoReply(Packet packet, const IpInfo& info) = 0;  // at the ICMP header
  virtual bool PingError(const IcmpErrorInfo& error) = 0;
};

class Network final : public IpLayer, private NeighborEvents, private ReassemblyEvents {
 public:
  explicit Network(StackContext& context);
  ~Network() override;

  void ApplyConfig(std::shared_ptr<const NetConfig> config);
  void AttachLink(IfIndex ifindex, Link* link);
  void SetProtocol(uint8_t number, TransportProtocol* protocol) { protocols_[number] = protocol; }
  void SetRaw(RawReceiver* raw) { raw_ = raw; }
  void SetPing(PingReceiver* ping) { ping_ = ping; }

  void Input(std::span<Packet> burst, IfIndex ifindex);
  // Delivers what was looped back so far; what that loops back waits for the next call.
  void DeliverLooped();
  bool HasLooped() const { return !looped_.empty(); }
  bool FlushDevices();
  void InputForwarded(Packet packet, ShardSet seen);
  void InputRaw(Packet& packet, bool error);

  const std::shared_ptr<const NetConfig>& config() const { return config_; }
  const RouteTable& routes() const { return *routes_; }
  std::vector<NeighborInfo> Neighbors() const { return neighbors_.List(); }
  Device* FindDevice(IfIndex ifindex) const;
  Stack::LinkCounters link_counters(IfIndex ifindex) const;
  StackContext& context() { return context_; }

  // Membership of multicast groups, counted per device; IGMP reports follow (RFC 3376, 2236).
  void JoinGroup(IfIndex ifindex, const IpAddress& group);
  void LeaveGroup(IfIndex ifindex, const IpAddress& group);
  // Of the host, whichever of its stacks has the socket.
  bool IsMember(IfIndex ifindex, const IpAddress& group) const;

  // IpLayer
  Route Lookup(const RouteQuery& query) override;
  uint64_t generation() const override { return generation_; }
  Errno Send(Packet packet, const Route& route, const IpSend& how) override;
  void ConfirmNeighbor(const Route& route) override;
  bool IsLocalAddress(const IpAddress& address) const override;
  bool IsBroadcastAddress(const IpAddress& address, IfIndex ifindex) const override;
  void UpdatePathMtu(const Route& route, const IpAddress& destination, uint32_t mtu) override;
  void SendUnreachable(const Packet& packet, const IpInfo& info, uint8_t code) override;
  bool PassOn(PortSpace space, const FlowEnds& flow, Packet& packet, const IpInfo& info) override;
  bool GsoPossible(const Route& route) const override;
  uint32_t GsoMaxSize(const Route& route) const override;
  bool Paces(const Route& route) const override;
  bool TxChecksumOffload(const Route& route) const override;

  // A packet with an IP header made by a program (IP_HDRINCL); `packet` is at that header, which is complete but for what Linux
  // fills in: checksum, total length, id and source where they are zero.
  Errno SendWithHeader(Packet packet, const Route& route);

 private:
  struct CachedRoute {
    RouteQuery query;
    Route route;
  };
  static constexpr size_t kRouteCache = 512;
  static constexpr size_t kMaxLooped = 4096;

  // link/ethernet.cc
  void EthernetInput(Packet frame, Device& device);
  void ArpInput(const Packet& packet, Device& device);
  void SendArp(Device& device, const wire::ArpMessage& message, const MacAddress& to);
  void AnnounceAddresses(const NetConfig* before);
  bool NoteConflict(const wire::ArpMessage& m, Device& device);
  void SolicitNeighbor(Device& device, const IpAddress& target, const MacAddress& to) override;
  void NeighborUnreachable(Packet packet) override;
  void NeighborGone() override { ++generation_; }

  // ip/lookup.cc
  Route LookupUncached(const RouteQuery& query, bool* cacheable);
  void LocalRoute(const RouteQuery& query, const RouteConfig* route, Route* out) const;
  Errno GroupRoute(const RouteQuery& query, Route* out);
  void FillPath(const RouteQuery& query, const RouteConfig* route, Route* out) const;

  // ip/ipv4_input.cc
  void Ipv4Input(Packet packet, Device& device);
  bool SourceAcceptable(const IpAddress& source, const IpAddress& destination) const;
  void Ipv4Deliver(Packet packet, const wire::Ipv4View& ip, IfIndex ifindex, ShardSet seen = 0);
  void Ipv6Loopback(Packet packet, ShardSet seen = 0);
  IpInfo InfoOf(const wire::Ipv4View& ip, const Packet& packet, IfIndex ifindex, ShardSet seen) const;
  static IpInfo InfoOf(const wire::Ipv6View& ip, const Packet& packet, ShardSet seen);
  void Deliver(Packet packet, IpInfo& info);
  void ReassemblyTimedOut(Packet first) override;

  // ip/shard.cc
  bool SendHome(const Packet& reassembled, const wire::Ipv4View& ip);
  void ForwardToAll(const Packet& packet);
  ShardSet RawElsewhere(uint8_t protocol) const;
  bool DeliverRaw(const Packet& packet, const IpInfo& info);
  void TellRaw(const IcmpErrorInfo& error, Packet& packet, const IpInfo& info);

  // ip/ipv4_output.cc
  Errno SendV4(Packet packet, const Route& route, const IpSend& how);
  Errno SendV6(Packet packet, const Route& route, const IpSend& how);
  Errno Fragment(Packet packet, const Route& route, const IpSend& how, uint32_t mtu);
  void Emit(Packet packet, const Route& route, const IpAddress& destination, bool multicast_loop);
  void EmitGroup(Packet packet, const Route& route, const IpAddress& destination, bool multicast_loop);
  void LoopBack(Packet packet, IfIndex ifindex = kLoopbackIfIndex, uint8_t link_type = 0);
  void MarkLooped(Packet& packet, IfIndex ifindex, uint8_t link_type) const;
  uint16_t NextId(const IpAddress& source, const IpAddress& destination, uint32_t count);

  // icmp/icmp.cc: input, echo; icmp/icmp_error.cc: errors in and out
  void IcmpInput(Packet packet, const IpInfo& info);
  void IcmpEcho(Packet packet, const IpInfo& info);
  void IcmpErrorInput(Packet& packet, const IpInfo& info);
  bool ReadError(const Packet& packet, const IpInfo& info, IcmpErrorInfo* out);
  void Icmp6ErrorInput(const Packet& packet, const IpInfo& info);
  void SendIcmpError(const IpInfo& info, Bytes quoted, uint8_t type, uint8_t code, uint32_t rest);
  bool DispatchError(const IcmpErrorInfo& error);  // false: nobody here had sent it
  static void OnPathMtuExpired(void* self) { ++static_cast<Network*>(self)->generation_; }

  // ip/igmp.cc
  void IgmpInput(const Packet& packet, const IpInfo& info);
  void TellMembership(IfIndex ifindex, const IpAddress& group);
  void SendIgmpReport(IfIndex ifindex, const IpAddress& group, bool join);

  StackContext& context_;
  std::shared_ptr<const NetConfig> config_;
  std::unique_ptr<RouteTable> routes_;
  std::vector<std::unique_ptr<Device>> devices_;
  std::vector<std::pair<IfIndex, Link*>> links_;  // as attached, also before the configuration knows the device
  NeighborTable neighbors_;
  PathMtuCache path_mtus_;
  Reassembler reassembler_;
  std::array<TransportProtocol*, 256> protocols_{};
  RawReceiver* raw_ = nullptr;
  PingReceiver* ping_ = nullptr;
  uint64_t generation_ = 1;
  std::array<CachedRoute, kRouteCache> route_cache_;
  std::vector<Packet> looped_, delivering_;  // at the IP header
  IcmpRateLimit icmp_limit_;
  SipKey key_;                        // of ids and rate limits
  std::array<uint16_t, 2048> ids_{};  // RFC 6864: counters chosen by a keyed hash of the pair
  Instant last_defence_;              // RFC 5227 2.4: one per DEFEND_INTERVAL
  bool defended_ = false;

  struct Membership {
    IfIndex ifindex;
    IpAddress group;
    uint32_t users;
  };
  std::vector<Membership> memberships_;
  static constexpr size_t kMaxMemberships = 1024;
};

}  // namespace sluice
