#include "netstack/testing/sim.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "netstack/ip/ip.h"
#include "netstack/wire/checksum.h"
#include "netstack/wire/headers.h"

namespace sluice::testing {
namespace {

// Marks an IPv4 frame as a congested router does. False where it may not be marked.
bool Mark(Packet& frame) {
  if (frame.linear_size() < wire::kEthernetHeader + wire::kIpv4Header) return false;
  uint8_t* ip = frame.data() + wire::kEthernetHeader;
  if (LoadBe16(ip - 2) != wire::kEtherIpv4 || (ip[1] & kEcnMask) == kEcnNotEct) return false;
  ip[1] |= kEcnCe;
  StoreBe16(ip + 10, 0);
  wire::StoreSum(ip + 10, static_cast<uint16_t>(~wire::OnesSum(Bytes(ip, wire::kIpv4Header))));
  return true;
}

}  // namespace

void TestSecureRng::Fill(MutableBytes out) {
  for (uint8_t& b : out) b = static_cast<uint8_t>(rng_.Next() >> 32);
}

class SimNetwork::SimPort final : public Link {
 public:
  SimPort(SimNetwork& n, SimHost& h, IfIndex i, const LinkProfile& p) : net(n), host(h), ifindex(i), profile(p) {
    features_ = LinkFeatures{.tx_checksum = true, .gso = true, .udp_gso = true, .rx_checksum = true};
  }
  LinkFeatures features() const override { return features_; }
  size_t Transmit(std::span<Packet> burst) override {
    for (Packet& p : burst) net.Send(*this, std::move(p));
    return burst.size();
  }

