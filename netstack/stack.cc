#include "netstack/stack.h"

#include "base/check.h"
#include "netstack/ip/network.h"
#include "netstack/raw/raw_protocol.h"
#include "netstack/socket/held_ports.h"
#include "netstack/sysctls.h"
#include "netstack/udp/udp_protocol.h"
#ifdef SLUICE_HAVE_TCP
#include "netstack/tcp/tcp_protocol.h"
#endif

namespace sluice {

class Stack::Impl {
 public:
  Impl(Instant now, SecureRng& secure, BlockPool& pool)
      : timers(now),
        rng(SeedFrom(secure)),
        stream_memory(StreamLimits(pool.limit())),
        datagram_memory(DatagramLimits(pool.limit())),
        context{now, timers, rng, secure, counters, pool, stream_memory, datagram_memory} {
    context.sysctls = &sysctls;
    context.held_ports = &held_ports;
    network = std::make_unique<Network>(context);
    context.ip = network.get();
    udp = std::make_unique<UdpProtocol>(*network);
    network->SetProtocol(kIpProtoUdp, udp.get());
    ping = std::make_unique<PingProtocol>(*network);
    network->SetPing(ping.get());
    raw = std::make_unique<RawProtocol>(*network);
    network->SetRaw(raw.get());
#ifdef SLUICE_HAVE_TCP
    tcp = std::make_unique<tcp::TcpProtocol>(context);
    network->SetProtocol(kIpProtoTcp, tcp.get());
#endif
  }

  static uint64_t SeedFrom(SecureRng& secure) {
    uint64_t seed;
    secure.Fill({reinterpret_cast<uint8_t*>(&seed), sizeof seed});
    return seed;
  }

  void EndTurn() {
#ifdef SLUICE_HAVE_TCP
    tcp->EndTurn();
#endif
  }

  // Looped-back packets make more of them; a bounded number of rounds keeps one local conversation from starving the devices.
  void RunLoopback() {
    constexpr int kRounds = 16;
    EndTurn();
    for (int i = 0; i < kRounds && network->HasLooped(); ++i) {
      network->DeliverLooped();
      EndTurn();
      turn_again = true;
    }
  }

  Counters counters;
  Sysctls sysctls;
  HeldPorts held_ports;
  TimerWheel timers;
  Rng rng;
  QueueMemory stream_memory, datagram_memory;
  StackContext context;
  std::unique_ptr<Network> network;
  std::unique_ptr<UdpProtocol> udp;
  std::unique_ptr<PingProtocol> ping;
  std::unique_ptr<RawProtocol> raw;
#ifdef SLUICE_HAVE_TCP
  std::unique_ptr<tcp::TcpProtocol> tcp;
#endif
  bool turn_again = false;  // sockets heard of something after the driver's socket work: it must not sleep
};

Stack::Stack(Instant now, SecureRng& secure, BlockPool& pool) : impl_(std::make_unique<Impl>(now, secure, pool)) {}
Stack::~Stack() = default;

void Stack::ApplyConfig(std::shared_ptr<const NetConfig> config) {
  impl_->sysctls = ParseSysctls(config->sysctls, nullptr);
  impl_->network->ApplyConfig(std::move(config));
#ifdef SLUICE_HAVE_TCP
  impl_->tcp->OnConfig();
#endif
}

const NetConfig& Stack::config() const { return *impl_->network->config(); }
const std::shared_ptr<const NetConfig>& Stack::shared_config() const { return impl_->network->config(); }
void Stack::PublishHeldPorts(std::span<uint64_t> words, uint16_t peer_port, HeldPortCounts* counts) {
  SLUICE_CHECK(words.size() == HeldPorts::kWords);
  impl_->held_ports.Publish(words.first<HeldPorts::kWords>(), peer_port, counts);
}
void Stack::AttachLink(IfIndex ifindex, Link* link) { impl_->network->AttachLink(ifindex, link); }
void Stack::AddTap(FrameTap* tap) { impl_->context.taps.push_back(tap); }
void Stack::RemoveTap(FrameTap* tap) { std::erase(impl_->context.taps, tap); }

void Stack::JoinShards(ShardPeers* peers) { impl_->context.peers = peers; }

void Stack::SetNow(Instant now) {
  if (now > impl_->context.now) impl_->context.now = now;
}

void Stack::Input(std::span<Packet> burst, IfIndex ifindex) { impl_->network->Input(burst, ifindex); }

void Stack::InputRaw(Packet packet, bool error) { impl_->network->InputRaw(packet, error); }
void Stack::InputForwarded(Packet packet, ShardSet seen) { impl_->network->InputForwarded(std::move(packet), seen); }

void Stack::AdvanceTimers() {
  impl_->turn_again = false;
  impl_->timers.Advance(impl_->context.now);
}

bool Stack::Flush() {
  impl_->RunLoopback();
  return impl_->network->FlushDevices();
}

void Stack::DeliverLooped() { impl_->RunLoopback(); }

std::optional<Instant> Stack::NextDeadline() const {
  if (impl_->turn_again || impl_->network->HasLooped()) return impl_->context.now;
  return impl_->timers.NextDeadline();
}

StreamSocket* Stack::NewTcpSocket([[maybe_unused]] Family family) {
#ifdef SLUICE_HAVE_TCP
  return impl_->tcp->NewSocket(family);
#else
  return nullptr;
#endif
}

DatagramSocket* Stack::NewUdpSocket(Family family) { return impl_->udp->NewSocket(family); }
DatagramSocket* Stack::NewPingSocket(Family family) { return impl_->ping->NewSocket(family); }
DatagramSocket* Stack::NewRawSocket(Family family, uint8_t protocol) { return impl_->raw->NewSocket(family, protocol); }

Route Stack::Lookup(const RouteQuery& query) { return impl_->network->Lookup(query); }
std::vector<NeighborInfo> Stack::Neighbors() const { return impl_->network->Neighbors(); }
size_t Stack::EstablishedConnections() const {
#ifdef SLUICE_HAVE_TCP
  return impl_->tcp->EstablishedConnections();
#else
  return 0;
#endif
}
uint64_t Stack::listening_changes() const { return impl_->context.listening_changes; }
const Counters& Stack::counters() const { return impl_->counters; }
const QueueMemory& Stack::stream_memory() const { return impl_->stream_memory; }
const QueueMemory& Stack::datagram_memory() const { return impl_->datagram_memory; }
Stack::LinkCounters Stack::link_counters(IfIndex ifindex) const { return impl_->network->link_counters(ifindex); }

std::vector<SocketInfo> Stack::Sockets([[maybe_unused]] bool with_tcp_info) const {
  std::vector<SocketInfo> out;
#ifdef SLUICE_HAVE_TCP
  impl_->tcp->AppendSockets(&out, with_tcp_info);
#endif
  impl_->udp->AppendSockets(&out);
  impl_->ping->AppendSockets(&out);
  impl_->raw->AppendSockets(&out);
  return out;
}

}  // namespace sluice
