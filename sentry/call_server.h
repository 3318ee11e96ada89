// The sentry's half of the interception: answers the notified calls that the broker passes on, owns the stand-ins' other ends and
// moves bytes between them and the stacks' sockets. Attached to the workers of a group; what belongs to a worker runs on its
// thread (docs/architecture.md, "Several workers").
//
// Must be made in the private network namespace and, where `native_options` is given, in the control group that has the options
// program (the stand-ins belong to the maker's), with a private /proc mounted (inotify watches on /proc/self/fd tell of the last
// close), before the sentry's own seccomp filter is installed or with the calls of `RequiredSyscalls` allowed.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "dataplane/worker_group.h"
#include "sentry/container_use.h"

namespace sluice {

class CallHub;
class NativeOptions;

class CallServer {
 public:
  static constexpr size_t kMaxSockets = 16384;
  struct Options {
    int calls_fd = -1;                               // the sentry's end of the SOCK_SEQPACKET pair; stays the caller's
    int offers_fd = -1;                              // likewise of the pair of offers (broker_protocol.h)
    bool net_raw = false;                            // --net-raw: SOCK_RAW for callers with CAP_NET_RAW
    size_t max_sockets = kMaxSockets;                // stand-ins of the sandbox; beyond: ENFILE. RLIMIT_NOFILE must be well above
    size_t container_sockets = 0;                    // of one container; 0: FairShare (container_use.h), which holds in any case
    size_t container_held_bytes = size_t{64} << 20;  // of calls that wait, of one container; beyond: ENOBUFS
    size_t unread_bytes = size_t{64} << 20;          // that programs have not read, in the kernel's memory (unread_memory.h)
    NativeOptions* native_options = nullptr;  // where the kernel answers some socket options itself; must outlive the object
  };

  struct Stats {
    uint64_t calls = 0, answered = 0, undone = 0, held = 0, fetches = 0;
    uint64_t streams = 0, datagrams = 0, listeners = 0, netlinks = 0;  // open now
    uint64_t stream_bytes_in = 0, stream_bytes_out = 0, datagrams_in = 0, datagrams_out = 0;
    uint64_t datagrams_dropped = 0;  // to the program: its queue was full and could not be kept
    bool native_options = false;     // the kernel answers some socket options
    uint64_t options_native = 0;     // options that the kernel answered and that were applied
    uint64_t unread_bytes = 0;       // that programs have not read: not less than there are
  };

  // Before the group runs; the group outlives the object.
  CallServer(WorkerGroup& group, const Options& options);
  ~CallServer();
  CallServer(const CallServer&) = delete;
  CallServer& operator=(const CallServer&) = delete;

  // False once the broker's end of the channel is gone. The worker goes on (the guard ends the sandbox).
  bool connected() const;
  // In the thread of `worker`, after every ApplyConfig of its stack: multicast groups of netlink sockets hear of it, changes
  // under way complete.
  void OnConfig(uint32_t worker);

  // Of what belongs to `worker`, in its thread.
  Stats stats(uint32_t worker) const;
  struct Owner {
    uint32_t cookie;  // as SocketInfo::owner
    uint32_t tid;     // thread that made or last used it, as the broker's pid namespace names it
    int fd;           // its number there, or -1
  };
  std::vector<Owner> Owners(uint32_t worker) const;
  // In the thread of the first worker.
  std::vector<std::shared_ptr<const ContainerUse>> Containers() const;

  // What the object needs of the kernel at run time, for the sentry's own seccomp filter (numbers as in asm/unistd.h; ioctl: the
  // seccomp notification requests, SIOCOUTQ, FIONREAD).
  static std::span<const int> RequiredSyscalls();

 private:
  std::unique_ptr<CallHub> hub_;
};

}  // namespace sluice
