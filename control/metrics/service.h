// The guard's part of --metrics: starts the process that serves it (server.h) and hands that the sandboxes. Sandboxes that name
// the same address share one server: the first has it, and when it ends one of those that wait takes over.
#pragma once

#include <sys/types.h>

#include "base/unique_fd.h"
#include "control/flags.h"
#include "control/status.h"

namespace sluice {

class MetricsService {
 public:
  // In the network namespace in which it is to listen. An error where the address cannot be had.
  Status Start(const Flags& flags, pid_t guard_pid);
  int fd() const { return channel_.get(); }  // for poll; -1 where there is none
  void OnPolled();
  void Stop();

 private:
  void GiveSandboxes();

  Flags flags_;
  UniqueFd channel_, process_;
  pid_t pid_ = -1;
};

}  // namespace sluice
