#include "sentry/netlink/if_ethtool.h"

#include <linux/ethtool.h>
#include <linux/if.h>

#include <algorithm>

#include "sentry/netlink/server_impl.h"

namespace sluice::netlink {
namespace {

constexpr int8_t kLinkModeWords = 4;  // words of a link mode mask, as kernels since 5.x have

template <typename T>
IoctlResult Extra(const T& value) {
  IoctlResult result;
  result.extra.assign(AsBytes(value).begin(), AsBytes(value).end());
  return result;
}

std::string Kind(const LinkConfig& link) {
  std::string kind;
  ForEachAttribute(FindAttribute(link.netlink, sizeof(ifinfomsg), IFLA_LINKINFO), [&](uint16_t type, Bytes value) {
    if (type == IFLA_INFO_KIND) kind = Attribute{.present = true, .value = value}.text();
  });
  return kind;
}

// A virtual pair names a rate that means nothing; of other devices none is known here.
uint32_t Speed(const LinkConfig& link) {
  return Kind(link) == "veth" ? uint32_t{SPEED_10000} : static_cast<uint32_t>(SPEED_UNKNOWN);
}
uint8_t Duplex(const LinkConfig& link) { return Kind(link) == "veth" ? DUPLEX_FULL : DUPLEX_UNKNOWN; }

IoctlResult DriverInfo(const LinkConfig& link) {
  ethtool_drvinfo info{.cmd = ETHTOOL_GDRVINFO};
  const std::string kind = Kind(link);
  if (kind.empty()) return {.error = Errno::kEOPNOTSUPP};
  std::copy_n(kind.begin(), std::min(kind.size(), sizeof info.driver - 1), info.driver);
  std::copy_n("1.0", 3, info.version);
  return Extra(info);
}

IoctlResult LinkSettings(const LinkConfig& link, Bytes request) {
  if (link.loopback()) return {.error = Errno::kEOPNOTSUPP};
  const auto asked = LoadPrefix<ethtool_link_settings>(request);
  ethtool_link_settings settings{};
  settings.cmd = ETHTOOL_GLINKSETTINGS;
  // The first request asks how many words a mask has: told as a negative number.
  if (asked.link_mode_masks_nwords != kLinkModeWords) {
    settings.link_mode_masks_nwords = -kLinkModeWords;
    return Extra(settings);
  }
  settings.speed = Speed(link);
  settings.duplex = Duplex(link);
  settings.link_mode_masks_nwords = kLinkModeWords;
  IoctlResult result = Extra(settings);
  result.extra.resize(sizeof settings + 3 * kLinkModeWords * sizeof(uint32_t));
  return result;
}

IoctlResult OldSettings(const LinkConfig& link) {
  if (link.loopback()) return {.error = Errno::kEOPNOTSUPP};
  ethtool_cmd cmd{.cmd = ETHTOOL_GSET};
  const uint32_t speed = Speed(link);
  cmd.speed = static_cast<uint16_t>(speed);
  cmd.speed_hi = static_cast<uint16_t>(speed >> 16);
  cmd.duplex = Duplex(link);
  return Extra(cmd);
}

IoctlResult PermanentAddress(Bytes request) {
  // None is known: a size of zero, as for a device that has only an assigned one.
  if (request.size() < sizeof(ethtool_perm_addr)) return {.error = Errno::kEFAULT};
  return Extra(ethtool_perm_addr{.cmd = ETHTOOL_GPERMADDR, .size = 0});
}

}  // namespace

size_t EthtoolRoom(Bytes request) {
  if (request.size() < sizeof(uint32_t)) return 0;
  switch (LoadPrefix<uint32_t>(request)) {
    case ETHTOOL_GDRVINFO:
      return sizeof(ethtool_drvinfo);
    case ETHTOOL_GLINKSETTINGS: {
      const bool has_masks = LoadPrefix<ethtool_link_settings>(request).link_mode_masks_nwords == kLinkModeWords;
      return sizeof(ethtool_link_settings) + (has_masks ? 3 * kLinkModeWords * sizeof(uint32_t) : 0);
    }
    case ETHTOOL_GSET:
      return sizeof(ethtool_cmd);
    default:
      return sizeof(ethtool_value);  // as long as ethtool_perm_addr without an address
  }
}

IoctlResult Ethtool(const LinkConfig& link, Bytes request, const Caller& caller) {
  if (request.size() < sizeof(uint32_t)) return {.error = Errno::kEFAULT};
  const auto cmd = LoadPrefix<uint32_t>(request);
  auto value = [&](bool on) { return Extra(ethtool_value{.cmd = cmd, .data = on ? 1u : 0u}); };
  switch (cmd) {
    case ETHTOOL_GDRVINFO:
      return DriverInfo(link);
    case ETHTOOL_GLINK:
      return value(link.up() && link.carrier);
    case ETHTOOL_GLINKSETTINGS:
      return LinkSettings(link, request);
    case ETHTOOL_GSET:
      return OldSettings(link);
    case ETHTOOL_GPERMADDR:
      return PermanentAddress(request);
    // The stack does all of these for every device, in the device or in software.
    case ETHTOOL_GRXCSUM:
    case ETHTOOL_GTXCSUM:
    case ETHTOOL_GSG:
    case ETHTOOL_GTSO:
    case ETHTOOL_GGSO:
    case ETHTOOL_GGRO:
      return value(true);
    case ETHTOOL_GUFO:
      return value(false);
    // What is set on a device from inside is not passed on.
    case ETHTOOL_SSET:
    case ETHTOOL_SLINKSETTINGS:
    case ETHTOOL_SRXCSUM:
    case ETHTOOL_STXCSUM:
    case ETHTOOL_SSG:
    case ETHTOOL_STSO:
    case ETHTOOL_SGSO:
    case ETHTOOL_SGRO:
    case ETHTOOL_SFEATURES:
      return {.error = caller.net_admin ? Errno::kEOPNOTSUPP : Errno::kEPERM};
    default:
      return {.error = Errno::kEOPNOTSUPP};
  }
}

}  // namespace sluice::netlink
