// The OCI commands: runc's, with a sandbox of our stack for the container's network namespace.
#pragma once

#include <string_view>

#include "control/flags.h"

namespace sluice::oci {

// Is it a command of runc's that we take?
bool IsCommand(std::string_view name);
// Returns the exit status of the process. Every error has been said: on stderr, and in --log in the form that engines read.
int Run(const CommandLine& line);

}  // namespace sluice::oci
