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

std::string OpenTapLink(const std::string& device, WorkerGroup& group, Opened* out) {
  TapQueues queues;
  std::string error;
  TapOptions options{.name = device, .queues = group.size()};
  if (group.size() > 1) options.steering = group.key();
  if (OpenTap(options, &queues, &error) != Errno::kOk) return error;
  out->mtu = queues.facts.mtu;
  out->mac = {{2, 0x73, 0x6c, 0x75, 0x63, 1}};  // the kernel's end has its own
  for (uint32_t i = 0; i < group.size(); ++i)
    out->queues.push_back(std::make_unique<TapPort>(std::move(queues.fds[i]), queues.facts, TapPortOptions{}, group.pool(i)));
  return {};
}

std::string OpenDpdkLink(const std::string& device, WorkerGroup& group, Opened* out) {
  DpdkLink link;
  std::string error;
  if (group.size() > 1) return "--link=dpdk: one worker only";
  if (OpenDpdk({.device = device, .ifindex = 2}, group.pool(0), &link, &error) != Errno::kOk) return error;
  out->mac = link.mac;
  out->mtu = link.mtu;
  out->queues.push_back(std::move(link.queues[0]));
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

std::string OpenPacketLink(IfIndex ifindex, WorkerGroup& group, std::vector<std::unique_ptr<Port>>* out) {
  std::vector<PacketSocket> sockets(1);
  std::string error;
  const Errno e = group.size() == 1 ? OpenPacketSocket(ifindex, {}, sockets.data(), &error)
                                    : OpenPacketQueues(ifindex, {}, group.size(), group.key(), &sockets, &error);
  if (e != Errno::kOk) return error;
  for (uint32_t i = 0; i < group.size(); ++i)
    out->push_back(std::make_unique<PacketPort>(std::move(sockets[i].fd), sockets[i].facts, PacketPortOptions{}, group.pool(i)));
  return {};
}

std::string OpenXdpLink(const DeviceFacts& facts, WorkerGroup& group, Opened* out) {
  // What AF_XDP does not hear, of queues that the device gets later, say, comes by packet sockets.
  std::vector<std::unique_ptr<Port>> beside;
  if (const std::string failed = OpenPacketLink(facts.ifindex, group, &beside); !failed.empty()) return failed;
  std::vector<Xsk> sockets;
  std::string error;
  const XdpDeviceFacts device{.veth = facts.kind == "veth", .mtu = facts.mtu, .rx_queues = facts.rx_queues};
  std::vector<BlockPool*> pools;
  for (uint32_t i = 0; i < group.size(); ++i) pools.push_back(&group.pool(i));
  const XskOptions options{.steering = &group.key()};
  if (OpenXdpDevice(facts.ifindex, group.size(), device, options, &out->xdp, &sockets, &error) != Errno::kOk ||
      XdpPort::CreateQueues(std::move(sockets), {}, pools, &out->queues, &error, std::move(beside)) != Errno::kOk) {
    return error;
  }
  return {};
}

}  // namespace

std::string OpenLink(const std::string& link, const std::string& device, WorkerGroup& group, Opened* out) {
  if (link == "tap") return OpenTapLink(device, group, out);
  if (link == "dpdk") return OpenDpdkLink(device, group, out);
  if (link != "packet" && link != "xdp") return "--link=" + link + ": not a valid value (allowed: packet, xdp, tap, dpdk)";
  DeviceFacts facts;
  std::string error;
  const unsigned index = if_nametoindex(device.c_str());
  if (index == 0 || !ReadMac(device, &out->mac)) return "--device=" + device + ": no such device";
  if (ReadDeviceFacts(static_cast<IfIndex>(index), &facts, &error) != Errno::kOk) return error;
  if (!facts.up) return "--device=" + device + ": it is down (ip link set " + device + " up)";
  out->mtu = facts.mtu;
  if (link == "xdp") return OpenXdpLink(facts, group, out);
  return OpenPacketLink(facts.ifindex, group, &out->queues);
}

}  // namespace sluice::example
