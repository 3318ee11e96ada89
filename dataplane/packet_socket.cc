#include "dataplane/packet_socket.h"

#include <arpa/inet.h>
#include <linux/ethtool.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/if_packet.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <vector>

namespace sluice {
namespace {

#ifndef PACKET_IGNORE_OUTGOING
#define PACKET_IGNORE_OUTGOING 23
#endif

Errno Fail(std::string* error, const std::string& what, int saved_errno) {
  if (error != nullptr) *error = what + ": " + std::strerror(saved_errno);
  return static_cast<Errno>(saved_errno);
}

bool SetInt(int fd, int level, int option, int value) { return setsockopt(fd, level, option, &value, sizeof value) == 0; }

int GetInt(int fd, int level, int option) {
  int value = 0;
  socklen_t len = sizeof value;
  if (getsockopt(fd, level, option, &value, &len) != 0) return 0;
  return value;
}

// The forced form passes net.core.*mem_max; without CAP_NET_ADMIN the plain form gives what the limit allows.
void SetBuffer(int fd, int forced, int plain, int bytes) {
  if (!SetInt(fd, SOL_SOCKET, forced, bytes)) SetInt(fd, SOL_SOCKET, plain, bytes);
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

Errno OpenPacketSocket(IfIndex ifindex, const PacketSocketOptions& options, PacketSocket* out, std::string* error) {
  DeviceFacts device;
  if (Errno e = ReadDeviceFacts(ifindex, &device, error); e != Errno::kOk) return e;
  if (device.arp_type != 1) {
    return Fail(error, "device " + device.name + " carries no Ethernet frames (type " + std::to_string(device.arp_type) + ")",
                EOPNOTSUPP);
  }
  PacketSocket result;
  // Protocol 0: nothing is queued before bind names device and protocol together.
  result.fd = UniqueFd(socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int fd = result.fd.get();
  if (fd < 0) return Fail(error, "AF_PACKET socket (needs CAP_NET_RAW)", errno);
  PacketSocketFacts& facts = result.facts;
  facts.ifindex = ifindex;
  facts.mtu = device.mtu;
  facts.gso_max_size = device.gso_max_size;
  facts.device_tso = device.tso;
  if (options.vnet_header) {
    facts.vnet_header = SetInt(fd, SOL_PACKET, PACKET_VNET_HDR, 1);
    facts.vnet_header_refused = !facts.vnet_header;
  }
  // Before 4.20 there is no such option: the port then drops frames of type PACKET_OUTGOING itself.
  SetInt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1);
  if (!SetInt(fd, SOL_PACKET, PACKET_AUXDATA, 1)) return Fail(error, "PACKET_AUXDATA on " + device.name, errno);
  if (options.mark != 0 && !SetInt(fd, SOL_SOCKET, SO_MARK, static_cast<int>(options.mark))) {
    return Fail(error, "SO_MARK on the socket of " + device.name + " (needs CAP_NET_ADMIN)", errno);
  }
  SetBuffer(fd, SO_RCVBUFFORCE, SO_RCVBUF, options.receive_buffer);
  SetBuffer(fd, SO_SNDBUFFORCE, SO_SNDBUF, options.send_buffer);
  facts.receive_buffer = GetInt(fd, SOL_SOCKET, SO_RCVBUF);
  facts.send_buffer = GetInt(fd, SOL_SOCKET, SO_SNDBUF);
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(ETH_P_ALL);
  address.sll_ifindex = ifindex;
  if (bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return Fail(error, "bind of the packet socket to " + device.name, errno);
  }
  *out = std::move(result);
  return Errno::kOk;
}

}  // namespace sluice
