// Docker's embedded resolver on user-defined networks listens on the kernel's loopback of the container's namespace, at
// 127.0.0.11:53. This is a process inside the sandbox that answers at that address of our loopback and asks the resolver for it:
// its sockets of the kernel were made before it came under the filter, and they speak to that one address only.
#pragma once

#include "base/unique_fd.h"
#include "control/oci/relay_process.h"
#include "control/status.h"

namespace sluice::oci {

class ResolverRelay {
 public:
  // In the container's network namespace, in a process of one thread. `listener` is to be given to the sandbox, which must be
  // ready: the relay binds its sockets then. `gate`: the map by which a question lets the resolver ask its own servers
  // (xdp/engine_flows.h), or -1.
  Status Start(int gate, UniqueFd* listener);
  bool running() const { return process_.running(); }
  int pidfd() const { return process_.pidfd(); }  // -1 where it does not run
  void Stop() { process_.Stop(); }

 private:
  RelayProcess process_;
};

}  // namespace sluice::oci
