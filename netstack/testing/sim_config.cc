#include "netstack/config_builder.h"
#include "netstack/testing/sim.h"

namespace sluice::testing {
namespace {

Prefix MustParse(std::string_view text) {
  const auto prefix = ParsePrefix(text);
  SLUICE_CHECK(prefix.has_value());
  return *prefix;
}

}  // namespace

// The same addresses and routes that `ip addr add` makes.
void AddAddress(NetConfig* config, IfIndex ifindex, std::string_view text) {
  sluice::AddAddress(config, ifindex, MustParse(text));
}

IfIndex AddDevice(NetConfig* config, std::string_view name, std::string_view address, uint32_t mtu) {
  const Prefix p = MustParse(address);
  const auto ifindex = static_cast<IfIndex>(config->links.size() + 1);
  const MacAddress mac{
      {2, static_cast<uint8_t>(ifindex), p.address.bytes()[0], p.address.bytes()[1], p.address.bytes()[2], p.address.bytes()[3]}};
  sluice::AddDevice(config, ifindex, name, mac, mtu);
  sluice::AddAddress(config, ifindex, p);
  return ifindex;
}

void AddRoute(NetConfig* config, std::string_view prefix, std::string_view gateway, IfIndex ifindex, uint32_t metric) {
  sluice::AddRoute(config, MustParse(prefix), gateway.empty() ? IpAddress() : MustParse(gateway).address, ifindex, metric);
}

NetConfig HostConfig(std::string_view address, std::string_view gateway, uint32_t mtu) {
  NetConfig config = LoopbackOnlyConfig();
  const IfIndex ifindex = AddDevice(&config, "eth0", address, mtu);
  if (!gateway.empty()) AddRoute(&config, "0.0.0.0/0", gateway, ifindex);
  return config;
}

}  // namespace sluice::testing
