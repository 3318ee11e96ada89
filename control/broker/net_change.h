// Changes of the namespace that programs inside ask for, applied by the broker: it checks every field of the sentry's struct again,
// builds the kernel's message itself and returns the kernel's answer. Runs in the broker's thread, in the target namespace.
// man 7 rtnetlink, man 7 user_namespaces (who has a capability over a namespace).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "sentry/netlink/net_change.h"

namespace sluice {

// True where the thread `tid` (as /proc of the broker names it) has `capability` (CAP_*) in the user namespace that owns the network
// namespace `netns_fd`, as the kernel's ns_capable() judges. False on any doubt (the thread is gone ...). The caller checks with
// SECCOMP_IOCTL_NOTIF_ID_VALID afterwards that the thread was still the one that was meant.
bool HasCapabilityOverNetns(pid_t tid, int netns_fd, int capability);

// How many objects a sandbox may add to its namespace; more is refused with ENOBUFS.
struct NetChangeLimits {
  uint32_t addresses = 4096;
  uint32_t routes = 65536;
  uint32_t rules = 4096;
  uint32_t neighbors = 4096;
};

class NetChanger {
 public:
  // Opens a rtnetlink socket in the calling thread's network namespace, which must be the target. `error` gets a line on failure,
  // then ok() is false.
  explicit NetChanger(const NetChangeLimits& limits, std::string* error);
  ~NetChanger();
  NetChanger(const NetChanger&) = delete;
  NetChanger& operator=(const NetChanger&) = delete;
  bool ok() const { return fd_ >= 0; }

  // Applies one change. `allowed` is the judgement of the caller (HasCapabilityOverNetns with CAP_NET_ADMIN): false gives EPERM.
  netlink::NetChangeResult Apply(const netlink::NetChange& change, bool allowed);

 private:
  netlink::NetChangeResult Transact(class NetMessage& message);
  bool WithinLimit(const netlink::NetChange& change);

  NetChangeLimits limits_;
  int fd_ = -1;
  uint32_t seq_ = 0;
};

}  // namespace sluice
