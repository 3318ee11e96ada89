#include "control/run/port_maker.h"

#include <cstring>

#include "dataplane/gro_port.h"
#include "dataplane/packet_port.h"
#include "dataplane/qdisc_port.h"
#include "dataplane/tap_port.h"
#include "dataplane/xdp_port.h"

namespace sluice {

PortMaker::PortMaker(SandboxPlan& plan, WorkerGroup& group) : plan_(plan), group_(group) {
  if (plan.pcap) capture_ = std::make_shared<PcapWriter>(std::move(plan.pcap));
}

Status PortMaker::Make(std::string_view text, std::vector<UniqueFd> fds, std::vector<std::unique_ptr<Port>>* out) {
  const Status malformed = Status::Error("the broker's description of a port is malformed");
  std::vector<PortBlob> blobs(group_.size());
  if (text.size() != blobs.size() * sizeof(PortBlob)) return malformed;
  std::memcpy(blobs.data(), text.data(), text.size());
  const bool xdp = blobs[0].kind == LinkKind::kXdp;
  if (fds.size() != blobs.size() * (xdp ? 3 : 1)) return malformed;
  if (xdp) {
    SLUICE_RETURN_IF_ERROR(MakeXdpQueues(blobs, fds, out));
  } else {
    for (uint32_t i = 0; i < group_.size(); ++i) out->push_back(MakeQueue(blobs[i], std::move(fds[i]), group_.pool(i)));
  }
  for (uint32_t i = 0; i < group_.size(); ++i) Wrap(blobs[i], group_.pool(i), &(*out)[i]);
  return {};
}

Status PortMaker::MakeXdpQueues(std::span<const PortBlob> blobs, std::span<UniqueFd> fds,
                                std::vector<std::unique_ptr<Port>>* out) {
  std::vector<Xsk> sockets;
  std::vector<BlockPool*> pools;
  std::vector<std::unique_ptr<Port>> beside;
  const PacketPortOptions packet{.software_gso = plan_.flags.software_gso};
  for (uint32_t i = 0; i < blobs.size(); ++i) {
    sockets.push_back({.fd = std::move(fds[3 * i]), .umem = std::move(fds[3 * i + 1]), .facts = blobs[i].xdp});
    pools.push_back(&group_.pool(i));
    beside.push_back(std::make_unique<PacketPort>(std::move(fds[3 * i + 2]), blobs[i].packet, packet, *pools.back()));
  }
  std::string error;
  const XdpPortOptions options{.software_gso = plan_.flags.software_gso};
  if (XdpPort::CreateQueues(std::move(sockets), options, pools, out, &error, std::move(beside)) == Errno::kOk) return {};
  return Status::Error("cannot use the AF_XDP socket of " + std::string(blobs[0].name) + ": " + error);
}

std::unique_ptr<Port> PortMaker::MakeQueue(const PortBlob& blob, UniqueFd fd, BlockPool& pool) {
  const bool software_gso = plan_.flags.software_gso;
  if (blob.kind == LinkKind::kTap)
    return std::make_unique<TapPort>(std::move(fd), blob.tap, TapPortOptions{.software_gso = software_gso}, pool);
  return std::make_unique<PacketPort>(std::move(fd), blob.packet, PacketPortOptions{.software_gso = software_gso}, pool);
}

void PortMaker::Wrap(const PortBlob& blob, BlockPool& pool, std::unique_ptr<Port>* port) {
  // With a virtio-net header the kernel has coalesced already what can be.
  const bool coalesced =
      (blob.kind == LinkKind::kTap && blob.tap.vnet_header) || (blob.kind == LinkKind::kPacket && blob.packet.vnet_header);
  if (plan_.flags.gro && !coalesced) *port = std::make_unique<GroPort>(std::move(*port));
  if (capture_ != nullptr) *port = std::make_unique<PcapPort>(std::move(*port), capture_, blob.name);
  *port = WithQdisc(std::move(*port), plan_.flags.qdisc.Share(group_.size()), pool);
}

}  // namespace sluice
