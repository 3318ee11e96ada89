#include "control/os.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace sluice {

UniqueFd PidfdOpen(pid_t pid) { return UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0))); }

UniqueFd PidfdGetfd(int pidfd, int fd) { return UniqueFd(static_cast<int>(syscall(SYS_pidfd_getfd, pidfd, fd, 0))); }

bool PidfdSignal(int pidfd, int signal) { return syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0) == 0; }

bool WaitForEnd(int pidfd, int timeout_ms) {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  const int64_t deadline = now.tv_sec * 1000 + now.tv_nsec / 1000000 + timeout_ms;
  for (;;) {
    pollfd p{pidfd, POLLIN, 0};
    const int n = poll(&p, 1, timeout_ms);
    if (n > 0) return true;
    if (n == 0) return false;
    if (errno != EINTR) return false;
    if (timeout_ms < 0) continue;
    clock_gettime(CLOCK_MONOTONIC, &now);
    const int64_t left = deadline - (now.tv_sec * 1000 + now.tv_nsec / 1000000);
    if (left <= 0) return false;
    timeout_ms = static_cast<int>(left);
  }
}

pid_t CloneProcess(uint64_t flags, UniqueFd* pidfd, int control_group) {
  int fd = -1;
  clone_args args{};
  args.flags = flags;
  args.exit_signal = SIGCHLD;
  if (pidfd != nullptr) {
    args.flags |= CLONE_PIDFD;
    args.pidfd = reinterpret_cast<uint64_t>(&fd);
  }
  if (control_group >= 0) {
    args.flags |= CLONE_INTO_CGROUP;
    args.cgroup = static_cast<uint64_t>(control_group);
  }
  const auto pid = static_cast<pid_t>(syscall(SYS_clone3, &args, sizeof args));
  if (pid > 0 && pidfd != nullptr) pidfd->Reset(fd);
  return pid;
}

void GrowDescriptorTable(int size) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return;
  const auto last = static_cast<int>(std::min<rlim_t>(static_cast<rlim_t>(size), limit.rlim_cur)) - 1;
  const UniqueFd any(eventfd(0, EFD_CLOEXEC));
  const UniqueFd highest(fcntl(any.get(), F_DUPFD_CLOEXEC, last));  // a table never shrinks
}

Status MakeSeqpacketPair(SocketPair* out) {
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0) {
    return Status::Error("cannot make a channel" + ErrnoText(errno));
  }
  out->a.Reset(fds[0]);
  out->b.Reset(fds[1]);
  return {};
}

Status MakePipe(UniqueFd* read_end, UniqueFd* write_end) {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) < 0) return Status::Error("cannot make a pipe" + ErrnoText(errno));
  read_end->Reset(fds[0]);
  write_end->Reset(fds[1]);
  return {};
}

bool SendRecord(int socket, Bytes data, const std::vector<int>& fds, int flags) {
  iovec iov{const_cast<uint8_t*>(data.data()), data.size()};
  msghdr msg{};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  std::vector<char> control;
  if (!fds.empty()) {
    control.resize(CMSG_SPACE(sizeof(int) * fds.size()));
    msg.msg_control = control.data();
    msg.msg_controllen = control.size();
    cmsghdr* cmsg = CMSG_FIRSTHDR(&msg);
    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(cmsg), fds.data(), sizeof(int) * fds.size());
  }
  ssize_t n;
  do {
    n = sendmsg(socket, &msg, flags | MSG_NOSIGNAL);
  } while (n < 0 && errno == EINTR);
  return n == static_cast<ssize_t>(data.size());
}

int ReceiveRecord(int socket, Record* out, size_t max_bytes, size_t max_fds, int flags) {
  out->data.assign(max_bytes, 0);
  out->fds.clear();
  std::vector<char> control(CMSG_SPACE(sizeof(int) * max_fds));
  iovec iov{out->data.data(), out->data.size()};
  msghdr msg{};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  msg.msg_control = control.data();
  msg.msg_controllen = control.size();
  ssize_t n;
  do {
    n = recvmsg(socket, &msg, flags | MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  if (n < 0) return -1;
  for (cmsghdr* cmsg = CMSG_FIRSTHDR(&msg); cmsg != nullptr; cmsg = CMSG_NXTHDR(&msg, cmsg)) {
    if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(int), sizeof fd);
      out->fds.emplace_back(fd);
    }
  }
  if (n == 0) return 0;
  out->data.resize(static_cast<size_t>(n));
  out->truncated = (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0;
  return 1;
}

std::optional<std::string> ReadSmallFile(const std::string& path, size_t limit) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return std::nullopt;
  std::string out;
  char buffer[4096];
  while (out.size() < limit) {
    const ssize_t n = read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return std::nullopt;
    if (n == 0) break;
    out.append(buffer, static_cast<size_t>(n));
  }
  return out;
}

bool WriteAll(int fd, const void* data, size_t size) {
  const auto* p = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t n = write(fd, p, size);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    p += n;
    size -= static_cast<size_t>(n);
  }
  return true;
}

bool WriteSmallFile(const std::string& path, std::string_view text) {
  UniqueFd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd) return false;
  // One call: the files of /proc and /sys take a value whole.
  ssize_t n;
  do {
    n = write(fd.get(), text.data(), text.size());
  } while (n < 0 && errno == EINTR);
  return n == static_cast<ssize_t>(text.size());
}

std::optional<NamespaceId> IdOfNamespace(int fd) {
  struct stat st{};
  if (fstat(fd, &st) < 0) return std::nullopt;
  return NamespaceId{st.st_dev, st.st_ino};
}

ScopedNetns::ScopedNetns(int fd) : back_(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)) {
  ok_ = back_ && setns(fd, CLONE_NEWNET) == 0;
}

ScopedNetns::~ScopedNetns() {
  // Going on in a foreign namespace would open sockets in the wrong place.
  if (ok_ && setns(back_.get(), CLONE_NEWNET) != 0) _exit(kExitKilled);
}

}  // namespace sluice
