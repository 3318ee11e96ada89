#include "control/broker/port_opener.h"

#include <net/if.h>

#include <algorithm>
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
  SLUICE_RETURN_IF_ERROR(silencing_.Silence(ifindex, name));

  PacketSocketOptions options;
  options.vnet_header = plan_.flags.gso;
  options.mark = kSluiceMark;
  PacketSocket socket;
  std::string error;
  const Errno e = OpenPacketSocket(ifindex, options, &socket, &error);
  if (e != Errno::kOk) return Status::Error(Format("device %s: ", name) + error);
  if (socket.facts.vnet_header_refused) {
    Log(LogLevel::kWarning, "device %s takes no virtio-net header: segmentation offload is off there (as with --gso=false)", name);
  }
  PortBlob blob{socket.facts};
  out->blob.assign(reinterpret_cast<const char*>(&blob), sizeof blob);
  out->fds.push_back(std::move(socket.fd));
  return {};
}

void PortOpener::Close(int ifindex) { silencing_.Forget(ifindex); }

}  // namespace sluice
