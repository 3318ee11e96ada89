#include "control/bench/bench_ports.h"

#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "control/log.h"
#include "control/os.h"
#include "dataplane/choose_link.h"
#include "dataplane/dpdk_link.h"
#include "dataplane/packet_port.h"
#include "dataplane/tap_port.h"
#include "dataplane/xdp_port.h"

namespace sluice {
namespace {

Status OpenXdpPort(const Flags& flags, const BenchOptions& options, const DeviceFacts& device, BlockPool& pool, BenchPort* out) {
  std::vector<Xsk> sockets;
  std::string error;
  const XdpDeviceFacts facts{.veth = device.kind == "veth", .mtu = device.mtu};
  if (OpenXdpDevice(device.ifindex, 1, facts, {.mode = options.xdp_mode}, &out->xdp, &sockets, &error) != Errno::kOk) {
    return Status::Error("--link=xdp: device " + device.name + ": " + error);
  }
  out->port = XdpPort::Create(std::move(sockets[0].fd), std::move(sockets[0].umem), sockets[0].facts,
                              {.software_gso = flags.software_gso}, pool, &error);
  if (out->port == nullptr) return Status::Error("--link=xdp: device " + device.name + ": " + error);
  return {};
}

Status OpenPacketPort(const Flags& flags, const DeviceFacts& device, BlockPool& pool, BenchPort* out) {
  PacketSocket socket;
  std::string error;
  if (OpenPacketSocket(device.ifindex, {.vnet_header = flags.gso}, &socket, &error) != Errno::kOk) {
    return Status::Error("--link=packet: device " + device.name + ": " + error);
  }
  out->port = std::make_unique<PacketPort>(std::move(socket.fd), socket.facts,
                                           PacketPortOptions{.software_gso = flags.software_gso}, pool);
  return {};
}

Status OpenTapPort(const Flags& flags, const std::string& name, BlockPool& pool, BenchPort* out) {
  TapQueues queues;
  std::string error;
  if (OpenTap({.name = name, .vnet_header = flags.gso}, &queues, &error) != Errno::kOk)
    return Status::Error("--link=tap: cannot make " + error);
  UniqueFd control(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::strncpy(request.ifr_name, name.c_str(), IFNAMSIZ - 1);
  request.ifr_flags = IFF_UP;
  if (!control || ioctl(control.get(), SIOCSIFFLAGS, &request) != 0)
    return Status::Error("--link=tap: cannot set " + name + " up" + ErrnoText(errno));
  out->port =
      std::make_unique<TapPort>(std::move(queues.fds[0]), queues.facts, TapPortOptions{.software_gso = flags.software_gso}, pool);
  return {};
}

Status OpenDpdkPort(const Flags& flags, const std::string& device, BlockPool& pool, BenchPort* out) {
  DpdkLink link;
  std::string error;
  if (OpenDpdk({.device = device, .offloads = flags.gso, .software_gso = flags.software_gso}, pool, &link, &error) !=
      Errno::kOk) {
    return Status::Error("--link=dpdk: " + error);
  }
  out->port = std::move(link.queues[0]);
  return {};
}

}  // namespace

Status OpenBenchPort(const Flags& flags, const BenchOptions& options, const std::string& device, BlockPool& pool,
                     BenchPort* out) {
  if (flags.link == LinkFlag::kTap) return OpenTapPort(flags, device, pool, out);
  if (flags.link == LinkFlag::kDpdk) return OpenDpdkPort(flags, device, pool, out);
  const unsigned index = if_nametoindex(device.c_str());
  if (index == 0) return Status::Error("--device=" + device + ": no such device");
  DeviceFacts facts;
  std::string error;
  if (ReadDeviceFacts(static_cast<IfIndex>(index), &facts, &error) != Errno::kOk)
    return Status::Error("--device=" + device + ": " + error);
  if (!facts.up) return Status::Error("--device=" + device + ": it is down (ip link set " + device + " up)");
  const bool xdp = flags.link == LinkFlag::kXdp || (flags.link == LinkFlag::kAuto && ChooseLink(facts).kind == LinkKind::kXdp);
  return xdp ? OpenXdpPort(flags, options, facts, pool, out) : OpenPacketPort(flags, facts, pool, out);
}

}  // namespace sluice
