// The control group (cgroup v2) in which the sentry makes the program's sockets, so that a BPF program on the group can answer
// socket options in the caller's own system call (xdp/native_options.h). It is made below the sandbox's group, or the one that
// sluice was started in, has no controllers, and holds the sentry alone. Where the hierarchy is not mounted it is reached by a
// mount that nobody else sees.
//
// Without it (a kernel before 5.18, no cgroup v2, no right to it) everything works: those options are notified calls as all
// others.
#pragma once

#include "control/run/plan.h"

namespace sluice {

// Makes the group and attaches the program. Where that is not possible, a debug line says why and the plan stays without.
void MakeOptionGroup(SandboxPlan& plan);
// The sandbox's own, from guard or broker, once its sentry is gone.
void RemoveOptionGroup(const SandboxPlan& plan);
// Those of sandboxes whose guard and broker were both killed.
void PruneOptionGroups(const Flags& flags);

}  // namespace sluice
