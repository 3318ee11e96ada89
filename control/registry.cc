#include "control/registry.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

namespace sluice {
namespace {

std::string PathFor(const Flags& flags, const NamespaceId& id, const char* what) {
  return flags.root + Format("/net-%llu.%s", static_cast<unsigned long long>(id.inode), what);
}

Status MakeRoot(const std::string& root) {
  for (size_t at = 1; at != std::string::npos;) {
    at = root.find('/', at + 1);
    if (mkdir(root.substr(0, at).c_str(), 0700) < 0 && errno != EEXIST) {
      return Status::Error("--root=" + root + ": cannot make the directory" + ErrnoText(errno));
    }
  }
  return {};
}

const char* ModeName(NetworkMode mode) {
  return mode == NetworkMode::kHost ? "host" : mode == NetworkMode::kNone ? "none" : "sandbox";
}

// False for a file that is none of ours.
bool ReadRegistration(const nlohmann::json& state, Registration* r) try {
  r->guard_pid = state.value("pid", 0);
  r->init_pid = state.value("init", 0);
  r->netns_name = state.value("netns", "");
  r->network = state.value("network", "");
  r->metrics = state.value("metrics", "");
  r->id.inode = state.value("inode", uint64_t{0});
  r->id.device = state.value("device", uint64_t{0});
  for (const auto& word : state.value("command", nlohmann::json::array()))
    r->command += (r->command.empty() ? "" : " ") + word.get<std::string>();
  return true;
} catch (const nlohmann::json::exception&) {
  return false;
}

}  // namespace

std::string LockPath(const Flags& flags, const NamespaceId& id) { return PathFor(flags, id, "lock"); }
std::string StatePath(const Flags& flags, const NamespaceId& id) { return PathFor(flags, id, "json"); }
std::string SocketPath(const Flags& flags, const NamespaceId& id) { return PathFor(flags, id, "sock"); }
std::string GuardSocketPath(const Flags& flags, const NamespaceId& id) { return PathFor(flags, id, "guard"); }

Status TakeNamespace(const SandboxPlan& plan, UniqueFd* lock) {
  SLUICE_RETURN_IF_ERROR(MakeRoot(plan.flags.root));
  const std::string path = LockPath(plan.flags, plan.netns_id);
  for (;;) {
    UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!fd) return Status::Error("cannot open " + path + ErrnoText(errno));
    if (flock(fd.get(), (plan.intercepted() ? LOCK_EX : LOCK_SH) | LOCK_NB) < 0) {
      const std::string shown = plan.netns_name.empty() ? plan.options.netns : plan.netns_name;
      std::string holder;
      for (const Registration& r : ListRegistrations(plan.flags)) {
        if (r.id.inode == plan.netns_id.inode) holder = Format(" (process %d, --network=%s)", r.guard_pid, r.network.c_str());
      }
      return Status::Error("--netns=" + shown + ": another sluice runs in this network namespace" + holder +
                           "; one at a time has it");
    }
    // A holder that ended meanwhile removed the file that we opened: lock the one that has the name.
    struct stat ours{}, named{};
    if (fstat(fd.get(), &ours) == 0 && stat(path.c_str(), &named) == 0 && ours.st_ino == named.st_ino) {
      *lock = std::move(fd);
      return {};
    }
  }
}

Status WriteRegistration(const SandboxPlan& plan, pid_t init) {
  nlohmann::json state{{"pid", plan.guard_pid},           {"init", init},
                       {"netns", plan.netns_name},        {"inode", plan.netns_id.inode},
                       {"device", plan.netns_id.device},  {"network", ModeName(plan.flags.network)},
                       {"command", plan.options.command}, {"metrics", plan.flags.metrics}};
  const std::string text = state.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  const std::string path = StatePath(plan.flags, plan.netns_id);
  const std::string temporary = path + ".new";
  UniqueFd fd(open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd || !WriteAll(fd.get(), text.data(), text.size()) || rename(temporary.c_str(), path.c_str()) < 0) {
    return Status::Error("cannot write " + path + ErrnoText(errno));
  }
  return {};
}

Status OpenAdminSocket(const SandboxPlan& plan, UniqueFd* out) {
  const std::string path = SocketPath(plan.flags, plan.netns_id);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return Status::Error("--root=" + plan.flags.root + ": the path is too long for a socket");
  std::memcpy(address.sun_path, path.c_str(), path.size());
  unlink(path.c_str());  // of a sandbox that was killed together with its broker; the lock is ours
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd || bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) < 0 || chmod(path.c_str(), 0600) < 0 ||
      listen(fd.get(), 8) < 0) {
    return Status::Error("cannot make " + path + ErrnoText(errno));
  }
  *out = std::move(fd);
  return {};
}

void RemoveRegistration(const SandboxPlan& plan) {
  // Others may share the lock of --network=host: the last one removes it.
  if (!plan.intercepted()) {
    UniqueFd fd(open(LockPath(plan.flags, plan.netns_id).c_str(), O_RDWR | O_CLOEXEC));
    if (plan.lock) flock(plan.lock.get(), LOCK_UN);
    if (!fd || flock(fd.get(), LOCK_EX | LOCK_NB) < 0) return;
    unlink(StatePath(plan.flags, plan.netns_id).c_str());
    unlink(LockPath(plan.flags, plan.netns_id).c_str());
    return;
  }
  unlink(SocketPath(plan.flags, plan.netns_id).c_str());
  unlink(GuardSocketPath(plan.flags, plan.netns_id).c_str());
  unlink(StatePath(plan.flags, plan.netns_id).c_str());
  unlink(LockPath(plan.flags, plan.netns_id).c_str());
}

std::vector<Registration> ListRegistrations(const Flags& flags) {
  std::vector<Registration> out;
  DIR* dir = opendir(flags.root.c_str());
  if (dir == nullptr) return out;
  while (const dirent* entry = readdir(dir)) {
    const std::string name = entry->d_name;
    if (name.size() < 5 || name.substr(name.size() - 5) != ".json") continue;
    const auto text = ReadSmallFile(flags.root + "/" + name);
    const auto state = nlohmann::json::parse(text.value_or(""), nullptr, false);
    Registration r;
    if (!ReadRegistration(state, &r)) continue;
    out.push_back(std::move(r));
  }
  closedir(dir);
  return out;
}

}  // namespace sluice
