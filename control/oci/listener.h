// What runc sends to the listener of a container: the seccomp descriptor of a new process (the init, or one of exec).
#pragma once

#include <sys/types.h>

#include "base/unique_fd.h"
#include "control/status.h"

namespace sluice::oci {

struct SeccompDelivery {
  UniqueFd seccomp;
  pid_t pid = 0;  // of the process, as the sender's pid namespace (ours) names it
};

// Takes one connection of the listening socket and reads it, bounded in time. Only root may deliver.
Status AcceptDelivery(int listening, SeccompDelivery* out);

}  // namespace sluice::oci
