#include "netstack/config_builder.h"

#include <charconv>

namespace sluice {
namespace {

constexpr uint8_t kUnicast = 1, kLocal = 2, kBroadcast = 3;
constexpr uint8_t kScopeUniverse = 0, kScopeLink = 253, kScopeHost = 254;
constexpr uint32_t kTableMain = 254, kTableLocal = 255;
constexpr uint8_t kByKernel = 2, kByBoot = 3;  // RTPROT_*

RouteConfig Route4(const IpAddress& dst, uint8_t length, uint8_t type, uint8_t scope, uint32_t table, IfIndex ifindex,
                   const IpAddress& source) {
  RouteConfig r;
  r.dst = dst;
  r.prefix_len = length;
  r.type = type;
  r.scope = scope;
  r.table = table;
  r.protocol = kByKernel;
  r.prefsrc = source;
  r.next_hops.push_back(NextHop{.ifindex = ifindex});
  return r;
}

}  // namespace

IpAddress Prefix::network() const { return IpAddress::V4(length == 0 ? 0 : address.v4() & (0xffffffffu << (32 - length))); }

std::optional<Prefix> ParsePrefix(std::string_view text) {
  const size_t slash = text.find('/');
  const auto address = IpAddress::Parse(text.substr(0, slash));
  if (!address) return std::nullopt;
  const uint8_t most = address->is_v4() ? 32 : 128;
  Prefix p{*address, most};
  if (slash == std::string_view::npos) return p;
  const std::string_view n = text.substr(slash + 1);
  const auto [end, error] = std::from_chars(n.data(), n.data() + n.size(), p.length);
  if (error != std::errc() || end != n.data() + n.size() || p.length > most) return std::nullopt;
  return p;
}

void AddDevice(NetConfig* config, IfIndex ifindex, std::string_view name, const MacAddress& mac, uint32_t mtu) {
  LinkConfig l;
  l.index = ifindex;
  l.name = name;
  l.mac = mac;
  l.broadcast = {{255, 255, 255, 255, 255, 255}};
  l.mtu = mtu;
  l.flags = 0x1 | 0x2 | 0x40 | 0x1000 | 0x10000;  // UP, BROADCAST, RUNNING, MULTICAST, LOWER_UP
  l.operstate = 6;
  l.attached = true;
  config->links.push_back(l);
}

void AddAddress(NetConfig* config, IfIndex ifindex, const Prefix& p) {
  AddressConfig a;
  a.ifindex = ifindex;
  a.local = a.peer = p.address;
  a.prefix_len = p.length;
  a.flags = 0x80;  // IFA_F_PERMANENT
  const IpAddress net = p.network();
  config->routes.push_back(Route4(p.address, 32, kLocal, kScopeHost, kTableLocal, ifindex, p.address));
  if (p.length < 31) {
    a.broadcast = IpAddress::V4(net.v4() | (p.length == 0 ? 0xffffffffu : ~(0xffffffffu << (32 - p.length))));
    config->routes.push_back(Route4(a.broadcast, 32, kBroadcast, kScopeLink, kTableLocal, ifindex, p.address));
  }
  if (p.length < 32) config->routes.push_back(Route4(net, p.length, kUnicast, kScopeLink, kTableMain, ifindex, p.address));
  config->addresses.push_back(a);
}

void AddRoute(NetConfig* config, const Prefix& to, const IpAddress& gateway, IfIndex ifindex, uint32_t metric) {
  const bool on_link = gateway == IpAddress();
  RouteConfig r =
      Route4(to.network(), to.length, kUnicast, on_link ? kScopeLink : kScopeUniverse, kTableMain, ifindex, IpAddress());
  r.protocol = kByBoot;
  r.priority = metric;
  if (!on_link) r.next_hops[0].gateway = gateway;
  config->routes.push_back(r);
}

}  // namespace sluice
