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
#include "dataplane/system.h"
#include "dataplane/tap_port.h"
#include "dataplane/xdp_port.h"

namespace sluice {
namespace {

using Pools = std::span<BlockPool* const>;

wire::SteeringKey NewKey() {
  SystemRng rng;
  return wire::NewSteeringKey(rng);
}

Status OpenXdp(const Flags& flags, const BenchOptions& options, const DeviceFacts& device, Pools pools, BenchDevice* out) {
  std::vector<Xsk> sockets;
  std::string error;
  const XdpDeviceFacts facts{.veth = device.kind == "veth", .mtu = device.mtu, .rx_queues = device.rx_queues};
  const auto count = static_cast<uint32_t>(pools.size());
  const wire::SteeringKey key = NewKey();
  const XskOptions xsk{.mode = options.xdp_mode, .steering = &key};
  if (OpenXdpDevice(device.ifindex, count, facts, xsk, &out->xdp, &sockets, &error) != Errno::kOk ||
      XdpPort::CreateQueues(std::move(sockets), {.software_gso = flags.software_gso}, pools, &out->queues, &error) !=
          Errno::kOk) {
    return Status::Error("--link=xdp: device " + device.name + ": " + error);
  }
  return {};
}

Status OpenPacketDevice(const Flags& flags, const DeviceFacts& device, Pools pools, BenchDevice* out) {
  std::vector<PacketSocket> sockets(1);
  std::string error;
  const PacketSocketOptions options{.vnet_header = flags.gso};
  const Errno e = pools.size() == 1 ? OpenPacketSocket(device.ifindex, options, sockets.data(), &error)
                                    : OpenPacketQueues(device.ifindex, options, static_cast<uint32_t>(pools.size()), NewKey(),
                                                       &sockets, &error);
  if (e != Errno::kOk) return Status::Error("--link=packet: device " + device.name + ": " + error);
  for (size_t i = 0; i < pools.size(); ++i) {
    out->queues.push_back(std::make_unique<PacketPort>(std::move(sockets[i].fd), sockets[i].facts,
                                                       PacketPortOptions{.software_gso = flags.software_gso}, *pools[i]));
  }
  return {};
}

Status OpenTapDevice(const Flags& flags, const std::string& name, Pools pools, BenchDevice* out) {
  TapQueues queues;
  std::string error;
  TapOptions options{.name = name, .queues = static_cast<uint32_t>(pools.size()), .vnet_header = flags.gso};
  if (pools.size() > 1) options.steering = NewKey();
  if (OpenTap(options, &queues, &error) != Errno::kOk) return Status::Error("--link=tap: cannot make " + error);
  UniqueFd control(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::strncpy(request.ifr_name, name.c_str(), IFNAMSIZ - 1);
  request.ifr_flags = IFF_UP;
  if (!control || ioctl(control.get(), SIOCSIFFLAGS, &request) != 0)
    return Status::Error("--link=tap: cannot set " + name + " up" + ErrnoText(errno));
  for (size_t i = 0; i < pools.size(); ++i) {
    out->queues.push_back(std::make_unique<TapPort>(std::move(queues.fds[i]), queues.facts,
                                                    TapPortOptions{.software_gso = flags.software_gso}, *pools[i]));
  }
  return {};
}

Status OpenDpdkDevice(const Flags& flags, const std::string& device, Pools pools, BenchDevice* out) {
  if (pools.size() > 1) return Status::Error("--link=dpdk: one worker only (--workers=1)");
  DpdkLink link;
  std::string error;
  if (OpenDpdk({.device = device, .offloads = flags.gso, .software_gso = flags.software_gso}, *pools[0], &link, &error) !=
      Errno::kOk) {
    return Status::Error("--link=dpdk: " + error);
  }
  out->queues.push_back(std::move(link.queues[0]));
  return {};
}

}  // namespace

Status OpenBenchDevice(const Flags& flags, const BenchOptions& options, const std::string& device, Pools pools,
                       BenchDevice* out) {
  if (flags.link == LinkFlag::kTap) return OpenTapDevice(flags, device, pools, out);
  if (flags.link == LinkFlag::kDpdk) return OpenDpdkDevice(flags, device, pools, out);
  const unsigned index = if_nametoindex(device.c_str());
  if (index == 0) return Status::Error("--device=" + device + ": no such device");
  DeviceFacts facts;
  std::string error;
  if (ReadDeviceFacts(static_cast<IfIndex>(index), &facts, &error) != Errno::kOk)
    return Status::Error("--device=" + device + ": " + error);
  if (!facts.up) return Status::Error("--device=" + device + ": it is down (ip link set " + device + " up)");
  const bool xdp = flags.link == LinkFlag::kXdp || (flags.link == LinkFlag::kAuto && ChooseLink(facts).kind == LinkKind::kXdp);
  return xdp ? OpenXdp(flags, options, facts, pools, out) : OpenPacketDevice(flags, facts, pools, out);
}

}  // namespace sluice
