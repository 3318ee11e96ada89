#include "netstack/tcp/bind_table.h"

namespace sluice::tcp {
namespace {

bool SpeaksV4(const PortHolder& s) { return s.bound_address.is_v4() || (s.bound_address.IsAny() && !s.v6_only); }
bool SpeaksV6(const PortHolder& s) { return s.bound_address.is_v6(); }

}  // namespace

bool BindTable::Overlap(const PortHolder& a, const PortHolder& b) {
  if (a.bound_ifindex != 0 && b.bound_ifindex != 0 && a.bound_ifindex != b.bound_ifindex) return false;
  const bool a_any = a.bound_address.IsAny(), b_any = b.bound_address.IsAny();
  if (!a_any && !b_any) return a.bound_address == b.bound_address;
  if (a_any && b_any) return (SpeaksV4(a) && SpeaksV4(b)) || (SpeaksV6(a) && SpeaksV6(b));
  const PortHolder& wide = a_any ? a : b;
  const PortHolder& narrow = a_any ? b : a;
  return narrow.bound_address.is_v4() ? SpeaksV4(wide) : SpeaksV6(wide);
}

template <typename Predicate>
bool BindTable::AnyHolder(uint16_t port, Predicate holds) const {
  const auto it = ports_.find(port);
  if (it == ports_.end()) return false;
  for (const PortHolder* first : {it->second.listening, it->second.others}) {
    for (const PortHolder* o = first; o != nullptr; o = o->next_holder) {
      if (holds(*o)) return true;
    }
  }
  return false;
}

bool BindTable::Conflicts(const PortHolder& s, uint16_t port) const {
  return AnyHolder(port, [&s](const PortHolder& o) {
    if (&o == &s || !Overlap(s, o)) return false;
    if (s.reuse_address && o.reuse_address && !o.holder_listens) return false;
    return !(s.reuse_port && o.reuse_port);
  });
}

bool BindTable::ListenConflicts(const PortHolder& s) const {
  for (const PortHolder* o = FirstListening(s.bound_port); o != nullptr; o = o->next_holder) {
    if (o != &s && Overlap(s, *o) && !(s.reuse_port && o->reuse_port)) return true;
  }
  return false;
}

void BindTable::Link(Port& port, PortHolder* s) {
  PortHolder*& head = s->holder_listens ? port.listening : port.others;
  s->next_holder = head;
  if (head != nullptr) head->prev_holder = &s->next_holder;
  head = s;
  s->prev_holder = &head;
}

void BindTable::Unlink(PortHolder* s) {
  *s->prev_holder = s->next_holder;
  if (s->next_holder != nullptr) s->next_holder->prev_holder = s->prev_holder;
  s->prev_holder = nullptr;
  s->next_holder = nullptr;
}

void BindTable::SetListening(PortHolder* s, bool listening) {
  const bool held = s->holds_port();
  if (held) Unlink(s);
  s->holder_listens = listening;
  if (held) Link(ports_.at(s->bound_port), s);
}

void BindTable::Add(PortHolder* s, uint16_t port) {
  Port& entry = ports_[port];
  s->told_others = !s->auto_bound;
  if (s->told_others && entry.told++ == 0 && context_.peers != nullptr) context_.peers->Hold(PortSpace::kTcp, port);
  s->bound_port = port;
  Link(entry, s);
  HeldPorts* held = context_.held_ports;
  s->counted_held = held != nullptr && (!s->auto_bound || s->peer_port == held->peer_port());
  if (s->counted_held && entry.held++ == 0) held->Set(kIpProtoTcp, port, true);
}

void BindTable::Remove(PortHolder* s) {
  if (!s->holds_port()) return;
  Unlink(s);
  const auto it = ports_.find(s->bound_port);
  Port& entry = it->second;
  if (s->told_others && --entry.told == 0 && context_.peers != nullptr) context_.peers->Release(PortSpace::kTcp, s->bound_port);
  if (s->counted_held && --entry.held == 0) context_.held_ports->Set(kIpProtoTcp, s->bound_port, false);
  s->counted_held = false;
  if (entry.listening == nullptr && entry.others == nullptr) ports_.erase(it);
}

bool BindTable::HoldAlone(uint16_t port) const {
  return context_.peers == nullptr || context_.peers->HoldAlone(PortSpace::kTcp, port);
}

bool BindTable::ServesHere(const FlowKey& key) const {
  const ShardPeers* peers = context_.peers;
  if (peers == nullptr) return true;
  return peers->IsHome({key.local, key.remote, key.local_port, key.remote_port}) &&
         (peers->Holders(PortSpace::kTcp, key.local_port) & peers->others()) == 0;
}

bool BindTable::OnlyAutoBound(uint16_t port) const {
  return !AnyHolder(port, [](const PortHolder& o) { return !o.auto_bound; });
}

PortHolder* BindTable::FirstListening(uint16_t port) const {
  const auto it = ports_.find(port);
  return it == ports_.end() ? nullptr : it->second.listening;
}

}  // namespace sluice::tcp
