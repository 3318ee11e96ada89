// The running sandboxes as commands name and show them: their registrations, and the containers that each serves.
#pragma once

#include <string>
#include <vector>

#include "control/registry.h"

namespace sluice {

struct RunningSandbox {
  Registration registration;
  std::vector<std::string> containers;  // ids; empty for `sluice do`

  // The namespace's name, else the containers' ids as Docker shortens them, else the guard's process id.
  std::string name() const;
};

std::vector<RunningSandbox> ListSandboxes(const Flags& flags);

}  // namespace sluice
