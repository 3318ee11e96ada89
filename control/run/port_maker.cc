#include "control/run/port_maker.h"

#include <cstring>

#include "dataplane/gro_port.h"
#include "dataplane/packet_port.h"
#include "dataplane/tap_port.h"
#include "dataplane/xdp_port.h"

namespace sluice {

PortMaker::PortMaker(SandboxPlan& plan, WorkerGroup& group) : plan_(plan), group_(group) {
  if (plan.pcap) capture_ = std::make_shared<PcapWriter>(std::move(plan.pcap));
}

Status PortMaker::Make(std::string_view blobs, std::vector<UniqueFd> fds, std::vector<std::unique_ptr<Port>>* out) {
  const Status malformed = Status::Error("the broker's description of a port is malformed");
  if (blobs.size() != group_.size() * sizeof(PortBlob) || fds.size() % group_.size() != 0) return malformed;
  const size_t each = fds.size() / group_.size();
  for (uint32_t i = 0; i < group_.size(); ++i) {
    PortBlob blob;
    std::memcpy(&blob, blobs.data() + i * sizeof blob, sizeof blob);
    if (each != (blob.kind == LinkKind::kXdp ? 2u : 1u)) return malformed;
    SLUICE_RETURN_IF_ERROR(MakeQueue(blob, std::span(fds).subspan(i * each, each), group_.pool(i), &out->emplace_back()));
  }
  return {};
}

Status PortMaker::MakeQueue(const PortBlob& blob, std::span<UniqueFd> fds, BlockPool& pool, std::unique_ptr<Port>* out) {
  const bool xdp = blob.kind == LinkKind::kXdp;
  const bool software_gso = plan_.flags.software_gso;
  if (xdp) {
    std::string error;
    *out = XdpPort::Create(std::move(fds[0]), std::move(fds[1]), blob.xdp, {.software_gso = software_gso}, pool, &error);
    if (*out == nullptr) return Status::Error("cannot use the AF_XDP socket of " + std::string(blob.name) + ": " + error);
  } else if (blob.kind == LinkKind::kTap) {
    *out = std::make_unique<TapPort>(std::move(fds[0]), blob.tap, TapPortOptions{.software_gso = software_gso}, pool);
  } else {
    *out = std::make_unique<PacketPort>(std::move(fds[0]), blob.packet, PacketPortOptions{.software_gso = software_gso}, pool);
  }
  // With a virtio-net header the kernel has coalesced already what can be.
  const bool coalesced = blob.kind == LinkKind::kTap ? blob.tap.vnet_header : !xdp && blob.packet.vnet_header;
  if (plan_.flags.gro && !coalesced) *out = std::make_unique<GroPort>(std::move(*out));
  if (capture_ != nullptr) *out = std::make_unique<PcapPort>(std::move(*out), capture_, blob.name);
  return {};
}

}  // namespace sluice
