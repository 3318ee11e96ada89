// A process of ours inside a sandbox that stands between the kernel's loopback of the namespace and the stack: it holds sockets
// of the kernel that others of the sandbox have no way to, and uses our stack as any program does.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <vector>

#include "base/unique_fd.h"
#include "control/status.h"

namespace sluice::oci {

class RelayBody {
 public:
  virtual ~RelayBody() = default;
  // With the guard's rights. False where it cannot be.
  virtual bool BeforeFilter() { return true; }  // sockets of the kernel
  virtual bool UnderFilter() { return true; }   // sockets of our stack
  // Without any right.
  [[noreturn]] virtual void Run() = 0;
};

class RelayProcess {
 public:
  // In the sandbox's network namespace, in a process of one thread. `make` runs in the new process, which keeps the descriptors
  // `keep`. `listener` is to be given to the sandbox, which must be ready. `what` names it in the error.
  Status Start(const char* name, const std::string& what, std::vector<int> keep,
               const std::function<std::unique_ptr<RelayBody>()>& make, UniqueFd* listener);
  bool running() const { return static_cast<bool>(pidfd_); }
  int pidfd() const { return pidfd_.get(); }  // -1 where it does not run
  void Stop();

 private:
  pid_t pid_ = -1;
  UniqueFd pidfd_;
};

}  // namespace sluice::oci
