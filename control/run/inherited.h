// What CMD would inherit from the caller of `sluice do`.
#pragma once

#include <vector>

#include "control/status.h"

namespace sluice {

// The descriptors above 2 that are open and not close-on-exec. Fails where one of all (0 to 2 included) is a way around the
// stack: a socket that is not AF_UNIX, io_uring, a TUN device, a network namespace, BPF, a pidfd, a directory of /proc.
Status CheckInherited(std::vector<int>* inherited);

}  // namespace sluice
