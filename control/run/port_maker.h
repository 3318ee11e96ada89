// The unprivileged half of opening a port: makes the Port of what the broker passed.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "control/run/plan.h"
#include "dataplane/pcap_port.h"
#include "dataplane/port.h"

namespace sluice {

class PortMaker {
 public:
  PortMaker(SandboxPlan& plan, BlockPool& pool);
  // `blob` is a PortBlob.
  Status Make(std::string_view blob, std::vector<UniqueFd> fds, std::unique_ptr<Port>* out);

 private:
  SandboxPlan& plan_;
  BlockPool& pool_;
  std::shared_ptr<PcapWriter> capture_;  // none without --pcap-log
};

}  // namespace sluice
