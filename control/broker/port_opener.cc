#include "control/broker/port_opener.h"

#include <fcntl.h>
#include <net/if.h>
#include <net/if_arp.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "control/log.h"

namespace sluice {

Status PortOpener::Open(int ifindex, OpenedPort* out) {
  char name[IF_NAMESIZE];
  if (plan_.flags.network != NetworkMode::kSandbox) return Status::Error("this sandbox has no devices");
  if (if_indextoname(static_cast<unsigned>(ifindex), name) == nullptr) return Status::Error(Format("device %d is gone", ifindex));
  const auto& named = plan_.options.devices;
  if (!named.empty() && std::find(named.begin(), named.end(), name) == named.end()) {
    return Status::Error(Format("device %s is not one of the sandbox (--device)", name));
  }
  DeviceFacts device;
  std::string error;
  if (ReadDeviceFacts(ifindex, &device, &error) != Errno::kOk) return Status::Error(Format("device %s: ", name) + error);
  if (device.arp_type != ARPHRD_ETHER) return Status::Error(Format("device %s is not an Ethernet device", name));
  SLUICE_RETURN_IF_ERROR(silencing_.Silence(ifindex, name));

  PortBlob blob;
  std::strncpy(blob.name, name, sizeof blob.name - 1);
  if (!plan_.own_link.tap.fds.empty() && ifindex == plan_.own_link.inside_index) {
    SLUICE_RETURN_IF_ERROR(OpenOwnTap(out, &blob));
    out->blob.assign(reinterpret_cast<const char*>(&blob), sizeof blob);
    return {};
  }
  bool xdp = plan_.flags.link == LinkFlag::kXdp;
  if (plan_.flags.link == LinkFlag::kAuto || plan_.flags.link == LinkFlag::kTap) {  // the latter: a device that came later
    const LinkChoice choice = ChooseLink(device);
    xdp = choice.kind == LinkKind::kXdp;
    Log(LogLevel::kDebug, "device %s: %s", name, choice.reason.c_str());
  }
  if (xdp) {
    const Status opened = OpenXdp(device, out, &blob);
    if (!opened.ok() && plan_.flags.link == LinkFlag::kXdp) return Status::Error("--link=xdp: " + opened.line());
    if (!opened.ok()) Log(LogLevel::kInfo, "%s; going on with the packet port", opened.line().c_str());
    xdp = opened.ok();
  }
  if (!xdp) SLUICE_RETURN_IF_ERROR(OpenPacket(ifindex, name, out, &blob));
  out->blob.assign(reinterpret_cast<const char*>(&blob), sizeof blob);
  return {};
}

Status PortOpener::OpenPacket(int ifindex, const char* name, OpenedPort* out, PortBlob* blob) {
  PacketSocketOptions options;
  options.vnet_header = plan_.flags.gso;
  options.mark = kSluiceMark;
  options.filter = plan_.flow_programs.tap.get();
  PacketSocket socket;
  std::string error;
  const Errno e = OpenPacketSocket(ifindex, options, &socket, &error);
  if (e != Errno::kOk) return Status::Error(Format("device %s: ", name) + error);
  if (socket.facts.vnet_header_refused) {
    Log(LogLevel::kWarning, "device %s takes no virtio-net header: segmentation offload is off there (as with --gso=false)",
        name);
  }
  blob->kind = LinkKind::kPacket;
  blob->packet = socket.facts;
  out->fds.push_back(std::move(socket.fd));
  return {};
}

Status PortOpener::OpenXdp(const DeviceFacts& device, OpenedPort* out, PortBlob* blob) {
  // First: it hears what comes before the program is there.
  OpenedPort beside;
  SLUICE_RETURN_IF_ERROR(OpenPacket(device.ifindex, device.name.c_str(), &beside, blob));
  XdpAttachment attachment;
  std::vector<Xsk> sockets;
  std::string error;
  const XdpDeviceFacts facts{.veth = device.kind == "veth", .mtu = device.mtu};
  XskOptions options;
  if (plan_.flow_programs) options.flows = &plan_.flow_maps;
  if (OpenXdpDevice(device.ifindex, 1, facts, options, &attachment, &sockets, &error) != Errno::kOk) {
    return Status::Error("device " + device.name + ": " + error);
  }
  if (device.rx_queues > 1) {
    Log(LogLevel::kWarning,
        "device %s uses %u receive queues, AF_XDP hears one of them: frames of the others take the packet socket's slower way "
        "(one queue: ethtool -L)",
        device.name.c_str(), device.rx_queues);
  }
  attachments_.insert_or_assign(device.ifindex, Attached{.program = std::move(attachment), .rx_queues = device.rx_queues});
  blob->kind = LinkKind::kXdp;
  blob->xdp = sockets[0].facts;
  out->fds.push_back(std::move(sockets[0].fd));
  out->fds.push_back(std::move(sockets[0].umem));
  out->fds.push_back(std::move(beside.fds[0]));
  return {};
}

// The host's device, which the guard made: its frames are those of the device inside, which holds the configuration.
Status PortOpener::OpenOwnTap(OpenedPort* out, PortBlob* blob) {
  UniqueFd fd(fcntl(plan_.own_link.tap.fds[0].get(), F_DUPFD_CLOEXEC, 0));
  if (!fd) return Status::Error("cannot pass the tap device on" + ErrnoText(errno));
  blob->kind = LinkKind::kTap;
  blob->tap = plan_.own_link.tap.facts;
  blob->tap.ifindex = plan_.own_link.inside_index;
  out->fds.push_back(std::move(fd));
  return {};
}

Status PortOpener::Check(const std::function<void(int ifindex, const control::PortFaultCounts&)>& tell) {
  for (auto& [ifindex, attached] : attachments_) {
    const control::PortFaultCounts before = attached.faults;
    CheckProgram(ifindex, &attached);
    CheckQueues(ifindex, &attached);
    if (std::memcmp(&before, &attached.faults, sizeof before) != 0) tell(ifindex, attached.faults);
  }
  return silencing_.Check();
}

// Says what changed, once.
void PortOpener::CheckProgram(int ifindex, Attached* attached) {
  std::string error;
  const Errno e = attached->program.Restore(&error);
  const uint64_t restored = attached->program.restored();
  if (restored != attached->faults.xdp_programs_restored) {
    Log(LogLevel::kWarning, "device %d: somebody took sluice's XDP program off; it is attached again (time %llu)", ifindex,
        static_cast<unsigned long long>(restored));
  } else if (e != attached->state && e != Errno::kOk && e != Errno::kENODEV) {
    Log(LogLevel::kWarning, "device %d: sluice's XDP program is off, frames take the packet socket's slower way: %s", ifindex,
        error.c_str());
  }
  attached->state = e;
  attached->faults.xdp_programs_restored = restored;
}

void PortOpener::CheckQueues(int ifindex, Attached* attached) {
  DeviceFacts device;
  if (ReadDeviceFacts(ifindex, &device, nullptr) != Errno::kOk || device.rx_queues == attached->rx_queues) return;
  ++attached->faults.queue_changes;
  Log(LogLevel::kWarning, "device %s: it uses %u receive queues, not %u (ethtool -L)%s", device.name.c_str(), device.rx_queues,
      attached->rx_queues,
      device.rx_queues > 1 ? "; frames of those without an AF_XDP socket take the packet socket's slower way" : "");
  attached->rx_queues = device.rx_queues;
}

void PortOpener::Close(int ifindex) {
  attachments_.erase(ifindex);
  // Believed only where it can be seen: a device that is still here stays silent.
  char name[IF_NAMESIZE];
  if (if_indextoname(static_cast<unsigned>(ifindex), name) == nullptr) silencing_.Forget(ifindex);
}

}  // namespace sluice
