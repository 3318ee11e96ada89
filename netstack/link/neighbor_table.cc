#include "netstack/link/neighbor_table.h"

namespace sluice {
namespace {

// Linux's defaults of net.ipv4.neigh.*; RFC 4861 10.
constexpr Duration kBaseReachable = Duration::Seconds(30);
constexpr Duration kRetransmit = Duration::Seconds(1);
constexpr Duration kDelayFirstProbe = Duration::Seconds(5);
constexpr Duration kLockTime = Duration::Seconds(1);  // an answer that was just heard is not overridden by a second one
constexpr uint32_t kMulticastProbes = 3, kUnicastProbes = 3;
constexpr uint16_t kValid = kNudReachable | kNudStale | kNudDelay | kNudProbe | kNudNoArp | kNudPermanent;
constexpr uint16_t kFixed = kNudNoArp | kNudPermanent;

}  // namespace

Neighbor::Neighbor(NeighborTable& table, Device& device, const IpAddress& address)
    : table_(table), device_(device), address_(address), timer_(&Neighbor::OnTimer, this) {}

void Neighbor::OnTimer(void* self) {
  auto* n = static_cast<Neighbor*>(self);
  n->table_.Timeout(*n);
}

Neighbor* NeighborTable::FindOrCreate(Device& device, const IpAddress& address) {
  const Key key{device.ifindex(), address};
  if (const auto it = table_.find(key); it != table_.end()) return it->second.get();
  if (table_.size() >= kMaxNeighbors && !Evict()) return nullptr;
  auto n = std::make_unique<Neighbor>(*this, device, address);
  n->used_ = n->confirmed_ = n->updated_ = context_.now;
  Neighbor* raw = n.get();
  table_.emplace(key, std::move(n));
  return raw;
}

// The longest unused one that nothing waits for.
bool NeighborTable::Evict() {
  auto victim = table_.end();
  for (auto it = table_.begin(); it != table_.end(); ++it) {
    const Neighbor& n = *it->second;
    if ((n.state_ & kFixed) != 0 || !n.pending_.empty()) continue;
    if (victim == table_.end() || n.used_ < victim->second->used_) victim = it;
  }
  if (victim == table_.end()) return false;
  events_.NeighborGone();
  table_.erase(victim);
  return true;
}

void NeighborTable::Transmit(Neighbor& n, Packet packet) {
  std::memcpy(packet.Push(wire::kEthernetHeader), n.header_, wire::kEthernetHeader);
  n.device_.Enqueue(std::move(packet));
}

void NeighborTable::Output(Neighbor& n, Packet packet) {
  n.used_ = context_.now;
  if ((n.state_ == kNudReachable && context_.now < n.reachable_until_) || (n.state_ & (kFixed | kNudDelay | kNudProbe)) != 0) {
    return Transmit(n, std::move(packet));
  }
  switch (n.state_) {
    case kNudReachable:  // its time is over: noticed when it is used
    case kNudStale:
      n.state_ = kNudDelay;
      n.probes_ = 0;
      context_.timers.Schedule(n.timer_, context_.now + kDelayFirstProbe);
      return Transmit(n, std::move(packet));
    case kNudIncomplete:
      return Queue(n, std::move(packet));
    default:  // none yet, or failed: ask (again)
      Queue(n, std::move(packet));
      return StartProbe(n, kNudIncomplete);
  }
}

void NeighborTable::Queue(Neighbor& n, Packet packet) {
  if (pending_in_all_ >= kMaxPendingInAll) {
    context_.counters.Add(Counter::kDropNeighborQueueFull);
    return;
  }
  // The oldest goes first, as in Linux: the newest is the likeliest to be still wanted.
  while (!n.pending_.empty() &&
         (n.pending_.size() >= kMaxPendingPerNeighbor || n.pending_bytes_ + packet.size() > kMaxPendingBytes)) {
    context_.counters.Add(Counter::kDropNeighborQueueFull);
    n.pending_bytes_ -= n.pending_.front().size();
    n.pending_.erase(n.pending_.begin());
    --pending_in_all_;
  }
  n.pending_bytes_ += packet.size();
  n.pending_.push_back(std::move(packet));
  ++pending_in_all_;
}

void NeighborTable::StartProbe(Neighbor& n, uint16_t state) {
  n.state_ = state;
  n.probes_ = 0;
  Probe(n);
}

void NeighborTable::Probe(Neighbor& n) {
  ++n.probes_;
  const MacAddress everyone{{255, 255, 255, 255, 255, 255}};
  context_.timers.Schedule(n.timer_, context_.now + kRetransmit);
  events_.SolicitNeighbor(n.device_, n.address_, n.state_ == kNudProbe ? n.mac_ : everyone);
}

void NeighborTable::Timeout(Neighbor& n) {
  switch (n.state_) {
    case kNudDelay:
      return StartProbe(n, kNudProbe);
    case kNudProbe:
      if (n.probes_ < kUnicastProbes) return Probe(n);
      return Fail(n);
    case kNudIncomplete:
      if (n.probes_ < kMulticastProbes) return Probe(n);
      return Fail(n);
    default:
      return;
  }
}

void NeighborTable::Fail(Neighbor& n) {
  n.state_ = kNudFailed;
  n.updated_ = context_.now;
  std::vector<Packet> dropped = std::move(n.pending_);
  n.pending_.clear();
  n.pending_bytes_ = 0;
  pending_in_all_ -= dropped.size();
  context_.counters.Add(Counter::kDropNeighborFailed, dropped.size());
  // `n` may go away in there.
  for (Packet& p : dropped) events_.NeighborUnreachable(std::move(p));
}

void NeighborTable::SetMac(Neighbor& n, const MacAddress& mac) {
  n.mac_ = mac;
  n.updated_ = context_.now;
  wire::WriteEthernet(n.header_, mac, n.device_.config().mac, n.address_.is_v4() ? wire::kEtherIpv4 : wire::kEtherIpv6);
}

void NeighborTable::SetReachable(Neighbor& n) {
  n.state_ = kNudReachable;
  n.probes_ = 0;
  n.confirmed_ = context_.now;
  // RFC 4861 6.3.4: between 0.5 and 1.5 of the base, so that neighbours do not probe in step.
  n.reachable_until_ =
      context_.now + kBaseReachable / 2 + Duration(static_cast<int64_t>(context_.rng.Next() % kBaseReachable.ns()));
  n.timer_.Cancel();
}

void NeighborTable::SendPending(Neighbor& n) {
  std::vector<Packet> waiting = std::move(n.pending_);
  n.pending_.clear();
  n.pending_bytes_ = 0;
  pending_in_all_ -= waiting.size();
  for (Packet& p : waiting) Transmit(n, std::move(p));
}

void NeighborTable::DropPending(Neighbor& n, Counter why) {
  context_.counters.Add(why, n.pending_.size());
  pending_in_all_ -= n.pending_.size();
  n.pending_.clear();
  n.pending_bytes_ = 0;
}

void NeighborTable::Confirm(Neighbor& n) {
  if ((n.state_ & (kNudReachable | kNudStale | kNudDelay | kNudProbe)) == 0) return;
  n.confirmed_ = context_.now;
  // Called for every ACK that makes progress: the random part is drawn only when the state changes or half of the time is over.
  if (n.state_ != kNudReachable || n.reachable_until_ - context_.now < kBaseReachable / 4) SetReachable(n);
}

void NeighborTable::Learn(Device& device, const IpAddress& address, const MacAddress& mac, bool solicited, bool create) {
  const auto it = table_.find(Key{device.ifindex(), address});
  Neighbor* n = it != table_.end() ? it->second.get() : create ? FindOrCreate(device, address) : nullptr;
  if (n == nullptr || (n->state_ & kFixed) != 0) return;
  const bool valid = (n->state_ & kValid) != 0;
  const bool changed = !valid || n->mac_ != mac;
  if (changed && valid && context_.now - n->updated_ < kLockTime) return;
  if (changed) SetMac(*n, mac);
  if (solicited) {
    SetReachable(*n);
  } else if (changed || n->state_ == kNudIncomplete || n->state_ == kNudFailed || n->state_ == kNudNone) {
    n->state_ = kNudStale;
    n->timer_.Cancel();
  }
  SendPending(*n);
}

void NeighborTable::SetPermanent(Device& device, const IpAddress& address, const MacAddress& mac, uint16_t state) {
  Neighbor* n = FindOrCreate(device, address);
  if (n == nullptr) return;
  SetMac(*n, mac);
  n->state_ = (state & kNudNoArp) != 0 ? kNudNoArp : kNudPermanent;
  n->timer_.Cancel();
  SendPending(*n);
}

void NeighborTable::DropPermanent() {
  for (auto& [key, n] : table_) {
    if ((n->state_ & kFixed) != 0) n->state_ = kNudStale;
    // The device's own address may be a new one.
    if ((n->state_ & kValid) != 0) SetMac(*n, n->mac_);
  }
}

void NeighborTable::RemoveDevice(const Device& device) {
  events_.NeighborGone();
  for (auto it = table_.begin(); it != table_.end();) {
    auto current = it++;
    if (&current->second->device_ != &device) continue;
    DropPending(*current->second, Counter::kDropLinkDown);
    table_.erase(current);
  }
}

std::vector<NeighborInfo> NeighborTable::List() const {
  std::vector<NeighborInfo> out;
  for (const auto& [key, n] : table_) {
    if (n->state_ == kNudNone) continue;
    const bool expired = n->state_ == kNudReachable && context_.now >= n->reachable_until_;
    out.push_back(NeighborInfo{key.ifindex, key.address, n->mac_, expired ? uint16_t{kNudStale} : n->state_,
                               context_.now - n->confirmed_, context_.now - n->used_, context_.now - n->updated_, n->probes_});
  }
  return out;
}

}  // namespace sluice
