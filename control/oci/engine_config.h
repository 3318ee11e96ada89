// What `sluice install` and `uninstall` make of the configuration of container engines: text in, text out. Idempotent; what else
// is there stays.
#pragma once

#include <string>
#include <vector>

#include "control/status.h"

namespace sluice::oci {

// The configuration `text` (empty: there is none) with the runtime `name`, which is the program `path`; empty: the runtime is
// taken out.
//
// Docker's daemon.json; `flags` become runtimeArgs.
Status EditDockerConfig(const std::string& text, const std::string& name, const std::string& path,
                        const std::vector<std::string>& flags, std::string* out);
// containerd's config.toml of version 1, 2 or 3: a block between two comments of ours at its end, all else byte for byte. Not a
// file of our own that config.toml imports: containerd 1.x lets that replace the whole section of the CRI plug-in.
Status EditContainerdConfig(const std::string& text, const std::string& name, const std::string& path, std::string* out);
// podman's containers.conf.d/NAME.conf, a file of our own: empty where the runtime is taken out.
Status EditPodmanConfig(const std::string& text, const std::string& name, const std::string& path, std::string* out);

// How containerd's CRI plug-in is switched off in this configuration; empty: it is not.
std::string CriIsDisabled(const std::string& containerd_config);

}  // namespace sluice::oci
