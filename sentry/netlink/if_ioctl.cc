#include "sentry/netlink/if_ioctl.h"

#include <linux/ethtool.h>
#include <linux/if.h>
#include <linux/if_arp.h>
#include <linux/route.h>
#include <linux/sockios.h>
#include <netinet/in.h>

#include <algorithm>
#include <string>

#include "sentry/netlink/if_ethtool.h"
#include "sentry/netlink/if_route.h"
#include "sentry/netlink/server_impl.h"

namespace sluice::netlink {
namespace {

IoctlResult Error(Errno error) { return {.error = error}; }

template <typename T>
IoctlResult Written(const T& argument) {
  const Bytes bytes = AsBytes(argument);
  return {.argument = Buffer(bytes.begin(), bytes.end())};
}

IoctlResult Changed(const NetChange& change) {
  IoctlResult result;
  result.changes.push_back(change);
  return result;
}

// The requests that are AF_INET's own; other families do not know them.
bool InetRequest(uint32_t request) {
  switch (request) {
    case SIOCGIFADDR:
    case SIOCSIFADDR:
    case SIOCGIFBRDADDR:
    case SIOCSIFBRDADDR:
    case SIOCGIFNETMASK:
    case SIOCSIFNETMASK:
    case SIOCGIFDSTADDR:
    case SIOCSIFDSTADDR:
    case SIOCGARP:
    case SIOCSARP:
    case SIOCDARP:
    case SIOCADDRT:
    case SIOCDELRT:
      return true;
    default:
      return false;
  }
}

std::string_view NameOf(const char* text, size_t size) { return {text, strnlen(text, size)}; }
std::string_view NameOf(const ifreq& req) { return NameOf(req.ifr_name, sizeof req.ifr_name); }

// "eth0:1" is an alias: an address with that label on eth0.
std::string_view DeviceOf(std::string_view name) { return name.substr(0, name.find(':')); }

sockaddr ToSockaddr(const IpAddress& address) {
  sockaddr_in in{.sin_family = AF_INET};
  if (address.is_v4()) std::copy_n(address.bytes().begin(), 4, reinterpret_cast<uint8_t*>(&in.sin_addr));
  return LoadPrefix<sockaddr>(AsBytes(in));
}

IpAddress FromSockaddr(const sockaddr& address) {
  return IpAddress::FromBytes(AsBytes(LoadPrefix<sockaddr_in>(AsBytes(address)).sin_addr));
}

NetAddress ToNetAddress(const IpAddress& address) {
  NetAddress out{.family = static_cast<uint8_t>(ToAf(address.family()))};
  std::copy_n(address.bytes().begin(), address.bytes().size(), out.bytes.begin());
  return out;
}

// The address that the old calls mean: with the given label, and if an address is named too, that one.
const AddressConfig* FindAddress(const NetConfig& config, const LinkConfig& link, std::string_view label, const sockaddr& named) {
  const AddressConfig* found = nullptr;
  for (const AddressConfig& a : config.addresses) {
    if (a.ifindex != link.index || !a.local.is_v4() || (a.label.empty() ? link.name : a.label) != label) continue;
    if (named.sa_family == AF_INET && a.local == FromSockaddr(named)) return &a;
    if (found == nullptr) found = &a;
  }
  return found;
}

// ---- reading ----

IoctlResult InterfaceList(const NetConfig& config, Bytes argument) {
  // struct ifconf: int length, padding, pointer.
  auto conf = LoadPrefix<ifconf>(argument);
  IoctlResult result;
  const bool measure = conf.ifc_buf == nullptr;
  const size_t room = measure ? kMaxIoctlExtra : static_cast<size_t>(std::max(conf.ifc_len, 0));
  for (const LinkConfig& link : config.links) {
    for (const AddressConfig& a : config.addresses) {
      if (a.ifindex != link.index || !a.local.is_v4()) continue;
      if (result.extra.size() + sizeof(ifreq) > std::min(room, kMaxIoctlExtra)) break;
      ifreq entry{};
      const std::string& label = a.label.empty() ? link.name : a.label;
      std::copy_n(label.begin(), std::min(label.size(), sizeof entry.ifr_name - 1), entry.ifr_name);
      entry.ifr_addr = ToSockaddr(a.local);
      result.extra.insert(result.extra.end(), AsBytes(entry).begin(), AsBytes(entry).end());
    }
  }
  conf.ifc_len = static_cast<int>(result.extra.size());
  if (measure) result.extra.clear();
  result.argument.assign(AsBytes(conf).begin(), AsBytes(conf).end());
  return result;
}

IoctlResult InterfaceName(const NetConfig& config, ifreq req) {
  const LinkConfig* link = FindLink(config, req.ifr_ifindex);
  if (link == nullptr) return Error(Errno::kENODEV);
  std::memset(req.ifr_name, 0, sizeof req.ifr_name);
  std::copy_n(link->name.begin(), std::min(link->name.size(), sizeof req.ifr_name - 1), req.ifr_name);
  return Written(req);
}

IoctlResult DeviceValue(const LinkConfig& link, uint32_t request, ifreq req) {
  switch (request) {
    case SIOCGIFFLAGS:
      req.ifr_flags = static_cast<int16_t>(link.flags);
      break;
    case SIOCGIFMETRIC:
      req.ifr_metric = 0;
      break;
    case SIOCGIFMTU:
      req.ifr_mtu = static_cast<int>(link.mtu);
      break;
    case SIOCGIFINDEX:
      req.ifr_ifindex = link.index;
      break;
    case SIOCGIFTXQLEN:
      req.ifr_qlen = static_cast<int>(link.tx_queue_len);
      break;
    case SIOCGIFMAP:
      req.ifr_map = {};
      break;
    case SIOCGIFHWADDR:
      req.ifr_hwaddr = {.sa_family = link.type};
      std::copy(link.mac.bytes.begin(), link.mac.bytes.end(), req.ifr_hwaddr.sa_data);
      break;
    default:
      return Error(Errno::kENOTTY);
  }
  return Written(req);
}

IoctlResult AddressValue(const NetConfig& config, const LinkConfig& link, uint32_t request, ifreq req) {
  const AddressConfig* a = FindAddress(config, link, NameOf(req), req.ifr_addr);
  if (a == nullptr) return Error(Errno::kEADDRNOTAVAIL);
  const uint32_t mask = a->prefix_len == 0 ? 0 : ~uint32_t{0} << (32 - std::min<int>(a->prefix_len, 32));
  switch (request) {
    case SIOCGIFADDR:
      req.ifr_addr = ToSockaddr(a->local);
      break;
    case SIOCGIFBRDADDR:
      req.ifr_addr = ToSockaddr(a->broadcast);
      break;
    case SIOCGIFDSTADDR:
      req.ifr_addr = ToSockaddr(a->peer ? a->peer : a->local);
      break;
    case SIOCGIFNETMASK:
      req.ifr_addr = ToSockaddr(IpAddress::V4(mask));
      break;
    default:
      return Error(Errno::kENOTTY);
  }
  return Written(req);
}

// ---- changing a device ----

IoctlResult SetDevice(const LinkConfig& link, uint32_t request, const ifreq& req) {
  NetChange change{.kind = NetChangeKind::kSetLink};
  LinkChange& c = change.link;
  c.ifindex = link.index;
  std::string why;
  switch (request) {
    case SIOCSIFFLAGS:
      // Only the low half of the flags fits the request.
      if (const Errno e = FlagsToChange(link, static_cast<uint16_t>(req.ifr_flags), 0xffff, &c, &why); e != Errno::kOk)
        return Error(e);
      break;
    case SIOCSIFMTU:
      if (req.ifr_mtu < 0) return Error(Errno::kEINVAL);
      c.has_mtu = true, c.mtu = static_cast<uint32_t>(req.ifr_mtu);
      break;
    case SIOCSIFTXQLEN:
      if (req.ifr_qlen < 0) return Error(Errno::kEINVAL);
      c.has_txqlen = true, c.txqlen = static_cast<uint32_t>(req.ifr_qlen);
      break;
    case SIOCSIFHWADDR:
      if (req.ifr_hwaddr.sa_family != link.type) return Error(Errno::kEINVAL);
      c.has_address = true;
      std::copy_n(reinterpret_cast<const uint8_t*>(req.ifr_hwaddr.sa_data), c.address.size(), c.address.begin());
      break;
    default:
      return Error(Errno::kEOPNOTSUPP);
  }
  return Changed(change);
}

// ---- changing an address ----

// The classes of RFC 791; -1 for what is no host's address.
int ClassfulPrefix(const IpAddress& address) {
  const uint32_t a = address.v4();
  if (a == 0) return 0;
  if (a < 0x80000000) return 8;
  if (a < 0xc0000000) return 16;
  if (a < 0xe0000000) return 24;
  return -1;
}

AddressChange ToChange(const AddressConfig& a) {
  AddressChange c{.ifindex = a.ifindex, .family = AF_INET, .prefix_len = a.prefix_len, .scope = a.scope};
  c.local = ToNetAddress(a.local);
  c.address = ToNetAddress(a.peer ? a.peer : a.local);
  if (a.broadcast) c.broadcast = ToNetAddress(a.broadcast);
  c.label = ToNetName(a.label);
  return c;
}

IpAddress Broadcast(const IpAddress& local, int prefix_len) {
  const uint32_t host = prefix_len == 0 ? ~uint32_t{0} : prefix_len >= 32 ? 0 : ~uint32_t{0} >> prefix_len;
  return IpAddress::V4(local.v4() | host);
}

Errno SetLocal(const LinkConfig& link, const IpAddress& local, AddressChange* c) {
  const int prefix = ClassfulPrefix(local);
  if (prefix < 0) return Errno::kEINVAL;
  const bool point_to_point = (link.flags & IFF_POINTOPOINT) != 0;
  c->prefix_len = static_cast<uint8_t>(point_to_point ? 32 : prefix);
  c->local = c->address = ToNetAddress(local);
  c->broadcast = {};
  c->scope = 0;
  if (!point_to_point && (link.flags & IFF_BROADCAST) != 0) c->broadcast = ToNetAddress(Broadcast(local, prefix));
  return Errno::kOk;
}

Errno SetNetmask(const IpAddress& mask, const AddressConfig& old, AddressChange* c) {
  const uint32_t host = ~mask.v4();
  if ((host & (host + 1)) != 0) return Errno::kEINVAL;
  c->prefix_len = static_cast<uint8_t>(__builtin_popcount(mask.v4()));
  // The broadcast address follows the mask where it was the usual one, as the kernel does.
  if (old.broadcast && old.broadcast == Broadcast(old.local, old.prefix_len) && old.prefix_len < 31) {
    c->broadcast = ToNetAddress(Broadcast(old.local, c->prefix_len));
  }
  return Errno::kOk;
}

IoctlResult SetAddress(const NetConfig& config, const LinkConfig& link, uint32_t request, const ifreq& req) {
  const AddressConfig* old = FindAddress(config, link, NameOf(req), {});
  if (req.ifr_addr.sa_family != AF_INET) return Error(Errno::kEINVAL);
  if (old == nullptr && request != SIOCSIFADDR) return Error(Errno::kEADDRNOTAVAIL);
  const IpAddress value = FromSockaddr(req.ifr_addr);
  if (old != nullptr && request == SIOCSIFADDR && old->local == value) return {};
  AddressChange c{.ifindex = link.index, .family = AF_INET};
  if (old != nullptr) c = ToChange(*old);
  c.label = ToNetName(NameOf(req));
  Errno error = Errno::kOk;
  switch (request) {
    case SIOCSIFADDR:
      error = SetLocal(link, value, &c);
      break;
    case SIOCSIFNETMASK:
      error = SetNetmask(value, *old, &c);
      break;
    case SIOCSIFBRDADDR:
      c.broadcast = ToNetAddress(value);
      break;
    case SIOCSIFDSTADDR:
      c.address = ToNetAddress(value);
      break;
    default:
      error = Errno::kEOPNOTSUPP;
  }
  if (error != Errno::kOk) return Error(error);
  IoctlResult result;
  if (old != nullptr) {
    result.changes.push_back({.kind = NetChangeKind::kDeleteAddress, .address = ToChange(*old)});
  }
  // 0.0.0.0 only takes the old one away.
  if (!ToIpAddress(c.local).IsAny()) {
    result.changes.push_back({.kind = NetChangeKind::kNewAddress, .nl_flags = NLM_F_CREATE | NLM_F_EXCL, .address = c});
  }
  return result;
}

// ---- ARP ----

IoctlResult GetArp(const Backend& backend, const LinkConfig& link, arpreq req) {
  for (const NeighborInfo& n : backend.Neighbors()) {
    if (n.ifindex != link.index || n.address != FromSockaddr(req.arp_pa) || (n.state & 0x40) != 0) continue;  // NUD_NOARP
    const bool permanent = (n.state & 0x80) != 0;
    const bool valid = (n.state & (0x80 | 0x02 | 0x04 | 0x08 | 0x10)) != 0;
    req.arp_ha = {.sa_family = link.type};
    std::copy(n.mac.bytes.begin(), n.mac.bytes.end(), req.arp_ha.sa_data);
    req.arp_flags = permanent ? ATF_PERM | ATF_COM : valid ? ATF_COM : 0;
    return Written(req);
  }
  return Error(Errno::kENXIO);
}

IoctlResult ArpRequest(const Backend& backend, const NetConfig& config, uint32_t request, Bytes argument, const Caller& caller) {
  const auto req = LoadPrefix<arpreq>(argument);
  if (request != SIOCGARP && !caller.net_admin) return Error(Errno::kEPERM);
  if (req.arp_pa.sa_family != AF_INET) return Error(Errno::kEPFNOSUPPORT);
  const std::string_view name = NameOf(req.arp_dev, sizeof req.arp_dev);
  const LinkConfig* link = FindLink(config, name);
  if (link == nullptr) return Error(Errno::kENODEV);
  if (request == SIOCGARP) return GetArp(backend, *link, req);
  if ((req.arp_flags & ATF_PUBL) != 0) return Error(Errno::kEOPNOTSUPP);
  NetChange change{.kind = request == SIOCSARP ? NetChangeKind::kNewNeighbor : NetChangeKind::kDeleteNeighbor};
  if (request == SIOCSARP) {
    if ((req.arp_flags & ATF_PERM) == 0) return Error(Errno::kEOPNOTSUPP);  // learnt entries are the stack's own
    change.nl_flags = NLM_F_CREATE | NLM_F_REPLACE;
    change.neighbor.has_lladdr = true;
    std::copy_n(reinterpret_cast<const uint8_t*>(req.arp_ha.sa_data), 6, change.neighbor.lladdr.begin());
  }
  change.neighbor.ifindex = link->index;
  change.neighbor.family = AF_INET;
  change.neighbor.state = 0x80;  // NUD_PERMANENT
  change.neighbor.dst = ToNetAddress(FromSockaddr(req.arp_pa));
  return Changed(change);
}

bool Sets(uint32_t request) {
  switch (request) {
    case SIOCSIFFLAGS:
    case SIOCSIFMTU:
    case SIOCSIFTXQLEN:
    case SIOCSIFHWADDR:
    case SIOCSIFADDR:
    case SIOCSIFNETMASK:
    case SIOCSIFBRDADDR:
    case SIOCSIFDSTADDR:
    case SIOCSIFMETRIC:
    case SIOCSIFMAP:
    case SIOCSIFNAME:
    case SIOCSIFHWBROADCAST:
    case SIOCADDMULTI:
    case SIOCDELMULTI:
    case SIOCSHWTSTAMP:
    case SIOCSMIIREG:
      return true;
    default:
      return false;
  }
}

bool Refused(uint32_t request) {
  switch (request) {
    case SIOCSIFMETRIC:
    case SIOCSIFMAP:
    case SIOCSIFNAME:
    case SIOCSIFHWBROADCAST:
    case SIOCADDMULTI:
    case SIOCDELMULTI:
    case SIOCSHWTSTAMP:
    case SIOCGHWTSTAMP:
    case SIOCGMIIPHY:
    case SIOCGMIIREG:
    case SIOCSMIIREG:
      return true;
    default:
      return false;
  }
}

}  // namespace

std::optional<IoctlShape> ShapeOfIoctl(uint32_t request) {
  switch (request) {
    case SIOCGIFCONF:
      return IoctlShape{.argument = sizeof(ifconf), .pointer_offset = offsetof(ifconf, ifc_ifcu)};
    case SIOCETHTOOL:
      return IoctlShape{.argument = sizeof(ifreq),
                        .pointer_offset = offsetof(ifreq, ifr_ifru),
                        .extra_read_min = sizeof(uint32_t),
                        .extra_read_max = kEthtoolRead};
    case SIOCGARP:
    case SIOCSARP:
    case SIOCDARP:
      return IoctlShape{.argument = sizeof(arpreq)};
    case SIOCADDRT:
    case SIOCDELRT:
      return IoctlShape{.argument = sizeof(rtentry),
                        .pointer_offset = offsetof(rtentry, rt_dev),
                        .extra_read_min = 1,
                        .extra_read_max = IFNAMSIZ};
    case SIOCGIFNAME:
    case SIOCGIFFLAGS:
    case SIOCGIFADDR:
    case SIOCGIFDSTADDR:
    case SIOCGIFBRDADDR:
    case SIOCGIFNETMASK:
    case SIOCGIFMETRIC:
    case SIOCGIFMTU:
    case SIOCGIFHWADDR:
    case SIOCGIFINDEX:
    case SIOCGIFTXQLEN:
    case SIOCGIFMAP:
    case SIOCGIFSLAVE:
      return IoctlShape{.argument = sizeof(ifreq)};
    default:
      if (Sets(request) || Refused(request)) return IoctlShape{.argument = sizeof(ifreq)};
      return std::nullopt;
  }
}

bool IoctlNeedsRights(uint32_t request) {
  switch (request) {
    case SIOCETHTOOL:
    case SIOCSARP:
    case SIOCDARP:
    case SIOCADDRT:
    case SIOCDELRT:
      return true;
    default:
      return Sets(request) || Refused(request);
  }
}

size_t IoctlExtraRoom(uint32_t request, Bytes argument, Bytes extra) {
  if (request == SIOCETHTOOL) return EthtoolRoom(extra);
  if (request != SIOCGIFCONF || argument.size() < sizeof(ifconf)) return 0;
  const auto conf = LoadPrefix<ifconf>(argument);
  return std::min(static_cast<size_t>(std::max(conf.ifc_len, 0)), kMaxIoctlExtra);
}

IoctlResult DeviceIoctl(const Backend& backend, int family, uint32_t request, Bytes argument, Bytes extra, const Caller& caller) {
  const auto shape = ShapeOfIoctl(request);
  if (!shape || argument.size() < shape->argument) return Error(shape ? Errno::kEFAULT : Errno::kENOTTY);
  const bool inet = family == AF_INET || family == AF_PACKET;
  if (InetRequest(request) && !inet) return Error(Errno::kENOTTY);
  const auto config = backend.config();
  switch (request) {
    case SIOCGIFCONF:
      return InterfaceList(*config, argument);
    case SIOCGARP:
    case SIOCSARP:
    case SIOCDARP:
      return ArpRequest(backend, *config, request, argument, caller);
    case SIOCADDRT:
    case SIOCDELRT:
      return RouteIoctl(*config, request, argument, extra, caller);
    default:
      break;
  }
  auto req = LoadPrefix<ifreq>(argument);
  req.ifr_name[IFNAMSIZ - 1] = 0;
  if (request == SIOCGIFNAME) return InterfaceName(*config, req);
  if (Sets(request) && !caller.net_admin) return Error(Errno::kEPERM);
  const LinkConfig* link = FindLink(*config, DeviceOf(NameOf(req)));
  if (link == nullptr) return Error(Errno::kENODEV);
  if (request == SIOCETHTOOL) return Ethtool(*link, extra, caller);
  if (Refused(request)) return Error(Errno::kEOPNOTSUPP);
  if (request == SIOCGIFSLAVE) return Error(Errno::kEINVAL);
  if (InetRequest(request)) {
    return Sets(request) ? SetAddress(*config, *link, request, req) : AddressValue(*config, *link, request, req);
  }
  return Sets(request) ? SetDevice(*link, request, req) : DeviceValue(*link, request, req);
}

}  // namespace sluice::netlink
