#include "control/oci/install.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <optional>

#include "control/flags_file.h"
#include "control/log.h"
#include "control/oci/engine_config.h"
#include "control/os.h"

namespace sluice::oci {
namespace {

constexpr char kMade[] = "# Made by sluice install.\n";

struct Engine {
  std::string_view name;
  const char* program;  // found in PATH: the engine is there
  bool passes_arguments;
  const char* config;  // %s: the runtime's name
  const char* then;    // what its user does next
};
constexpr Engine kEngines[] = {
    {"docker", "dockerd", true, "/etc/docker/daemon.json", "have Docker read it: kill -HUP $(pidof dockerd)"},
    {"containerd", "containerd", false, "/etc/containerd/config.toml", "restart containerd (running containers stay)"},
    {"podman", "podman", false, "/etc/containers/containers.conf.d/%s.conf", "podman --runtime=%s uses it at once"},
};

// A file as it is and as it shall be; without a value: there is none.
struct Change {
  std::string path;
  std::optional<std::string> before, after;
  mode_t mode = 0644;
  bool keep_copy = true;
  const Engine* engine = nullptr;
};

std::string WithName(std::string text, const std::string& name) {
  const size_t at = text.find("%s");
  return at == std::string::npos ? text : text.replace(at, 2, name);
}

std::string OwnPath() {
  char buffer[PATH_MAX];
  const ssize_t n = readlink("/proc/self/exe", buffer, sizeof buffer);
  if (n > 0) return std::string(buffer, static_cast<size_t>(n));
  // Without a /proc, as in the root of a node: the path that it was called by.
  const char* called = reinterpret_cast<const char*>(getauxval(AT_EXECFN));
  return called != nullptr && called[0] == '/' ? called : "/usr/bin/sluice";
}

bool IsInPath(const std::string& program) {
  const char* path = getenv("PATH");
  std::string_view rest = path == nullptr ? "/usr/sbin:/usr/bin:/sbin:/bin" : path;
  while (!rest.empty()) {
    const size_t colon = rest.find(':');
    if (access((std::string(rest.substr(0, colon)) + "/" + program).c_str(), X_OK) == 0) return true;
    rest.remove_prefix(colon == std::string_view::npos ? rest.size() : colon + 1);
  }
  return false;
}

Status MakeParents(const std::string& path) {
  for (size_t at = 1; (at = path.find('/', at)) != std::string::npos; ++at) {
    if (mkdir(path.substr(0, at).c_str(), 0755) < 0 && errno != EEXIST)
      return Status::Error("cannot make " + path.substr(0, at) + ErrnoText(errno));
  }
  return {};
}

Status WriteFile(const std::string& path, const std::string& text, mode_t mode) {
  const std::string fresh = path + ".sluice-new";
  UniqueFd fd(open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, mode));
  if (fd && fchmod(fd.get(), mode) == 0 && WriteAll(fd.get(), text.data(), text.size()) && fsync(fd.get()) == 0 &&
      rename(fresh.c_str(), path.c_str()) == 0)
    return {};
  const int error = errno;
  unlink(fresh.c_str());
  return Status::Error("cannot write " + path + ErrnoText(error));
}

Status CheckName(const std::string& name) {
  const bool word = std::ranges::all_of(name, [](unsigned char c) { return isalnum(c) || c == '-' || c == '_'; });
  return word && isalnum(static_cast<unsigned char>(name[0]))
             ? Status()
             : Status::Error("--runtime=" + name + ": not a valid value (allowed: letters, digits, - and _)");
}

// Checks them before an engine meets them: the parser of every start is the judge.
Status CheckFlags(const std::vector<std::string>& flags, bool in_shell) {
  for (const std::string& flag : flags) {
    if (in_shell && flag.find_first_of(" \t\n'\"\\$`") != std::string::npos)
      return Status::Error("install: " + flag + ": Docker passes runtimeArgs through a shell: no space or quote may be in one");
    if (flag.find('\n') != std::string::npos) return Status::Error("install: a flag has two lines");
  }
  std::vector<std::string> line = flags;
  line.push_back("features");
  CommandLine ignored;
  const Status status = ParseCommandLine(line, &ignored);
  return status.ok() && ignored.command != "features" ? Status::Error("install: only flags may stand behind --") : status;
}

class Installation {
 public:
  explicit Installation(const CommandLine& line) : options_(line.install), remove_(line.command == "uninstall") {
    path_ = OwnPath();
  }

