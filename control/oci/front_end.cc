#include "control/oci/front_end.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <set>

#include "control/log.h"
#include "control/namespaces.h"
#include "control/oci/annotations.h"
#include "control/oci/bundle.h"
#include "control/oci/container.h"
#include "control/oci/listener.h"
#include "control/oci/runc.h"
#include "control/oci/sandbox_guard.h"
#include "control/oci/seccomp_profile.h"
#include "control/run/sandbox.h"

namespace sluice::oci {
namespace {

constexpr std::string_view kCommands[] = {"create", "start", "state",    "kill",   "delete", "run",   "exec",  "ps",
                                          "list",   "spec",  "features", "events", "update", "pause", "resume"};

// Options of runc's commands that take a value in the next argument.
const std::set<std::string> kWithValue{
    "--bundle", "-b", "--console-socket",  "--pid-file", "--preserve-fds",  "--process",  "-p",    "--env", "-e",      "--cwd",
    "--user",   "-u", "--additional-gids", "-g",         "--process-label", "--apparmor", "--cap", "-c",    "--cgroup"};

struct Parsed {
  std::string bundle, pid_file, id;
};

std::string AbsolutePath(const std::string& path) {
  char buffer[PATH_MAX];
  return realpath(path.c_str(), buffer) != nullptr ? buffer : path;
}

// What we need of a command's arguments; runc judges all of them.
Parsed Parse(const Arguments& args) {
  Parsed out;
  for (size_t i = 0; i < args.size(); ++i) {
    std::string name = args[i], value;
    if (name.empty() || name[0] != '-' || name == "--") {
      if (name == "--") ++i;
      if (i < args.size()) out.id = args[i];
      break;
    }
    if (name.size() > 1 && name[1] != '-')
      name = name.size() == 2 || name[2] == '=' ? name : "-" + name;  // runc takes -bundle as well
    const size_t equals = name.find('=');
    if (equals != std::string::npos) {
      value = name.substr(equals + 1);
      name.resize(equals);
    } else if (kWithValue.count(name) != 0 && i + 1 < args.size()) {
      value = args[++i];
    }
    if (name == "--bundle" || name == "-b") out.bundle = value;
    if (name == "--pid-file") out.pid_file = value;
  }
  out.bundle = AbsolutePath(out.bundle.empty() ? "." : out.bundle);
  return out;
}

std::string RootOf(const Flags& flags) { return flags.root_given ? flags.root : ""; }

// Another front end makes a container in the namespace at this moment.
bool OthersAreMade(const NamespaceId& id) {
  const std::vector<Container> all = ListContainers();
  return std::any_of(all.begin(), all.end(), [&](const Container& c) {
    UniqueFd netns;
    std::string name;
    return c.maker > 0 && kill(c.maker, 0) == 0 && OpenNetns(c.netns_path, &netns, &name).ok() &&
           IdOfNamespace(netns.get()) == id;
  });
}

// Processes of somebody else in the namespace would lose their network. What is there before a sandbox serves it may also be of a
// container that is being made: its sandbox will be ours, too.
Status CheckOwnership(const NamespaceId& id, const std::string& path) {
  constexpr int kTries = 500;
  constexpr timespec kPause{0, 20000000};
  std::vector<pid_t> found;
  for (int i = 0; i < kTries; ++i) {
    // In this order: who made what was found is still at it, or there is a sandbox.
    found = ProcessesIn(id);
    const bool made = !found.empty() && OthersAreMade(id);
    if (found.empty() || SandboxRuns(id)) return {};
    if (!made) break;
    nanosleep(&kPause, nullptr);
  }
  return Status::Error(Format(
      "process %d lives in the network namespace %s without sluice and would lose its network: start that container with sluice, "
      "or this one with --network=host",
      found[0], path.c_str()));
}

int Say(const Status& status) {
  LogLine(LogLevel::kError, status.line());
  return status.exit_code();
}

int PassOn(const Flags& flags, const std::string& command, const Arguments& arguments) {
  Arguments rest{command};
  rest.insert(rest.end(), arguments.begin(), arguments.end());
  return Say(ExecRunc(RuncCommand(flags, rest)));
}

int PassOn(const CommandLine& line) { return PassOn(line.flags, line.command, line.arguments); }

enum class Known { kYes, kNo, kUnknown };

Known RuncKnows(const Container& container) {
  const int code = RunQuietly(RuncCommand(container.root, {"state", container.id}));
  return code == 0 ? Known::kYes : code == 1 ? Known::kNo : Known::kUnknown;
}

// One container from `create` (or `run`) on.
class Creation {
 public:
  explicit Creation(const CommandLine& line)
      : flags_(line.flags), command_(line.command), args_(line.arguments), parsed_(Parse(line.arguments)) {}

