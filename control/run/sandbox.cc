#include "control/run/sandbox.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/futex.h>
#include <linux/if.h>
#include <linux/if_arp.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "control/capabilities.h"
#include "control/log.h"
#include "control/mirror/mirror.h"
#include "control/netfilter_check.h"
#include "control/registry.h"
#include "control/run/option_group.h"
#include "control/run/sandbox_groups.h"
#include "control/run/silencing.h"
#include "dataplane/system.h"

namespace sluice {

using control::Type;

namespace {

constexpr int kOffersBytes = 16 << 20;

}  // namespace

Status CheckPrivileges(const char* who) {
  constexpr struct {
    int bit;
    const char* name;
  } kNeeded[] = {{CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}, {CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {CAP_NET_RAW, "CAP_NET_RAW"},
                 {CAP_SETUID, "CAP_SETUID"},       {CAP_SETGID, "CAP_SETGID"},       {CAP_SYS_PTRACE, "CAP_SYS_PTRACE"}};
  for (const auto& needed : kNeeded) {
    if (!HasCapability(needed.bit)) return Status::Error(Format("%s: needs %s: run it as root", who, needed.name));
  }
  return {};
}

Status Sandbox::Take() {
  const auto id = IdOfNamespace(plan_.netns.get());
  UniqueFd own(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
  if (!id || !own) return Status::Error("cannot identify the network namespace" + ErrnoText(errno));
  if (*id == *IdOfNamespace(own.get()) && plan_.intercepted()) {
    return Status::Error("--netns=" + plan_.options.netns +
                         ": this is the namespace sluice runs in; its kernel would fall silent. Make one with ip netns add");
  }
  plan_.netns_id = *id;
  SystemRng rng;
  plan_.steering_key = wire::NewSteeringKey(rng);
  SLUICE_RETURN_IF_ERROR(TakeNamespace(plan_, &plan_.lock));
  registered_ = true;
  return plan_.intercepted() ? Silencing(plan_).Recover() : Status();
}

Status Sandbox::Enter() {
  if (!plan_.flags.metrics.empty() && plan_.intercepted()) SLUICE_RETURN_IF_ERROR(metrics_.Start(plan_.flags, plan_.guard_pid));
  if (setns(plan_.netns.get(), CLONE_NEWNET) < 0) return Status::Error("cannot enter the network namespace" + ErrnoText(errno));
  return {};
}

Status Sandbox::LookAtNamespace(bool* resolver) {
  UniqueFd fd;
  SLUICE_RETURN_IF_ERROR(NetlinkClient::Open({}, &fd));
  NetlinkClient client(std::move(fd));
  std::vector<LinkInfo> links;
  SLUICE_RETURN_IF_ERROR(ListLinks(client, &links));
  const auto& named = plan_.options.devices;
  for (const std::string& name : named) {
    const auto link = std::find_if(links.begin(), links.end(), [&](const LinkInfo& l) { return l.name == name; });
    if (link == links.end())
      return Status::Error("--device=" + name + ": no such device in the namespace " + plan_.options.netns);
    if (link->type != ARPHRD_ETHER) return Status::Error("--device=" + name + ": not an Ethernet device");
  }
  for (LinkInfo& link : links) {
    if ((link.flags & IFF_LOOPBACK) != 0 || link.type != ARPHRD_ETHER) continue;
    if (named.empty() || std::find(named.begin(), named.end(), link.name) != named.end())
      plan_.devices.push_back(std::move(link));
  }
  if (plan_.own_netns) return {};
  const Status filters = CheckPacketFilters(plan_.devices, resolver);
  return plan_.flags.netfilter == NetfilterPolicy::kRefuse ? filters : Status();
}

Status Sandbox::Start() {
  PruneOptionGroups(plan_.flags);  // these stand in the sandboxes' groups, which would not go before
  MakeSandboxGroups(plan_);
  MakeEngineFlows();
  // The broker first: it silences the devices while the rest is made.
  SLUICE_RETURN_IF_ERROR(StartBroker());
  const pid_t mover = StartMoving();
  const Status status = StartBesideMover();
  if (status.ok()) {
    FinishMoving(mover);
  } else if (mover > 0) {
    waitpid(mover, nullptr, 0);
  }
  return status;
}

Status Sandbox::StartBesideMover() {
  SLUICE_RETURN_IF_ERROR(OpenForSentry());
  SLUICE_RETURN_IF_ERROR(StartSentry());
  const std::string_view cookie(reinterpret_cast<const char*>(&plan_.standin_cookie), sizeof plan_.standin_cookie);
  std::vector<int> fds{sentry_.pidfd.get(), keeper_.pidfd.get()};
  if (plan_.native_options()) fds.push_back(plan_.option_group.maps.marks.get());
  if (!Send(Type::kSandbox, fds, cookie)) return Status::Error("the broker died while it started", kExitKilled);
  plan_.option_group.maps = {};
  for (const Child* child : {&broker_, &keeper_, &sentry_}) {
    const int score = child == &sentry_ ? plan_.oom_score : kLastVictim;
    if (!SetOomScore(child->pid, score))
      Log(LogLevel::kDebug, "cannot set oom_score_adj to %d%s", score, ErrnoText(errno).c_str());
  }
  return {};
}

// The first move into a control group waits for a grace period of the kernel: a process of its own waits for it, while the others
// are started. It moves the guard.
pid_t Sandbox::StartMoving() {
  if (plan_.groups.empty()) return -1;
  const pid_t mover = fork();
  if (mover != 0) return mover;
  JoinSandboxGroups(plan_, plan_.guard_pid);
  _exit(0);
}

void Sandbox::FinishMoving(pid_t mover) {
  int status = 0;
  const bool moved = mover > 0 && waitpid(mover, &status, 0) == mover && WIFEXITED(status);
  if (!moved) JoinSandboxGroups(plan_, plan_.guard_pid);
  for (const pid_t pid : {broker_.pid, keeper_.pid}) JoinSandboxGroups(plan_, pid);
  JoinSandboxGroups(plan_, sentry_.pid, plan_.native_options() ? JoinGroups::kAllButUnified : JoinGroups::kAll);
}

Status Sandbox::OpenForSentry() {
  SLUICE_RETURN_IF_ERROR(MakeStandinNetns(&plan_.standin_netns, &plan_.standin_cookie));
  MakeOptionGroup(plan_);
  SLUICE_RETURN_IF_ERROR(NetlinkClient::Open(Mirror::Groups(), &plan_.event_netlink));
  SLUICE_RETURN_IF_ERROR(NetlinkClient::Open({}, &plan_.dump_netlink));
  SLUICE_RETURN_IF_ERROR(OpenAdminSocket(plan_, &plan_.admin_listener));
  SLUICE_RETURN_IF_ERROR(MakePipe(&plan_.sentry_log_read, &plan_.sentry_log_write));
  fcntl(plan_.sentry_log_read.get(), F_SETFL, O_NONBLOCK);
  fcntl(plan_.sentry_log_write.get(), F_SETFL, O_NONBLOCK);
  return {};
}

// Where they cannot be, the sandbox works but for those names.
void Sandbox::MakeEngineFlows() {
  if (!plan_.engine_flows || plan_.flags.network != NetworkMode::kSandbox) return;
  std::string error;
  if (CreateEngineFlowMaps(&plan_.flow_maps, &error) != Errno::kOk)
    Log(LogLevel::kWarning, "names outside will not resolve through the engine: %s", error.c_str());
}

Status Sandbox::StartBroker() {
  SLUICE_RETURN_IF_ERROR(MakeSeqpacketPair(&plan_.calls));
  SLUICE_RETURN_IF_ERROR(MakeSeqpacketPair(&plan_.offers));
  // Room for all there can be: the broker reads them late.
  setsockopt(plan_.offers.b.get(), SOL_SOCKET, SO_SNDBUFFORCE, &kOffersBytes, sizeof kOffersBytes);
  SLUICE_RETURN_IF_ERROR(MakeSeqpacketPair(&plan_.control));
  SLUICE_RETURN_IF_ERROR(MakeSeqpacketPair(&plan_.guard));
  broker_.pid = CloneProcess(0, &broker_.pidfd);
  if (broker_.pid == 0) RunBroker(plan_);
  if (broker_.pid < 0) return Status::Error("cannot start the broker" + ErrnoText(errno));
  plan_.calls.a.Reset();
  plan_.offers.a.Reset();
  plan_.control.a.Reset();
  plan_.guard.b.Reset();
  return {};
}

Status Sandbox::StartSentry() {
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
  plan_.offers.b.Reset();
  plan_.control.b.Reset();
  plan_.event_netlink.Reset();
  plan_.dump_netlink.Reset();
  plan_.admin_listener.Reset();
  plan_.pcap.Reset();
  plan_.sentry_log_write.Reset();
  plan_.flow_maps.held.Reset();
  return {};
}

bool Sandbox::Send(Type type, const std::vector<int>& fds, std::string_view body) {
  return plan_.guard.a && SendRecord(plan_.guard.a.get(), control::Encode(type, 0, body), fds);
}
bool Sandbox::AddProgram(int pidfd) { return Send(Type::kProgram, {pidfd}); }
bool Sandbox::AddListener(int listener, std::string_view container) { return Send(Type::kListener, {listener}, container); }
bool Sandbox::Synchronize() { return Send(Type::kSynchronize); }
bool Sandbox::Drain() { return Send(Type::kDrain); }

void Sandbox::AddPolled(std::vector<pollfd>* polled) const {
  for (const int fd : {plan_.guard.a.get(), broker_.pidfd.get(), sentry_.pidfd.get(), keeper_.pidfd.get(),
                       plan_.sentry_log_read.get(), metrics_.fd()}) {
    polled->push_back({fd, POLLIN, 0});
  }
}

Sandbox::Event Sandbox::OnPolled(const pollfd* polled, std::string* why) {
  if (polled[4].revents != 0) RelayLog();
  if (polled[5].revents != 0) metrics_.OnPolled();
  // What it says before it dies explains more than its death.
  if (polled[0].revents != 0) {
    const Event event = FromBroker(why);
    if (event != Event::kNone) return event;
  }
  constexpr const char* kNames[] = {"broker", "sentry", "keeper"};
  for (size_t i = 0; i < 3; ++i) {
    if (polled[i + 1].revents == 0) continue;
    *why = std::string("the ") + kNames[i] + " died";
    if (KilledForMemory(plan_))
      *why += ": the kernel's OOM killer ended it (--sentry-memory bounds what the sandbox's own processes may use)";
    return Event::kDead;
  }
  return Event::kNone;
}

Sandbox::Event Sandbox::FromBroker(std::string* why) {
  Record record;
  control::Header header;
  std::string_view body;
  if (ReceiveRecord(plan_.guard.a.get(), &record, control::kMaxRecord, 0) != 1 || !control::Decode(record.data, &header, &body)) {
    *why = "the broker died";
    return Event::kDead;
  }
  switch (header.type) {
    case Type::kReady:
      return Event::kReady;
    case Type::kDrained:
      return Event::kDrained;
    case Type::kListening:
      listening_.resize(body.size() / sizeof listening_[0]);
      if (!body.empty()) std::memcpy(listening_.data(), body.data(), listening_.size() * sizeof listening_[0]);
      return Event::kListening;
    case Type::kFatal:
      *why = body;
      return Event::kDead;
    default:
      return Event::kNone;
  }
}

void Sandbox::RelayLog() {
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

void Sandbox::AwaitEnd(Child& child) {
  if (!child.running()) return;
  WaitForEnd(child.pidfd.get(), -1);
  child.pidfd.Reset();
  // The sentry is the keeper's child, and ours (a subreaper's) once that is gone.
  waitpid(child.pid, nullptr, __WALL | (&child == &sentry_ ? WNOHANG : 0));
}

void Sandbox::Finish() {
  metrics_.Stop();
  for (const Child* child : {&broker_, &sentry_}) {
    if (child->running()) PidfdSignal(child->pidfd.get(), SIGKILL);
  }
  // The broker may have been in the middle of silencing.
  AwaitEnd(broker_);
  if (registered_ && plan_.intercepted()) Silencing(plan_).LiftAll();
  AwaitEnd(sentry_);
  // Out of the groups, which then can be removed while the keeper still ends.
  RemoveOptionGroup(plan_);
  RemoveSandboxGroups(plan_, {keeper_.pid, getpid()});
  // The keeper last, which closes the packet sockets: the kernel takes a grace period for that, and nobody has to wait for it.
  if (keeper_.running()) PidfdSignal(keeper_.pidfd.get(), SIGKILL);
  keeper_.pidfd.Reset();
  while (waitpid(-1, nullptr, WNOHANG | __WALL) > 0) {
  }
  if (registered_) RemoveRegistration(plan_);
  registered_ = false;
}

}  // namespace sluice
