// Two devices of several queues joined in memory, for hosts of one process whose stacks run on several threads. Each queue is a
// Port of one thread; a frame goes to the queue of the other side that wire::SteeringHash names there. Frames pass whole, with
// their metadata.
#pragma once

#include <memory>
#include <vector>

#include "dataplane/port.h"
#include "netstack/wire/steering.h"

namespace sluice {

struct PipeSide {
  IfIndex ifindex = 0;
  std::vector<BlockPool*> pools;  // one queue per pool, which is that of the queue's thread
  wire::SteeringKey key{};        // of the host on this side
};
struct PipeQueues {
  std::vector<std::unique_ptr<Port>> first, second;
};

// Transmit hands back what does not fit into the ring of the queue that the next frame goes to. Queues are dead() when one of the
// other side is gone.
PipeQueues MakePipeQueues(const PipeSide& first, const PipeSide& second);

}  // namespace sluice
