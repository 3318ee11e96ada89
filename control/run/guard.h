// `sluice do`: the front end, which stays as the guard of its sandbox. Must be called while the process has one thread.
#pragma once

#include "control/flags.h"

namespace sluice {

// Returns the exit status of the process. Every error has been said.
int RunDo(const CommandLine& line);

}  // namespace sluice
