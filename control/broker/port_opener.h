// Opens what a port needs privilege for, in the sandbox's namespace; the sentry makes the Port of it (run/port_maker.h).
#pragma once

#include <functional>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include "control/run/control_protocol.h"
#include "control/run/plan.h"
#include "control/run/silencing.h"
#include "dataplane/choose_link.h"
#include "dataplane/packet_socket.h"
#include "dataplane/tap_device.h"
#include "xdp/xsk.h"

namespace sluice {

// Plain values that go to the sentry beside the descriptors: one for each queue.
struct PortBlob {
  LinkKind kind = LinkKind::kPacket;
  char name[16] = {};        // of the device
  PacketSocketFacts packet;  // kPacket: one descriptor, the socket
  XskFacts xdp;              // kXdp: three, the socket, its UMEM, and a packet socket for what does not come by it (`packet`)
  TapFacts tap;              // kTap: one, the queue
};
static_assert(std::is_trivially_copyable_v<PortBlob>);

struct OpenedPort {
  std::vector<UniqueFd> fds;
  std::string blobs;  // PortBlobs
};

class PortOpener {
 public:
  explicit PortOpener(SandboxPlan& plan) : plan_(plan), silencing_(plan) {}
  // Silences the kernel on the device first, where that was not done at the start. The sentry is not trusted: only devices of
  // the sandbox are opened.
  Status Open(int ifindex, OpenedPort* out);
  // The sentry has no port on the device any more; where the device is gone, the end of its silence too.
  void Close(int ifindex);
  // Are the devices still silent? Puts an XDP program back that somebody took off. `tell` hears of each device where something
  // happened since.
  Status Check(const std::function<void(int ifindex, const control::PortFaultCounts&)>& tell);

 private:
  Status OpenPacketSockets(int ifindex, const char* name, std::vector<PacketSocket>* sockets);
  Status OpenPacket(int ifindex, PortBlob blob, OpenedPort* out);
  Status OpenXdp(const DeviceFacts& device, PortBlob blob, OpenedPort* out);
  Status OpenOwnTap(PortBlob blob, OpenedPort* out);

  SandboxPlan& plan_;
  Silencing silencing_;
  struct Attached {
    XdpAttachment program;  // detached with this process
    Errno state = Errno::kOk;
    uint32_t rx_queues = 1;
    control::PortFaultCounts faults;
  };
  static void CheckProgram(int ifindex, Attached* attached);
  static void CheckQueues(int ifindex, Attached* attached);
  std::map<int, Attached> attachments_;  // by device
};

}  // namespace sluice
