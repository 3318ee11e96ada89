// Devices and configuration changes.
#include "netstack/ip/network.h"

#include <algorithm>

namespace sluice {

Network::Network(StackContext& context)
    : context_(context),
      config_(std::make_shared<const NetConfig>(LoopbackOnlyConfig())),
      routes_(std::make_unique<RouteTable>(config_)),
      neighbors_(context, *this),
      path_mtus_(context.timers, &Network::OnPathMtuExpired, this),
      reassembler_(context, *this) {
  context_.secure.Fill({reinterpret_cast<uint8_t*>(&key_), sizeof key_});
  context_.secure.Fill({reinterpret_cast<uint8_t*>(ids_.data()), sizeof ids_});
  ApplyConfig(config_);
}

Network::~Network() = default;

Device* Network::FindDevice(IfIndex ifindex) const {
  for (const auto& d : devices_) {
    if (d->ifindex() == ifindex) return d.get();
  }
  return nullptr;
}

void Network::ApplyConfig(std::shared_ptr<const NetConfig> config) {
  const std::shared_ptr<const NetConfig> before = std::exchange(config_, std::move(config));
  routes_ = std::make_unique<RouteTable>(config_);
  ++generation_;
  for (auto it = devices_.begin(); it != devices_.end();) {
    const bool there = std::any_of(config_->links.begin(), config_->links.end(),
                                   [&](const LinkConfig& l) { return l.index == (*it)->ifindex(); });
    if (there) {
      ++it;
      continue;
    }
    neighbors_.RemoveDevice(**it);
    (*it)->set_link(nullptr);  // counts what waited
    it = devices_.erase(it);
  }
  for (const LinkConfig& l : config_->links) {
    if (Device* d = FindDevice(l.index); d != nullptr) {
      d->set_config(l);
      continue;
    }
    devices_.push_back(std::make_unique<Device>(context_, l));
    for (const auto& [ifindex, link] : links_) {
      if (ifindex == l.index) devices_.back()->set_link(link);
    }
  }
  neighbors_.DropPermanent();
  for (const NeighborConfig& n : config_->neighbors) {
    if (Device* d = FindDevice(n.ifindex); d != nullptr && n.address.is_v4())
      neighbors_.SetPermanent(*d, n.address, n.mac, n.state);
  }
  AnnounceAddresses(before.get());
}

void Network::AttachLink(IfIndex ifindex, Link* link) {
  std::erase_if(links_, [&](const auto& entry) { return entry.first == ifindex; });
  if (link != nullptr) links_.emplace_back(ifindex, link);
  ++generation_;
  Device* d = FindDevice(ifindex);
  if (d == nullptr) return;
  const bool fresh = !d->usable() && link != nullptr;
  d->set_link(link);
  if (fresh) {
    NetConfig none;  // announces every address of the device: nothing was known before it had a link
    for (const LinkConfig& l : config_->links) {
      if (l.index != ifindex) none.links.push_back(l);
    }
    for (const AddressConfig& a : config_->addresses) {
      if (a.ifindex != ifindex) none.addresses.push_back(a);
    }
    AnnounceAddresses(&none);
  }
}

bool Network::FlushDevices() {
  bool all = true;
  for (const auto& d : devices_) all &= d->Flush();
  return all;
}

Stack::LinkCounters Network::link_counters(IfIndex ifindex) const {
  const Device* d = FindDevice(ifindex);
  return d != nullptr ? d->counters() : Stack::LinkCounters{};
}

}  // namespace sluice