  int Run() {
    Status status = ReadSettings();
    if (status.ok() && flags_.network == NetworkMode::kHost) return RunOnKernelStack();
    if (status.ok()) status = Prepare();
    if (!status.ok()) return Say(status);
    const int code = CreateContainer();
    bundle_.Restore();
    if (runc_failed_ || !problem_.ok()) Abandon();
    if (runc_failed_ && problem_.ok() && !joined_) problem_ = CheckRuncVersion();
    if (!problem_.ok()) return Say(problem_);
    return code;
  }

 private:
  // What the container's own annotations say comes last.
  Status ReadSettings() {
    read_ = bundle_.Read(parsed_.bundle);
    return read_.ok() ? ApplyAnnotations(bundle_.config(), &flags_) : Status();
  }

  // As runc, which also says what is wrong with a bundle that cannot be read.
  int RunOnKernelStack() {
    NamespaceId id;
    std::string path;
    if (read_.ok() && NetworkOf(bundle_.config(), &path) == NetworkNamespace::kPath && FindNamespace(path, &id).ok() &&
        SandboxRuns(id)) {
      return Say(Status::Error("the containers of the network namespace " + path +
                               " use sluice's stack, beside which the kernel's is silent: --network=host is not possible there"));
    }
    Log(LogLevel::kInfo,
        "--network=host: the container uses the kernel's network stack of its namespace; isolation is weaker, nothing is "
        "intercepted");
    if (!flags_.metrics.empty()) Log(LogLevel::kWarning, "--metrics: sluice counts nothing with --network=host");
    return PassOn(flags_, command_, args_);
  }

  static Status FindNamespace(const std::string& path, NamespaceId* id) {
    UniqueFd netns;
    std::string name;
    SLUICE_RETURN_IF_ERROR(OpenNetns(path, &netns, &name));
    const auto found = IdOfNamespace(netns.get());
    if (!found) return Status::Error("cannot identify the network namespace " + path + ErrnoText(errno));
    *id = *found;
    return {};
  }

  Status Prepare() {
    SLUICE_RETURN_IF_ERROR(CheckPrivileges(command_.c_str()));
    SLUICE_RETURN_IF_ERROR(CheckLink());
    if (parsed_.id.empty()) return Status::Error('"' + command_ + "\" requires exactly 1 argument(s)");
    SLUICE_RETURN_IF_ERROR(read_);
    SLUICE_RETURN_IF_ERROR(CheckNamespace());
    container_.id = parsed_.id;
    container_.root = RootOf(flags_);
    container_.log = flags_.log.empty() ? "" : AbsolutePath(flags_.log);
    container_.log_json = flags_.log_json;
    container_.bundle = parsed_.bundle;
    container_.maker = getpid();
    container_.own_pids = HasOwnPids(bundle_.config());
    SLUICE_RETURN_IF_ERROR(MergeProfile(&bundle_.config(), container_.listener_path()));
    SLUICE_RETURN_IF_ERROR(ClaimFolder());
    Status status = ListenAt(container_.listener_path(), SOCK_STREAM, &listening_);
    if (status.ok()) status = SaveContainer(container_);
    if (status.ok()) status = bundle_.Write();
    if (!status.ok()) RemoveFolder(container_);
    return status;
  }

  Status CheckLink() const {
    if (flags_.link != LinkFlag::kTap && flags_.link != LinkFlag::kDpdk) return {};
    return Status::Error(std::string("--link=") + (flags_.link == LinkFlag::kTap ? "tap" : "dpdk") +
                         ": containers use the devices that the engine made (allowed here: auto, xdp, packet)");
  }

