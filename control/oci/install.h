// `sluice install` and `uninstall`: names sluice as a runtime in the configuration of container engines.
#pragma once

#include <string>
#include <vector>

#include "control/flags.h"

namespace sluice::oci {

// The text of the flags file of a runtime whose engine passes no arguments.
std::string FlagsFileText(const std::vector<std::string>& flags);

int RunInstall(const CommandLine& line);

}  // namespace sluice::oci
