// Finds the stand-ins of the sentry among the descriptors of the sandbox's threads. A descriptor number is looked up anew for
// every call: numbers are reused. What is remembered are handles on threads (pidfds of exactly one thread, which never name
// another).
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>

#include "base/unique_fd.h"

namespace sluice {

// What was learnt of a stand-in and stays true of it: the cookie of a socket is never another's.
struct KnownStandIn {
  uint64_t cookie = 0;
  bool is_stream = false;
  bool has_end = false;  // a stream that is connected to the sentry's end
};

// What a fetched descriptor is.
struct FoundSocket {
  UniqueFd fd;    // our copy, to be closed soon: it hides the program's close
  int error = 0;  // where there is none: EBADF, ESRCH (the thread is gone), or why it could not be had
  bool is_socket = false;
  bool is_stand_in = false;  // made in the private namespace
  bool is_stream = false;
  uint64_t cookie = 0;
  KnownStandIn* known = nullptr;  // of a stand-in, until another one is fetched
};

// SO_COOKIE; 0 where it is no socket.
uint64_t CookieOf(int fd);

class StandInFinder {
 public:
  explicit StandInFinder(uint64_t netns_cookie) : netns_cookie_(netns_cookie) {}

  // Descriptor `number` of thread `tid`. fd is invalid where there is none or the thread is gone.
  FoundSocket Fetch(pid_t tid, int number);
  // The stand-in with this cookie and inode, by a look through the processes of `pid_namespace` (inode number of its
  // /proc/PID/ns/pid) and those below it. fd is invalid where nobody holds it (it may be on its way in a message).
  FoundSocket Find(uint64_t cookie, uint64_t inode, uint64_t pid_namespace);
  // Inode number of the thread's pid namespace, 0 where it is gone.
  static uint64_t PidNamespaceOf(pid_t tid);
  // True where the thread is in that pid namespace or one below it.
  static bool IsInside(pid_t tid, uint64_t pid_namespace);

 private:
  int ThreadHandle(pid_t tid);
  void Drop(pid_t tid);
  UniqueFd GetFd(pid_t tid, int number);
  FoundSocket Examine(UniqueFd fd);
  FoundSocket SearchProcess(pid_t pid, uint64_t cookie, uint64_t inode);

  struct Entry {
    pid_t tid = 0;
    UniqueFd handle;
  };
  uint64_t netns_cookie_;
  bool thread_handles_ = true;  // PIDFD_THREAD (6.9)
  std::array<Entry, 256> cache_;
  std::array<KnownStandIn, 1024> known_;
};

}  // namespace sluice
