#include "examples/http_echo/open_link.h"

#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "dataplane/dpdk_link.h"
#include "dataplane/packet_port.h"
#include "dataplane/tap_port.h"
#include "dataplane/xdp_port.h"

namespace sluice::example {
namespace {

std::string OpenTapLink(const std::string& device, BlockPool& pool, Opened* out) {
  TapQueues queues;
  std::string error;
  if (OpenTap({.name = device}, &queues, &error) != Errno::kOk) return error;
  out->mtu = queues.facts.mtu;
  out->mac = {{2, 0x73, 0x6c, 0x75, 0x63, 1}};  // the kernel's end has its own
  out->port = std::make_unique<TapPort>(std::move(queues.fds[0]), queues.facts, TapPortOptions{}, pool);
  return {};
}

std::string OpenDpdkLink(const std::string& device, BlockPool& pool, Opened* out) {
  DpdkLink link;
  std::string error;
  if (OpenDpdk({.device = device, .ifindex = 2}, pool, &link, &error) != Errno::kOk) return error;
  out->mac = link.mac;
  out->mtu = link.mtu;
  out->port = std::move(link.queues[0]);
  return {};
}

bool ReadMac(const std::string& device, MacAddress* out) {
  UniqueFd fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::strncpy(request.ifr_name, device.c_str(), IFNAMSIZ - 1);
  if (!fd || ioctl(fd.get(), SIOCGIFHWADDR, &request) != 0) return false;
  std::memcpy(out->bytes.data(), request.ifr_hwaddr.sa_data, out->bytes.size());
  return true;
}

std::string OpenXdpLink(const DeviceFacts& facts, BlockPool& pool, Opened* out) {
  std::vector<Xsk> sockets;
  std::string error;
  if (OpenXdpDevice(facts.ifindex, 1, {.veth = facts.kind == "veth", .mtu = facts.mtu}, {}, &out->xdp, &sockets, &error) !=
      Errno::kOk)
    return error;
  out->port = XdpPort::Create(std::move(sockets[0].fd), std::move(sockets[0].umem), sockets[0].facts, {}, pool, &error);
  return out->port != nullptr ? "" : error;
}

}  // namespace

std::string OpenLink(const std::string& link, const std::string& device, BlockPool& pool, Opened* out) {
  if (link == "tap") return OpenTapLink(device, pool, out);
  if (link == "dpdk") return OpenDpdkLink(device, pool, out);
  if (link != "packet" && link != "xdp") return "--link=" + link + ": not a valid value (allowed: packet, xdp, tap, dpdk)";
  DeviceFacts facts;
  std::string error;
  const unsigned index = if_nametoindex(device.c_str());
  if (index == 0 || !ReadMac(device, &out->mac)) return "--device=" + device + ": no such device";
  if (ReadDeviceFacts(static_cast<IfIndex>(index), &facts, &error) != Errno::kOk) return error;
  if (!facts.up) return "--device=" + device + ": it is down (ip link set " + device + " up)";
  out->mtu = facts.mtu;
  if (link == "xdp") return OpenXdpLink(facts, pool, out);
  PacketSocket socket;
  if (OpenPacketSocket(static_cast<IfIndex>(index), {}, &socket, &error) != Errno::kOk) return error;
  out->port = std::make_unique<PacketPort>(std::move(socket.fd), socket.facts, PacketPortOptions{}, pool);
  return {};
}

}  // namespace sluice::example
