// The broker: in the sandbox's network namespace, with privilege, in little code. Its main thread opens ports, reads sysctls and
// watches the guard; a second one serves the notified calls.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "control/broker/call_broker.h"
#include "control/broker/net_change.h"
#include "control/broker/port_opener.h"
#include "control/broker/sentry_conduct.h"
#include "control/broker/sysctl_reader.h"
#include "control/log.h"
#include "control/registry.h"
#include "control/run/control_protocol.h"
#include "control/run/option_group.h"
#include "control/run/plan.h"
#include "control/run/sandbox_groups.h"
#include "control/run/silencing.h"
#include "dataplane/system.h"

namespace sluice {
namespace {

using control::Type;

class Broker {
 public:
  explicit Broker(SandboxPlan& plan)
      : plan_(plan),
        guard_(PidfdOpen(plan.guard_pid)),
        silencing_([this] { SilenceDevices(); }),
        ports_(plan),
        sysctls_(plan.flags.sysctls) {}

  [[noreturn]] void Run() {
    SendToSentry(Type::kSysctls, 0, sysctls_.Read());
    silencing_.join();
    if (getppid() != plan_.guard_pid || !guard_) EndOrphaned();
    for (;;) {
      pollfd polled[3] = {
          {guard_.get(), POLLIN, 0}, {plan_.guard.b.get(), POLLIN, 0}, {sentry_gone_ ? -1 : plan_.control.a.get(), POLLIN, 0}};
      if (poll(polled, 3, static_cast<int>(MillisecondsToPeriod())) < 0 && errno != EINTR)
        Fatal("cannot poll" + ErrnoText(errno));
      // However much there is to read: the guard's and the sentry's records do not put it off.
      if (MillisecondsToPeriod() == 0) {
        period_end_ = MonotonicNow() + kPeriod;
        OncePerSecond();
      }
      if (polled[1].revents != 0)
        FromGuard();
      else if (polled[0].revents != 0)
        EndOrphaned();  // with every program that the guard told of
      if (polled[2].revents != 0) FromSentry();
    }
  }

 private:
  static constexpr Duration kPeriod = Duration::Seconds(1);

  // Rounded up: a wait of that long has reached it.
  int64_t MillisecondsToPeriod() const {
    const int64_t left = (period_end_ - MonotonicNow()).ns();
    return left <= 0 ? 0 : (left + 999999) / 1000000;
  }

  void SilenceDevices() {
    Silencing silencing(plan_);
    for (const LinkInfo& link : plan_.devices) {
      const Status status = silencing.Silence(link.index, link.name);
      if (!status.ok()) return Fatal(status.line());
    }
  }

  void SendToSentry(Type type, int32_t number, std::string_view body = {}, const std::vector<int>& fds = {}) {
    // Never waits for the sentry: one that does not read is broken, or hostile.
    if (!SendRecord(plan_.control.a.get(), control::Encode(type, number, body), fds, MSG_DONTWAIT) && errno != EPIPE &&
        errno != ECONNRESET) {
      Fatal("the sentry does not take what the broker sends" + ErrnoText(errno));
    }
  }

  void SendToGuard(Type type, std::string_view body = {}) { SendRecord(plan_.guard.b.get(), control::Encode(type, 0, body), {}); }

  void Fatal(const std::string& line) { SendToGuard(Type::kFatal, line); }

  void OncePerSecond() {
    if (!sentry_gone_ && conduct_.LetTellListening()) SendToSentry(Type::kListeningHeard, 0);
    if (!sentry_gone_ && sysctls_.Changed()) SendToSentry(Type::kSysctls, 0, sysctls_.Read());
    const Status silent = ports_.Check([this](int ifindex, const control::PortFaultCounts& counts) {
      if (!sentry_gone_) SendToSentry(Type::kPortFaults, ifindex, {reinterpret_cast<const char*>(&counts), sizeof counts});
    });
    if (!silent.ok()) Fatal(silent.line());
  }

  void FromGuard() {
    Record record;
    const int n = ReceiveRecord(plan_.guard.b.get(), &record, control::kMaxRecord, control::kMaxFds, MSG_DONTWAIT);
    if (n < 0) return;
    if (n == 0) EndOrphaned();
    control::Header header;
    std::string_view body;
    if (!control::Decode(record.data, &header, &body)) return;
    if (header.type == Type::kDrain || header.type == Type::kSynchronize) {
      conduct_.OnAsked(header.type);
      SendToSentry(header.type, 0);
    }
    if (header.type == Type::kSandbox && record.fds.size() >= 2 && body.size() == sizeof plan_.standin_cookie) {
      std::memcpy(&plan_.standin_cookie, body.data(), body.size());
      sentry_ = std::move(record.fds[0]);
      keeper_ = std::move(record.fds[1]);
      if (record.fds.size() > 2) option_marks_ = std::move(record.fds[2]);
    }
    if (header.type == Type::kProgram && record.fds.size() == 1) {
      std::erase_if(programs_, [](const UniqueFd& pidfd) { return WaitForEnd(pidfd.get(), 0); });
      programs_.push_back(std::move(record.fds[0]));
    }
    if (header.type == Type::kListener && record.fds.size() == 1) ServeListener(std::move(record.fds[0]), body);
  }

