// The ports of `sluice bench`, opened and used by one process.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "control/flags.h"
#include "control/status.h"
#include "dataplane/port.h"
#include "xdp/xsk.h"

namespace sluice {

struct BenchPort {
  XdpAttachment xdp;  // before the port: it goes after it
  std::unique_ptr<Port> port;
};

// In the namespace of the calling thread. `device`: a device's name; with --link=tap the TAP device to make; with --link=dpdk
// what DpdkOptions::device takes.
Status OpenBenchPort(const Flags& flags, const BenchOptions& options, const std::string& device, BlockPool& pool, BenchPort* out);

}  // namespace sluice
