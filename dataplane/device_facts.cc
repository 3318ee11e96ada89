#include "dataplane/device_facts.h"

#include <linux/ethtool.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "xdp/unique_fd.h"

namespace sluice {
namespace {

Errno Fail(std::string* error, const std::string& what, int saved_errno) {
  if (error != nullptr) *error = what + ": " + std::strerror(saved_errno);
  return static_cast<Errno>(saved_errno);
}

// One RTM_GETLINK of a device by index.
Errno RequestLink(IfIndex ifindex, std::vector<uint8_t>* reply, std::string* error) {
  UniqueFd fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  if (!fd) return Fail(error, "netlink socket", errno);
  struct {
    nlmsghdr header;
    ifinfomsg info;
  } request{};
  request.header.nlmsg_len = sizeof request;
  request.header.nlmsg_type = RTM_GETLINK;
  request.header.nlmsg_flags = NLM_F_REQUEST;
  request.info.ifi_index = ifindex;
  if (send(fd.get(), &request, sizeof request, 0) < 0) return Fail(error, "RTM_GETLINK", errno);
  reply->resize(32768);
  ssize_t n = recv(fd.get(), reply->data(), reply->size(), 0);
  if (n < static_cast<ssize_t>(sizeof(nlmsghdr))) return Fail(error, "RTM_GETLINK", n < 0 ? errno : EPROTO);
  reply->resize(static_cast<size_t>(n));
  const auto* header = reinterpret_cast<const nlmsghdr*>(reply->data());
  if (header->nlmsg_type == NLMSG_ERROR) {
    const auto* e = static_cast<const nlmsgerr*>(NLMSG_DATA(header));
    return Fail(error, "device " + std::to_string(ifindex), e->error != 0 ? -e->error : ENODEV);
  }
  if (header->nlmsg_type != RTM_NEWLINK || !NLMSG_OK(header, static_cast<size_t>(n))) return Fail(error, "RTM_GETLINK", EPROTO);
  return Errno::kOk;
}

void ParseLinkInfo(const rtattr* info, DeviceFacts* out) {
  int left = static_cast<int>(RTA_PAYLOAD(info));
  for (const auto* a = static_cast<const rtattr*>(RTA_DATA(info)); RTA_OK(a, left); a = RTA_NEXT(a, left)) {
    if (a->rta_type != IFLA_INFO_KIND) continue;
    const char* text = static_cast<const char*>(RTA_DATA(a));
    out->kind.assign(text, strnlen(text, RTA_PAYLOAD(a)));
  }
}

void ParseLink(const std::vector<uint8_t>& reply, DeviceFacts* out) {
  const auto* header = reinterpret_cast<const nlmsghdr*>(reply.data());
  const auto* info = static_cast<const ifinfomsg*>(NLMSG_DATA(header));
  out->ifindex = info->ifi_index;
  out->arp_type = info->ifi_type;
  out->up = (info->ifi_flags & IFF_UP) != 0;
  int left = static_cast<int>(IFLA_PAYLOAD(header));
  for (const auto* a = IFLA_RTA(info); RTA_OK(a, left); a = RTA_NEXT(a, left)) {
    const void* data = RTA_DATA(a);
    auto u32 = [&] {
      uint32_t v = 0;
      if (RTA_PAYLOAD(a) >= sizeof v) std::memcpy(&v, data, sizeof v);
      return v;
    };
    switch (a->rta_type & NLA_TYPE_MASK) {
      case IFLA_IFNAME:
        out->name.assign(static_cast<const char*>(data), strnlen(static_cast<const char*>(data), RTA_PAYLOAD(a)));
        break;
      case IFLA_MTU:
        out->mtu = u32();
        break;
      case IFLA_GSO_MAX_SIZE:
        out->gso_max_size = u32();
        break;
      case IFLA_NUM_RX_QUEUES:
        out->rx_queues = u32();
        break;
      case IFLA_LINKINFO:
        ParseLinkInfo(a, out);
        break;
      default:
        break;
    }
  }
}

bool EthtoolFlag(int fd, ifreq* request, uint32_t command) {
  ethtool_value value{};
  value.cmd = command;
  request->ifr_data = reinterpret_cast<char*>(&value);
  return ioctl(fd, SIOCETHTOOL, request) == 0 && value.data != 0;
}

void ReadEthtool(DeviceFacts* out) {
  UniqueFd fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd) return;
  ifreq request{};
  std::strncpy(request.ifr_name, out->name.c_str(), IFNAMSIZ - 1);
  out->tso = EthtoolFlag(fd.get(), &request, ETHTOOL_GTSO) || EthtoolFlag(fd.get(), &request, ETHTOOL_GGSO);
  // The link says how many queues the device has; of a veth, say, it uses fewer.
  ethtool_channels channels{};
  channels.cmd = ETHTOOL_GCHANNELS;
  request.ifr_data = reinterpret_cast<char*>(&channels);
  if (ioctl(fd.get(), SIOCETHTOOL, &request) == 0 && channels.rx_count + channels.combined_count > 0)
    out->rx_queues = channels.rx_count + channels.combined_count;
  ethtool_drvinfo driver{};
  driver.cmd = ETHTOOL_GDRVINFO;
  request.ifr_data = reinterpret_cast<char*>(&driver);
  if (ioctl(fd.get(), SIOCETHTOOL, &request) == 0)
    out->driver.assign(driver.driver, strnlen(driver.driver, sizeof driver.driver));
}

}  // namespace

Errno ReadDeviceFacts(IfIndex ifindex, DeviceFacts* out, std::string* error) {
  std::vector<uint8_t> reply;
  if (Errno e = RequestLink(ifindex, &reply, error); e != Errno::kOk) return e;
  *out = DeviceFacts{};
  ParseLink(reply, out);
  ReadEthtool(out);
  return Errno::kOk;
}

}  // namespace sluice
