// Options and group membership of datagram sockets: man 7 ip, ipv6, udp, socket; linux net/core/sock.c, net/ipv4/ip_sockglue.c.
#include <algorithm>

#include "netstack/socket/datagram_base.h"

namespace sluice {
namespace {

constexpr int64_t kMinRcvBuf = 2304, kMinSndBuf = 4608;

struct Range {
  SockOpt option;
  int64_t min, max;
};

// What Linux refuses with EINVAL; booleans and the rest take any integer.
constexpr Range kRanges[] = {
    {SockOpt::kIpTtl, -1, 255},          {SockOpt::kIpMulticastTtl, -1, 255},  {SockOpt::kIpMtuDiscover, 0, 5},
    {SockOpt::kIpv6MtuDiscover, 0, 5},   {SockOpt::kIpv6UnicastHops, -1, 255}, {SockOpt::kIpv6MulticastHops, -1, 255},
    {SockOpt::kIpv6Tclass, -1, 255},     {SockOpt::kIpMulticastLoop, 0, 1},    {SockOpt::kIpMulticastAll, 0, 1},
    {SockOpt::kIpv6MulticastLoop, 0, 1}, {SockOpt::kIpMinTtl, 0, 255},         {SockOpt::kUdpSegment, 0, 65535},
};

bool IsBoolean(SockOpt o) {
  switch (o) {
    case SockOpt::kReuseAddr:
    case SockOpt::kReusePort:
    case SockOpt::kKeepAlive:
    case SockOpt::kBroadcast:
    case SockOpt::kDontRoute:
    case SockOpt::kOobInline:
    case SockOpt::kNoCheck:
    case SockOpt::kIpRecvErr:
    case SockOpt::kIpPktInfo:
    case SockOpt::kIpRecvTos:
    case SockOpt::kIpRecvTtl:
    case SockOpt::kIpRecvOpts:
    case SockOpt::kIpRetOpts:
    case SockOpt::kIpFreebind:
    case SockOpt::kIpTransparent:
    case SockOpt::kIpBindAddressNoPort:
    case SockOpt::kIpRecvOrigDstAddr:
    case SockOpt::kIpHdrIncl:
    case SockOpt::kIpv6V6Only:
    case SockOpt::kIpv6RecvPktInfo:
    case SockOpt::kIpv6RecvTclass:
    case SockOpt::kIpv6RecvHopLimit:
    case SockOpt::kIpv6RecvErr:
    case SockOpt::kIpv6Freebind:
    case SockOpt::kUdpGro:
      return true;
    default:
      return false;
  }
}

}  // namespace

bool DatagramBase::Supports(SockOpt o) const {
  if (o >= SockOpt::kIpv6V6Only && o <= SockOpt::kIpv6MinHopCount) {
    // Flow labels and hop count minima need IPv6 on the wire.
    return family_ == Family::kIpv6 && o != SockOpt::kIpv6AutoFlowLabel && o != SockOpt::kIpv6MinHopCount;
  }
  if (o >= SockOpt::kTcpNoDelay) return false;
  return o != SockOpt::kIpHdrIncl && o != SockOpt::kIpLocalPortRange;
}

Errno DatagramBase::SetOption(SockOpt o, int64_t v) {
  if (o >= SockOpt::kCount || !Supports(o)) return Errno::kENOPROTOOPT;
  int64_t& slot = options_[static_cast<size_t>(o)];
  auto& rcvbuf = options_[static_cast<size_t>(SockOpt::kRcvBuf)];
  auto& sndbuf = options_[static_cast<size_t>(SockOpt::kSndBuf)];
  const Sysctls& s = *context_.sysctls;
  for (const Range& r : kRanges) {
    if (r.option == o && (v < r.min || v > r.max)) return Errno::kEINVAL;
  }
  switch (o) {
    // Linux doubles: half is for its own overhead. Limits apply to what is asked.
    case SockOpt::kRcvBuf:
      rcvbuf = std::max(kMinRcvBuf, 2 * std::clamp<int64_t>(v, 0, s.rmem_max));
      return Errno::kOk;
    case SockOpt::kRcvBufForce:
      rcvbuf = std::max(kMinRcvBuf, 2 * std::clamp<int64_t>(v, 0, INT32_MAX / 2));
      return Errno::kOk;
    case SockOpt::kSndBuf:
      sndbuf = std::max(kMinSndBuf, 2 * std::clamp<int64_t>(v, 0, s.wmem_max));
      return Errno::kOk;
    case SockOpt::kSndBufForce:
      sndbuf = std::max(kMinSndBuf, 2 * std::clamp<int64_t>(v, 0, INT32_MAX / 2));
      return Errno::kOk;
    case SockOpt::kIpMtu:
    case SockOpt::kIpv6Mtu:
      return Errno::kENOPROTOOPT;  // read only here
    case SockOpt::kIpTtl:
      if (v == 0) return Errno::kEINVAL;
      break;
    case SockOpt::kIpMulticastTtl:
    case SockOpt::kIpv6MulticastHops:
      if (v == -1) v = 1;
      break;
    case SockOpt::kIpv6Tclass:
      v = std::max<int64_t>(v, 0);
      break;
    case SockOpt::kIpTos:
      v &= 0xff;
      break;
    case SockOpt::kIpv6V6Only:
      if (local_port_ != 0) return Errno::kEINVAL;
      break;
    case SockOpt::kRcvLowat:
      v = v < 0 ? INT32_MAX : std::max<int64_t>(v, 1);
      break;
    case SockOpt::kBindToIfIndex:
      if (v < 0) return Errno::kEINVAL;
      route_ = Route{};
      break;
    case SockOpt::kMark:
    case SockOpt::kDontRoute:
      route_ = Route{};
      break;
    default:
      break;
  }
  slot = IsBoolean(o) ? v != 0 : v;
  if (o == SockOpt::kIpTos) route_ = Route{};
  return Errno::kOk;
}

Errno DatagramBase::GetOption(SockOpt o, int64_t* value) const {
  if (o >= SockOpt::kCount || !Supports(o)) return Errno::kENOPROTOOPT;
  switch (o) {
    case SockOpt::kIpMtu:
    case SockOpt::kIpv6Mtu: {
      if (!remote_) return Errno::kENOTCONN;
      const Route r = network_.Lookup(RouteQuery{.destination = remote_, .source = local_, .any_source = true});
      if (!r.ok()) return Errno::kENOTCONN;
      *value = r.mtu;
      return Errno::kOk;
    }
    case SockOpt::kRcvBufForce:
      *value = option(SockOpt::kRcvBuf);
      return Errno::kOk;
    case SockOpt::kSndBufForce:
      *value = option(SockOpt::kSndBuf);
      return Errno::kOk;
    case SockOpt::kIpTtl:
    case SockOpt::kIpv6UnicastHops:
      *value = option(o) >= 0 ? option(o) : context_.sysctls->ip_default_ttl;
      return Errno::kOk;
    default:
      *value = option(o);
      return Errno::kOk;
  }
}

IfIndex DatagramBase::GroupDevice(const GroupRequest& r) const {
  if (r.ifindex != 0) return network_.FindDevice(r.ifindex) != nullptr ? r.ifindex : 0;
  const IpAddress by = r.interface.Unmapped();
  if (by && !by.IsAny()) return network_.routes().DeviceOf(by);
  const Route route = network_.Lookup(RouteQuery{.destination = r.group.Unmapped()});
  if (route.ok()) return route.ifindex;
  return 0;
}

Errno DatagramBase::JoinGroup(const GroupRequest& request) {
  const IpAddress group = request.group.Unmapped();
  if (!group.IsMulticast()) return Errno::kEINVAL;
  if (group.is_v6()) return Errno::kENODEV;  // IPv6 on the wire is not spoken
  const IfIndex ifindex = GroupDevice(request);
  if (ifindex == 0) return Errno::kENODEV;
  for (Group& g : groups_) {
    if (g.ifindex != ifindex || g.group != group) continue;
    if (!request.source || g.sources.empty()) return request.source ? Errno::kEINVAL : Errno::kEADDRINUSE;
    if (std::find(g.sources.begin(), g.sources.end(), request.source) != g.sources.end()) return Errno::kEADDRNOTAVAIL;
    if (g.sources.size() >= 10) return Errno::kENOBUFS;  // igmp_max_msf
    g.sources.push_back(request.source);
    return Errno::kOk;
  }
  if (groups_.size() >= kMaxGroups) return Errno::kENOBUFS;
  groups_.push_back(Group{ifindex, group, {}});
  if (request.source) groups_.back().sources.push_back(request.source);
  network_.JoinGroup(ifindex, group);
  return Errno::kOk;
}

Errno DatagramBase::LeaveGroup(const GroupRequest& request) {
  const IpAddress group = request.group.Unmapped();
  if (!group.IsMulticast()) return Errno::kEINVAL;
  const bool any_device = request.ifindex == 0 && (!request.interface || request.interface.Unmapped().IsAny());
  const IfIndex ifindex = any_device ? 0 : GroupDevice(request);
  if (!any_device && ifindex == 0) return Errno::kENODEV;
  for (auto g = groups_.begin(); g != groups_.end(); ++g) {
    if (g->group != group || (ifindex != 0 && g->ifindex != ifindex)) continue;
    if (request.source) {
      if (std::erase(g->sources, request.source) == 0) return Errno::kEADDRNOTAVAIL;
      if (!g->sources.empty()) return Errno::kOk;
    }
    const IfIndex left = g->ifindex;
    groups_.erase(g);
    network_.LeaveGroup(left, group);
    return Errno::kOk;
  }
  return Errno::kEADDRNOTAVAIL;
}

Errno DatagramBase::SetMulticastInterface(const IpAddress& address, IfIndex ifindex) {
  const IpAddress by = address.Unmapped();
  if (ifindex == 0 && (!by || by.IsAny())) {
    multicast_ifindex_ = 0;
    multicast_source_ = IpAddress();
    return Errno::kOk;
  }
  const IfIndex device = ifindex != 0 ? ifindex : network_.routes().DeviceOf(by);
  if (device == 0 || network_.FindDevice(device) == nullptr) return Errno::kEADDRNOTAVAIL;
  multicast_ifindex_ = device;
  multicast_source_ = by && !by.IsAny() ? by : IpAddress();
  return Errno::kOk;
}

bool DatagramBase::Accepts(const IpAddress& destination) const {
  if (!local_.IsAny()) return local_ == destination;
  return local_.family() == destination.family() || (destination.is_v4() && family_ == Family::kIpv6 && !v6only());
}

bool DatagramBase::AcceptsGroup(const IpAddress& group, IfIndex ifindex, const IpAddress& source) const {
  for (const Group& g : groups_) {
    if (g.group != group || g.ifindex != ifindex) continue;
    return g.sources.empty() || std::find(g.sources.begin(), g.sources.end(), source) != g.sources.end();
  }
  return option(SockOpt::kIpMulticastAll) != 0;
}

// --- taken over by a socket of another stack

struct DatagramBase::AllSettings final : DatagramSettings {
  decltype(options_) options;
  IpAddress local;
  bool address_bound, read_shut, write_shut;
  IpAddress multicast_source;
  IfIndex multicast_ifindex;
  std::vector<Group> groups;
};

std::shared_ptr<const DatagramSettings> DatagramBase::Settings() const {
  auto all = std::make_shared<AllSettings>();
  all->options = options_;
  all->local = local_, all->address_bound = address_bound_;
  all->read_shut = read_shut_, all->write_shut = write_shut_;
  all->multicast_source = multicast_source_, all->multicast_ifindex = multicast_ifindex_;
  all->groups = groups_;
  return all;
}

void DatagramBase::TakeSettings(const DatagramSettings& settings) {
  const auto& all = static_cast<const AllSettings&>(settings);
  options_ = all.options;
  local_ = all.local, address_bound_ = all.address_bound;
  read_shut_ = all.read_shut, write_shut_ = all.write_shut;
  multicast_source_ = all.multicast_source, multicast_ifindex_ = all.multicast_ifindex;
  groups_ = all.groups;
  for (const Group& g : groups_) network_.JoinGroup(g.ifindex, g.group);
}

}  // namespace sluice