  // Everything is looked at before anything is changed.
  Status Run() {
    SLUICE_RETURN_IF_ERROR(CheckName(options_.runtime));
    SLUICE_RETURN_IF_ERROR(ChooseEngines());
    const bool docker = std::ranges::any_of(engines_, &Engine::passes_arguments);
    SLUICE_RETURN_IF_ERROR(CheckFlags(options_.flags, docker));
    for (const Engine* engine : engines_) SLUICE_RETURN_IF_ERROR(PlanEngine(*engine));
    SLUICE_RETURN_IF_ERROR(PlanSettings());
    if (options_.dry_run) return Show();
    for (const Change& change : changes_) SLUICE_RETURN_IF_ERROR(Apply(change));
    return {};
  }

 private:
  Status ChooseEngines() {
    for (const Engine& engine : kEngines) {
      const bool named = std::ranges::count(options_.engines, engine.name) != 0;
      if (named || (options_.engines.empty() && IsInPath(engine.program))) engines_.push_back(&engine);
    }
    if (engines_.empty())
      return Status::Error("no container engine is found (dockerd, containerd or podman in PATH): name one by --engine");
    return {};
  }

  bool NeedsFile() const {
    return !remove_ && !options_.flags.empty() && !std::ranges::all_of(engines_, &Engine::passes_arguments);
  }
  std::string link() const { return std::string(kSettingsDirectory) + "/" + options_.runtime; }

  Status PlanEngine(const Engine& engine) {
    Change change;
    SLUICE_RETURN_IF_ERROR(Read(options_.config.empty() ? WithName(engine.config, options_.runtime) : options_.config, &change));
    change.engine = &engine;
    const std::string program = remove_ ? "" : !engine.passes_arguments && NeedsFile() ? link() : path_;
    const std::string before = change.before.value_or("");
    std::string after;
    Status status;
    if (engine.name == "docker") status = EditDockerConfig(before, options_.runtime, program, options_.flags, &after);
    if (engine.name == "containerd") status = EditContainerdConfig(before, options_.runtime, program, &after);
    if (engine.name == "podman") status = EditPodmanConfig(before, options_.runtime, program, &after);
    if (!status.ok()) return Status::Error(change.path + ": " + status.line());
    if (change.before || !after.empty()) change.after = after;
    if (engine.name == "podman") {
      change.keep_copy = false;
      if (after.empty()) change.after.reset();
    }
    if (engine.name == "containerd" && !remove_) cri_is_disabled_ = CriIsDisabled(after);
    changes_.push_back(change);
    return {};
  }

  // The flags file, and the link that gives its name to the program.
  Status PlanSettings() {
    Change change;
    SLUICE_RETURN_IF_ERROR(Read(link() + ".flags", &change));
    const bool ours = change.before && change.before->rfind(kMade, 0) == 0;
    change.keep_copy = false;
    if (NeedsFile()) {
      if (change.before && !ours) {
        return Status::Error(change.path +
                             ": was not made by sluice install: write the flags there by hand, or choose another "
                             "name by --runtime");
      }
      struct stat st{};
      if (lstat(link().c_str(), &st) == 0 && !S_ISLNK(st.st_mode)) return Status::Error(link() + ": is not a link: take it away");
      change.after = FlagsFileText(options_.flags);
    } else if (!ours || IsInUse()) {
      return {};
    }
    // No engine shall name a runtime whose file is not there.
    changes_.insert(NeedsFile() ? changes_.begin() : changes_.end(), change);
    return {};
  }

  // By an engine that is not being changed.
  bool IsInUse() const {
    return std::ranges::any_of(kEngines, [&](const Engine& engine) {
      const bool changed = std::ranges::count(engines_, &engine) != 0 && options_.config.empty();
      const std::string text = changed ? "" : ReadSmallFile(WithName(engine.config, options_.runtime)).value_or("");
      return text.find("\"" + link() + "\"") != std::string::npos;
    });
  }

