#include "control/run/sandbox_groups.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <sstream>

#include "control/log.h"
#include "control/os.h"
#include "control/run/plan.h"

namespace sluice {
namespace {

constexpr char kUnbounded[] =
    "--sentry-memory: no control group bounds the sandbox's processes, as the container has none or it cannot be reached";
constexpr char kRecord[] = "groups-";  // file under --root, then the guard's process id; a folder per line

std::string RecordPath(const Flags& flags, pid_t guard) { return flags.root + Format("/%s%d", kRecord, guard); }

std::vector<std::string> Split(std::string_view text, char at) {
  std::vector<std::string> out;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(at, begin), text.size());
    out.emplace_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

bool Has(const std::vector<std::string>& list, std::string_view word) {
  return std::find(list.begin(), list.end(), word) != list.end();
}

// A line of /proc/PID/cgroup.
struct Membership {
  std::vector<std::string> controllers;  // {""}: cgroup v2
  std::string path;
};

std::vector<Membership> ParseMemberships(std::string_view text) {
  std::vector<Membership> out;
  for (const std::string& line : Split(text, '\n')) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    out.push_back({Split(line.substr(first + 1, second - first - 1), ','), line.substr(second + 1)});
  }
  return out;
}

// A mounted hierarchy, or a part of one.
struct Hierarchy {
  bool v2 = false;
  std::vector<std::string> options;  // v1: its controllers are among them
  std::string root, mount_point;

  bool Is(const Membership& m) const { return m.controllers.front().empty() ? v2 : !v2 && Has(options, m.controllers.front()); }
  // Where a group is in the file system; false where this mount does not show it.
  bool Locate(const std::string& path, std::string* out) const {
    const std::string prefix = root == "/" ? "" : root;
    if (path.compare(0, prefix.size(), prefix) != 0 || (path.size() > prefix.size() && path[prefix.size()] != '/')) return false;
    *out = mount_point + path.substr(prefix.size());
    return true;
  }
};

// mountinfo writes blanks and the like as \ooo.
std::string Unescape(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 3 >= text.size()) {
      out += text[i];
      continue;
    }
    out += static_cast<char>(strtol(text.substr(i + 1, 3).c_str(), nullptr, 8));
    i += 3;
  }
  return out;
}

std::vector<Hierarchy> ParseHierarchies(std::string_view mounts) {
  std::vector<Hierarchy> out;
  for (const std::string& line : Split(mounts, '\n')) {
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    const auto left = Split(line.substr(0, dash), ' '), right = Split(line.substr(dash + 3), ' ');
    if (left.size() < 5 || right.size() < 3 || (right[0] != "cgroup" && right[0] != "cgroup2")) continue;
    out.push_back({right[0] == "cgroup2", Split(right[2], ','), Unescape(left[3]), Unescape(left[4])});
  }
  return out;
}

// A process that has ended is counted until it has been switched out, for which it needs its turn on a busy machine.
bool Remove(const std::string& folder) {
  constexpr int kAttempts = 1000;
  for (int i = 0; i < kAttempts; ++i) {
    if (rmdir(folder.c_str()) == 0 || errno == ENOENT) return true;
    if (errno != EBUSY) return false;
    poll(nullptr, 0, 2);
  }
  return false;
}

// cgroup v1: nobody enters a group without processors and memory nodes of its own.
bool CopyCpuset(const std::string& folder) {
  if (access((folder + "/cpuset.cpu_exclusive").c_str(), F_OK) != 0) return true;
  const std::string above = folder.substr(0, folder.rfind('/'));
  for (const char* file : {"/cpuset.cpus", "/cpuset.mems"}) {
    if (!WriteSmallFile(folder + file, ReadSmallFile(above + file).value_or(""))) return false;
  }
  return true;
}

bool BoundMemory(const SandboxGroup& group, uint64_t bound) {
  if (!group.holds_memory || bound == 0) return true;
  const std::string value = std::to_string(bound);
  return WriteSmallFile(group.folder + "/memory.max", value) || WriteSmallFile(group.folder + "/memory.limit_in_bytes", value);
}

bool Make(SandboxGroup& group, uint64_t memory_bound) {
  // One that is left of a dead sandbox of this namespace will do.
  if (mkdir(group.folder.c_str(), 0755) != 0 && errno != EEXIST) return false;
  group.holds_memory = access((group.folder + "/memory.max").c_str(), F_OK) == 0 ||
                       access((group.folder + "/memory.limit_in_bytes").c_str(), F_OK) == 0;
  return CopyCpuset(group.folder) && BoundMemory(group, memory_bound);
}

bool Write(const std::string& path, const std::string& text) {
  const UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  return fd && WriteAll(fd.get(), text.data(), text.size());
}

bool Move(pid_t pid, const std::string& folder) { return WriteSmallFile(folder + "/cgroup.procs", std::to_string(pid)); }

