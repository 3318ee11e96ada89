// The program's seccomp filter: which calls are notified to the broker, which are refused. See docs/architecture.md
// (interception).
//
// Default is ALLOW: the filter is about sockets only. What it compares, it compares as the kernel does: 32-bit arguments are
// masked to 32 bits. Other architectures of this machine (i386, x32) are refused.
#pragma once

#include <string>

#include "base/unique_fd.h"

namespace sluice {

struct ProgramFilterOptions {
  bool no_new_privs = false;  // sets it; otherwise CAP_SYS_ADMIN is needed
  bool native_options =
      false;  // the options of xdp/native_options.h, as an int, go to the kernel, where a BPF program answers them
};

// Installs the filter on the calling thread and returns the notification listener. An invalid descriptor with a line in `error`
// on failure. The listener has close-on-exec.
UniqueFd InstallProgramFilter(const ProgramFilterOptions& options, std::string* error);

// The filter as text (libseccomp's pseudo code), for `sluice` debugging and tests.
std::string DescribeProgramFilter(const ProgramFilterOptions& options);

}  // namespace sluice
