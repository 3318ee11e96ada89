// Changes of the namespace that programs inside ask for, applied by the broker: it checks every field of the sentry's struct
// again, builds the kernel's message itself and returns the kernel's answer. Runs in the broker's thread, in the target
// namespace. man 7 rtnetlink, man 7 user_namespaces (who has a capability over a namespace).
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "control/rtnl.h"
#include "sentry/netlink/net_change.h"

namespace sluice {

// True where the thread `tid` (as /proc of the broker names it) has `capability` (CAP_*) in the user namespace that owns the
// network namespace `netns_fd`, as the kernel's ns_capable() judges. False on any doubt (the thread is gone ...). The caller
// checks with SECCOMP_IOCTL_NOTIF_ID_VALID afterwards that the thread was still the one that was meant.
bool HasCapabilityOverNetns(pid_t tid, int netns_fd, int capability);
// The same, of a process that has sent something as user `uid` (as the broker's user namespace names it) and may have executed
// another program since: its real and effective users must both be that one, so that a set-user-ID program does not lend its
// rights.
bool HasCapabilityStillAs(pid_t tid, uint32_t uid, int netns_fd, int capability);

// How many objects of a kind a namespace may hold after a change from inside; more is refused with ENOBUFS.
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
  bool ok() const { return client_.has_value(); }

  // Applies one change. `allowed` is the judgement of the caller (HasCapabilityOverNetns with CAP_NET_ADMIN): false gives EPERM.
  netlink::NetChangeResult Apply(const netlink::NetChange& change, bool allowed);

 private:
  // What is counted against NetChangeLimits.
  struct Count {
    uint32_t limit = 0;
    uint32_t added = 0;      // since the last count, an upper bound
    bool recount = true;     // something may have gone since the last count
    uint16_t dump_type = 0;  // RTM_GET*
  };

  Count* CountOf(netlink::NetChangeKind kind);
  bool WithinLimit(Count& count);
  uint32_t CountObjects(uint16_t dump_type);

  std::array<Count, 4> counts_;
  std::optional<NetlinkClient> client_;
};

}  // namespace sluice
