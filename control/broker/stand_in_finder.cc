#include "control/broker/stand_in_finder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/nsfs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <utility>

namespace sluice {
namespace {

constexpr unsigned kPidfdThread = O_EXCL;  // PIDFD_THREAD; a kernel without it says EINVAL
#ifndef SO_NETNS_COOKIE
constexpr int SO_NETNS_COOKIE = 71;
#endif

int PidfdOpen(pid_t pid, unsigned flags) { return static_cast<int>(syscall(SYS_pidfd_open, pid, flags)); }

template <typename T>
bool GetOption(int fd, int name, T* value) {
  socklen_t length = sizeof *value;
  return getsockopt(fd, SOL_SOCKET, name, value, &length) == 0;
}

// The process of a thread, where the kernel has no handles on threads.
pid_t ProcessOf(pid_t tid) {
  std::unique_ptr<FILE, int (*)(FILE*)> f(fopen(("/proc/" + std::to_string(tid) + "/status").c_str(), "re"), fclose);
  if (f == nullptr && errno == ENOENT) errno = ESRCH;
  if (f == nullptr) return -1;
  char line[256];
  while (fgets(line, sizeof line, f.get()) != nullptr) {
    if (strncmp(line, "Tgid:", 5) == 0) return static_cast<pid_t>(atoi(line + 5));
  }
  return -1;
}

struct DirCloser {
  void operator()(DIR* d) const { closedir(d); }
};
using Dir = std::unique_ptr<DIR, DirCloser>;

}  // namespace

int StandInFinder::ThreadHandle(pid_t tid) {
  Entry& entry = cache_[static_cast<size_t>(tid) % cache_.size()];
  if (entry.tid == tid && entry.handle) return entry.handle.get();
  int fd = -1;
  if (thread_handles_) {
    fd = PidfdOpen(tid, kPidfdThread);
    if (fd < 0 && errno == EINVAL) thread_handles_ = false;
  }
  if (!thread_handles_) {
    pid_t process = ProcessOf(tid);
    if (process > 0) fd = PidfdOpen(process, 0);
    // The handle of a process says nothing about whether the thread of this number is still one of its own: used once.
    entry.tid = process == tid ? tid : 0;
  } else {
    entry.tid = tid;
  }
  const int error = errno;
  entry.handle.reset(fd);
  errno = error;
  return fd;
}

void StandInFinder::Drop(pid_t tid) {
  Entry& entry = cache_[static_cast<size_t>(tid) % cache_.size()];
  entry.tid = 0;
  entry.handle.reset();
}

UniqueFd StandInFinder::GetFd(pid_t tid, int number) {
  for (int attempt = 0; attempt < 2; ++attempt) {
    int handle = ThreadHandle(tid);
    if (handle < 0) return UniqueFd();
    int fd = static_cast<int>(syscall(SYS_pidfd_getfd, handle, number, 0));
    if (fd >= 0 || errno != ESRCH) return UniqueFd(fd);
    Drop(tid);  // the thread we knew by this number is gone
    errno = ESRCH;
  }
  return UniqueFd();
}

uint64_t CookieOf(int fd) {
  uint64_t cookie = 0;
  return GetOption(fd, SO_COOKIE, &cookie) ? cookie : 0;
}

FoundSocket StandInFinder::Examine(UniqueFd fd) {
  FoundSocket found;
  found.fd = std::move(fd);
  if (found.fd) found.cookie = CookieOf(found.fd.get());
  if (found.cookie == 0) return found;
  found.is_socket = true;
  KnownStandIn& known = known_[found.cookie % known_.size()];
  if (known.cookie != found.cookie) {
    uint64_t netns = 0;
    int type = 0;
    if (!GetOption(found.fd.get(), SO_NETNS_COOKIE, &netns) || netns != netns_cookie_) return found;
    if (!GetOption(found.fd.get(), SO_TYPE, &type)) return found;
    known = {.cookie = found.cookie, .is_stream = type == SOCK_STREAM};
  }
  found.known = &known;
  found.is_stand_in = true;
  found.is_stream = known.is_stream;
  return found;
}

FoundSocket StandInFinder::Fetch(pid_t tid, int number) {
  UniqueFd fd = GetFd(tid, number);
  if (fd) return Examine(std::move(fd));
  FoundSocket none;
  none.error = errno;
  return none;
}

uint64_t StandInFinder::PidNamespaceOf(pid_t tid) {
  struct stat st;
  return stat(("/proc/" + std::to_string(tid) + "/ns/pid").c_str(), &st) == 0 ? st.st_ino : 0;
}

bool StandInFinder::IsInside(pid_t tid, uint64_t pid_namespace) {
  if (tid <= 0 || pid_namespace == 0) return false;
  UniqueFd ns(open(("/proc/" + std::to_string(tid) + "/ns/pid").c_str(), O_RDONLY | O_CLOEXEC));
  struct stat st;
  while (ns && fstat(ns.get(), &st) == 0) {
    if (st.st_ino == pid_namespace) return true;
    ns = UniqueFd(ioctl(ns.get(), NS_GET_PARENT));
  }
  return false;
}

FoundSocket StandInFinder::SearchProcess(pid_t pid, uint64_t cookie, uint64_t inode) {
  std::string path = "/proc/" + std::to_string(pid) + "/fd";
  Dir dir(opendir(path.c_str()));
  if (dir == nullptr) return {};
  std::string wanted = "socket:[" + std::to_string(inode) + "]";
  while (dirent* e = readdir(dir.get())) {
    char target[64];
    ssize_t n = readlinkat(dirfd(dir.get()), e->d_name, target, sizeof target);
    if (n != static_cast<ssize_t>(wanted.size()) || memcmp(target, wanted.data(), wanted.size()) != 0) continue;
    FoundSocket found = Fetch(pid, atoi(e->d_name));
    if (found.is_stand_in && found.cookie == cookie) return found;
  }
  return {};
}

FoundSocket StandInFinder::Find(uint64_t cookie, uint64_t inode, uint64_t pid_namespace) {
  Dir dir(inode == 0 ? nullptr : opendir("/proc"));
  if (dir == nullptr) return {};
  while (dirent* e = readdir(dir.get())) {
    pid_t pid = static_cast<pid_t>(atoi(e->d_name));
    if (pid <= 0 || !IsInside(pid, pid_namespace)) continue;
    if (FoundSocket found = SearchProcess(pid, cookie, inode); found.fd) return found;
  }
  return {};
}

}  // namespace sluice
