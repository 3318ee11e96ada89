#include "netstack/tcp/engine.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "netstack/tcp/connection.h"
#include "netstack/tcp/passive.h"
#include "netstack/wire/checksum.h"

namespace sluice::tcp {
namespace {

uint64_t Secret(SecureRng& secure) {
  uint64_t v;
  secure.Fill({reinterpret_cast<uint8_t*>(&v), sizeof v});
  return v;
}

uint64_t HashKey(const SipKey& secret, const FlowKey& key, bool with_local_port) {
  std::array<uint8_t, 36> in{};
  std::memcpy(in.data(), key.local.bytes().data(), key.local.bytes().size());
  std::memcpy(in.data() + 16, key.remote.bytes().data(), key.remote.bytes().size());
  if (with_local_port) StoreBe16(in.data() + 32, key.local_port);
  StoreBe16(in.data() + 34, key.remote_port);
  return SipHash24(secret, in);
}

}  // namespace

Engine::Engine(StackContext& context)
    : ctx(context), flows(context, Secret(context.secure)), binds(context), cookies(context.secure), fast_open(context.secure) {
  ctx.secure.Fill({reinterpret_cast<uint8_t*>(&isn_key_), sizeof isn_key_});
  ctx.secure.Fill({reinterpret_cast<uint8_t*>(&timestamp_key_), sizeof timestamp_key_});
  ctx.secure.Fill({reinterpret_cast<uint8_t*>(&port_key_), sizeof port_key_});
  port_counter_ = ctx.secure.Next32();
}

Engine::~Engine() {
  std::vector<Request*> requests;
  std::vector<TimeWait*> waits;
  flows.ForEach([&](FlowEntry* e) {
    if (e->kind == FlowKind::kRequest) requests.push_back(static_cast<Request*>(e));
    if (e->kind == FlowKind::kTimeWait) waits.push_back(static_cast<TimeWait*>(e));
  });
  for (Request* r : requests) FreeRequest(r);
  for (TimeWait* t : waits) DropTimeWait(t);
  while (all_ != nullptr) {
    Connection* c = all_;
    all_ = c->next_all_;
    binds.Remove(c);
    flows.Remove(c);
    connection_pool_.Delete(c);
  }
}

// --- life of connections

Connection* Engine::NewConnection(Family family) {
  Connection* c = connection_pool_.New(*this, family);
  c->next_all_ = all_;
  if (all_ != nullptr) all_->prev_all_ = &c->next_all_;
  c->prev_all_ = &all_;
  all_ = c;
  return c;
}

void Engine::Schedule(Connection* c) {
  c->in_turn_ = true;
  turn_.push_back(c);
}

void Engine::Bury(Connection* c) {
  if (c->dead_) return;
  c->dead_ = true;
  binds.Remove(c);
  flows.Remove(c);
  buried_.push_back(c);
}

bool Engine::AddOrphan() {
  ++orphans_;
  return orphans_ <= static_cast<size_t>(std::max(sysctls().tcp_max_orphans, 0));
}

size_t Engine::CountReader(uint32_t* mark) {
  constexpr Duration kInterval = Duration::Milliseconds(20);
  const Duration age = now() - readers_since_;
  if (readers_mark_ == 0 || age >= kInterval) {
    readers_before_ = age < kInterval * 2 ? readers_ : 0;
    readers_ = 0;
    if (++readers_mark_ == 0) ++readers_mark_;  // 0 is that of nobody yet
    readers_since_ = now();
  }
  if (std::exchange(*mark, readers_mark_) != readers_mark_) ++readers_;
  return std::max(readers_, readers_before_);
}

void Engine::EndTurn() {
  for (size_t i = 0; i < turn_.size(); ++i) {  // may grow meanwhile
    Connection* c = turn_[i];
    c->in_turn_ = false;
    c->Flush();
  }
  turn_.clear();
  for (Connection* c : buried_) {
    *c->prev_all_ = c->next_all_;
    if (c->next_all_ != nullptr) c->next_all_->prev_all_ = c->prev_all_;
    connection_pool_.Delete(c);
  }
  buried_.clear();
}

void Engine::OnConfig() {
  configured_keys_ = FastOpenKeys::FromText(sysctls().tcp_fastopen_key).value_or(FastOpenKeys{});
  for (Connection* c = all_; c != nullptr; c = c->next_all_) c->OnConfig();
}

// --- input

bool Engine::Acceptable(const Segment& seg, const Packet& packet, const IpInfo& info) {
  if (info.broadcast || info.multicast || info.source.IsMulticast() || info.source.IsAny() || info.source.IsLimitedBroadcast()) {
    Count(Counter::kDropTcpMalformed);  // RFC 1122 4.2.3.10
    return false;
  }
  if (!ChecksumOk(packet, info.source, info.destination)) {
    Count(Counter::kDropTcpChecksum);
    return false;
  }
  if (seg.source_port == 0 || seg.destination_port == 0) {
    Count(Counter::kDropTcpMalformed);
    return false;
  }
  return true;
}

void Engine::Input(Packet packet, const IpInfo& info) {
  Segment seg;
  if (!ParseSegment(packet, &seg)) {
    Count(Counter::kDropTcpMalformed);
    return;
  }
  seg.ecn = info.tos & kEcnMask;
  Count(Counter::kTcpInSegs, seg.segments);
  if (!Acceptable(seg, packet, info)) return;
  FlowKey key{info.destination, info.source, seg.destination_port, seg.source_port};
  FlowEntry* entry = flows.Find(key);
  if (entry == nullptr) return InputUnknown(seg, std::move(packet), info, key);
  switch (entry->kind) {
    case FlowKind::kConnection: {
      auto* c = static_cast<Connection*>(entry);
      if (!c->Matches(info.ifindex)) return InputUnknown(seg, std::move(packet), info, key);
      return c->Input(seg, std::move(packet), info);
    }
    case FlowKind::kRequest:
      return InputRequest(static_cast<Request*>(entry), seg, std::move(packet), info);
    case FlowKind::kTimeWait:
      return InputTimeWait(static_cast<TimeWait*>(entry), seg, std::move(packet), info);
  }
}

void Engine::InputUnknown(const Segment& seg, Packet packet, const IpInfo& info, const FlowKey& key) {
  Connection* listener = FindListener(key, info.ifindex, flows.Hash(key));
  if (listener != nullptr) return InputListen(listener, seg, std::move(packet), info, key, nullptr);
  if (PassOn(PortSpace::kTcp, key, packet, info)) return;
  Count(Counter::kDropTcpNoConnection);
  SendReset(seg, info);
}

bool Engine::PassOn(PortSpace space, const FlowKey& key, Packet& packet, const IpInfo& info) {
  if (ctx.peers == nullptr) return false;
  return ctx.ip->PassOn(space, {key.local, key.remote, key.local_port, key.remote_port}, packet, info);
}

bool Engine::IcmpError(const IcmpErrorInfo& error) {
  if (error.transport.size() < 8) return true;
  const FlowKey key{error.source, error.destination, LoadBe16(error.transport.data()), LoadBe16(error.transport.data() + 2)};
  FlowEntry* entry = flows.Find(key);
  if (entry == nullptr) return false;
  if (entry->kind == FlowKind::kConnection) static_cast<Connection*>(entry)->IcmpError(error);
  if (entry->kind != FlowKind::kRequest || !error.hard) return true;
  auto* r = static_cast<Request*>(entry);
  if (SeqNum(LoadBe32(error.transport.data() + 4)) == r->shake.iss) FreeRequest(r);
  return true;
}

// As linux compute_score: the specific address before the wildcard, the own family before the dual-stack wildcard, a bound device
// before none; equal members of a reuseport group share by hash.
Connection* Engine::FindListener(const FlowKey& key, IfIndex ifindex, uint32_t hash) const {
  Connection* best = nullptr;
  int best_score = -1;
  uint32_t group = 0;
  for (PortHolder* h = binds.FirstListening(key.local_port); h != nullptr; h = h->next_holder) {
    int score = 0;
    if (h->bound_address.IsAny()) {
      if (h->bound_address.family() != key.local.family()) {
        if (key.local.is_v6() || h->v6_only) continue;
      } else {
        score += 1;
      }
    } else if (h->bound_address == key.local) {
      score += 4;
    } else {
      continue;
    }
    if (h->bound_ifindex != 0) {
      if (h->bound_ifindex != ifindex) continue;
      score += 2;
    }
    auto* c = static_cast<Connection*>(h);
    if (score > best_score) {
      best = c;
      best_score = score;
      group = 1;
    } else if (score == best_score && h->reuse_port) {
      // Reservoir choice: each of the k members keeps 1/k of the hash space.
      ++group;
      hash = hash * 1664525u + 1013904223u;
      if (static_cast<uint32_t>(uint64_t{hash} * group >> 32) == 0) best = c;
    }
  }
  return best;
}

// --- ports

bool Engine::FlowUsable(const FlowKey& key) const {
  FlowEntry* e = flows.Find(key);
  return e == nullptr || (e->kind == FlowKind::kTimeWait && TimeWaitReusable(*static_cast<TimeWait*>(e)));
}

bool Engine::ClaimFlow(const FlowKey& key, SeqNum* iss, bool* reused) {
  FlowEntry* e = flows.Find(key);
  if (e == nullptr) return true;
  if (e->kind != FlowKind::kTimeWait) return false;
  auto* tw = static_cast<TimeWait*>(e);
  if (!TimeWaitReusable(*tw)) return false;
  *iss = tw->snd_nxt + 65537;  // beyond any old segment's reach (RFC 6191)
  *reused = true;
  DropTimeWait(tw);
  return true;
}

uint16_t Engine::ChooseBindPort(const PortHolder& holder, uint16_t low, uint16_t high) {
  const uint32_t range = uint32_t{high} - low + 1;
  const uint32_t offset = ctx.secure.Next32() % range;
  // Unused ports first; then ports that the rules let it share.
  for (const bool shared : {false, true}) {
    if (shared && !holder.reuse_address && !holder.reuse_port) break;
    for (uint32_t i = 0; i < range; ++i) {
      const auto port = static_cast<uint16_t>(low + (offset + i) % range);
      if (shared ? !binds.Conflicts(holder, port) : !binds.InUse(port) && binds.HoldAlone(port)) return port;
    }
  }
  for (uint32_t i = 0; i < range; ++i) {  // ports in use for addresses that do not overlap
    const auto port = static_cast<uint16_t>(low + (offset + i) % range);
    if (!binds.Conflicts(holder, port)) return port;
  }
  return 0;
}

// RFC 6056 3.3.4 in Linux's form: a secret offset per destination, even distances so that bind() keeps the odd ones.
uint16_t Engine::ChooseConnectPort(FlowKey key, const PortHolder&, uint16_t low, uint16_t high, bool* reused, SeqNum* iss) {
  const uint32_t range = uint32_t{high} - low + 1;
  const auto base = static_cast<uint32_t>(HashKey(port_key_, key, false)) + port_counter_;
  for (uint32_t i = 0; i < range; ++i) {
    const auto port = static_cast<uint16_t>(low + (base + 2 * i + (2 * i >= range ? 1 - range % 2 : 0)) % range);
    if (binds.InUse(port) && !binds.OnlyAutoBound(port)) continue;
    key.local_port = port;
    if (!binds.ServesHere(key)) continue;
    if (!ClaimFlow(key, iss, reused)) continue;
    port_counter_ += 2 * i + 2 + (ctx.rng.Uniform(8) == 0 ? 1 : 0);
    return port;
  }
  return 0;
}

// --- identities

SeqNum Engine::InitialSequence(const FlowKey& key) const {
  const auto clock = static_cast<uint32_t>(now().ns() >> 6);  // RFC 6528's M; faster than 4 us as Linux
  return SeqNum(static_cast<uint32_t>(HashKey(isn_key_, key, true)) + clock);
}

uint32_t Engine::TimestampOffset(const FlowKey& key) const {
  // One clock per pair of addresses, so that TIME-WAIT reuse and PAWS of the peer work across connections.
  FlowKey pair = key;
  pair.remote_port = 0;
  return static_cast<uint32_t>(HashKey(timestamp_key_, pair, false));
}

// --- replies

bool Engine::SendControl(const ControlSegment& s) {
  RouteQuery q;
  q.destination = s.flow.remote;
  q.source = s.flow.local;
  q.ifindex = s.ifindex != 0 && s.flow.remote.is_v6() && s.flow.remote.IsLinkLocal() ? s.ifindex : 0;
  q.tos = s.tos;
  q.any_source = true;
  const Route route = ctx.ip->Lookup(q);
  if (!route.ok()) return false;
  HeaderSpec h = s.header;
  h.source_port = s.flow.local_port;
  h.destination_port = s.flow.remote_port;
  const uint32_t length = HeaderLength(h);
  Packet p = Packet::Allocate(ctx.pool, length);
  if (!p) return false;
  uint8_t* header = p.Append(length);
  WriteHeader(h, header);
  wire::StoreSum(header + 16, wire::PseudoHeaderSum(s.flow.local, s.flow.remote, kIpProtoTcp, length));
  p.offload.checksum = ChecksumState::kPartial;
  p.offload.csum_start = 0;
  p.offload.csum_offset = 16;
  IpSend how;
  how.source = s.flow.local;
  how.destination = s.flow.remote;
  how.protocol = kIpProtoTcp;
  how.ttl = s.ttl != 0              ? s.ttl
            : s.flow.remote.is_v4() ? static_cast<uint8_t>(sysctls().ip_default_ttl)
            : route.hoplimit != 0   ? static_cast<uint8_t>(route.hoplimit)
                                    : uint8_t{64};
  how.tos = s.tos;
  Count(Counter::kTcpOutSegs);
  return ctx.ip->Send(std::move(p), route, how) == Errno::kOk;
}

void Engine::SendReset(const Segment& seg, const IpInfo& info) {
  if (seg.Has(kRst)) return;
  ControlSegment s;
  s.flow = {info.destination, info.source, seg.destination_port, seg.source_port};
  s.ifindex = info.ifindex;
  if (seg.Has(kAck)) {
    s.header.seq = seg.ack;
    s.header.flags = kRst;
  } else {
    s.header.ack = seg.end();
    s.header.flags = kRst | kAck;
  }
  if (SendControl(s)) Count(Counter::kTcpOutRsts);
}

bool Engine::OutOfWindowLimit(const Segment& seg, Instant* last) {
  if (seg.length() > 0 && !seg.Has(kSyn)) return false;  // no part of a loop of acknowledgments
  const Duration gap = Duration::Milliseconds(sysctls().tcp_invalid_ratelimit_ms);
  if (*last != Instant() && now() - *last < gap) {
    Count(Counter::kTcpAckSkipped);
    return true;
  }
  *last = now();
  return false;
}

bool Engine::AllowChallengeAck() {
  const int limit = sysctls().tcp_challenge_ack_limit;
  if (limit == 0x7fffffff) return true;
  if (challenge_window_ == Instant() || now() - challenge_window_ >= Duration::Seconds(1)) {
    challenge_window_ = now();
    const int half = (limit + 1) / 2;  // a random budget: its end tells a prober nothing (CVE-2016-5696)
    challenge_budget_ = half + static_cast<int>(ctx.rng.Uniform(static_cast<uint32_t>(std::max(limit, 1))));
  }
  if (challenge_budget_ <= 0) return false;
  --challenge_budget_;
  return true;
}

size_t Engine::EstablishedConnections() const {
  size_t count = 0;
  for (const Connection* c = all_; c != nullptr; c = c->next_all_)
    count += c->state_ == State::kEstablished || c->state_ == State::kCloseWait ? 1 : 0;
  return count;
}

void Engine::AppendSockets(std::vector<SocketInfo>* out, bool with_tcp_info) const {
  for (const Connection* c = all_; c != nullptr; c = c->next_all_) {
    if (c->dead_ || (c->state_ == State::kClosed && c->orphan_)) continue;
    out->push_back(c->Describe(with_tcp_info));
  }
  flows.ForEach([&](FlowEntry* e) {
    if (e->kind == FlowKind::kConnection) return;
    SocketInfo s{};
    s.family = e->key.local.family();
    s.protocol = kIpProtoTcp;
    s.local = {e->key.local, e->key.local_port};
    s.remote = {e->key.remote, e->key.remote_port};
    const Timer& timer = e->kind == FlowKind::kTimeWait ? static_cast<TimeWait*>(e)->timer : static_cast<Request*>(e)->timer;
    if (e->kind == FlowKind::kTimeWait) {
      s.state = static_cast<int>(static_cast<TimeWait*>(e)->substate);
      s.timer = 3;
    } else {
      s.state = static_cast<int>(State::kSynReceived);
      s.timer = 1;
      s.retransmits = static_cast<Request*>(e)->retransmits;
    }
    if (timer.pending()) s.timer_ms = static_cast<uint32_t>(std::max<int64_t>(0, (timer.deadline() - now()).ms()));
    out->push_back(s);
  });
}

}  // namespace sluice::tcp
