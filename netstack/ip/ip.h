// Between transports and IP: route lookup, output, and the upward interface. Both families.
// RFC 791, 1122, 8200; route selection as linux/net/ipv4/fib_*.
#pragma once

#include <cstdint>

#include "base/errno.h"
#include "netstack/ip/address.h"
#include "netstack/packet.h"
#include "netstack/shard.h"

namespace sluice {

enum IpProtocol : uint8_t {
  kIpProtoIcmp = 1,
  kIpProtoIgmp = 2,
  kIpProtoTcp = 6,
  kIpProtoUdp = 17,
  kIpProtoIcmpV6 = 58,
  kIpProtoRaw = 255
};

// Of a packet received for us. `packet` in Input starts at the transport header.
// The ECN field of the IP header, the low bits of its TOS (RFC 3168 5).
inline constexpr uint8_t kEcnMask = 3, kEcnNotEct = 0, kEcnEct0 = 2, kEcnCe = 3;

struct IpInfo {
  IpAddress source;
  IpAddress destination;
  uint8_t protocol = 0;
  uint8_t ttl = 0;
  uint8_t tos = 0;
  IfIndex ifindex = 0;
  bool broadcast = false;  // limited or directed broadcast
  bool multicast = false;
  Bytes header;       // the IP header with options, valid during Input only
  ShardSet seen = 0;  // stacks of this host that passed it on, having no socket for it
};

// An ICMP error about a packet of ours, already validated as far as the IP layer can (RFC 1122 3.2.2, 5927).
struct IcmpErrorInfo {
  IpAddress source, destination;  // of the offending packet: source is ours
  IpAddress offender;             // who sent the error
  uint8_t protocol = 0;
  uint8_t type = 0, code = 0;
  bool ipv6 = false;
  Errno error = Errno::kOk;  // as linux icmp_err_convert
  bool hard = false;         // fatal for a connection by icmp_err_convert
  bool too_big = false;      // fragmentation needed / packet too big; `mtu` holds the next hop's
  uint32_t mtu = 0;
  Bytes transport;  // the embedded transport header (at least 8 bytes) and what follows of it
};

class TransportProtocol {
 public:
  virtual ~TransportProtocol() = default;
  virtual void Input(Packet packet, const IpInfo& info) = 0;
  // False where nothing here is meant.
  virtual bool IcmpError(const IcmpErrorInfo& error) = 0;
};

struct RouteQuery {
  IpAddress destination;
  IpAddress source;     // none: choose (RFC 1122 3.3.4.3, RFC 6724)
  IfIndex ifindex = 0;  // bound device, or 0
  uint8_t tos = 0;
  uint32_t mark = 0;
  uint32_t flow_hash = 0;   // chooses among multipath next hops
  bool dont_route = false;  // on-link only (MSG_DONTROUTE)
  bool any_source = false;  // `source` need not be ours (IP_FREEBIND, IP_TRANSPARENT, IP_HDRINCL)
};

class Neighbor;

// The answer of a lookup; transports cache it and look up again when `generation` is not IpLayer::generation() any more.
struct Route {
  Errno error = Errno::kENETUNREACH;
  uint8_t type = 0;  // RTN_*
  IfIndex ifindex = 0;
  IpAddress source;     // chosen or asked for
  IpAddress next_hop;   // the destination itself where on-link
  uint32_t mtu = 0;     // path MTU: min of device, route and what ICMP told
  uint32_t advmss = 0;  // route's RTAX_ADVMSS or 0
  uint32_t initcwnd = 0, initrwnd = 0, hoplimit = 0;
  bool local = false;  // loops back inside this stack
  uint64_t generation = 0;
  Neighbor* neighbor = nullptr;  // kept by IpLayer; valid while generation matches
  bool ok() const { return error == Errno::kOk; }
};

struct IpSend {
  IpAddress source, destination;
  uint8_t protocol = 0;
  uint8_t ttl = 64;
  uint8_t tos = 0;
  bool dont_fragment = true;
  bool ignore_df = false;      // fragment locally in spite of DF (IP_PMTUDISC_DONT/INTERFACE)
  bool multicast_loop = true;  // members on this host get a copy (IP_MULTICAST_LOOP)
  uint32_t flow_label = 0;
  Bytes options;  // IPv4 options, padded
};

// The transport's view of the IP layer (implemented by the stack).
class IpLayer {
 public:
  virtual ~IpLayer() = default;
  virtual Route Lookup(const RouteQuery& query) = 0;
  virtual uint64_t generation() const = 0;  // changes whenever a cached Route may be stale
  // `packet` starts at the transport header; IP and link headers are pushed in its headroom. Offload::csum_start counts from
  // packet.data() and is moved along; gso_size and hdr_len likewise. Packets above the MTU are fragmented or refused (kEMSGSIZE);
  // GSO packets are judged by gso_size, not by their length.
  virtual Errno Send(Packet packet, const Route& route, const IpSend& how) = 0;
  // The peer is alive: forward progress was made (RFC 4861 7.3.1).
  virtual void ConfirmNeighbor(const Route& route) = 0;
  // True where `address` is ours (any type of local), a broadcast address of ours, or a multicast group.
  virtual bool IsLocalAddress(const IpAddress& address) const = 0;
  virtual bool IsBroadcastAddress(const IpAddress& address, IfIndex ifindex) const = 0;
  // Records a path MTU learnt for the destination (RFC 1191, 8201); TCP validates the ICMP error first (RFC 5927).
  virtual void UpdatePathMtu(const Route& route, const IpAddress& destination, uint32_t mtu) = 0;
  // Answers `packet` (IP header given in info.header) with destination unreachable: `code` by family's own numbers.
  virtual void SendUnreachable(const Packet& packet, const IpInfo& info, uint8_t code) = 0;
  // Nobody here has a socket for `packet` (received, at its transport header or behind it): true where another stack of this host
  // may, and it was passed on.
  virtual bool PassOn(PortSpace space, const FlowEnds& flow, Packet& packet, const IpInfo& info) = 0;
  // What the device on the way takes.
  virtual bool GsoPossible(const Route& route) const = 0;
  virtual uint32_t GsoMaxSize(const Route& route) const = 0;
  virtual bool TxChecksumOffload(const Route& route) const = 0;
  virtual bool Paces(const Route& route) const = 0;  // obeys Packet::departure
};

}  // namespace sluice
