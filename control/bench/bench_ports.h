// The ports of `sluice bench`, opened and used by one process.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "control/flags.h"
#include "control/status.h"
#include "dataplane/port.h"
#include "xdp/xsk.h"

namespace sluice {

struct BenchDevice {
  XdpAttachment xdp;                          // outlives the queues
  std::vector<std::unique_ptr<Port>> queues;  // one per pool
};

// In the namespace of the calling thread. `device`: a device's name; with --link=tap the TAP device to make; with --link=dpdk
// what DpdkOptions::device takes. Each queue is used with its pool, by that pool's thread; several are steered by flow.
Status OpenBenchDevice(const Flags& flags, const BenchOptions& options, const std::string& device,
                       std::span<BlockPool* const> pools, BenchDevice* out);

}  // namespace sluice
