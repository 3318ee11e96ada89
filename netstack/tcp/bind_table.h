// Who holds which local port, and the rules of sharing (SO_REUSEADDR, SO_REUSEPORT, IPV6_V6ONLY, bound devices) as Linux has them
// in inet_csk_get_port. Ephemeral ports by RFC 6056.
#pragma once

#include <cstdint>
#include <functional>
#include <unordered_map>

#include "netstack/socket/held_ports.h"
#include "netstack/stack.h"
#include "netstack/tcp/types.h"

namespace sluice::tcp {

// The part of a socket, or of a TIME_WAIT entry, that holds a port. Intrusive; leaves the table by BindTable::Remove only.
struct PortHolder {
  PortHolder* next_holder = nullptr;
  PortHolder** prev_holder = nullptr;
  IpAddress bound_address;  // specific, or Any of the family of the socket
  IfIndex bound_ifindex = 0;
  uint16_t bound_port = 0;
  uint16_t peer_port = 0;  // where the port is auto_bound
  bool reuse_address = false;
  bool reuse_port = false;
  bool v6_only = false;
  bool holder_listens = false;
  bool auto_bound = false;  // the port was chosen by connect(): others may connect from it, too
  bool holder_is_socket = true;
  bool told_others = false;   // counted in what the other stacks of this host know
  bool counted_held = false;  // counted as one of HeldPorts
  bool holds_port() const { return prev_holder != nullptr; }
};

class BindTable {
 public:
  explicit BindTable(const StackContext& context) : context_(context) {}
  // True where both could receive for one local address.
  static bool Overlap(const PortHolder& a, const PortHolder& b);
  // Whether `s` may hold `port`.
  bool Conflicts(const PortHolder& s, uint16_t port) const;
  // Whether another listening socket forbids `s` to listen.
  bool ListenConflicts(const PortHolder& s) const;
  void Add(PortHolder* s, uint16_t port);
  void Remove(PortHolder* s);
  void SetListening(PortHolder* s, bool listening);
  bool InUse(uint16_t port) const { return ports_.contains(port); }
  // Only sockets whose port connect() chose: their port serves further connections to other peers.
  bool OnlyAutoBound(uint16_t port) const;
  // Those that listen, in a list of their own: each connection that they accepted holds the port as well, and many TIME_WAITs.
  PortHolder* FirstListening(uint16_t port) const;

  // --- of a host of several stacks; always true where there is one
  // Takes the port, which Add follows, where no other stack holds it.
  bool HoldAlone(uint16_t port) const;
  // Whether the answers of an active open with this local port come to this stack, and no other holds the port.
  bool ServesHere(const FlowKey& key) const;

 private:
  struct Port {
    PortHolder* listening = nullptr;
    PortHolder* others = nullptr;
    uint32_t told = 0;  // holders that the other stacks know of: all but those whose port connect() chose, which are at home
    uint32_t held = 0;  // holders that make it one of HeldPorts
  };
  static void Link(Port& port, PortHolder* s);
  static void Unlink(PortHolder* s);
  template <typename Predicate>
  bool AnyHolder(uint16_t port, Predicate holds) const;

  const StackContext& context_;
  std::unordered_map<uint16_t, Port> ports_;
};

}  // namespace sluice::tcp
