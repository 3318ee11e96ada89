// `sluice do`: makes the sandbox and the program, waits for its end, ends it where a part of it dies.
#include "control/run/guard.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "control/log.h"
#include "control/netfilter_check.h"
#include "control/registry.h"
#include "control/run/inherited.h"
#include "control/run/plan.h"
#include "control/run/sandbox.h"
#include "control/run/sandbox_groups.h"
#include "control/run/silencing.h"

namespace sluice {
namespace {

constexpr int kForwarded[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH, SIGTSTP, SIGTTIN, SIGTTOU};

bool IsStop(uint32_t signal) { return signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU; }

// After this long a wait for what CMD left unsent is explained to whoever waits.
constexpr int kExplainDrainMs = 3000;

class Guard {
 public:
  explicit Guard(const CommandLine& line) : sandbox_(plan_) {
    plan_.flags = line.flags;
    plan_.options = line.do_options;
    plan_.guard_pid = getpid();
    plan_.oom_score = OomScoreOf(plan_.guard_pid);
  }

  int Run() {
    Status status = Prepare();
    if (status.ok()) status = Start();
    if (!status.ok()) {
      LogLine(LogLevel::kError, status.line());
      Finish();
      return status.exit_code();
    }
    return Watch();
  }

 private:
  Status Prepare();
  Status CheckLink() const;
  Status OpenNamespace();
  Status OpenPcap();

  Status Start();
  Status StartInit();
  Status WaitUntilReady();
  Status PassListener();

  int Watch();
  void OnSignal();
  void OnStopped();
  void StopBy(int number);
  int KillBecause(const std::string& why);
  void Drain();
  bool AskedToEnd();
  int EndInit();
  void Finish();

