// Opens what a port needs privilege for, in the sandbox's namespace; the sentry makes the Port of it (run/port_maker.h).
#pragma once

#include <string>
#include <type_traits>
#include <vector>

#include "control/run/plan.h"
#include "control/run/silencing.h"
#include "dataplane/packet_socket.h"

namespace sluice {

// Plain values that go to the sentry beside the descriptors.
struct PortBlob {
  PacketSocketFacts packet;
};
static_assert(std::is_trivially_copyable_v<PortBlob>);

struct OpenedPort {
  std::vector<UniqueFd> fds;
  std::string blob;  // a PortBlob
};

class PortOpener {
 public:
  explicit PortOpener(SandboxPlan& plan) : plan_(plan), silencing_(plan) {}
  // Silences the kernel on the device first, where that was not done at the start. The sentry is not trusted: only devices of
  // the sandbox are opened.
  Status Open(int ifindex, OpenedPort* out);
  void Close(int ifindex);
  // Are the devices still silent?
  Status Check() const { return silencing_.Check(); }

 private:
  SandboxPlan& plan_;
  Silencing silencing_;
};

}  // namespace sluice
