// EAL, DPDK's environment: set up once per process, and its devices.
#pragma once

#include <cstdint>
#include <string>

#include "base/errno.h"

namespace sluice::dpdk {

// Sets EAL up where that was not done and gives the port number of the device that DpdkOptions::device names. The calling thread
// keeps its affinity (EAL pins the thread that sets it up).
Errno FindDevice(const std::string& device, uint16_t* port, std::string* error);

}  // namespace sluice::dpdk
