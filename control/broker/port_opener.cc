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
  char name[IF_NAMESIZE] = {};
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
  static_assert(sizeof blob.name == IF_NAMESIZE);
  std::memcpy(blob.name, name, sizeof blob.name);
  if (!plan_.own_link.tap.fds.empty() && ifindex == plan_.own_link.inside_index) {
    return OpenOwnTap(blob, out);
  }
  bool xdp = plan_.flags.link == LinkFlag::kXdp;
  if (plan_.flags.link == LinkFlag::kAuto || plan_.flags.link == LinkFlag::kTap) {  // the latter: a device that came later
    const LinkChoice choice = ChooseLink(device);
    xdp = choice.kind == LinkKind::kXdp;
    Log(LogLevel::kDebug, "device %s: %s", name, choice.reason.c_str());
  }
  if (xdp) {
    const Status opened = OpenXdp(device, blob, out);
    if (!opened.ok() && plan_.flags.link == LinkFlag::kXdp) return Status::Error("--link=xdp: " + opened.line());
    if (!opened.ok()) Log(LogLevel::kInfo, "%s; going on with the packet port", opened.line().c_str());
    xdp = opened.ok();
  }
  return xdp ? Status() : OpenPacket(ifindex, blob, out);
}

namespace {

void Append(const PortBlob& blob, OpenedPort* out) { out->blobs.append(reinterpret_cast<const char*>(&blob), sizeof blob); }

}  // namespace

// One for each worker.
Status PortOpener::OpenPacketSockets(int ifindex, const char* name, std::vector<PacketSocket>* sockets) {
  PacketSocketOptions options;
  options.vnet_header = plan_.flags.gso;
  options.mark = kSluiceMark;
  options.filter = plan_.flow_programs.tap.get();
  sockets->resize(1);
  std::string error;
  const uint32_t queues = plan_.flags.num_network_channels;
  const Errno e = queues == 1 ? OpenPacketSocket(ifindex, options, &sockets->front(), &error)
                              : OpenPacketQueues(ifindex, options, queues, plan_.steering_key, sockets, &error);
  if (e != Errno::kOk) return Status::Error(Format("device %s: ", name) + error);
  if (sockets->front().facts.vnet_header_refused) {
    Log(LogLevel::kWarning, "device %s takes no virtio-net header: segmentation offload is off there (as with --gso=false)",
        name);
  }
  return {};
}

Status PortOpener::OpenPacket(int ifindex, PortBlob blob, OpenedPort* out) {
  std::vector<PacketSocket> sockets;
  SLUICE_RETURN_IF_ERROR(OpenPacketSockets(ifindex, blob.name, &sockets));
  blob.kind = LinkKind::kPacket;
  for (PacketSocket& socket : sockets) {
    blob.packet = socket.facts;
    Append(blob, out);
    out->fds.push_back(std::move(socket.fd));
  }
  return {};
}

Status PortOpener::OpenXdp(const DeviceFacts& device, PortBlob blob, OpenedPort* out) {
  // First: they hear what comes before the program is there.
  std::vector<PacketSocket> beside;
  SLUICE_RETURN_IF_ERROR(OpenPacketSockets(device.ifindex, blob.name, &beside));
  XdpAttachment attachment;
  std::vector<Xsk> sockets;
  std::string error;
  const XdpDeviceFacts facts{.veth = device.kind == "veth", .mtu = device.mtu, .rx_queues = device.rx_queues};
  XskOptions options;
  if (plan_.flow_programs) options.flows = &plan_.flow_maps;
  options.steering = &plan_.steering_key;
  if (OpenXdpDevice(device.ifindex, plan_.flags.num_network_channels, facts, options, &attachment, &sockets, &error) !=
      Errno::kOk) {
    return Status::Error("device " + device.name + ": " + error);
  }
  if (device.rx_queues > sockets.size()) {
    Log(LogLevel::kWarning,
        "device %s uses %u receive queues, AF_XDP hears one of them: frames of the others take the packet socket's slower way "
        "(one queue: ethtool -L)",
        device.name.c_str(), device.rx_queues);
  }
  attachments_.insert_or_assign(device.ifindex, Attached{.program = std::move(attachment), .rx_queues = device.rx_queues});
  blob.kind = LinkKind::kXdp;
  for (size_t i = 0; i < sockets.size(); ++i) {
    blob.xdp = sockets[i].facts;
    blob.packet = beside[i].facts;
    Append(blob, out);
    for (UniqueFd* fd : {&sockets[i].fd, &sockets[i].umem, &beside[i].fd}) out->fds.push_back(std::move(*fd));
  }
  return {};
}

// The host's device, which the guard made: its frames are those of the device inside, which holds the configuration.
Status PortOpener::OpenOwnTap(PortBlob blob, OpenedPort* out) {
  blob.kind = LinkKind::kTap;
  blob.tap = plan_.own_link.tap.facts;
  blob.tap.ifindex = plan_.own_link.inside_index;
  for (const UniqueFd& queue : plan_.own_link.tap.fds) {
    UniqueFd fd(fcntl(queue.get(), F_DUPFD_CLOEXEC, 0));
    if (!fd) return Status::Error("cannot pass the tap device on" + ErrnoText(errno));
    Append(blob, out);
    out->fds.push_back(std::move(fd));
  }
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
  // Believed only where it can be seen: a device that is still here, or here again, stays silent.
  char name[IF_NAMESIZE];
  if (if_indextoname(static_cast<unsigned>(ifindex), name) == nullptr) return silencing_.Forget(ifindex);
  if (const Status silent = silencing_.Renew(ifindex, name); !silent.ok()) LogLine(LogLevel::kWarning, silent.line());
}

}  // namespace sluice
