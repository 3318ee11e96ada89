#include "control/run/port_maker.h"

#include <cstring>

#include "control/broker/port_opener.h"
#include "dataplane/packet_port.h"

namespace sluice {

Status PortMaker::Make(std::string_view blob, std::vector<UniqueFd> fds, std::unique_ptr<Port>* out) {
  PortBlob facts;
  if (blob.size() != sizeof facts || fds.size() != 1) return Status::Error("the broker's description of a port is malformed");
  std::memcpy(&facts, blob.data(), sizeof facts);
  PacketPortOptions options;
  options.software_gso = plan_.flags.software_gso;
  *out = std::make_unique<PacketPort>(std::move(fds[0]), facts.packet, options, pool_);
  return {};
}

}  // namespace sluice
