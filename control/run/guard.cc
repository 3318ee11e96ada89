// The guard makes the sandbox, waits for its end, ends it where a part of it dies, and leaves the namespace as it was.
#include "control/run/guard.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <linux/if.h>
#include <linux/if_arp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/capability.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "control/log.h"
#include "control/mirror/mirror.h"
#include "control/netfilter_check.h"
#include "control/registry.h"
#include "control/run/control_protocol.h"
#include "control/run/inherited.h"
#include "control/run/plan.h"
#include "control/run/silencing.h"

namespace sluice {
namespace {

using control::Type;

constexpr int kForwarded[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
// After this long a wait for what CMD left unsent is explained to whoever waits.
constexpr int kExplainDrainMs = 3000;

struct Child {
  pid_t pid = -1;
  UniqueFd pidfd;
  bool running() const { return pid > 0 && static_cast<bool>(pidfd); }
};

class Guard {
 public:
  explicit Guard(const CommandLine& line) {
    plan_.flags = line.flags;
    plan_.options = line.do_options;
    plan_.guard_pid = getpid();
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
  Status CheckPrivileges();
  Status CheckTap() const;
  Status EnterNetns();
  Status ChooseDevices();
  Status SilenceDevices();
  Status OpenForSentry();
  Status OpenPcap();

  Status Start();
  Status StartBroker();
  Status StartSentry();
  Status StartInit();
  Status WaitUntilReady();
  Status PassListener();

  int Watch();
  void OnSignal();
  void RelayLog();
  Type FromBroker(std::string* text);
  int KillBecause(const std::string& why);
  void Drain();
  bool AskedToEnd();
  int EndInit();
  void Finish();

  void Stop(Child& child) {
    if (!child.running()) return;
    PidfdSignal(child.pidfd.get(), SIGKILL);
    WaitForEnd(child.pidfd.get(), -1);
    child.pidfd.Reset();
    // The sentry is the keeper's child, and ours (a subreaper's) once that is gone.
    waitpid(child.pid, nullptr, __WALL | (&child == &sentry_ ? WNOHANG : 0));
  }

  SandboxPlan plan_;
  Child broker_, keeper_, sentry_, init_;
  UniqueFd signals_;
  int* sentry_pid_ = nullptr;  // shared with the keeper, which writes it
  std::string log_rest_;
  bool registered_ = false;
};

Status Guard::CheckPrivileges() {
  constexpr struct {
    int bit;
    const char* name;
  } kNeeded[] = {{CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}, {CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {CAP_NET_RAW, "CAP_NET_RAW"},
                 {CAP_SETUID, "CAP_SETUID"},       {CAP_SETGID, "CAP_SETGID"},       {CAP_SYS_PTRACE, "CAP_SYS_PTRACE"}};
  const auto status = ReadSmallFile("/proc/self/status").value_or("");
  const size_t at = status.find("CapEff:");
  const uint64_t effective = at == std::string::npos ? 0 : strtoull(status.c_str() + at + 7, nullptr, 16);
  for (const auto& needed : kNeeded) {
    if ((effective >> needed.bit & 1) == 0) return Status::Error(Format("do: needs %s: run it as root", needed.name));
  }
  return {};
}

// Checks before anything of the namespace is changed.
Status Guard::Prepare() {
  SLUICE_RETURN_IF_ERROR(CheckInherited(&plan_.inherited));
  SLUICE_RETURN_IF_ERROR(CheckPrivileges());
  sigset_t blocked;
  sigemptyset(&blocked);
  for (const int signal : kForwarded) sigaddset(&blocked, signal);
  sigprocmask(SIG_BLOCK, &blocked, &plan_.user_mask);
  signals_.Reset(signalfd(-1, &blocked, SFD_CLOEXEC | SFD_NONBLOCK));
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  SLUICE_RETURN_IF_ERROR(EnterNetns());
  if (plan_.intercepted()) {
    SLUICE_RETURN_IF_ERROR(ChooseDevices());
    if (!plan_.own_netns && plan_.flags.netfilter == NetfilterPolicy::kRefuse) SLUICE_RETURN_IF_ERROR(CheckPacketFilters(plan_.devices));
  }
  return OpenPcap();
}

// --link=tap makes the device, so there must be none yet.
Status Guard::CheckTap() const {
  if (plan_.flags.link != LinkFlag::kTap) return {};
  if (!plan_.options.netns.empty()) {
    return Status::Error("--link=tap: makes a TAP device to the host, and --netns=" + plan_.options.netns +
                         " has devices of its own: leave out --netns, or use --link=packet");
  }
  if (plan_.flags.network != NetworkMode::kSandbox) return Status::Error("--link=tap: only with --network=sandbox");
  return {};
}

Status Guard::EnterNetns() {
  SLUICE_RETURN_IF_ERROR(CheckTap());
  plan_.own_netns = plan_.options.netns.empty();
  if (plan_.own_netns) {
    SLUICE_RETURN_IF_ERROR(MakeNetns(&plan_.netns));
  } else {
    SLUICE_RETURN_IF_ERROR(OpenNetns(plan_.options.netns, &plan_.netns, &plan_.netns_name));
  }
  const auto id = IdOfNamespace(plan_.netns.get());
  UniqueFd own(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
  if (!id || !own) return Status::Error("cannot identify the network namespace" + ErrnoText(errno));
  if (*id == *IdOfNamespace(own.get()) && plan_.intercepted()) {
    return Status::Error("--netns=" + plan_.options.netns + ": this is the namespace sluice runs in; its kernel would fall silent. Make one with ip netns add");
  }
  plan_.netns_id = *id;
  SLUICE_RETURN_IF_ERROR(TakeNamespace(plan_, &plan_.lock));
  registered_ = true;
  if (plan_.intercepted()) SLUICE_RETURN_IF_ERROR(Silencing(plan_).Recover());
  const bool wants_link = plan_.own_netns && plan_.flags.network != NetworkMode::kNone;
  const OwnLinkKind kind = plan_.flags.link != LinkFlag::kTap ? OwnLinkKind::kVeth : plan_.flags.gso ? OwnLinkKind::kTap : OwnLinkKind::kTapWithoutHeader;
  if (wants_link) SLUICE_RETURN_IF_ERROR(MakeOwnLink(plan_.netns.get(), kind, &plan_.own_link));
  if (setns(plan_.netns.get(), CLONE_NEWNET) < 0) return Status::Error("cannot enter the network namespace" + ErrnoText(errno));
  if (plan_.own_netns && plan_.flags.network == NetworkMode::kHost) SLUICE_RETURN_IF_ERROR(SetLinkUp("lo"));
  if (!wants_link) return {};
  // Silent before it is up: the kernel says nothing from the first moment.
  if (plan_.intercepted()) SLUICE_RETURN_IF_ERROR(Silencing(plan_).Silence(plan_.own_link.inside_index, plan_.own_link.inside_name));
  return StartOwnLink(plan_.own_link);
}

Status Guard::ChooseDevices() {
  UniqueFd fd;
  SLUICE_RETURN_IF_ERROR(NetlinkClient::Open({}, &fd));
  NetlinkClient client(std::move(fd));
  std::vector<LinkInfo> links;
  SLUICE_RETURN_IF_ERROR(ListLinks(client, &links));
  const auto& named = plan_.options.devices;
  for (const std::string& name : named) {
    const auto link = std::find_if(links.begin(), links.end(), [&](const LinkInfo& l) { return l.name == name; });
    if (link == links.end()) return Status::Error("--device=" + name + ": no such device in the namespace " + plan_.options.netns);
    if (link->type != ARPHRD_ETHER) return Status::Error("--device=" + name + ": not an Ethernet device");
  }
  for (LinkInfo& link : links) {
    if ((link.flags & IFF_LOOPBACK) != 0 || link.type != ARPHRD_ETHER) continue;
    if (named.empty() || std::find(named.begin(), named.end(), link.name) != named.end()) plan_.devices.push_back(std::move(link));
  }
  return {};
}

Status Guard::SilenceDevices() {
  Silencing silencing(plan_);
  for (const LinkInfo& link : plan_.devices) SLUICE_RETURN_IF_ERROR(silencing.Silence(link.index, link.name));
  return {};
}

Status Guard::OpenPcap() {
  if (plan_.flags.pcap_log.empty()) return {};
  if (plan_.flags.network == NetworkMode::kHost) return Status::Error("--pcap-log=" + plan_.flags.pcap_log + ": no frames pass sluice with --network=host");
  plan_.pcap.Reset(open(plan_.flags.pcap_log.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!plan_.pcap) return Status::Error("--pcap-log=" + plan_.flags.pcap_log + ": cannot open the file" + ErrnoText(errno));
  return {};
}

Status Guard::OpenForSentry() {
  SLUICE_RETURN_IF_ERROR(MakeStandinNetns(&plan_.standin_netns, &plan_.standin_cookie));
  SLUICE_RETURN_IF_ERROR(MakeSeqpacketPair(&plan_.calls));
  SLUICE_RETURN_IF_ERROR(MakeSeqpacketPair(&plan_.control));
  SLUICE_RETURN_IF_ERROR(MakeSeqpacketPair(&plan_.guard));
  SLUICE_RETURN_IF_ERROR(NetlinkClient::Open(Mirror::Groups(), &plan_.event_netlink));
  SLUICE_RETURN_IF_ERROR(NetlinkClient::Open({}, &plan_.dump_netlink));
  SLUICE_RETURN_IF_ERROR(OpenAdminSocket(plan_, &plan_.admin_listener));
  SLUICE_RETURN_IF_ERROR(MakePipe(&plan_.sentry_log_read, &plan_.sentry_log_write));
  fcntl(plan_.sentry_log_read.get(), F_SETFL, O_NONBLOCK);
  fcntl(plan_.sentry_log_write.get(), F_SETFL, O_NONBLOCK);
  return {};
}

Status Guard::Start() {
  if (plan_.flags.network == NetworkMode::kHost) {
    Log(LogLevel::kWarning, "--network=host: the program uses the kernel's network stack of the namespace; isolation is weaker, nothing is intercepted");
  }
  if (plan_.intercepted()) {
    SLUICE_RETURN_IF_ERROR(SilenceDevices());
    SLUICE_RETURN_IF_ERROR(OpenForSentry());
    SLUICE_RETURN_IF_ERROR(StartBroker());
    SLUICE_RETURN_IF_ERROR(StartSentry());
  }
  SLUICE_RETURN_IF_ERROR(StartInit());
  SLUICE_RETURN_IF_ERROR(WriteRegistration(plan_, init_.pid));
  if (plan_.intercepted()) {
    SLUICE_RETURN_IF_ERROR(WaitUntilReady());
    SLUICE_RETURN_IF_ERROR(PassListener());
  } else {
    int number;
    if (read(plan_.init_ready_read.get(), &number, sizeof number) != sizeof number) return Status::Error("the program's surroundings could not be set up", kExitKilled);
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

Status Guard::StartBroker() {
  broker_.pid = CloneProcess(0, &broker_.pidfd);
  if (broker_.pid == 0) RunBroker(plan_);
  if (broker_.pid < 0) return Status::Error("cannot start the broker" + ErrnoText(errno));
  plan_.calls.a.Reset();
  plan_.control.a.Reset();
  plan_.guard.b.Reset();
  return {};
}

Status Guard::StartSentry() {
  sentry_pid_ = static_cast<int*>(mmap(nullptr, sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  if (sentry_pid_ == MAP_FAILED) return Status::Error("cannot map memory" + ErrnoText(errno));
  keeper_.pid = CloneProcess(0, &keeper_.pidfd);
  if (keeper_.pid == 0) RunKeeper(plan_, sentry_pid_);
  if (keeper_.pid < 0) return Status::Error("cannot start the keeper" + ErrnoText(errno));
  while (std::atomic_ref<int>(*sentry_pid_).load() == 0 && !WaitForEnd(keeper_.pidfd.get(), 0)) {
    const timespec bound{0, 20000000};  // the keeper may die before it wakes us
    syscall(SYS_futex, sentry_pid_, FUTEX_WAIT, 0, &bound, nullptr, 0);
  }
  sentry_.pid = *sentry_pid_;
  if (sentry_.pid > 0) sentry_.pidfd = PidfdOpen(sentry_.pid);
  if (!sentry_.running()) return Status::Error("cannot start the sentry", kExitKilled);
  plan_.calls.b.Reset();
  plan_.control.b.Reset();
  plan_.event_netlink.Reset();
  plan_.dump_netlink.Reset();
  plan_.admin_listener.Reset();
  plan_.pcap.Reset();
  plan_.sentry_log_write.Reset();
  return {};
}

Status Guard::StartInit() {
  SLUICE_RETURN_IF_ERROR(MakePipe(&plan_.init_ready_read, &plan_.init_ready_write));
  SLUICE_RETURN_IF_ERROR(MakePipe(&plan_.init_go_read, &plan_.init_go_write));
  init_.pid = CloneProcess(CLONE_NEWPID | CLONE_NEWNS, &init_.pidfd);
  if (init_.pid == 0) RunInit(plan_);
  if (init_.pid < 0) return Status::Error("cannot start the sandbox's init" + ErrnoText(errno));
  plan_.init_ready_write.Reset();
  plan_.init_go_read.Reset();
  return {};
}

Type Guard::FromBroker(std::string* text) {
  Record record;
  control::Header header;
  std::string_view body;
  if (ReceiveRecord(plan_.guard.a.get(), &record, control::kMaxRecord, 0) != 1 || !control::Decode(record.data, &header, &body)) {
    *text = "the broker died";
    return Type::kFatal;
  }
  *text = body;
  return header.type;
}

Status Guard::WaitUntilReady() {
  std::string text;
  for (;;) {
    pollfd polled[6] = {{plan_.guard.a.get(), POLLIN, 0},   {broker_.pidfd.get(), POLLIN, 0}, {sentry_.pidfd.get(), POLLIN, 0},
                        {init_.pidfd.get(), POLLIN, 0}, {signals_.get(), POLLIN, 0},      {plan_.sentry_log_read.get(), POLLIN, 0}};
    if (poll(polled, 6, -1) < 0) continue;
    RelayLog();
    if (polled[0].revents != 0) {
      const Type type = FromBroker(&text);
      if (type == Type::kReady) break;
      if (type == Type::kFatal) return Status::Error(text);
    }
    if (polled[1].revents != 0) return Status::Error("the broker died while it started", kExitKilled);
    if (polled[2].revents != 0) return Status::Error("the sentry died while it started" , kExitKilled);
    if (polled[3].revents != 0) return Status::Error("the program's surroundings could not be set up", kExitKilled);
    signalfd_siginfo info;
    if (polled[4].revents != 0 && read(signals_.get(), &info, sizeof info) == sizeof info && info.ssi_signo != SIGWINCH) {
      return Status::Error(Format("interrupted by signal %d before the program started", static_cast<int>(info.ssi_signo)), 128 + static_cast<int>(info.ssi_signo));
    }
  }
  return {};
}

// Fetches the seccomp listener from init and has the broker serve it.
Status Guard::PassListener() {
  int number = -1;
  if (read(plan_.init_ready_read.get(), &number, sizeof number) != sizeof number) {
    return Status::Error("the program's surroundings could not be set up", kExitKilled);
  }
  UniqueFd listener = PidfdGetfd(init_.pidfd.get(), number);
  if (!listener) return Status::Error("cannot fetch the seccomp listener" + ErrnoText(errno));
  if (!SendRecord(plan_.guard.a.get(), control::Encode(Type::kSandbox), {init_.pidfd.get(), sentry_.pidfd.get(), keeper_.pidfd.get(), listener.get()})) {
    return Status::Error("the broker died while it started", kExitKilled);
  }
  std::string text;
  for (;;) {
    const Type type = FromBroker(&text);
    if (type == Type::kStarted) return {};
    if (type == Type::kFatal) return Status::Error(text);
  }
}

int Guard::Watch() {
  for (;;) {
    pollfd polled[6] = {{init_.pidfd.get(), POLLIN, 0},
                        {signals_.get(), POLLIN, 0},
                        {broker_.running() ? broker_.pidfd.get() : -1, POLLIN, 0},
                        {sentry_.running() ? sentry_.pidfd.get() : -1, POLLIN, 0},
                        {keeper_.running() ? keeper_.pidfd.get() : -1, POLLIN, 0},
                        {plan_.guard.a ? plan_.guard.a.get() : -1, POLLIN, 0}};
    pollfd all[7];
    std::copy(std::begin(polled), std::end(polled), all);
    all[6] = {plan_.sentry_log_read ? plan_.sentry_log_read.get() : -1, POLLIN, 0};
    if (poll(all, 7, -1) < 0) continue;
    if (all[6].revents != 0) RelayLog();
    if (all[1].revents != 0) OnSignal();
    if (all[0].revents != 0) {
      Drain();
      const int code = EndInit();
      Finish();
      return code;
    }
    if (all[2].revents != 0) return KillBecause("the broker died");
    if (all[3].revents != 0) return KillBecause("the sentry died");
    if (all[4].revents != 0) return KillBecause("the keeper died");
    if (all[5].revents != 0) {
      std::string text;
      if (FromBroker(&text) == Type::kFatal) return KillBecause(text);
    }
  }
}

void Guard::OnSignal() {
  signalfd_siginfo info;
  while (read(signals_.get(), &info, sizeof info) == sizeof info) {
    // The terminal's own signals reach CMD's process group without us.
    if (info.ssi_code == SI_KERNEL && info.ssi_signo != SIGHUP) continue;
    PidfdSignal(init_.pidfd.get(), static_cast<int>(info.ssi_signo));
  }
}

void Guard::RelayLog() {
  char buffer[4096];
  const ssize_t n = plan_.sentry_log_read ? read(plan_.sentry_log_read.get(), buffer, sizeof buffer) : 0;
  if (n == 0) plan_.sentry_log_read.Reset();
  if (n <= 0) return;
  log_rest_.append(buffer, static_cast<size_t>(n));
  for (size_t end; (end = log_rest_.find('\n')) != std::string::npos; log_rest_.erase(0, end + 1)) {
    RelayLogLine("sentry", std::string_view(log_rest_).substr(0, end));
  }
  if (log_rest_.size() > 4096) log_rest_.clear();
}

int Guard::KillBecause(const std::string& why) {
  // The program first: it must never see its connections end as if they were complete.
  PidfdSignal(init_.pidfd.get(), SIGKILL);
  WaitForEnd(init_.pidfd.get(), -1);
  RelayLog();
  LogLine(LogLevel::kError, "the sandbox was ended: " + why);
  Finish();
  return kExitKilled;
}

// What CMD wrote before it ended is still delivered, as the kernel does for the sockets of a dead process; TCP's own limits for
// orphans and the sentry's for a dead peer bound the wait, and a signal ends it.
void Guard::Drain() {
  if (!plan_.intercepted() || !SendRecord(plan_.guard.a.get(), control::Encode(Type::kDrain), {})) return;
  for (int wait = kExplainDrainMs;;) {
    pollfd polled[5] = {{plan_.guard.a.get(), POLLIN, 0},
                        {sentry_.pidfd.get(), POLLIN, 0},
                        {broker_.pidfd.get(), POLLIN, 0},
                        {signals_.get(), POLLIN, 0},
                        {plan_.sentry_log_read ? plan_.sentry_log_read.get() : -1, POLLIN, 0}};
    const int n = poll(polled, 5, wait);
    if (n == 0) {
      Log(LogLevel::kWarning, "connections still deliver what the program wrote before it ended; interrupt to cut them");
      wait = -1;
    }
    if (n <= 0) continue;
    if (polled[4].revents != 0) RelayLog();
    if (polled[1].revents != 0 || polled[2].revents != 0 || (polled[3].revents != 0 && AskedToEnd())) return;
    if (polled[0].revents == 0) continue;
    std::string text;
    const Type type = FromBroker(&text);
    if (type == Type::kDrained || type == Type::kFatal) return;
  }
}

bool Guard::AskedToEnd() {
  signalfd_siginfo info;
  bool end = false;
  while (read(signals_.get(), &info, sizeof info) == sizeof info) {
    const int number = static_cast<int>(info.ssi_signo);
    end |= number == SIGINT || number == SIGTERM || number == SIGHUP || number == SIGQUIT;
  }
  return end;
}

int Guard::EndInit() {
  int status = 0;
  if (!init_.running() || waitpid(init_.pid, &status, __WALL) != init_.pid) return kExitKilled;
  init_.pidfd.Reset();
  if (WIFEXITED(status)) return WEXITSTATUS(status);
  Log(LogLevel::kError, "the sandbox was ended: its init was killed by signal %d", WTERMSIG(status));
  return kExitKilled;
}

void Guard::Finish() {
  Stop(init_);
  Stop(sentry_);
  Stop(keeper_);
  Stop(broker_);
  while (waitpid(-1, nullptr, WNOHANG | __WALL) > 0) {
  }
  if (!registered_) return;
  if (plan_.intercepted()) Silencing(plan_).LiftAll();
  RemoveRegistration(plan_);
}

}  // namespace

int RunDo(const CommandLine& line) { return Guard(line).Run(); }

}  // namespace sluice
