// Engines forward a port into a pod by a connection to localhost in its network namespace, that is to the kernel's loopback
// there. This listens on it for what the pod's stack listens on at 127.0.0.1 and ::1, and hands each connection to a process
// inside the sandbox (relay_process.h), which connects to the same port of our loopback and passes bytes on. The other direction
// does not exist: nobody inside gets a socket of the kernel.
#pragma once

#include <poll.h>

#include <span>
#include <vector>

#include "base/unique_fd.h"
#include "control/oci/relay_process.h"
#include "control/run/control_protocol.h"
#include "control/status.h"

namespace sluice::oci {

// For the guard: in the namespace, one thread, never blocks.
class PortForward {
 public:
  // `listener` is to be given to the sandbox, which must be ready.
  Status Start(UniqueFd* listener);
  bool running() const { return process_.running(); }
  // What is not among `wanted` is closed; a port that somebody else of the kernel's has is left to them.
  void ListenFor(std::span<const control::LoopbackListener> wanted);
  // Appends one entry per socket and the process's first; OnPolled wants them back. False: the process has ended.
  void AddPolled(std::vector<pollfd>* polled) const;
  size_t polled_count() const { return 1 + listeners_.size(); }
  bool OnPolled(const pollfd* polled);
  // Connections that are open are reset.
  void Stop();

 private:
  struct Listener {
    uint16_t port = 0;
    int family = 0;
    UniqueFd socket;
  };
  bool Has(uint16_t port, int family) const;
  void HandOver(const Listener& from);

  RelayProcess process_;
  UniqueFd channel_;  // SOCK_SEQPACKET: connections go there
  std::vector<Listener> listeners_;
};

}  // namespace sluice::oci
