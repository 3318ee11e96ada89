// Ports for tests of the dataplane, on a device of the calling thread's namespace.
#pragma once

#include <memory>

#include "dataplane/port.h"
#include "netstack/ip/address.h"

namespace sluice::testing {

// A packet socket on the device; what goes wrong is a test failure.
std::unique_ptr<Port> OpenPacket(IfIndex ifindex, BlockPool& pool, bool vnet);

}  // namespace sluice::testing
