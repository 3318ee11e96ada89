#include "control/run/option_group.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "control/log.h"
#include "sentry/call_server.h"

namespace sluice {
namespace {

constexpr char kRecord[] = "cgroup-";  // file under --root, then the guard's process id; holds the group's path

std::string RecordPath(const Flags& flags, pid_t guard) { return flags.root + Format("/%s%d", kRecord, guard); }

// The root of the hierarchy, as our cgroup namespace has it: where it is usually mounted, else by a mount of our own, which takes
// the kernel some milliseconds.
UniqueFd OpenHierarchy() {
  for (const char* usual : {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}) {
    UniqueFd root(open(usual, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    struct statfs fs{};
    struct statvfs flags{};
    struct stat st{};
    const bool writable = root && fstatvfs(root.get(), &flags) == 0 && (flags.f_flag & ST_RDONLY) == 0;
    // The root of a mount and of the hierarchy: inode 1, not a group that somebody bound there.
    if (writable && fstatfs(root.get(), &fs) == 0 && fs.f_type == CGROUP2_SUPER_MAGIC && fstat(root.get(), &st) == 0 &&
        st.st_ino == 1)
      return root;
  }
  UniqueFd context(static_cast<int>(syscall(SYS_fsopen, "cgroup2", FSOPEN_CLOEXEC)));
  if (!context || syscall(SYS_fsconfig, context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) return UniqueFd();
  return UniqueFd(static_cast<int>(
      syscall(SYS_fsmount, context.get(), FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)));
}

// The group in which it is made, relative to that root: the sandbox's, else our own ("0::/path" of /proc/self/cgroup). Ends in a
// slash where it is not empty.
std::string GroupAbove(const SandboxPlan& plan) {
  for (const SandboxGroup& group : plan.groups) {
    if (!group.unified.empty()) return group.unified.substr(1) + "/";
  }
  const std::string groups = ReadSmallFile("/proc/self/cgroup").value_or("");
  size_t at = groups.rfind("0::/", 0) == 0 ? 0 : groups.find("\n0::/");
  if (at == std::string::npos) return "";
  at = groups.find('/', at) + 1;
  const std::string path = groups.substr(at, groups.find('\n', at) - at);
  return path.empty() ? "" : path + "/";
}

// A process that has ended may still be counted for a moment.
bool RemoveGroup(int root, const std::string& path) {
  constexpr int kAttempts = 100;
  for (int i = 0; i < kAttempts; ++i) {
    if (unlinkat(root, path.c_str(), AT_REMOVEDIR) == 0 || errno == ENOENT) return true;
    if (errno != EBUSY) return false;
    poll(nullptr, 0, 2);
  }
  return false;
}

// Null, or what failed.
const char* Make(SandboxPlan& plan, std::string* error) {
  OptionGroup& group = plan.option_group;
  if (LoadNativeOptions(CallServer::Options{}.max_sockets, &group.program, &group.maps, error) != Errno::kOk)
    return error->c_str();
  const UniqueFd hierarchy = OpenHierarchy();
  if (!hierarchy) return "cannot reach the cgroup2 hierarchy";
  const std::string path = GroupAbove(plan) + Format("sluice-%d", plan.guard_pid);
  // Recorded first: a group that nobody knows of would stay for ever.
  UniqueFd record(open(RecordPath(plan.flags, plan.guard_pid).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!record || !WriteAll(record.get(), path.data(), path.size())) return "cannot record the control group";
  if (mkdirat(hierarchy.get(), path.c_str(), 0755) != 0) return "cannot make a control group";
  group.fd = UniqueFd(openat(hierarchy.get(), path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!group.fd) return "cannot open the control group";
  return AttachNativeOptions(group.program.get(), group.fd.get(), error) == Errno::kOk ? nullptr : error->c_str();
}

}  // namespace

void MakeOptionGroup(SandboxPlan& plan) {
  std::string error;
  const char* problem = Make(plan, &error);
  if (problem == nullptr) {
    plan.option_group.program.Reset();  // the group holds it
    return;
  }
  const int reason = errno;
  Log(LogLevel::kDebug, "socket options are notified calls: %s%s", problem, error.empty() ? ErrnoText(reason).c_str() : "");
  RemoveOptionGroup(plan);
  plan.option_group = {};
}

void RemoveOptionGroup(const SandboxPlan& plan) {
  const std::string record = RecordPath(plan.flags, plan.guard_pid);
  const std::string path = ReadSmallFile(record).value_or("");
  if (path.empty()) return;
  const UniqueFd root = OpenHierarchy();
  if (!root || !RemoveGroup(root.get(), path)) {
    return Log(LogLevel::kWarning, "cannot remove the control group %s%s", path.c_str(), ErrnoText(errno).c_str());
  }
  unlink(record.c_str());
}

void PruneOptionGroups(const Flags& flags) {
  DIR* dir = opendir(flags.root.c_str());
  if (dir == nullptr) return;
  UniqueFd root;
  while (const dirent* entry = readdir(dir)) {
    const std::string name = entry->d_name;
    if (name.rfind(kRecord, 0) != 0) continue;
    const pid_t guard = atoi(name.c_str() + sizeof kRecord - 1);
    if (guard <= 0 || kill(guard, 0) == 0 || errno != ESRCH) continue;
    const std::string path = ReadSmallFile(flags.root + "/" + name).value_or("");
    if (!root) root = OpenHierarchy();
    // One whose broker still cleans up, or whose keeper lives for some seconds yet, is busy and left to the next.
    if (!path.empty() && (!root || (unlinkat(root.get(), path.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT))) continue;
    unlink((flags.root + "/" + name).c_str());
  }
  closedir(dir);
}

}  // namespace sluice
