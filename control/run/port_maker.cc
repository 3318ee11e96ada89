#include "control/run/port_maker.h"

#include <cstring>

#include "control/broker/port_opener.h"
#include "dataplane/gro_port.h"
#include "dataplane/packet_port.h"
#include "dataplane/qdisc_port.h"
#include "dataplane/tap_port.h"
#include "dataplane/xdp_port.h"

namespace sluice {

PortMaker::PortMaker(SandboxPlan& plan, BlockPool& pool) : plan_(plan), pool_(pool) {
  if (plan.pcap) capture_ = std::make_shared<PcapWriter>(std::move(plan.pcap));
}

Status PortMaker::Make(std::string_view bytes, std::vector<UniqueFd> fds, std::unique_ptr<Port>* out) {
  PortBlob blob;
  if (bytes.size() != sizeof blob) return Status::Error("the broker's description of a port is malformed");
  std::memcpy(&blob, bytes.data(), sizeof blob);
  const bool xdp = blob.kind == LinkKind::kXdp;
  if (fds.size() != (xdp ? 3u : 1u)) return Status::Error("the broker's description of a port is malformed");
  const bool software_gso = plan_.flags.software_gso;
  const PacketPortOptions packet{.software_gso = software_gso};
  if (xdp) {
    std::string error;
    auto port = XdpPort::Create(std::move(fds[0]), std::move(fds[1]), blob.xdp, {.software_gso = software_gso}, pool_, &error);
    if (port == nullptr) return Status::Error("cannot use the AF_XDP socket of " + std::string(blob.name) + ": " + error);
    port->HearBeside(std::make_unique<PacketPort>(std::move(fds[2]), blob.packet, packet, pool_));
    *out = std::move(port);
  } else if (blob.kind == LinkKind::kTap) {
    *out = std::make_unique<TapPort>(std::move(fds[0]), blob.tap, TapPortOptions{.software_gso = software_gso}, pool_);
  } else {
    *out = std::make_unique<PacketPort>(std::move(fds[0]), blob.packet, packet, pool_);
  }
  // With a virtio-net header the kernel has coalesced already what can be.
  const bool coalesced = blob.kind == LinkKind::kTap ? blob.tap.vnet_header : !xdp && blob.packet.vnet_header;
  if (plan_.flags.gro && !coalesced) *out = std::make_unique<GroPort>(std::move(*out));
  if (capture_ != nullptr) *out = std::make_unique<PcapPort>(std::move(*out), capture_, blob.name);
  *out = WithQdisc(std::move(*out), plan_.flags.qdisc, pool_);
  return {};
}

}  // namespace sluice
