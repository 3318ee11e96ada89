#include "dataplane/shard_mail.h"

#include <bit>
#include <utility>

#include "base/check.h"

namespace sluice {
namespace {

// Records of one sender in one turn: a flood of mail leaves the worker's own queue its turn.
constexpr int kMailPerTurn = 128;

}  // namespace

ShardHub::ShardHub(uint32_t n, const wire::SteeringKey& k, bool homes)
    : shards(n),
      key(k),
      ports_have_homes(homes),
      workers_(n),
      holders_(std::make_unique<std::atomic<ShardSet>[]>(kSpaces * kPorts)) {
  SLUICE_CHECK(n >= 1 && n <= ShardPeers::kMax);
  for (uint32_t i = 0; i < n * n; ++i)
    rings_.push_back(i % (n + 1) == 0 ? nullptr : std::make_unique<FrameRing>(kFrameRingBytes));
}

ShardMailbox::ShardMailbox(ShardHub& hub, uint32_t self, Worker& worker, BlockPool& pool)
    : ShardPeers(self, hub.shards, hub.key, hub.ports_have_homes), hub_(hub), worker_(worker), pool_(pool) {
  worker_.stack().JoinShards(this);
  worker_.AddTask(this);
  hub_.workers_[self] = &worker;
}

ShardMailbox::~ShardMailbox() {
  worker_.RemoveTask(this);
  worker_.stack().JoinShards(nullptr);
}

// ---- Sending

bool ShardMailbox::Send(uint32_t to, const Packet& packet, Tag tag, uint32_t word) {
  if (hub_.ring(self(), to).Send(packet, tag, word)) return true;
  ++stats_.dropped;
  return false;
}

void ShardMailbox::SendFrame(uint32_t to, const Packet& frame, bool answered) {
  if (!Send(to, frame, answered ? kAnswered : kFrame, 0)) return;
  ++(answered ? stats_.copies_sent : stats_.frames_sent);
  to_wake_ |= ShardSet{1} << to;
}

void ShardMailbox::WakeReceivers() {
  for (; to_wake_ != 0; to_wake_ &= to_wake_ - 1) hub_.workers_[static_cast<size_t>(std::countr_zero(to_wake_))]->Wake();
}

void ShardMailbox::Forward(uint32_t to, const Packet& packet, ShardSet seen) {
  if (!Send(to, packet, kPacket, seen)) return;
  ++stats_.packets_sent;
  hub_.workers_[to]->Wake();
}

void ShardMailbox::ForwardRaw(uint32_t to, const Packet& packet, bool error) {
  if (!Send(to, packet, kRaw, error ? 1 : 0)) return;
  ++stats_.packets_sent;
  hub_.workers_[to]->Wake();
}

// ---- Receiving

bool ShardMailbox::OnTurn() {
  bool any = false, prepared = false;
  for (uint32_t from = 0; from < hub_.shards; ++from) {
    if (from == self()) continue;
    for (int i = 0; i < kMailPerTurn; ++i) {
      FrameRing::Received mail = hub_.ring(from, self()).Receive(pool_);
      if (!mail.any) break;
      any = true;
      Deliver(std::move(mail), &prepared);
    }
  }
  return any;
}

void ShardMailbox::Deliver(FrameRing::Received mail, bool* prepared) {
  if (!mail.packet) {
    ++stats_.dropped;
    return;
  }
  ++stats_.received;
  if (mail.tag == kPacket) {
    if (before_packets_ && !std::exchange(*prepared, true)) before_packets_();
    return worker_.stack().InputForwarded(std::move(mail.packet), mail.word);
  }
  if (mail.tag == kRaw) return worker_.stack().InputRaw(std::move(mail.packet), mail.word != 0);
  mail.packet.answered = mail.tag == kAnswered;
  const IfIndex ifindex = mail.packet.ifindex;
  worker_.stack().Input(std::span(&mail.packet, 1), ifindex);
}

bool ShardMailbox::HasWork() const {
  for (uint32_t from = 0; from < hub_.shards; ++from) {
    if (from != self() && !hub_.ring(from, self()).empty()) return true;
  }
  return false;
}

// ---- Ports

ShardSet ShardMailbox::Holders(PortSpace space, uint16_t port) const {
  return hub_.holders(space, port).load(std::memory_order_relaxed);
}
void ShardMailbox::Hold(PortSpace space, uint16_t port) { hub_.holders(space, port).fetch_or(bit(), std::memory_order_relaxed); }
void ShardMailbox::Release(PortSpace space, uint16_t port) {
  hub_.holders(space, port).fetch_and(~bit(), std::memory_order_relaxed);
}
bool ShardMailbox::HoldAlone(PortSpace space, uint16_t port) {
  ShardSet held = Holders(space, port);
  return (held & ~bit()) == 0 && hub_.holders(space, port).compare_exchange_strong(held, bit(), std::memory_order_relaxed);
}

}  // namespace sluice
