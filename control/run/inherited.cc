#include "control/run/inherited.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

namespace sluice {
namespace {

std::string LinkOf(int fd) {
  char text[256];
  const ssize_t n = readlink(Format("/proc/self/fd/%d", fd).c_str(), text, sizeof text);
  return n > 0 ? std::string(text, static_cast<size_t>(n)) : std::string();
}

// Empty, or what is wrong with it.
std::string WhyRefused(int fd) {
  struct stat st{};
  if (fstat(fd, &st) < 0) return "";
  if (S_ISSOCK(st.st_mode)) {
    int domain = AF_UNSPEC;
    socklen_t size = sizeof domain;
    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size);
    return domain == AF_UNIX ? "" : "is a socket of the host's network";
  }
  const std::string link = LinkOf(fd);
  if (link.rfind("anon_inode:[io_uring]", 0) == 0) return "is an io_uring";
  if (link.rfind("anon_inode:bpf-", 0) == 0 || link.rfind("anon_inode:bpf_", 0) == 0) return "is a BPF object";
  if (link.rfind("anon_inode:[pidfd]", 0) == 0 || link.rfind("pidfd:", 0) == 0) return "is a process outside of the sandbox";
  if (link.rfind("anon_inode:seccomp", 0) == 0) return "is a seccomp listener";
  if (link == "/dev/net/tun" || link == "/dev/vhost-net") return "is a network device (" + link + ")";
  struct statfs fs{};
  if (fstatfs(fd, &fs) < 0) return "";
  if (fs.f_type == NSFS_MAGIC) return "is a namespace (" + link + ")";
  if (fs.f_type == PROC_SUPER_MAGIC && S_ISDIR(st.st_mode)) return "is a directory of the host's /proc";
  return "";
}

}  // namespace

Status CheckInherited(std::vector<int>* inherited) {
  DIR* dir = opendir("/proc/self/fd");
  if (dir == nullptr) return Status::Error("cannot read /proc/self/fd: is /proc mounted?");
  Status status;
  while (const dirent* entry = readdir(dir)) {
    const int fd = atoi(entry->d_name);
    if (entry->d_name[0] == '.' || fd == dirfd(dir)) continue;
    const int flags = fcntl(fd, F_GETFD);
    if (flags < 0 || (flags & FD_CLOEXEC) != 0) continue;
    if (fd > 2) inherited->push_back(fd);
    const std::string why = WhyRefused(fd);
    if (status.ok() && !why.empty()) {
      status =
          Status::Error(Format("do: descriptor %d, which the program would inherit, %s: close it (%d>&-)", fd, why.c_str(), fd));
    }
  }
  closedir(dir);
  return status;
}

}  // namespace sluice