  SandboxPlan plan_;
  Sandbox sandbox_;
  pid_t init_pid_ = -1;
  UniqueFd init_;  // pidfd, while it has not been waited for
  UniqueFd signals_;
};

// Checks before anything of the namespace is changed.
Status Guard::Prepare() {
  if (!plan_.flags.metrics.empty() && !plan_.intercepted())
    return Status::Error("--metrics=" + plan_.flags.metrics + ": sluice counts nothing with --network=host");
  SLUICE_RETURN_IF_ERROR(CheckInherited(&plan_.inherited));
  SLUICE_RETURN_IF_ERROR(CheckPrivileges("do"));
  sigset_t blocked;
  sigemptyset(&blocked);
  for (const int signal : kForwarded) sigaddset(&blocked, signal);
  sigprocmask(SIG_BLOCK, &blocked, &plan_.user_mask);
  signals_.Reset(signalfd(-1, &blocked, SFD_CLOEXEC | SFD_NONBLOCK));
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  SLUICE_RETURN_IF_ERROR(OpenNamespace());
  if (plan_.intercepted()) {
    SLUICE_RETURN_IF_ERROR(sandbox_.LookAtNamespace());
    if (plan_.flags.netfilter == NetfilterPolicy::kRefuse) SLUICE_RETURN_IF_ERROR(CheckControlGroup());
  }
  return OpenPcap();
}

// --link=tap makes the device, so there must be none yet.
Status Guard::CheckLink() const {
  if (plan_.flags.link == LinkFlag::kDpdk) {
    return Status::Error(
        "--link=dpdk: only for sluice bench and the library; DPDK's drivers want rights that the sentry must not have "
        "(docs/limits.md)");
  }
  if (plan_.flags.link != LinkFlag::kTap) return {};
  if (!plan_.options.netns.empty()) {
    return Status::Error("--link=tap: makes a TAP device to the host, and --netns=" + plan_.options.netns +
                         " has devices of its own: leave out --netns, or use --link=packet");
  }
  if (plan_.flags.network != NetworkMode::kSandbox) return Status::Error("--link=tap: only with --network=sandbox");
  return {};
}

Status Guard::OpenNamespace() {
  SLUICE_RETURN_IF_ERROR(CheckLink());
  plan_.own_netns = plan_.options.netns.empty();
  if (plan_.own_netns) {
    SLUICE_RETURN_IF_ERROR(MakeNetns(&plan_.netns));
  } else {
    SLUICE_RETURN_IF_ERROR(OpenNetns(plan_.options.netns, &plan_.netns, &plan_.netns_name));
  }
  SLUICE_RETURN_IF_ERROR(sandbox_.Take());
  const bool wants_link = plan_.own_netns && plan_.flags.network != NetworkMode::kNone;
  const OwnLinkKind kind = plan_.flags.link != LinkFlag::kTap ? OwnLinkKind::kVeth
                           : plan_.flags.gso                  ? OwnLinkKind::kTap
                                                              : OwnLinkKind::kTapWithoutHeader;
  if (wants_link) {
    SLUICE_RETURN_IF_ERROR(
        MakeOwnLink(plan_.netns.get(), kind, plan_.flags.num_network_channels, plan_.steering_key, &plan_.own_link));
  }
  SLUICE_RETURN_IF_ERROR(sandbox_.Enter());
  if (plan_.own_netns && plan_.flags.network == NetworkMode::kHost) SLUICE_RETURN_IF_ERROR(SetLinkUp("lo"));
  if (!wants_link) return {};
  // Silent before it is up: the kernel says nothing from the first moment.
  if (plan_.intercepted())
    SLUICE_RETURN_IF_ERROR(Silencing(plan_).Silence(plan_.own_link.inside_index, plan_.own_link.inside_name));
  return StartOwnLink(plan_.own_link);
}

Status Guard::OpenPcap() {
  if (plan_.flags.pcap_log.empty()) return {};
  if (plan_.flags.network == NetworkMode::kHost)
    return Status::Error("--pcap-log=" + plan_.flags.pcap_log + ": no frames pass sluice with --network=host");
  plan_.pcap.Reset(open(plan_.flags.pcap_log.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!plan_.pcap) return Status::Error("--pcap-log=" + plan_.flags.pcap_log + ": cannot open the file" + ErrnoText(errno));
  return {};
}

Status Guard::Start() {
  if (plan_.flags.network == NetworkMode::kHost) {
    Log(LogLevel::kWarning,
        "--network=host: the program uses the kernel's network stack of the namespace; isolation is weaker, nothing is "
        "intercepted");
  }
  if (plan_.intercepted()) SLUICE_RETURN_IF_ERROR(sandbox_.Start());
  SLUICE_RETURN_IF_ERROR(StartInit());
  SLUICE_RETURN_IF_ERROR(WriteRegistration(plan_, init_pid_));
  if (plan_.intercepted()) {
    SLUICE_RETURN_IF_ERROR(WaitUntilReady());
    SLUICE_RETURN_IF_ERROR(PassListener());
  } else {
    int number;
    if (read(plan_.init_ready_read.get(), &number, sizeof number) != sizeof number)
      return Status::Error("the program's surroundings could not be set up", kExitKilled);
  }
  const char go = 1;
  if (!WriteAll(plan_.init_go_write.get(), &go, 1)) return Status::Error("the sandbox's init died", kExitKilled);
  plan_.init_go_write.Reset();
  // What the user gave belongs to CMD alone from here on.
  for (const int fd : plan_.inherited) close(fd);
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  dup2(null, STDIN_FILENO);
  dup2(null, STDOUT_FILENO);
  close(null);
  return {};
}

Status Guard::StartInit() {
  SLUICE_RETURN_IF_ERROR(MakePipe(&plan_.init_ready_read, &plan_.init_ready_write));
  SLUICE_RETURN_IF_ERROR(MakePipe(&plan_.init_go_read, &plan_.init_go_write));
  init_pid_ = CloneProcess(CLONE_NEWPID | CLONE_NEWNS, &init_);
  if (init_pid_ == 0) RunInit(plan_);
  if (init_pid_ < 0) return Status::Error("cannot start the sandbox's init" + ErrnoText(errno));
  plan_.init_ready_write.Reset();
  plan_.init_go_read.Reset();
  return {};
}

Status Guard::WaitUntilReady() {
  for (;;) {
    std::vector<pollfd> polled{{init_.get(), POLLIN, 0}, {signals_.get(), POLLIN, 0}};
    sandbox_.AddPolled(&polled);
    if (poll(polled.data(), polled.size(), -1) < 0) continue;
    std::string why;
    const Sandbox::Event event = sandbox_.OnPolled(&polled[2], &why);
    if (event == Sandbox::Event::kReady) return {};
    if (event == Sandbox::Event::kDead) return Status::Error(why);
    if (polled[0].revents != 0) return Status::Error("the program's surroundings could not be set up", kExitKilled);
    signalfd_siginfo info;
    if (polled[1].revents == 0 || read(signals_.get(), &info, sizeof info) != sizeof info) continue;
    if (IsStop(info.ssi_signo)) {
      StopBy(static_cast<int>(info.ssi_signo));
    } else if (info.ssi_signo != SIGWINCH) {
      return Status::Error(Format("interrupted by signal %d before the program started", static_cast<int>(info.ssi_signo)),
                           128 + static_cast<int>(info.ssi_signo));
    }
  }
}

// Fetches the seccomp listener from init and has the broker serve it.
Status Guard::PassListener() {
  int number = -1;
  if (read(plan_.init_ready_read.get(), &number, sizeof number) != sizeof number) {
    return Status::Error("the program's surroundings could not be set up", kExitKilled);
  }
  UniqueFd listener = PidfdGetfd(init_.get(), number);
  if (!listener) return Status::Error("cannot fetch the seccomp listener" + ErrnoText(errno));
  if (!sandbox_.AddProgram(init_.get()) || !sandbox_.AddListener(listener.get()))
    return Status::Error("the broker died while it started", kExitKilled);
  return {};
}

int Guard::Watch() {
  for (;;) {
    std::vector<pollfd> polled{{init_.get(), POLLIN, 0}, {signals_.get(), POLLIN, 0}, {plan_.init_ready_read.get(), POLLIN, 0}};
    if (plan_.intercepted()) sandbox_.AddPolled(&polled);
    if (poll(polled.data(), polled.size(), -1) < 0) continue;
    if (polled[1].revents != 0) OnSignal();
    if ((polled[2].revents & POLLIN) != 0) OnStopped();
    if (polled[0].revents != 0) {
      Drain();
      const int code = EndInit();
      Finish();
      return code;
    }
    std::string why;
    if (plan_.intercepted() && sandbox_.OnPolled(&polled[3], &why) == Sandbox::Event::kDead) return KillBecause(why);
  }
}

void Guard::OnSignal() {
  signalfd_siginfo info;
  while (read(signals_.get(), &info, sizeof info) == sizeof info) {
    // The terminal's own signals reach CMD's process group without us.
    if (info.ssi_code == SI_KERNEL && info.ssi_signo != SIGHUP) continue;
    PidfdSignal(init_.get(), static_cast<int>(info.ssi_signo));
  }
}

// CMD has stopped, and so do we: not before it, or the shell would share its terminal with a CMD that still reads. Stopped by
// SIGSTOP it can be continued by somebody who does not know of us: then we go on.
void Guard::OnStopped() {
  int number = 0;
  if (read(plan_.init_ready_read.get(), &number, sizeof number) != sizeof number || !IsStop(static_cast<uint32_t>(number)))
    return;
  StopBy(number);
  PidfdSignal(init_.get(), SIGCONT);
}

// Returns when we are continued.
void Guard::StopBy(int number) {
  sigset_t one;
  sigemptyset(&one);
  sigaddset(&one, number);
  raise(number);
  sigprocmask(SIG_UNBLOCK, &one, nullptr);
  sigprocmask(SIG_BLOCK, &one, nullptr);
}

int Guard::KillBecause(const std::string& why) {
  // The program first: it must never see its connections end as if they were complete.
  PidfdSignal(init_.get(), SIGKILL);
  WaitForEnd(init_.get(), -1);
  sandbox_.RelayLog();
  LogLine(LogLevel::kError, "the sandbox was ended: " + why);
  Finish();
  return kExitKilled;
}

// What CMD wrote before it ended is still delivered, as the kernel does for the sockets of a dead process; TCP's own limits for
// orphans and the sentry's for a dead peer bound the wait, and a signal ends it.
void Guard::Drain() {
  if (!plan_.intercepted() || !sandbox_.Drain()) return;
  for (int wait = kExplainDrainMs;;) {
    std::vector<pollfd> polled{{signals_.get(), POLLIN, 0}};
    sandbox_.AddPolled(&polled);
    const int n = poll(polled.data(), polled.size(), wait);
    if (n == 0) {
      Log(LogLevel::kWarning, "connections still deliver what the program wrote before it ended; interrupt to cut them");
      wait = -1;
    }
    if (n <= 0) continue;
    if (polled[0].revents != 0 && AskedToEnd()) return;
    std::string why;
    const Sandbox::Event event = sandbox_.OnPolled(&polled[1], &why);
    if (event == Sandbox::Event::kDrained || event == Sandbox::Event::kDead) return;
  }
}

bool Guard::AskedToEnd() {
  signalfd_siginfo info;
  bool end = false;
  while (read(signals_.get(), &info, sizeof info) == sizeof info) {
    const int number = static_cast<int>(info.ssi_signo);
    if (IsStop(info.ssi_signo)) StopBy(number);
    end |= number == SIGINT || number == SIGTERM || number == SIGHUP || number == SIGQUIT;
  }
  return end;
}

int Guard::EndInit() {
  int status = 0;
  if (!init_ || waitpid(init_pid_, &status, __WALL) != init_pid_) return kExitKilled;
  init_.Reset();
  if (WIFEXITED(status)) return WEXITSTATUS(status);
  Log(LogLevel::kError, "the sandbox was ended: its init was killed by signal %d", WTERMSIG(status));
  return kExitKilled;
}

void Guard::Finish() {
  if (init_) {
    PidfdSignal(init_.get(), SIGKILL);
    WaitForEnd(init_.get(), -1);
    waitpid(init_pid_, nullptr, __WALL);
  }
  sandbox_.Finish();
}

}  // namespace

int RunDo(const CommandLine& line) { return Guard(line).Run(); }

}  // namespace sluice
