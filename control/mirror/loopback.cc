// The loopback inside, in the form of the kernel's own messages.
#include <linux/if.h>
#include <linux/if_addr.h>
#include <linux/if_arp.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <algorithm>

#include "control/mirror/tables.h"
#include "control/rtnl.h"

namespace sluice {
namespace {

AddressConfig Address(const IpAddress& address, uint8_t prefix_len) {
  NetlinkMessage message(RTM_NEWADDR, 0);
  ifaddrmsg header{};
  header.ifa_family = address.is_v4() ? AF_INET : AF_INET6;
  header.ifa_prefixlen = prefix_len;
  header.ifa_flags = IFA_F_PERMANENT;
  header.ifa_scope = RT_SCOPE_HOST;
  header.ifa_index = kLoopbackIfIndex;
  message.Header(header).Attr(IFA_ADDRESS, address.bytes());
  if (address.is_v4()) message.Attr(IFA_LOCAL, address.bytes()).Attr(IFA_LABEL, std::string_view("lo"));
  message.Attr(IFA_FLAGS, uint32_t{IFA_F_PERMANENT});
  const ifa_cacheinfo forever{0xffffffff, 0xffffffff, 0, 0};
  message.Attr(IFA_CACHEINFO, Bytes(reinterpret_cast<const uint8_t*>(&forever), sizeof forever));
  AddressConfig out;
  ParseAddress(message.header(), &out);
  return out;
}

RouteConfig LocalRoute(const IpAddress& dst, uint8_t prefix_len, uint8_t type, uint32_t table) {
  NetlinkMessage message(RTM_NEWROUTE, 0);
  rtmsg header{};
  header.rtm_family = dst.is_v4() ? AF_INET : AF_INET6;
  header.rtm_dst_len = prefix_len;
  header.rtm_table = static_cast<uint8_t>(table);
  header.rtm_protocol = RTPROT_KERNEL;
  header.rtm_scope = dst.is_v6()             ? uint8_t{RT_SCOPE_UNIVERSE}
                     : type == RTN_BROADCAST ? uint8_t{RT_SCOPE_LINK}
                                             : uint8_t{RT_SCOPE_HOST};
  header.rtm_type = type;
  message.Header(header).Attr(RTA_TABLE, table).Attr(RTA_DST, dst.bytes());
  if (dst.is_v4()) {
    message.Attr(RTA_PREFSRC, IpAddress::Loopback(Family::kIpv4).bytes());
  } else {
    message.Attr(RTA_PRIORITY, type == RTN_LOCAL ? uint32_t{0} : uint32_t{256});
  }
  message.Attr(RTA_OIF, uint32_t{kLoopbackIfIndex});
  RouteConfig out;
  ParseRoute(message.header(), &out);
  return out;
}

}  // namespace

namespace {

// Attributes that say another thing while the device is down.
bool DependsOnState(uint16_t type) { return type == IFLA_OPERSTATE || type == IFLA_QDISC || type == IFLA_CARRIER; }

void CopyAttributes(const LinkConfig& kernel, NetlinkMessage* to) {
  if (kernel.netlink.size() < NLMSG_LENGTH(sizeof(ifinfomsg))) return;
  const auto* message = reinterpret_cast<const nlmsghdr*>(kernel.netlink.data());
  const nlattr* attribute;
  int left;
  nla_for_each_attr(attribute, nlmsg_attrdata(message, sizeof(ifinfomsg)), nlmsg_attrlen(message, sizeof(ifinfomsg)), left) {
    if (DependsOnState(static_cast<uint16_t>(nla_type(attribute)))) continue;
    to->Attr(attribute->nla_type,
             Bytes(static_cast<const uint8_t*>(nla_data(attribute)), static_cast<size_t>(nla_len(attribute))));
  }
}

}  // namespace

LinkConfig LoopbackLink(const LinkConfig* kernel) {
  NetlinkMessage message(RTM_NEWLINK, 0);
  ifinfomsg header{};
  header.ifi_type = ARPHRD_LOOPBACK;
  header.ifi_index = kLoopbackIfIndex;
  header.ifi_flags = IFF_UP | IFF_LOOPBACK | IFF_RUNNING | IFF_LOWER_UP;
  message.Header(header);
  if (kernel != nullptr) {
    CopyAttributes(*kernel, &message);
  } else {
    const uint8_t zero[6]{};
    message.Attr(IFLA_IFNAME, std::string_view("lo")).Attr(IFLA_TXQLEN, uint32_t{1000}).Attr8(IFLA_LINKMODE, 0);
    message.Attr(IFLA_MTU, uint32_t{65536}).Attr(IFLA_ADDRESS, Bytes(zero)).Attr(IFLA_BROADCAST, Bytes(zero));
  }
  message.Attr8(IFLA_OPERSTATE, 0).Attr8(IFLA_CARRIER, 1).Attr(IFLA_QDISC, std::string_view("noqueue"));
  LinkConfig out;
  ParseLink(message.header(), &out);
  return out;
}

std::vector<AddressConfig> LoopbackAddresses() {
  return {Address(IpAddress::Loopback(Family::kIpv4), 8), Address(IpAddress::Loopback(Family::kIpv6), 128)};
}

std::vector<RouteConfig> LoopbackRoutes() {
  const IpAddress v6 = IpAddress::Loopback(Family::kIpv6);
  return {LocalRoute(IpAddress::V4(127, 0, 0, 0), 8, RTN_LOCAL, RT_TABLE_LOCAL),
          LocalRoute(IpAddress::Loopback(Family::kIpv4), 32, RTN_LOCAL, RT_TABLE_LOCAL),
          LocalRoute(IpAddress::V4(127, 255, 255, 255), 32, RTN_BROADCAST, RT_TABLE_LOCAL),
          LocalRoute(v6, 128, RTN_LOCAL, RT_TABLE_LOCAL), LocalRoute(v6, 128, RTN_UNICAST, RT_TABLE_MAIN)};
}

}  // namespace sluice
