// The privileged half of the interception: receives the notified calls of a sandbox, finds out whether they concern a stand-in,
// copies the memory they name and passes them to the sentry; writes results to memory and answers. Everything else is answered
// with CONTINUE at once (a program's own AF_UNIX sockets, pipes, files) - never a socket() call.
//
// It holds no state about sockets. One thread, the broker's; needs CAP_SYS_PTRACE over the program. It never waits for the
// sentry. Commits come after the answer: the sentry hears of every Result whether the program got it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/errno.h"
#include "base/unique_fd.h"
#include "sentry/netlink/net_change.h"

namespace sluice {

class CallBroker {
 public:
  struct Options {
    int calls_fd = -1;          // the broker's end of the SOCK_SEQPACKET pair; stays the caller's
    int offers_fd = -1;         // likewise of the pair of offers (broker_protocol.h)
    int sentry_pidfd = -1;      // the sentry, whose descriptors it offers; stays the caller's
    uint64_t netns_cookie = 0;  // SO_NETNS_COOKIE of the private namespace in which the sentry makes stand-ins
    int target_netns_fd =
        -1;  // the sandbox's network namespace: callers' rights are judged against its owner; stays the caller's
    int option_marks_fd = -1;  // NativeOptionMaps::marks; -1: there are none. Stays the caller's
    // Applies a change of the namespace (NetChanger::Apply); `allowed` is the judgement of the live call. Empty: refused, EPERM.
    std::function<netlink::NetChangeResult(const netlink::NetChange& change, bool allowed)> apply_change;
  };

  struct Stats {
    uint64_t calls = 0;      // received
    uint64_t continued = 0;  // answered natively, not ours
    uint64_t passed = 0;     // to the sentry
    uint64_t faults = 0;     // bad pointers of the program
    uint64_t dead = 0;       // interrupted, or the caller died, before an answer
    uint64_t refused = 0;    // messages of the sentry that broke the protocol
    uint64_t fetches = 0;
    uint64_t accepted = 0;  // connections given away
  };

  explicit CallBroker(const Options& options);
  ~CallBroker();
  CallBroker(const CallBroker&) = delete;
  CallBroker& operator=(const CallBroker&) = delete;

  // Takes over a seccomp listener of `container` (its id, for the sentry), from any thread: RunOnce sets SYNC_WAKE_UP where the
  // kernel has it, sends a copy to the sentry and receives. It is closed when its last task is gone; at once (its calls fail with
  // ENOSYS) where 4096 are open already.
  void AddListener(UniqueFd listener, std::string container = {});

  // Handles what is ready; waits up to `timeout_ms` for it (-1: no limit). False when the sentry's end of the channel is gone, or
  // the sentry broke the protocol: the sandbox has to be ended (its calls wait until then; none is answered by other means).
  bool RunOnce(int timeout_ms);

  // What the sentry did that no sentry does, in words; nullptr where it did nothing of the kind.
  const char* violation() const;
  Stats stats() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice
