// Running runc, which does everything of a container that is not network.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "control/flags.h"
#include "control/status.h"

namespace sluice::oci {

using Arguments = std::vector<std::string>;

// "runc", the global flags that are runc's too, and `rest`.
Arguments RuncCommand(const Flags& flags, const Arguments& rest);
Arguments RuncCommand(const std::string& root, const Arguments& rest);

// Becomes it; returns only where that fails.
Status ExecRunc(const Arguments& argv);
// Starts it with our descriptors; -1 and errno where that fails.
pid_t SpawnRunc(const Arguments& argv, UniqueFd* pidfd);
// Runs it without any output and waits: its exit status; 127 where it cannot be run.
int RunQuietly(const Arguments& argv);
// Refuses a runc that does not hand over seccomp descriptors. What cannot be found out is no error.
Status CheckRuncVersion();

}  // namespace sluice::oci
