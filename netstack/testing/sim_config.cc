#include <charconv>

#include "netstack/testing/sim.h"

namespace sluice::testing {
namespace {

constexpr uint8_t kUnicast = 1, kLocal = 2, kBroadcast = 3;
constexpr uint8_t kScopeUniverse = 0, kScopeLink = 253, kScopeHost = 254;

struct Prefix {
  IpAddress address;
  uint8_t length;
};

Prefix ParsePrefix(std::string_view text) {
  const size_t slash = text.find('/');
  const auto address = IpAddress::Parse(text.substr(0, slash));
  SLUICE_CHECK(address.has_value());
  Prefix p{*address, static_cast<uint8_t>(address->is_v4() ? 32 : 128)};
  if (slash != std::string_view::npos) {
    const std::string_view n = text.substr(slash + 1);
    std::from_chars(n.data(), n.data() + n.size(), p.length);
  }
  return p;
}

IpAddress Network(const Prefix& p) {
  return IpAddress::V4(p.length == 0 ? 0 : p.address.v4() & (0xffffffffu << (32 - p.length)));
}

RouteConfig Route4(const IpAddress& dst, uint8_t length, uint8_t type, uint8_t scope, uint32_t table, IfIndex ifindex,
                   const IpAddress& source) {
  RouteConfig r;
  r.dst = dst;
  r.prefix_len = length;
  r.type = type;
  r.scope = scope;
  r.table = table;
  r.protocol = 2;
  r.prefsrc = source;
  r.next_hops.push_back(NextHop{.ifindex = ifindex});
  return r;
}

}  // namespace

// The same addresses and routes that `ip addr add` makes.
void AddAddress(NetConfig* config, IfIndex ifindex, std::string_view text) {
  const Prefix p = ParsePrefix(text);
  AddressConfig a;
  a.ifindex = ifindex;
  a.local = a.peer = p.address;
  a.prefix_len = p.length;
  a.flags = 0x80;
  const IpAddress net = Network(p);
  config->routes.push_back(Route4(p.address, 32, kLocal, kScopeHost, 255, ifindex, p.address));
  if (p.length < 31) {
    a.broadcast = IpAddress::V4(net.v4() | (p.length == 0 ? 0xffffffffu : ~(0xffffffffu << (32 - p.length))));
    config->routes.push_back(Route4(a.broadcast, 32, kBroadcast, kScopeLink, 255, ifindex, p.address));
  }
  if (p.length < 32) config->routes.push_back(Route4(net, p.length, kUnicast, kScopeLink, 254, ifindex, p.address));
  config->addresses.push_back(a);
}

IfIndex AddDevice(NetConfig* config, std::string_view name, std::string_view address, uint32_t mtu) {
  LinkConfig l;
  l.index = static_cast<IfIndex>(config->links.size()) + 1;
  l.name = name;
  const Prefix p = ParsePrefix(address);
  l.mac = {{2, static_cast<uint8_t>(l.index), p.address.bytes()[0], p.address.bytes()[1], p.address.bytes()[2], p.address.bytes()[3]}};
  l.broadcast = {{255, 255, 255, 255, 255, 255}};
  l.mtu = mtu;
  l.flags = 0x1 | 0x2 | 0x40 | 0x1000 | 0x10000;  // UP, BROADCAST, RUNNING, MULTICAST, LOWER_UP
  l.operstate = 6;
  l.attached = true;
  config->links.push_back(l);
  AddAddress(config, l.index, address);
  return l.index;
}

void AddRoute(NetConfig* config, std::string_view prefix, std::string_view gateway, IfIndex ifindex, uint32_t metric) {
  const Prefix p = ParsePrefix(prefix);
  RouteConfig r = Route4(Network(p), p.length, kUnicast, gateway.empty() ? kScopeLink : kScopeUniverse, 254, ifindex, IpAddress());
  r.protocol = 3;
  r.priority = metric;
  if (!gateway.empty()) r.next_hops[0].gateway = *IpAddress::Parse(gateway);
  config->routes.push_back(r);
}

NetConfig HostConfig(std::string_view address, std::string_view gateway, uint32_t mtu) {
  NetConfig config = LoopbackOnlyConfig();
  const IfIndex ifindex = AddDevice(&config, "eth0", address, mtu);
  if (!gateway.empty()) AddRoute(&config, "0.0.0.0/0", gateway, ifindex);
  return config;
}

}  // namespace sluice::testing