  void ServeListener(UniqueFd listener, std::string_view container) {
    if (!calls_ && !StartCalls()) return;
    calls_->AddListener(std::move(listener), std::string(container));
  }

  bool StartCalls() {
    std::string error;
    changer_ = std::make_unique<NetChanger>(NetChangeLimits{}, &error);
    if (!changer_->ok()) {
      Fatal("cannot change the namespace: " + error);
      return false;
    }
    CallBroker::Options options;
    options.calls_fd = plan_.calls.a.get();
    options.offers_fd = plan_.offers.a.get();
    options.sentry_pidfd = sentry_.get();
    options.netns_cookie = plan_.standin_cookie;
    options.target_netns_fd = plan_.netns.get();
    options.option_marks_fd = option_marks_.get();
    options.apply_change = [this](const netlink::NetChange& change, bool allowed) { return changer_->Apply(change, allowed); };
    calls_ = std::make_unique<CallBroker>(options);
    call_thread_ = std::thread([this] {
      while (calls_->RunOnce(-1)) {
      }
      if (calls_->violation() != nullptr) Fatal(std::string("the sentry broke the protocol of calls: ") + calls_->violation());
    });
    return true;
  }

  void FromSentry() {
    Record record;
    const int n = ReceiveRecord(plan_.control.a.get(), &record, control::kMaxRecord, 0, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {  // the guard sees its death, too, and acts
      sentry_gone_ = true;
      return;
    }
    control::Header header;
    std::string_view body;
    if (const char* wrong = conduct_.Judge(record.data, record.truncated, &header, &body)) {
      sentry_gone_ = true;  // nothing more is heard from it
      return Fatal(std::string("the sentry broke the control protocol: it sent ") + wrong);
    }
    switch (header.type) {
      case Type::kReady:
      case Type::kDrained:
        SendToGuard(header.type);
        break;
      case Type::kListening:
        SendToGuard(header.type, body);
        break;
      case Type::kFatal:
        Fatal(std::string(body.substr(0, 500)));
        break;
      case Type::kOpenPort:
        OpenPort(header.number);
        break;
      case Type::kClosePort:
        ports_.Close(header.number);
        break;
      default:
        break;
    }
  }

  void OpenPort(int32_t ifindex) {
    OpenedPort port;
    const Status status = ports_.Open(ifindex, &port);
    if (!status.ok()) return SendToSentry(Type::kPortFailed, ifindex, status.line());
    std::vector<int> fds;
    for (const UniqueFd& fd : port.fds) fds.push_back(fd.get());
    SendToSentry(Type::kPort, ifindex, port.blobs, fds);
  }

  // The guard died: nobody else is left who could end the sandbox and put the namespace right. First the program, so
  // that it never sees its descriptors end while it still runs.
  [[noreturn]] void EndOrphaned() {
    std::vector<const UniqueFd*> processes;
    for (const UniqueFd& program : programs_) processes.push_back(&program);
    processes.insert(processes.end(), {&sentry_, &keeper_});
    for (const UniqueFd* process : processes) {
      if (!*process) continue;
      PidfdSignal(process->get(), SIGKILL);
      WaitForEnd(process->get(), 10000);
    }
    RemoveOptionGroup(plan_);
    RemoveSandboxGroups(plan_, {getpid()});
    Silencing(plan_).LiftAll();
    RemoveRegistration(plan_);
    _exit(kExitKilled);
  }

  SandboxPlan& plan_;
  UniqueFd guard_, sentry_, keeper_;  // pidfds
  UniqueFd option_marks_;
  std::vector<UniqueFd> programs_;  // pidfds of their inits
  // Attaching waits for grace periods of the kernel: it begins first, and the rest is done meanwhile. No port is opened and
  // nobody hears that the sandbox is ready before.
  std::thread silencing_;
  PortOpener ports_;
  SysctlReader sysctls_;
  SentryConduct conduct_;
  std::unique_ptr<NetChanger> changer_;
  std::unique_ptr<CallBroker> calls_;
  std::thread call_thread_;
  Instant period_end_ = MonotonicNow() + kPeriod;
  bool sentry_gone_ = false;
};

}  // namespace

void RunBroker(SandboxPlan& plan) {
  prctl(PR_SET_NAME, "sluice-broker");
  setsid();
  signal(SIGPIPE, SIG_IGN);
  plan.calls.b.Reset();
  plan.offers.b.Reset();
  plan.control.b.Reset();
  plan.guard.a.Reset();
  plan.pcap.Reset();
  for (const int fd : plan.inherited) close(fd);
  constexpr int kDescriptors = 1024;  // its threads share the table
  GrowDescriptorTable(kDescriptors);
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  dup2(null, STDIN_FILENO);
  dup2(null, STDOUT_FILENO);
  Broker(plan).Run();
}

}  // namespace sluice