  SimNetwork& net;
  SimHost& host;
  IfIndex ifindex;
  SimPort* peer = nullptr;
  LinkProfile profile;
  LinkFeatures features_;
  LinkStats stats;
  Instant wire_free;  // when the last queued frame has left
};

struct SimNetwork::Event {
  Instant at;
  uint64_t order;
  SimPort* to;
  Packet frame;
};

namespace {
struct Later {
  template <typename T>
  bool operator()(const T& a, const T& b) const {
    return a->at != b->at ? a->at > b->at : a->order > b->order;
  }
};
}  // namespace

SimHost::SimHost(SimNetwork& net, std::string name, NetConfig config, uint64_t seed, size_t pool_bytes)
    : name_(std::move(name)), config_(std::move(config)), pool_(pool_bytes), secure_(seed) {
  stack_ = std::make_unique<Stack>(net.now(), secure_, pool_);
  ApplyConfig();
}

void SimHost::ApplyConfig() {
  ++config_.generation;
  stack_->ApplyConfig(std::make_shared<const NetConfig>(config_));
}

SimNetwork::SimNetwork(uint64_t seed) : seed_(seed), rng_(seed) {}

SimNetwork::~SimNetwork() {
  if (::testing::Test::HasFailure())
    std::fprintf(stderr, "simulated network: seed %llu\n", static_cast<unsigned long long>(seed_));
  events_.clear();
  hosts_.clear();
}

SimHost& SimNetwork::AddHost(std::string name, NetConfig config, size_t pool_bytes) {
  hosts_.push_back(std::make_unique<SimHost>(*this, std::move(name), std::move(config), rng_.Next(), pool_bytes));
  return *hosts_.back();
}

SimNetwork::SimPort* SimNetwork::Find(const SimHost& host, IfIndex ifindex) const {
  for (auto& p : ports_) {
    if (&p->host == &host && p->ifindex == ifindex) return p.get();
  }
  SLUICE_CHECK(false && "no such device joined");
  return nullptr;
}

void SimNetwork::Join(SimHost& a, IfIndex ai, SimHost& b, IfIndex bi, const LinkProfile& ab, const LinkProfile& ba) {
  ports_.push_back(std::make_unique<SimPort>(*this, a, ai, ab));
  SimPort* pa = ports_.back().get();
  ports_.push_back(std::make_unique<SimPort>(*this, b, bi, ba));
  SimPort* pb = ports_.back().get();
  pa->peer = pb;
  pb->peer = pa;
  a.stack().AttachLink(ai, pa);
  b.stack().AttachLink(bi, pb);
}

void SimNetwork::SetFeatures(SimHost& host, IfIndex ifindex, const LinkFeatures& features) {
  SimPort* p = Find(host, ifindex);
  p->features_ = features;
  host.stack().AttachLink(ifindex, p);
}

void SimNetwork::SetProfile(SimHost& from, IfIndex ifindex, const LinkProfile& profile) {
  Find(from, ifindex)->profile = profile;
}

const LinkStats& SimNetwork::stats(SimHost& from, IfIndex ifindex) const { return Find(from, ifindex)->stats; }

void SimNetwork::Send(SimPort& from, Packet frame) {
  if (hook_ && !hook_(from.host, frame)) return;
  if (trace_) Trace(from, frame);
  if (!from.profile.cut_gso) return Wire(from, std::move(frame));
  for (Packet& segment : CutGso(std::move(frame), from.host.pool())) Wire(from, std::move(segment));
}

void SimNetwork::Wire(SimPort& from, Packet frame) {
  const LinkProfile& profile = from.profile;
  LinkStats& stats = from.stats;
  auto chance = [this](double p) { return p > 0 && static_cast<double>(rng_.Next() >> 11) * 0x1p-53 < p; };
  ++stats.frames;
  stats.bytes += frame.size();
  if (frame.size() > profile.largest) {
    ++stats.too_large;
    return;
  }
  if (chance(profile.loss)) {
    ++stats.lost;
    return;
  }
  Instant out = now_;
  if (profile.rate_bps != 0) {
    const Instant start = std::max(from.wire_free, now_);
    const uint64_t waiting = static_cast<uint64_t>((start - now_).ns()) * profile.rate_bps / 8'000'000'000u;
    if (waiting > profile.queue_bytes) {
      ++stats.queue_drops;
      return;
    }
    if (waiting > profile.mark_bytes && Mark(frame)) ++stats.marked;
    out = start + Duration(static_cast<int64_t>(frame.size() * 8 * 1'000'000'000 / profile.rate_bps));
    from.wire_free = out;
  }
  Instant at = out + profile.delay;
  if (chance(profile.reorder)) {
    ++stats.reordered;
    at = at + profile.reorder_delay;
  }
  if (chance(profile.corrupt)) {
    ++stats.corrupted;
    SLUICE_CHECK(frame.Linearize(from.host.pool()));
    frame.data()[rng_.Uniform(static_cast<uint32_t>(frame.size()))] ^= static_cast<uint8_t>(1u << rng_.Uniform(8));
  }
  if (chance(profile.duplicate)) {
    ++stats.duplicated;
    Deliver(*from.peer, frame, at);
  }
  Deliver(*from.peer, frame, at);
}

void SimNetwork::Deliver(SimPort& to, const Packet& frame, Instant at) {
  // Copied into the receiver's pool: a frame never shares memory with another host.
  Packet copy = Packet::Allocate(to.host.pool(), frame.size());
  if (!copy) return;
  frame.CopyOut(0, {copy.Append(frame.size()), frame.size()});
  copy.offload = frame.offload;
  copy.ifindex = to.ifindex;
  const auto eth = wire::EthernetView::Parse(copy.linear());
  if (eth) copy.link_type = eth->destination().IsBroadcast() ? 1 : eth->destination().IsMulticast() ? 2 : 0;
  events_.push_back(std::make_unique<Event>(Event{at, sequence_++, &to, std::move(copy)}));
  std::push_heap(events_.begin(), events_.end(), Later());
}

void SimNetwork::Inject(SimHost& host, Bytes frame, IfIndex ifindex) {
  Packet p = Packet::Allocate(host.pool(), frame.size());
  SLUICE_CHECK(static_cast<bool>(p));
  if (!frame.empty()) std::memcpy(p.Append(frame.size()), frame.data(), frame.size());
  p.ifindex = ifindex;
  p.received = now_;
  host.stack().SetNow(now_);
  host.stack().Input({&p, 1}, ifindex);
}

void SimNetwork::Turn() {
  for (auto& h : hosts_) h->stack().SetNow(now_);
  while (!events_.empty() && events_.front()->at <= now_) {
    std::pop_heap(events_.begin(), events_.end(), Later());
    std::unique_ptr<Event> e = std::move(events_.back());
    events_.pop_back();
    e->frame.received = now_;
    e->to->host.stack().Input({&e->frame, 1}, e->to->ifindex);
  }
  for (auto& h : hosts_) {
    h->stack().AdvanceTimers();
    if (h->on_turn) h->on_turn();
    h->stack().Flush();
  }
}

bool SimNetwork::RunUntil(const std::function<bool()>& done, Duration limit) {
  const Instant end = now_ + limit;
  uint64_t turns_here = 0;
  for (;;) {
    Turn();
    if (done()) return true;
    Instant next = Instant::Max();
    if (!events_.empty()) next = events_.front()->at;
    for (auto& h : hosts_) {
      if (const auto d = h->stack().NextDeadline()) next = std::min(next, *d);
    }
    if (next > now_) {
      turns_here = 0;
    } else if (++turns_here > 100000) {
      ADD_FAILURE() << "the simulation does not advance: some host always has work at " << now_.ns() << " ns";
      return false;
    }
    if (next > end) {
      now_ = end;
      Turn();
      return done();
    }
    now_ = std::max(now_, next);
  }
}

void SimNetwork::RunFor(Duration d) {
  (void)RunUntil([] { return false; }, d);
}

void SimNetwork::Trace(SimPort& from, const Packet& frame) const {
  std::string what;
  const auto eth = wire::EthernetView::Parse(frame.linear());
  if (eth && eth->type() == wire::kEtherArp) what = "ARP";
  const auto ip = eth ? wire::Ipv4View::Parse(frame.linear().subspan(wire::kEthernetHeader), frame.size() - wire::kEthernetHeader)
                      : std::nullopt;
  if (eth && eth->type() == wire::kEtherIpv4 && ip) {
    what = ToString(ip->source()) + " > " + ToString(ip->destination()) + " proto " + std::to_string(ip->protocol());
    const Bytes l4 = frame.linear().subspan(wire::kEthernetHeader + ip->header_length());
    if (ip->protocol() == kIpProtoTcp && l4.size() >= wire::kTcpHeader) {
      const char* const names[] = {"F", "S", "R", "P", "A", "U", "E", "C"};
      std::string flags;
      for (int i = 0; i < 8; ++i) {
        if (l4[13] & (1 << i)) flags += names[i];
      }
      what += " " + std::to_string(LoadBe16(l4.data())) + ">" + std::to_string(LoadBe16(l4.data() + 2)) + " " + flags + " seq " +
              std::to_string(LoadBe32(l4.data() + 4)) + " ack " + std::to_string(LoadBe32(l4.data() + 8)) + " win " +
              std::to_string(LoadBe16(l4.data() + 14)) + " len " +
              std::to_string(ip->total_length() - ip->header_length() - 4u * (l4[12] >> 4));
    }
  }
  std::fprintf(stderr, "%.6f %s > %s %zu bytes%s: %s\n", static_cast<double>(now_.ns()) * 1e-9, from.host.name().c_str(),
               from.peer->host.name().c_str(), frame.size(), frame.offload.gso != GsoType::kNone ? " gso" : "", what.c_str());
}

}  // namespace sluice::testing