  static Status Read(const std::string& path, Change* out) {
    char real[PATH_MAX];  // a link stays one
    out->path = realpath(path.c_str(), real) != nullptr ? real : path;
    struct stat st{};
    if (stat(out->path.c_str(), &st) < 0 && errno == ENOENT) return {};
    out->before = ReadSmallFile(out->path);
    if (!out->before) return Status::Error("cannot read " + out->path + ErrnoText(errno));
    out->mode = st.st_mode & 0777;
    return {};
  }

  Status Show() const {
    for (const Change& change : changes_) {
      if (changes_.size() > 1) std::printf("==> %s <==\n", change.path.c_str());
      std::printf("%s", change.after ? change.after->c_str() : "");
    }
    return {};
  }

  Status Apply(const Change& change) {
    if (change.engine == nullptr) SLUICE_RETURN_IF_ERROR(change.after ? SetLink() : RemoveLink());
    if (change.before == change.after) {
      if (change.engine != nullptr) std::printf("%s is as it should be; nothing was changed\n", change.path.c_str());
      return {};
    }
    if (!change.after) {
      if (unlink(change.path.c_str()) < 0) return Status::Error("cannot take away " + change.path + ErrnoText(errno));
      std::printf("%s is taken away\n", change.path.c_str());
      return {};
    }
    SLUICE_RETURN_IF_ERROR(MakeParents(change.path));
    const std::string backup = change.path + ".before-sluice";
    const bool copy = change.keep_copy && change.before;
    if (copy && access(backup.c_str(), F_OK) < 0) SLUICE_RETURN_IF_ERROR(WriteFile(backup, *change.before, change.mode));
    SLUICE_RETURN_IF_ERROR(WriteFile(change.path, *change.after, change.mode));
    Report(change, copy ? " (as it was before sluice: " + backup + ")" : "");
    return {};
  }

  void Report(const Change& change, const std::string& copy) const {
    if (change.engine == nullptr) {
      std::printf("%s: flags of every engine that calls %s\n", change.path.c_str(), options_.runtime.c_str());
      return;
    }
    std::printf("%s: runtime \"%s\" %s%s; %s\n", change.path.c_str(), options_.runtime.c_str(),
                remove_ ? "is taken out" : "is set", copy.c_str(), WithName(change.engine->then, options_.runtime).c_str());
    if (change.engine->name == "containerd" && !cri_is_disabled_.empty())
      std::printf("%s: %s: Kubernetes does not reach containerd so; ctr does\n", change.path.c_str(), cri_is_disabled_.c_str());
  }

  Status SetLink() const {
    char target[PATH_MAX];
    const ssize_t n = readlink(link().c_str(), target, sizeof target);
    if (n >= 0 && std::string(target, static_cast<size_t>(n)) == path_) return {};
    SLUICE_RETURN_IF_ERROR(MakeParents(link()));
    const std::string fresh = link() + ".sluice-new";
    unlink(fresh.c_str());
    if (symlink(path_.c_str(), fresh.c_str()) == 0 && rename(fresh.c_str(), link().c_str()) == 0) return {};
    return Status::Error("cannot make the link " + link() + ErrnoText(errno));
  }

  Status RemoveLink() const {
    struct stat st{};
    if (lstat(link().c_str(), &st) < 0 || !S_ISLNK(st.st_mode) || unlink(link().c_str()) == 0) return {};
    return Status::Error("cannot take away " + link() + ErrnoText(errno));
  }

  const InstallOptions& options_;
  bool remove_;
  std::string path_;
  std::vector<const Engine*> engines_;
  std::vector<Change> changes_;
  std::string cri_is_disabled_;
};

}  // namespace

std::string FlagsFileText(const std::vector<std::string>& flags) {
  std::string out = kMade;
  bool wants_value = false;
  for (const std::string& flag : flags) {
    if (wants_value && flag.rfind("--", 0) != 0) {
      out.back() = '=';  // "--flag value"
    }
    out += flag + "\n";
    const FlagSpec* spec = FindFlag(flag.substr(0, 2) == "--" ? flag.substr(2) : "");
    wants_value = spec != nullptr && spec->type != "bool";
  }
  return out;
}

int RunInstall(const CommandLine& line) {
  const Status status = Installation(line).Run();
  if (!status.ok()) LogLine(LogLevel::kError, status.line());
  return status.exit_code();
}

}  // namespace sluice::oci
