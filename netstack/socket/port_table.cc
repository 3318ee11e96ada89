#include <algorithm>

#include "netstack/socket/datagram_base.h"
#include "netstack/socket/held_ports.h"

namespace sluice {
namespace {

// Whether two bound addresses can both be meant by one packet (linux inet_rcv_saddr_equal).
bool Overlap(const IpAddress& a, bool a_v6only, const IpAddress& b, bool b_v6only) {
  auto covers = [](const IpAddress& any, bool v6only, const IpAddress& other) {
    return any.family() == other.family() || (any.is_v6() && !v6only);
  };
  if (a.IsAny() && b.IsAny()) return covers(a, a_v6only, b) || covers(b, b_v6only, a);
  if (a.IsAny()) return covers(a, a_v6only, b);
  if (b.IsAny()) return covers(b, b_v6only, a);
  return a == b;
}

// Echoes of IPv6 never leave their stack.
bool Shared(const DatagramBase& socket) { return socket.protocol() == kIpProtoUdp || socket.family() == Family::kIpv4; }
PortSpace Space(const DatagramBase& socket) { return socket.protocol() == kIpProtoUdp ? PortSpace::kUdp : PortSpace::kEcho; }

}  // namespace

bool PortTable::Conflicts(const DatagramBase& socket, const IpAddress& local, uint16_t port) const {
  const auto it = ports_.find(port);
  if (it == ports_.end()) return false;
  for (const DatagramBase* other : it->second) {
    if (other == &socket || !Overlap(local, socket.v6only(), other->local_address(), other->v6only())) continue;
    const int64_t device = socket.option(SockOpt::kBindToIfIndex), others = other->option(SockOpt::kBindToIfIndex);
    if (device != 0 && others != 0 && device != others) continue;
    if (socket.option(SockOpt::kReuseAddr) != 0 && other->option(SockOpt::kReuseAddr) != 0) continue;
    if (socket.option(SockOpt::kReusePort) != 0 && other->option(SockOpt::kReusePort) != 0) continue;
    return true;
  }
  return false;
}

// 0 where none is free.
uint16_t PortTable::Choose(const DatagramBase& socket, const IpAddress& local, const Endpoint* remote) {
  StackContext& c = network_.context();
  ShardPeers* peers = Shared(socket) ? c.peers : nullptr;
  auto [low, high] = c.sysctls->ip_local_port_range;
  const bool udp = socket.protocol() == kIpProtoUdp;
  if (!udp) low = 1, high = 65535;  // an identifier
  const uint32_t count = static_cast<uint32_t>(high - low + 1);
  const uint32_t start = c.secure.Next32() % count;
  // Where the peer is known, a port whose answers come here costs nothing; from another stack they are passed on. And others can
  // share it only where it is at home.
  enum Strictness { kAny, kPortAtHome, kAllAtHome };
  const auto fits = [&](uint16_t port, Strictness strictness) {
    if (peers == nullptr || strictness == kAny) return true;
    if (peers->ports_have_homes() && peers->PortHome(port) != peers->self()) return false;
    return strictness != kAllAtHome || remote == nullptr ||
           peers->IsHome({local, remote->address, port, udp ? remote->port : port});
  };
  for (const Strictness strictness : {kAllAtHome, kPortAtHome, kAny}) {
    for (uint32_t i = 0; i < count; ++i) {
      const uint16_t port = static_cast<uint16_t>(static_cast<uint32_t>(low) + (start + i) % count);
      // One that nobody has at all, so that SO_REUSE* never shares an ephemeral port.
      if (ports_.contains(port) || !fits(port, strictness)) continue;
      if (peers == nullptr || peers->HoldAlone(Space(socket), port)) return port;
    }
  }
  return 0;
}

Errno PortTable::Claim(DatagramBase& socket, const IpAddress& local, uint16_t port, const Endpoint* remote) {
  ShardPeers* peers = Shared(socket) ? network_.context().peers : nullptr;
  if (port != 0) {
    if (Conflicts(socket, local, port)) return Errno::kEADDRINUSE;
    const bool alone = peers != nullptr && peers->ports_have_homes();
    if (alone && !peers->HoldAlone(Space(socket), port)) return Errno::kEADDRINUSE;
  } else if (port = Choose(socket, local, remote); port == 0) {
    return socket.protocol() == kIpProtoUdp ? Errno::kEADDRINUSE : Errno::kEAGAIN;
  }
  std::vector<DatagramBase*>& sockets = ports_[port];
  if (sockets.empty() && peers != nullptr) peers->Hold(Space(socket), port);
  sockets.push_back(&socket);
  socket.local_port_ = port;
  Tell(socket, true);
  return Errno::kOk;
}

void PortTable::Tell(const DatagramBase& socket, bool held) const {
  HeldPorts* told = network_.context().held_ports;
  if (told != nullptr && socket.protocol() == kIpProtoUdp) told->Set(kIpProtoUdp, socket.local_port_, held);
}

void PortTable::Release(DatagramBase& socket) {
  const auto it = ports_.find(socket.local_port_);
  if (it == ports_.end()) return;
  std::erase(it->second, &socket);
  if (it->second.empty()) {
    ports_.erase(it);
    ShardPeers* peers = network_.context().peers;
    if (peers != nullptr && Shared(socket)) peers->Release(Space(socket), socket.local_port_);
    Tell(socket, false);
  }
  socket.local_port_ = 0;
}

// linux compute_score: a bound address beats any, then connected, then bound to the device; -1: not for this socket.
int PortTable::Score(const DatagramBase& s, const Tuple& t) const {
  if (!s.Accepts(t.local)) return -1;
  int score = s.family() == Family::kIpv4 ? 2 : 1;
  if (!s.local_address().IsAny()) score += 32;
  if (s.remote_address()) {
    if (s.remote_address() != t.remote || (s.remote_port() != 0 && s.remote_port() != t.remote_port)) return -1;
    score += 8;
  }
  if (const int64_t device = s.option(SockOpt::kBindToIfIndex); device != 0) {
    if (device != t.ifindex) return -1;
    score += 4;
  }
  return score;
}

DatagramBase* PortTable::Select(const Tuple& t) const {
  const auto it = ports_.find(t.local_port);
  if (it == ports_.end()) return nullptr;
  DatagramBase* best = nullptr;
  int best_score = -1;
  uint32_t ties = 0;
  for (DatagramBase* s : it->second) {
    const int score = Score(*s, t);
    if (score < 0 || score < best_score) continue;
    ties = score > best_score ? 1 : ties + 1;
    best_score = score;
    best = s;  // of equals the newest, as Linux's list has it
  }
  if (ties < 2 || best->option(SockOpt::kReusePort) == 0) return best;
  // A group: the flow's hash says which member, so that a flow stays with it.
  uint64_t h = (uint64_t{t.remote_port} << 16 | t.local_port) * 0x9e3779b97f4a7c15;
  for (const IpAddress* a : {&t.remote, &t.local}) {
    for (size_t i = 0; i + 4 <= a->bytes().size(); i += 4) h = (h ^ LoadBe32(a->bytes().data() + i)) * 0xff51afd7ed558ccd;
  }
  uint32_t chosen = static_cast<uint32_t>(((h >> 32) * ties) >> 32);
  for (DatagramBase* s : it->second) {
    if (Score(*s, t) == best_score && s->option(SockOpt::kReusePort) != 0 && chosen-- == 0) return s;
  }
  return best;
}

void PortTable::SelectAll(const Tuple& t, bool multicast, std::vector<DatagramBase*>* out) const {
  const auto it = ports_.find(t.local_port);
  if (it == ports_.end()) return;
  for (DatagramBase* s : it->second) {
    if (Score(*s, t) < 0) continue;
    if (multicast && !s->AcceptsGroup(t.local, t.ifindex, t.remote)) continue;
    out->push_back(s);
  }
}

}  // namespace sluice
