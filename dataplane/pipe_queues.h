// Two devices of several queues joined in memory, for hosts of one process whose stacks run on several threads. Each queue is a
// Port of one thread; a frame goes to the queue of the other side that wire::SteeringHash names. Frames pass whole, with their
// metadata.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "dataplane/port.h"
#include "netstack/wire/steering.h"

namespace sluice {

struct PipeQueues {
  std::vector<std::unique_ptr<Port>> first, second;
};

// One queue per pool, which is that of the queue's thread. Transmit hands back what does not fit into the ring of the queue that
// the next frame goes to. Queues are dead() when one of the other side is gone.
PipeQueues MakePipeQueues(IfIndex first, std::span<BlockPool* const> first_pools, IfIndex second,
                          std::span<BlockPool* const> second_pools, const wire::SteeringKey& key);

}  // namespace sluice
