// The guard of the sandbox that serves the containers of one network namespace: a daemon that outlives the front ends. It ends
// with its last container; when a part of the sandbox dies it kills the containers and says why.
//
// Front ends speak to it by SOCK_SEQPACKET, one JSON object per record, each answered by {} or {"error": TEXT} or {"retry":
// true}:
//   {"op": "add", ...}      a container (ContainerRequest) with its descriptors; answered when the stack stands
//   {"op": "synchronize"}   answered when everything that is in the namespace is served
//   {"op": "remove"}        answered when the container is no more, and, were it the last, the namespace is as it was found;
//                           with "kill" its init is killed before
#pragma once

#include <sys/types.h>

#include <string>

#include "base/unique_fd.h"
#include "control/flags.h"
#include "control/oci/container.h"
#include "control/status.h"

namespace sluice::oci {

struct ContainerRequest {
  Container container;
  pid_t init_pid = 0;  // as we number it
  UniqueFd init;       // pidfd
  UniqueFd listening;  // of container.listener_path()
  UniqueFd seccomp;    // the init's
  bool pod = false;    // of Kubernetes: engines forward ports by the namespace's loopback (port_forward.h)
};

// Has the sandbox of the network namespace serve the container; starts it where there is none. Flags of all its containers must
// agree.
Status JoinSandbox(const Flags& flags, int netns, const ContainerRequest& request);
Status SynchronizeSandbox(const Container& container);
enum class LeaveMode { kWait, kKill };
// The container has ended, or is killed. Lifts what a sandbox left whose guard and broker were both killed. container.netns may
// be unknown (inode 0).
Status LeaveSandbox(const Container& container, LeaveMode mode);
bool SandboxRuns(const NamespaceId& netns);

}  // namespace sluice::oci
