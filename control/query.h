// Commands about running sandboxes: stats, sockets, routes, neigh, drops, list.
#pragma once

#include "control/flags.h"

namespace sluice {

// Returns the exit status; errors have been said.
int RunQuery(const CommandLine& line);

}  // namespace sluice
