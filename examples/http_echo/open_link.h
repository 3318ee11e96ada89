// The device of the example: any port of the dataplane, with a queue for each worker.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dataplane/worker_group.h"
#include "xdp/xsk.h"

namespace sluice::example {

struct Opened {
  XdpAttachment xdp;  // holds the program on the device
  std::vector<std::unique_ptr<Port>> queues;
  MacAddress mac;
  uint32_t mtu = 1500;
};

// `link`: packet, xdp, tap (makes the device) or dpdk (`device` is what DPDK calls one). An error's text, or nothing.
std::string OpenLink(const std::string& link, const std::string& device, WorkerGroup& group, Opened* out);

}  // namespace sluice::example
