// Thin wrappers of system calls that the C library lacks or that need care. Descriptors are close-on-exec.
#pragma once

#include <sched.h>
#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/unique_fd.h"
#include "control/status.h"

namespace sluice {

UniqueFd PidfdOpen(pid_t pid);
UniqueFd PidfdGetfd(int pidfd, int fd);
bool PidfdSignal(int pidfd, int signal);
// Waits for the end of the process, at most `timeout_ms` (-1: for ever). True where it ended.
bool WaitForEnd(int pidfd, int timeout_ms);

// clone(2) as fork: returns 0 in the child. No stack, no shared memory. `control_group`: the child's (cgroup v2), or -1: the
// caller's.
pid_t CloneProcess(uint64_t flags, UniqueFd* pidfd, int control_group = -1);

// Makes room for descriptors below `size` (at most RLIMIT_NOFILE) in the process' table. Where a table is shared (threads,
// CLONE_FILES), whoever makes it grow waits for a grace period of the kernel, some 10 ms: so before it is shared.
void GrowDescriptorTable(int size);

struct SocketPair {
  UniqueFd a, b;
};
Status MakeSeqpacketPair(SocketPair* out);
Status MakePipe(UniqueFd* read_end, UniqueFd* write_end);

// One SEQPACKET record with descriptors. False on any error (errno tells).
bool SendRecord(int socket, Bytes data, const std::vector<int>& fds, int flags = 0);
struct Record {
  std::vector<uint8_t> data;
  std::vector<UniqueFd> fds;
  bool truncated = false;  // data or descriptors were cut: the sender does not keep to the protocol
};
// 1: a record; 0: the other end is gone; -1: none now, or errno.
int ReceiveRecord(int socket, Record* out, size_t max_bytes, size_t max_fds, int flags = 0);

std::optional<std::string> ReadSmallFile(const std::string& path, size_t limit = 1 << 20);
bool WriteSmallFile(const std::string& path, std::string_view text);  // errno tells
bool WriteAll(int fd, const void* data, size_t size);

// Identity of a namespace: what fstat says of its file.
struct NamespaceId {
  uint64_t device = 0, inode = 0;
  bool operator==(const NamespaceId&) const = default;
};
std::optional<NamespaceId> IdOfNamespace(int fd);

// Enters a namespace for the current scope (the thread must be able to come back).
class ScopedNetns {
 public:
  explicit ScopedNetns(int fd);
  ~ScopedNetns();
  bool ok() const { return ok_; }

 private:
  UniqueFd back_;
  bool ok_ = false;
};

}  // namespace sluice
