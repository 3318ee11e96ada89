// `sluice bench`: a packet tool over any port, to measure what a port costs and to see what passes a device. It has no stack, no
// sandbox and does not silence the kernel.
#pragma once

#include "control/flags.h"

namespace sluice {

int RunBench(const CommandLine& line);

}  // namespace sluice