void Prune(const Flags& flags) {
  DIR* dir = opendir(flags.root.c_str());
  if (dir == nullptr) return;
  while (const dirent* entry = readdir(dir)) {
    const std::string name = entry->d_name;
    if (name.rfind(kRecord, 0) != 0) continue;
    const pid_t guard = atoi(name.c_str() + sizeof kRecord - 1);
    if (guard <= 0 || kill(guard, 0) == 0 || errno != ESRCH) continue;
    const std::string record = flags.root + "/" + name;
    bool all = true;
    // One whose broker still cleans up is busy and left to the next.
    for (const std::string& folder : Split(ReadSmallFile(record).value_or(""), '\n'))
      all &= folder.empty() || rmdir(folder.c_str()) == 0 || errno == ENOENT;
    if (all) unlink(record.c_str());
  }
  closedir(dir);
}

}  // namespace

std::vector<SandboxGroup> PlaceSandboxGroups(std::string_view container_groups, std::string_view own_groups,
                                             std::string_view mounts, const std::string& name) {
  const auto hierarchies = ParseHierarchies(mounts);
  const auto own = ParseMemberships(own_groups);
  std::vector<SandboxGroup> out;
  for (const Membership& container : ParseMemberships(container_groups)) {
    const auto mine =
        std::find_if(own.begin(), own.end(), [&](const Membership& m) { return m.controllers == container.controllers; });
    if (container.path == "/" || (mine != own.end() && mine->path == container.path)) continue;
    const std::string path = container.path.substr(0, container.path.rfind('/')) + "/" + name;
    for (const Hierarchy& h : hierarchies) {
      SandboxGroup group;
      if (!h.Is(container) || !h.Locate(path, &group.folder)) continue;
      if (h.v2) group.unified = path;
      if (mine == own.end() || !h.Locate(mine->path == "/" ? "" : mine->path, &group.before)) group.before = "";
      out.push_back(std::move(group));
      break;
    }
  }
  return out;
}

void MakeSandboxGroups(SandboxPlan& plan) {
  Prune(plan.flags);
  if (plan.container_groups.empty()) return;
  const std::string name = Format("sluice-%llu", static_cast<unsigned long long>(plan.netns_id.inode));
  std::vector<SandboxGroup> places =
      PlaceSandboxGroups(plan.container_groups, ReadSmallFile("/proc/self/cgroup").value_or(""),
                         ReadSmallFile("/proc/self/mountinfo", size_t{4} << 20).value_or(""), name);
  if (places.empty()) Log(LogLevel::kInfo, "the container has no control group beside which the sandbox's could stand");
  // Recorded first: a group that nobody knows of would stay for ever.
  std::string record;
  for (const SandboxGroup& group : places) record += group.folder + "\n";
  if (!places.empty() && !Write(RecordPath(plan.flags, plan.guard_pid), record)) {
    return Log(LogLevel::kWarning, "no control groups of the sandbox's own: they cannot be recorded%s", ErrnoText(errno).c_str());
  }
  bool bounded = plan.flags.sentry_memory == 0;
  for (SandboxGroup& group : places) {
    if (!Make(group, plan.flags.sentry_memory)) {
      Log(LogLevel::kWarning, "cannot make the control group %s%s", group.folder.c_str(), ErrnoText(errno).c_str());
      rmdir(group.folder.c_str());
      continue;
    }
    bounded |= group.holds_memory;
    plan.groups.push_back(std::move(group));
  }
  if (!bounded) Log(LogLevel::kWarning, "%s", kUnbounded);
}

void JoinSandboxGroups(const SandboxPlan& plan, pid_t pid, JoinGroups which) {
  for (const SandboxGroup& group : plan.groups) {
    if (which == JoinGroups::kAllButUnified && !group.unified.empty()) continue;
    if (!Move(pid, group.folder))
      Log(LogLevel::kWarning, "cannot enter the control group %s%s", group.folder.c_str(), ErrnoText(errno).c_str());
  }
}

void RemoveSandboxGroups(const SandboxPlan& plan, const std::vector<pid_t>& left) {
  bool all = true;
  for (const SandboxGroup& group : plan.groups) {
    for (const pid_t pid : left) {
      if (!group.before.empty()) Move(pid, group.before);  // it may have ended
    }
    if (Remove(group.folder)) continue;
    all = false;
    Log(LogLevel::kWarning, "cannot remove the control group %s%s", group.folder.c_str(), ErrnoText(errno).c_str());
  }
  if (all) unlink(RecordPath(plan.flags, plan.guard_pid).c_str());
}

void RecallSandboxGroups(SandboxPlan& plan) {
  plan.groups.clear();
  for (std::string& folder : Split(ReadSmallFile(RecordPath(plan.flags, plan.guard_pid)).value_or(""), '\n')) {
    if (!folder.empty()) plan.groups.push_back({.folder = std::move(folder)});
  }
}

bool KilledForMemory(const SandboxPlan& plan) {
  for (const SandboxGroup& group : plan.groups) {
    if (!group.holds_memory) continue;
    std::istringstream events(ReadSmallFile(group.folder + "/memory.events")
                                  .value_or(ReadSmallFile(group.folder + "/memory.oom_control").value_or("")));
    std::string key;
    for (uint64_t count = 0; events >> key >> count;) {
      if (key == "oom_kill" && count != 0) return true;
    }
  }
  return false;
}

int OomScoreOf(pid_t pid) { return atoi(ReadSmallFile(Format("/proc/%d/oom_score_adj", pid)).value_or("0").c_str()); }

bool SetOomScore(pid_t pid, int score) { return WriteSmallFile(Format("/proc/%d/oom_score_adj", pid), std::to_string(score)); }

}  // namespace sluice
