// The control groups of a container's sandbox: in every hierarchy that the container has a group in, a group beside that one. So
// the sandbox's processes count where the engine put the container, but are neither frozen with it, nor bounded by its memory,
// nor picked by its OOM killer. Their own memory is bounded by --sentry-memory. For a process with one thread.
#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>
#include <vector>

#include "control/flags.h"

namespace sluice {

struct SandboxPlan;

struct SandboxGroup {
  std::string folder;   // in the file system
  std::string before;   // the group that the guard came from; empty: out of reach
  std::string unified;  // cgroup v2: its path below the root that our cgroup namespace has; else empty
  bool holds_memory = false;
};

// The groups that stand beside those of `container_groups` (text of /proc/PID/cgroup), by the hierarchies in `mounts` (text of
// mountinfo); `own_groups` are the guard's. A hierarchy in which the container has no group of its own, or that is not mounted,
// gives none.
std::vector<SandboxGroup> PlaceSandboxGroups(std::string_view container_groups, std::string_view own_groups,
                                             std::string_view mounts, const std::string& name);

// Makes those of plan.container_groups, as far as possible; what cannot be made is logged and left out. Also removes what
// sandboxes left that were killed.
void MakeSandboxGroups(SandboxPlan& plan);
// Moves a process of the sandbox into them. The first move waits for a grace period of the kernel. kAllButUnified: it is in a
// group below that one already (option_group.h).
enum class JoinGroups { kAll, kAllButUnified };
void JoinSandboxGroups(const SandboxPlan& plan, pid_t pid, JoinGroups which = JoinGroups::kAll);
// Takes the processes `left` out again, which may be ending, and removes the groups. Nobody else may be in them.
void RemoveSandboxGroups(const SandboxPlan& plan, const std::vector<pid_t>& left);
// Sets plan.groups to those that the guard plan.guard_pid, which is dead, has recorded.
void RecallSandboxGroups(SandboxPlan& plan);
// Has the OOM killer ended a process in them?
bool KilledForMemory(const SandboxPlan& plan);

// The OOM killer's preference for a process; false where it cannot be set.
int OomScoreOf(pid_t pid);
bool SetOomScore(pid_t pid, int score);
// Of guard, broker and keeper: their end frees next to nothing and takes the container with it. Not exempt, so that the machine
// can be saved.
inline constexpr int kLastVictim = -999;

}  // namespace sluice