  Status CheckNamespace() {
    std::string& path = container_.netns_path;
    const NetworkNamespace kind = NetworkOf(bundle_.config(), &path);
    if (kind == NetworkNamespace::kNew) return {};
    constexpr char kHostLine[] =
        "the container uses the host's network namespace, whose kernel would fall silent: run it with a runtime that has "
        "--network=host in its arguments or in its file /etc/sluice/NAME.flags, or with runc";
    if (kind == NetworkNamespace::kHost) return Status::Error(kHostLine);
    UniqueFd own(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
    NamespaceId id;
    SLUICE_RETURN_IF_ERROR(FindNamespace(path, &id));
    if (id == IdOfNamespace(own.get())) return Status::Error(kHostLine);
    return CheckOwnership(id, path);
  }

  // A folder without a container of runc's is left from a front end that was killed.
  Status ClaimFolder() {
    bool was_there = false;
    SLUICE_RETURN_IF_ERROR(HoldFolder(container_, &folder_, &was_there));
    if (!was_there) return {};
    if (RuncKnows(container_) != Known::kNo) return Status::Error("container with given ID already exists");
    return LeaveSandbox(container_, LeaveMode::kKill);
  }

  int CreateContainer() {
    sigset_t forwarded;
    sigemptyset(&forwarded);
    for (const int s : {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2}) sigaddset(&forwarded, s);
    sigprocmask(SIG_BLOCK, &forwarded, nullptr);
    UniqueFd signals(signalfd(-1, &forwarded, SFD_CLOEXEC | SFD_NONBLOCK));
    Arguments rest{command_};
    rest.insert(rest.end(), args_.begin(), args_.end());
    UniqueFd runc;
    const pid_t pid = SpawnRunc(RuncCommand(flags_, rest), &runc);
    if (pid < 0) {
      problem_ = Status::Error("cannot start runc" + ErrnoText(errno));
      return 1;
    }
    for (bool ended = false; !ended;) {
      pollfd polled[3] = {{runc.get(), POLLIN, 0}, {listening_.get(), POLLIN, 0}, {signals.get(), POLLIN, 0}};
      if (poll(polled, 3, -1) < 0) continue;
      ended = polled[0].revents != 0;
      // What came before its end is there now, even if it was not when poll looked.
      if (ended) poll(&polled[1], 1, 0);
      signalfd_siginfo info;
      // The terminal's own signals reach runc without us.
      if (polled[2].revents != 0 && read(signals.get(), &info, sizeof info) == sizeof info && info.ssi_code != SI_KERNEL) {
        PidfdSignal(runc.get(), static_cast<int>(info.ssi_signo));
      }
      if (polled[1].revents != 0) OnDelivery();
    }
    int status = 0;
    waitpid(pid, &status, __WALL);
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    runc_failed_ = command_ == "create" ? code != 0 : !detached();
    if (code == 0 && !joined_) {
      problem_ = Status::Error("runc made the container without handing over its seccomp descriptor: was " + parsed_.bundle +
                               "/config.json changed meanwhile?");
    }
    // A program that cannot be started: runc has said so. Or one that `run` started and that ended without a call of ours.
    if (init_gone_ && (code != 0 || command_ == "run")) problem_ = Status();
    return code;
  }

  void OnDelivery() {
    joined_ = true;
    bundle_.Restore();  // runc has read it
    problem_ = Join();
    // `run` would go on for as long as the container does.
    if (!problem_.ok() && command_ == "run") RunQuietly(RuncCommand(container_.root, {"kill", container_.id, "KILL"}));
    // What comes from here on is for the guard.
    listening_.Reset();
  }

  bool detached() const {
    return std::find(args_.begin(), args_.end(), "-d") != args_.end() ||
           std::find(args_.begin(), args_.end(), "--detach") != args_.end();
  }

  Status Join() {
    SeccompDelivery delivery;
    SLUICE_RETURN_IF_ERROR(AcceptDelivery(listening_.get(), &delivery));
    UniqueFd netns(open(Format("/proc/%d/ns/net", delivery.pid).c_str(), O_RDONLY | O_CLOEXEC));
    ContainerRequest request;
    request.init_pid = delivery.pid;
    request.init = PidfdOpen(delivery.pid);
    init_gone_ = !netns || !request.init;
    if (init_gone_) return Status::Error("the container's init is gone");
    container_.netns = *IdOfNamespace(netns.get());
    SLUICE_RETURN_IF_ERROR(SaveContainer(container_));
    request.container = container_;
    request.pod = IsOfPod(bundle_.config());
    request.listening.Reset(fcntl(listening_.get(), F_DUPFD_CLOEXEC, 3));
    request.seccomp = std::move(delivery.seccomp);
    const Status joined = JoinSandbox(flags_, netns.get(), request);
    init_gone_ = WaitForEnd(request.init.get(), 0);
    return joined;
  }

  // Nothing is left of a container that was not made, or of one that `run` has waited for.
  void Abandon() {
    if (command_ == "create" && !problem_.ok()) RunQuietly(RuncCommand(container_.root, {"delete", "--force", container_.id}));
    static_cast<void>(LeaveSandbox(container_, problem_.ok() ? LeaveMode::kWait : LeaveMode::kKill));
    RemoveFolder(container_);
  }

  Flags flags_;
  std::string command_;
  Arguments args_;
  Parsed parsed_;
  Bundle bundle_;
  Status read_;  // of the bundle
  Container container_;
  UniqueFd folder_;  // held while the container is made
  UniqueFd listening_;
  Status problem_;
  bool joined_ = false;
  bool runc_failed_ = false;
  bool init_gone_ = false;
};

// As PassOn, but comes back.
int RunAndWait(const CommandLine& line) {
  Arguments rest{line.command};
  rest.insert(rest.end(), line.arguments.begin(), line.arguments.end());
  UniqueFd pidfd;
  const pid_t pid = SpawnRunc(RuncCommand(line.flags, rest), &pidfd);
  int status = 0;
  if (pid < 0 || waitpid(pid, &status, __WALL) != pid) return Say(Status::Error("cannot start runc" + ErrnoText(errno)));
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int Delete(const CommandLine& line, const Container& container) {
  const auto& args = line.arguments;
  const bool force = std::any_of(args.begin(), args.end(), [](const std::string& a) { return a == "--force" || a == "-f"; });
  const int code = RunAndWait(line);
  // Where runc does not know it any more, what we know of it goes as well.
  if (code != 0 && RuncKnows(container) != Known::kNo) return code;
  if (!container.bundle.empty()) Bundle::Recover(container.bundle);
  const Status left = LeaveSandbox(container, force ? LeaveMode::kKill : LeaveMode::kWait);
  RemoveFolder(container);
  return left.ok() ? code : Say(left);
}

}  // namespace

bool IsCommand(std::string_view name) {
  return std::find(std::begin(kCommands), std::end(kCommands), name) != std::end(kCommands);
}

int Run(const CommandLine& line) {
  const std::string& command = line.command;
  const bool creates = command == "create" || command == "run";
  const bool help =
      std::any_of(line.arguments.begin(), line.arguments.end(), [](const std::string& a) { return a == "--help" || a == "-h"; });
  if (creates && !help) return Creation(line).Run();
  Container container;
  const Kept kept = help ? Kept::kNone : LoadContainer(RootOf(line.flags), Parse(line.arguments).id, &container);
  if (kept == Kept::kNone) return PassOn(line);
  if (command == "delete") return Delete(line, container);
  if (kept == Kept::kBroken && (command == "start" || command == "exec")) {
    return Say(Status::Error("what sluice kept of container " + container.id + " in " + container.folder() +
                             " cannot be read: remove the container (delete --force) and create it anew"));
  }
  if (command == "start") {
    const Status ready = SynchronizeSandbox(container);
    if (ready.ok()) return PassOn(line);
    // As when the program cannot be started: engines expect a container that has stopped.
    RunQuietly(RuncCommand(container.root, {"kill", container.id, "KILL"}));
    return Say(ready);
  }
  if (command == "exec" && !SandboxRuns(container.netns))
    return Say(Status::Error("the sandbox of container " + container.id + " has ended"));
  return PassOn(line);
}

}  // namespace sluice::oci
