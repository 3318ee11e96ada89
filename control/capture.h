// `sluice capture`: the frames of a running sandbox as pcapng, to a file or to standard output.
#pragma once

#include "control/flags.h"

namespace sluice {

int RunCapture(const CommandLine& line);  // the exit status

}  // namespace sluice
