// Route lookup for output: RFC 1122 3.3.1, source selection as linux/net/ipv4/route.c and fib_semantics.c.
#include <algorithm>

#include "netstack/ip/network.h"

namespace sluice {
namespace {

constexpr uint32_t kLoopbackMtu4 = 65535, kLoopbackMtu6 = 65536;  // IPv4's length field ends below the device's 65536

size_t CacheSlot(const RouteQuery& q, size_t slots) {
  const Bytes d = q.destination.bytes(), s = q.source.bytes();
  uint64_t h = static_cast<uint64_t>(q.ifindex) * 0x9e3779b97f4a7c15 + q.tos;
  if (d.size() >= 4) h ^= LoadBe32(d.data() + d.size() - 4);
  h *= 0xff51afd7ed558ccd;
  if (s.size() >= 4) h ^= LoadBe32(s.data() + s.size() - 4);
  h *= 0xc4ceb9fe1a85ec53;
  return static_cast<size_t>(h >> 40) % slots;
}

bool SameQuestion(const RouteQuery& a, const RouteQuery& b) {
  return a.destination == b.destination && a.source == b.source && a.ifindex == b.ifindex && a.tos == b.tos && a.mark == b.mark &&
         a.dont_route == b.dont_route && a.any_source == b.any_source;
}

}  // namespace

Route Network::Lookup(const RouteQuery& query) {
  CachedRoute& cached = route_cache_[CacheSlot(query, kRouteCache)];
  if (cached.route.generation == generation_ && SameQuestion(cached.query, query)) return cached.route;
  bool cacheable = true;
  Route r = LookupUncached(query, &cacheable);
  r.generation = generation_;
  if (cacheable) cached = CachedRoute{query, r};
  return r;
}

Route Network::LookupUncached(const RouteQuery& q, bool* cacheable) {
  Route r;
  if (!q.destination) return r;
  if (q.source && !q.source.IsAny() && !q.any_source && !IsLocalAddress(q.source)) {
    r.error = Errno::kEINVAL;  // as linux ip_route_output_key for a source that is not ours
    return r;
  }
  // The loopback needs no table; it is bound to a device only by the loopback's own.
  if (q.destination.IsLoopback() || q.destination.IsAny()) {
    if (q.ifindex == 0 || q.ifindex == kLoopbackIfIndex) LocalRoute(q, nullptr, &r);
    return r;
  }
  if (q.destination.is_v6() && !IsLocalAddress(q.destination)) return r;  // IPv6 on the wire is not spoken
  if (q.destination.IsLimitedBroadcast() || q.destination.IsMulticast()) {
    r.error = GroupRoute(q, &r);
    return r;
  }
  const RouteTable::Match m = routes_->Find(q);
  *cacheable = !m.multipath;
  if (m.error != Errno::kOk) {
    // A bound device whose tables say nothing: the destination is taken to be on its link.
    Device* d = m.route == nullptr && q.ifindex != 0 ? FindDevice(q.ifindex) : nullptr;
    r.error = m.error;
    if (d == nullptr || !d->usable() || !q.destination.is_v4()) {
      if (m.route != nullptr) r.type = m.route->type;
      return r;
    }
    r.type = kRtnUnicast;
    r.ifindex = q.ifindex;
    r.next_hop = q.destination;
    r.source = q.source && !q.source.IsAny() ? q.source : routes_->SelectSource(q.ifindex, q.destination, kScopeLink);
    FillPath(q, nullptr, &r);
    r.neighbor = neighbors_.FindOrCreate(*d, r.next_hop);
    r.error = r.neighbor != nullptr ? Errno::kOk : Errno::kENOBUFS;
    return r;
  }
  r.type = m.route->type;
  if (r.type == kRtnLocal || r.type == kRtnAnycast) {
    LocalRoute(q, m.route, &r);
    return r;
  }
  r.error = Errno::kOk;
  r.ifindex = m.hop->ifindex;
  const IpAddress gateway = m.hop->gateway && !m.hop->gateway.IsAny() ? m.hop->gateway : IpAddress();
  r.next_hop = gateway ? gateway : q.destination;
  if (q.source && !q.source.IsAny()) {
    r.source = q.source;
  } else if (m.route->prefsrc && !m.route->prefsrc.IsAny()) {
    r.source = m.route->prefsrc;
  } else {
    r.source = routes_->SelectSource(r.ifindex, r.next_hop, gateway ? kScopeUniverse : m.route->scope);
  }
  FillPath(q, m.route, &r);
  Device* device = FindDevice(r.ifindex);
  if (device == nullptr) {
    r.error = Errno::kENETUNREACH;
    return r;
  }
  if (r.type != kRtnUnicast) return r;
  if (device->config().loopback()) {  // a route that was pointed at the loopback
    r.local = true;
    return r;
  }
  r.neighbor = neighbors_.FindOrCreate(*device, r.next_hop);
  if (r.neighbor == nullptr) r.error = Errno::kENOBUFS;
  return r;
}

void Network::LocalRoute(const RouteQuery& q, const RouteConfig* route, Route* out) const {
  const bool any = q.destination.IsAny();
  const IpAddress destination = any ? IpAddress::Loopback(q.destination.family()) : q.destination;
  out->error = Errno::kOk;
  out->type = kRtnLocal;
  out->local = true;
  out->ifindex = kLoopbackIfIndex;
  out->next_hop = destination;
  out->mtu = destination.is_v4() ? kLoopbackMtu4 : kLoopbackMtu6;
  if (q.source && !q.source.IsAny()) {
    out->source = q.source;
  } else if (route != nullptr && route->prefsrc && !route->prefsrc.IsAny()) {
    out->source = route->prefsrc;
  } else {
    out->source = destination.IsLoopback() ? IpAddress::Loopback(destination.family()) : destination;
  }
  if (route != nullptr) out->advmss = route->advmss;
}

// 255.255.255.255 and multicast: by the bound device, the source's device, or the tables (linux ip_route_output_key_hash_rcu).
Errno Network::GroupRoute(const RouteQuery& q, Route* r) {
  r->type = q.destination.IsMulticast() ? kRtnMulticast : kRtnBroadcast;
  r->next_hop = q.destination;
  r->ifindex = q.ifindex;
  const RouteConfig* route = nullptr;
  IpAddress preferred;
  if (r->ifindex == 0 && q.source && !q.source.IsAny()) r->ifindex = routes_->DeviceOf(q.source);
  if (r->ifindex == 0) {
    const RouteTable::Match m = routes_->Find(q);
    if (m.error != Errno::kOk) return m.error;
    if (m.hop == nullptr) return Errno::kENETUNREACH;
    route = m.route;
    r->ifindex = m.hop->ifindex;
    preferred = route->prefsrc;
  }
  const Device* d = FindDevice(r->ifindex);
  if (d == nullptr) return Errno::kENODEV;
  if (q.source && !q.source.IsAny()) {
    r->source = q.source;
  } else {
    r->source = preferred && !preferred.IsAny() ? preferred : routes_->SelectSource(r->ifindex, q.destination, kScopeLink);
  }
  if (!r->source) r->source = IpAddress::Any(q.destination.family());  // DHCP before there is an address
  FillPath(q, route, r);
  return Errno::kOk;
}

void Network::FillPath(const RouteQuery& q, const RouteConfig* route, Route* out) const {
  const Device* d = FindDevice(out->ifindex);
  out->mtu = d != nullptr ? std::min(d->config().mtu, 65535u) : 1500;
  if (route != nullptr) {
    if (route->mtu != 0) out->mtu = std::min(out->mtu, route->mtu);
    out->advmss = route->advmss;
    out->initcwnd = route->initcwnd;
    out->initrwnd = route->initrwnd;
    out->hoplimit = route->hoplimit;
  }
  if (const auto learnt = path_mtus_.Find(q.destination)) out->mtu = std::min(out->mtu, *learnt);
}

void Network::ConfirmNeighbor(const Route& route) {
  if (route.neighbor != nullptr && route.generation == generation_) neighbors_.Confirm(*route.neighbor);
}

bool Network::IsLocalAddress(const IpAddress& address) const { return routes_->IsLocal(address); }

bool Network::IsBroadcastAddress(const IpAddress& address, IfIndex ifindex) const {
  return routes_->IsBroadcast(address, ifindex);
}

void Network::UpdatePathMtu(const Route& route, const IpAddress& destination, uint32_t mtu) {
  if (route.local) return;
  if (path_mtus_.Update(destination, mtu, route.mtu, context_.now)) ++generation_;
}

bool Network::GsoPossible(const Route& route) const {
  if (route.local) return true;
  const Device* d = FindDevice(route.ifindex);
  return d != nullptr && d->features().gso;
}

uint32_t Network::GsoMaxSize(const Route& route) const {
  constexpr uint32_t kLoopbackGso = 65400;
  if (route.local) return kLoopbackGso;
  const Device* d = FindDevice(route.ifindex);
  return d != nullptr ? std::min(d->features().gso_max_size, 65535u) : 0;
}

bool Network::Paces(const Route& route) const {
  if (route.local) return false;
  const Device* d = FindDevice(route.ifindex);
  return d != nullptr && d->features().paces;
}

bool Network::TxChecksumOffload(const Route& route) const {
  if (route.local) return true;
  const Device* d = FindDevice(route.ifindex);
  return d != nullptr && d->features().tx_checksum;
}

}  // namespace sluice
