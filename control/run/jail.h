// What takes a process everything that it does not need: used by the sentry and by the process that serves --metrics.
#pragma once

#include <sys/types.h>

namespace sluice {

// An empty read-only root in which only a /proc of the caller's own pid namespace is mounted. In a mount namespace of its own.
bool EnterEmptyRoot();
// Users and groups `base` to `base` + 2, no other group, no capability, no way back. errno tells.
bool BecomeUnowned(uid_t base);

}  // namespace sluice
