// Running sandboxes under --root (0700): per network namespace a lock file (held by guard and broker; a dead sandbox's is free by
// itself), a description and the admin socket, all named after the namespace's inode.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "control/os.h"
#include "control/run/plan.h"

namespace sluice {

std::string LockPath(const Flags& flags, const NamespaceId& id);
std::string StatePath(const Flags& flags, const NamespaceId& id);
std::string SocketPath(const Flags& flags, const NamespaceId& id);
std::string GuardSocketPath(const Flags& flags, const NamespaceId& id);  // of containers: by it front ends speak to the guard

// Makes the folder and takes the namespace: exclusively, or shared with other users of the kernel's stack (--network=host). The
// lock lasts until the last holder of `lock` closes it.
Status TakeNamespace(const SandboxPlan& plan, UniqueFd* lock);
Status WriteRegistration(const SandboxPlan& plan, pid_t init);
Status OpenAdminSocket(const SandboxPlan& plan, UniqueFd* out);
void RemoveRegistration(const SandboxPlan& plan);

struct Registration {
  int guard_pid = 0, init_pid = 0;
  std::string netns_name;
  std::string network;
  std::string command;
  std::string metrics;  // --metrics
  NamespaceId id;
};
std::vector<Registration> ListRegistrations(const Flags& flags);

}  // namespace sluice
