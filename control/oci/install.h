// `sluice install` and `uninstall`: names sluice as a runtime in a container engine's configuration. Idempotent; keeps what else
// is there.
#pragma once

#include <string>
#include <vector>

#include "control/flags.h"

namespace sluice::oci {

// What the configuration file `text` (empty: there is none) becomes. `flags` empty and `path` empty: the runtime is taken out.
Status EditDockerConfig(const std::string& text, const std::string& name, const std::string& path,
                        const std::vector<std::string>& flags, std::string* out);

int RunInstall(const CommandLine& line);

}  // namespace sluice::oci
