// The unprivileged half of opening a port: makes the Port of what the broker passed.
#pragma once

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "control/broker/port_opener.h"
#include "control/run/plan.h"
#include "dataplane/pcap_port.h"
#include "dataplane/port.h"
#include "dataplane/worker_group.h"

namespace sluice {

class PortMaker {
 public:
  PortMaker(SandboxPlan& plan, WorkerGroup& group);
  // A queue for each worker. `text` is a PortBlob for each, whose descriptors follow each other in `fds`.
  Status Make(std::string_view text, std::vector<UniqueFd> fds, std::vector<std::unique_ptr<Port>>* out);

 private:
  Status MakeXdpQueues(std::span<const PortBlob> blobs, std::span<UniqueFd> fds, std::vector<std::unique_ptr<Port>>* out);
  std::unique_ptr<Port> MakeQueue(const PortBlob& blob, UniqueFd fd, BlockPool& pool);
  void Wrap(const PortBlob& blob, BlockPool& pool, std::unique_ptr<Port>* port);

  SandboxPlan& plan_;
  WorkerGroup& group_;
  std::shared_ptr<PcapWriter> capture_;  // none without --pcap-log
};

}  // namespace sluice
