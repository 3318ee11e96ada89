// Two Ports joined in memory, for tests and for stacks of one process. Both ends belong to one thread (blocks are not shared
// between threads). Frames pass whole, with their metadata, and arrive in one linear region as from a device.
#pragma once

#include <memory>
#include <utility>

#include "dataplane/port.h"

namespace sluice {

// `capacity`: frames that wait in each direction; Transmit hands back what does not fit. An end is dead() when the other is gone.
std::pair<std::unique_ptr<Port>, std::unique_ptr<Port>> MakePipePorts(IfIndex first, IfIndex second, BlockPool& pool,
                                                                      size_t capacity = 256);

}  // namespace sluice
