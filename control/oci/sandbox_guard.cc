#include "control/oci/sandbox_guard.h"

#include <fcntl.h>
#include <linux/netfilter/nfnetlink.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <list>
#include <nlohmann/json.hpp>

#include "control/log.h"
#include "control/namespaces.h"
#include "control/netfilter_check.h"
#include "control/oci/listener.h"
#include "control/oci/port_forward.h"
#include "control/oci/resolver_relay.h"
#include "control/oci/runc.h"
#include "control/registry.h"
#include "control/rtnl.h"
#include "control/run/option_group.h"
#include "control/run/sandbox.h"
#include "control/run/silencing.h"

namespace sluice::oci {
namespace {

using nlohmann::json;

constexpr size_t kMaxRequest = 64 << 10;
// A killed container that has not ended by then is frozen.
constexpr int kKillMs = 2000;

json ToJson(const Container& c) {
  return {{"id", c.id}, {"root", c.root}, {"log", c.log}, {"logJson", c.log_json}, {"ownPids", c.own_pids}};
}

Container FromJson(const json& j) {
  Container c;
  c.id = j.value("id", "");
  c.root = j.value("root", "");
  c.log = j.value("log", "");
  c.log_json = j.value("logJson", false);
  c.own_pids = j.value("ownPids", true);
  return c;
}

Flags ContainerFlags() {
  Flags flags;
  flags.root = kRunDirectory;
  return flags;
}

// The socket by which the front ends speak to the guard of a namespace.
std::string GuardSocket(const NamespaceId& id) { return GuardSocketPath(ContainerFlags(), id); }

// What the containers of one sandbox have to agree on.
std::string Settings(const Flags& f) {
  json all{{"network", static_cast<int>(f.network)},
           {"gso", f.gso},
           {"software-gso", f.software_gso},
           {"gro", f.gro},
           {"link", static_cast<int>(f.link)},
           {"net-raw", f.net_raw},
           {"poll", static_cast<int>(f.poll)},
           {"poll-spin", f.poll_spin.ns()},
           {"netfilter", static_cast<int>(f.netfilter)},
           {"sysctl", f.sysctls},
           {"pcap-log", f.pcap_log}};
  if (!f.metrics.empty()) all["metrics"] = f.metrics;  // these came later: sandboxes of an older sluice do not have them
  if (f.sentry_memory != 0) all["sentry-memory"] = f.sentry_memory;
  if (f.tcx) all["tcx"] = true;
  if (f.container_sockets != 0) all["container-sockets"] = f.container_sockets;
  if (f.num_network_channels != 1) all["num-network-channels"] = f.num_network_channels;
  if (f.qdisc != QdiscOptions{}) all["qdisc"] = {static_cast<int>(f.qdisc.kind), f.qdisc.rate, f.qdisc.burst};
  return all.dump();
}

bool SendJson(int socket, const json& message, const std::vector<int>& fds = {}, int flags = 0) {
  const std::string text = message.dump(-1, ' ', false, json::error_handler_t::replace);
  return SendRecord(socket, Bytes(reinterpret_cast<const uint8_t*>(text.data()), text.size()), fds, flags);
}

bool ReceiveJson(int socket, json* out, std::vector<UniqueFd>* fds, int flags = 0) {
  Record record;
  if (ReceiveRecord(socket, &record, kMaxRequest, 4, flags) != 1 || record.truncated) return false;
  *out = json::parse(record.data.begin(), record.data.end(), nullptr, false);
  if (fds != nullptr) *fds = std::move(record.fds);
  return out->is_object();
}

// Of the namespace's first container, beside which the sandbox stands.
struct Surroundings {
  bool pod = false;    // of Kubernetes
  std::string groups;  // /proc/PID/cgroup
  int oom_score = 0;
};

Surroundings SurroundingsOf(const ContainerRequest& first) {
  return {first.pod, ReadSmallFile(Format("/proc/%d/cgroup", first.init_pid)).value_or(""), OomScoreOf(first.init_pid)};
}

class SandboxGuard {
 public:
  SandboxGuard(const Flags& flags, UniqueFd netns, UniqueFd first_client, const Surroundings& container) : sandbox_(plan_) {
    plan_.flags = flags;
    plan_.flags.root = kRunDirectory;
    plan_.netns = std::move(netns);
    plan_.guard_pid = getpid();
    plan_.engine_flows = true;
    plan_.tell_listening = container.pod;
    plan_.container_groups = container.groups;
    plan_.oom_score = container.oom_score;
    settings_ = Settings(flags);
    clients_.push_back({std::move(first_client), {}, false});
  }

  [[noreturn]] void Run() {
    const Status status = Start();
    if (!status.ok()) {
      Answer(clients_.front(), {{"error", status.line()}, {"busy", !taken_}});
      sandbox_.Finish();
      _exit(1);
    }
    for (;;) Turn();
  }

 private:
  struct Member {
    Container container;
    UniqueFd init, listening;
    std::vector<UniqueFd> seccomp;  // our copies tell when the last task of each is gone
    bool ended = false;
  };
  struct Client {
    UniqueFd socket;
    std::string waits_for;  // "add", "synchronize", "remove"
    bool gone = false;
    std::string key;  // of the container to be added or removed
  };

  Status Start() {
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    SLUICE_RETURN_IF_ERROR(sandbox_.Take());
    taken_ = true;
    SLUICE_RETURN_IF_ERROR(ListenAt(GuardSocket(plan_.netns_id), SOCK_SEQPACKET, &front_ends_));
    SLUICE_RETURN_IF_ERROR(sandbox_.Enter());
    FollowRules();
    SLUICE_RETURN_IF_ERROR(sandbox_.LookAtNamespace(&resolver_wanted_));
    SLUICE_RETURN_IF_ERROR(sandbox_.Start());
    plan_.options.command = {"(containers)"};
    return WriteRegistration(plan_, 0);
  }

  void Turn() {
    std::vector<pollfd> polled{{front_ends_.get(), POLLIN, 0}};
    sandbox_.AddPolled(&polled);
    polled.push_back({rules_.get(), POLLIN, 0});
    polled.push_back({resolver_.pidfd(), POLLIN, 0});
    const size_t first_forward = polled.size();
    forward_.AddPolled(&polled);
    const size_t first_client = polled.size();
    for (const Client& client : clients_) polled.push_back({client.socket.get(), POLLIN, 0});
    const size_t first_member = polled.size();
    for (const Member& m : members_) {
      polled.push_back({m.init.get(), POLLIN, 0});
      polled.push_back({m.listening.get(), POLLIN, 0});
      for (const UniqueFd& fd : m.seccomp) polled.push_back({fd.get(), 0, 0});
    }
    if (poll(polled.data(), polled.size(), -1) < 0) return;
    std::string why;
    const Sandbox::Event event = sandbox_.OnPolled(&polled[1], &why);
    if (event == Sandbox::Event::kDead) KillAll(why);
    // Before anything that changes what the relay listens at.
    const pollfd* forward = &polled[first_forward];
    if (!forward_.OnPolled(forward)) OnForwardEnd();
    if (forward[-1].revents != 0) OnResolverEnd();
    if (forward[-2].revents != 0) OnRules();
    if (event == Sandbox::Event::kReady) OnReady();
    if (event == Sandbox::Event::kDrained && draining_) End();
    if (event == Sandbox::Event::kListening) forward_.ListenFor(sandbox_.listening());
    OnMembers(&polled[first_member]);
    size_t i = first_client;
    // Clients that come in below have no entry yet.
    for (Client& client : clients_) {
      if (polled[i++].revents != 0) OnClient(client);
    }
    clients_.remove_if([](const Client& c) { return c.gone; });
    if (polled[0].revents != 0) {
      UniqueFd peer(accept4(front_ends_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (peer) clients_.push_back({std::move(peer), {}, false});
    }
    CheckEnd();
  }

  void OnReady() {
    ready_ = true;
    if (resolver_wanted_ && !resolver_.running()) StartResolver();
    if (plan_.tell_listening && !forward_.running()) StartForward();
    for (Client& client : clients_) {
      if (client.waits_for == "add" || client.waits_for == "synchronize") Answer(client, json::object());
    }
  }

  // The engine may set its resolver up at any time: with the first user-defined network, which may be connected later.
  void FollowRules() {
    const Status status = NetlinkClient::Open({NFNLGRP_NFTABLES}, &rules_, NETLINK_NETFILTER);
    if (!status.ok()) Log(LogLevel::kDebug, "a resolver that is set up later will not be noticed: %s", status.line().c_str());
  }

  void OnRules() {
    char unread[8192];
    while (recv(rules_.get(), unread, sizeof unread, MSG_DONTWAIT) > 0 || errno == ENOBUFS) {
    }
    bool found = false;
    static_cast<void>(CheckPacketFilters({}, &found));
    resolver_wanted_ |= found;
    if (found && ready_ && !resolver_.running()) StartResolver();
  }

  void StartResolver() {
    UniqueFd listener;
    const Status status = resolver_.Start(plan_.flow_maps.gate.get(), &listener);
    if (status.ok()) {
      sandbox_.AddListener(listener.get(), "(resolver)");
    } else {
      LogLine(LogLevel::kWarning, status.line());
    }
  }

  void OnResolverEnd() {
    resolver_.Stop();
    LogLine(
        LogLevel::kWarning,
        "the relay to Docker's resolver ended; names will not resolve inside until the next container of this namespace starts");
  }

  void StartForward() {
    UniqueFd listener;
    const Status status = forward_.Start(&listener);
    if (!status.ok()) return LogLine(LogLevel::kWarning, status.line());
    sandbox_.AddListener(listener.get());
    forward_.ListenFor(sandbox_.listening());
  }

  void OnForwardEnd() {
    forward_.Stop();
    LogLine(LogLevel::kWarning,
            "the relay of port-forward ended; ports of the pod cannot be forwarded until its next container starts");
  }

  void OnMembers(const pollfd* polled) {
    for (Member& m : members_) {
      const bool init_ended = (polled++)->revents != 0;
      const bool delivery = (polled++)->revents != 0;
      std::vector<UniqueFd> left;
      for (UniqueFd& fd : m.seccomp) {
        if (((polled++)->revents & (POLLHUP | POLLERR)) == 0) left.push_back(std::move(fd));
      }
      m.seccomp = std::move(left);
      if (delivery) TakeDelivery(m);
      if (init_ended) m.init.Reset();
      // In a pid namespace of its own nothing outlives the init; else there may be others.
      m.ended = !m.init && (m.container.own_pids || m.seccomp.empty());
      if (!m.ended || !m.listening) continue;
      m.listening.Reset();
      unlink(m.container.listener_path().c_str());
    }
  }

  void TakeDelivery(Member& m) {
    SeccompDelivery delivery;
    const Status status = AcceptDelivery(m.listening.get(), &delivery);
    if (!status.ok()) return LogLine(LogLevel::kWarning, status.line());
    sandbox_.AddListener(delivery.seccomp.get(), m.container.id);
    m.seccomp.push_back(std::move(delivery.seccomp));
  }

  void OnClient(Client& client) {
    json request;
    std::vector<UniqueFd> fds;
    if (!ReceiveJson(client.socket.get(), &request, &fds, MSG_DONTWAIT)) {
      client.gone = true;
      return;
    }
    const std::string op = request.value("op", "");
    if (op == "add") return Add(client, request, std::move(fds));
    if (op == "synchronize") {
      // What others set up in the meantime is judged before the program starts.
      // Of the devices, those that were there at the start were looked at then.
      const Status status = CheckPacketFilters({}, &resolver_wanted_);
      if (!status.ok() && plan_.flags.netfilter == NetfilterPolicy::kRefuse) return Answer(client, {{"error", status.line()}});
      client.waits_for = op;
      ready_ = false;
      sandbox_.Synchronize();
      return;
    }
    if (op == "remove") {
      client.waits_for = op;
      client.key = request.value("key", "");
      for (const Member& m : members_) {
        if (request.value("kill", false) && m.container.key() == client.key && m.init) PidfdSignal(m.init.get(), SIGKILL);
      }
      return;
    }
    Answer(client, {{"error", "unknown request"}});
  }

  void Add(Client& client, const json& request, std::vector<UniqueFd> fds) {
    if (request.value("settings", "") != settings_) {
      return Answer(
          client,
          {{"error",
            "the containers that share this network namespace were started with other flags of sluice; they must agree"}});
    }
    if (fds.size() != 3) return Answer(client, {{"error", "malformed request"}});
    Member m;
    m.container = FromJson(request.value("container", json::object()));
    m.init = std::move(fds[0]);
    m.listening = std::move(fds[1]);
    sandbox_.AddProgram(m.init.get());
    sandbox_.AddListener(fds[2].get(), m.container.id);
    m.seccomp.push_back(std::move(fds[2]));
    members_.push_back(std::move(m));
    if (draining_) {
      draining_ = false;
      ready_ = false;
      sandbox_.Synchronize();
    }
    client.waits_for = "add";
    client.key = members_.back().container.key();
    if (ready_) Answer(client, json::object());
  }

  static void Answer(Client& client, const json& answer) {
    SendJson(client.socket.get(), answer, {}, MSG_DONTWAIT);
    client.waits_for.clear();
  }

  // Containers that ended and were removed; with the last of them the sandbox.
  void CheckEnd() {
    for (Client& client : clients_) {
      if (client.waits_for != "remove") continue;
      const auto m =
          std::find_if(members_.begin(), members_.end(), [&](const Member& one) { return one.container.key() == client.key; });
      if (m != members_.end() && !m->ended) continue;
      if (m != members_.end() && members_.size() == 1) End();
      if (m != members_.end()) members_.erase(m);
      Answer(client, json::object());
    }
    // Its front end was killed before it said what for.
    if (members_.empty() && clients_.empty()) End();
    const bool all_ended =
        !members_.empty() && std::all_of(members_.begin(), members_.end(), [](const Member& m) { return m.ended; });
    if (!all_ended || draining_) return;
    draining_ = true;
    forward_.Stop();  // what it still holds open would never drain
    sandbox_.Drain();
  }

  [[noreturn]] void End() {
    unlink(GuardSocket(plan_.netns_id).c_str());
    front_ends_.Reset();
    resolver_.Stop();
    forward_.Stop();
    sandbox_.Finish();
    for (Client& client : clients_) Answer(client, client.waits_for == "remove" ? json::object() : json{{"retry", true}});
    _exit(0);
  }

  // The programs first: they must never see their connections end as if they were complete.
  [[noreturn]] void KillAll(const std::string& why) {
    const std::string line = "the sandbox was ended: " + why;
    // Containers that are being made are their front ends' to end: they say why where the engine reads it.
    members_.remove_if([this](const Member& m) { return m.ended || IsBeingMade(m); });
    for (Member& m : members_) {
      TellContainer(m, line);
      if (m.init) PidfdSignal(m.init.get(), SIGKILL);
      if (!m.container.own_pids) RunQuietly(RuncCommand(m.container.root, {"kill", "--all", m.container.id, "KILL"}));
    }
    for (Member& m : members_) {
      if (!m.init || WaitForEnd(m.init.get(), kKillMs)) continue;
      RunQuietly(RuncCommand(m.container.root, {"resume", m.container.id}));
      WaitForEnd(m.init.get(), -1);
    }
    sandbox_.RelayLog();
    if (!members_.empty()) LogLine(LogLevel::kError, line);
    unlink(GuardSocket(plan_.netns_id).c_str());
    front_ends_.Reset();
    resolver_.Stop();
    forward_.Stop();
    sandbox_.Finish();
    for (Client& client : clients_) Answer(client, client.waits_for == "remove" ? json::object() : json{{"error", line}});
    _exit(kExitKilled);
  }

  bool IsBeingMade(const Member& m) const {
    return std::any_of(clients_.begin(), clients_.end(),
                       [&](const Client& c) { return c.waits_for == "add" && c.key == m.container.key(); });
  }

  // Where the engine's user looks: the container's own output (docker logs), and the log of the runtime.
  static void TellContainer(const Member& m, const std::string& line) {
    static_cast<void>(StartLog({.file = m.container.log, .json = m.container.log_json}));
    UniqueFd error = m.init ? PidfdGetfd(m.init.get(), STDERR_FILENO) : UniqueFd();
    struct stat st{};
    // A pipe or terminal of the engine, never a file or socket of the program; and nobody waits for its reader.
    if (!error || fstat(error.get(), &st) < 0 || (!S_ISFIFO(st.st_mode) && !isatty(error.get()))) return;
    const std::string text = "sluice: " + line + "\r\n";
    UniqueFd again(open(Format("/proc/self/fd/%d", error.get()).c_str(), O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
    if (again && write(again.get(), text.data(), text.size()) < 0) return;
  }

  SandboxPlan plan_;
  Sandbox sandbox_;
  std::string settings_;
  UniqueFd front_ends_;
  std::list<Client> clients_;
  std::list<Member> members_;
  UniqueFd rules_;  // hears of changes of the namespace's packet filters; invalid on a kernel without nftables
  ResolverRelay resolver_;
  PortForward forward_;
  bool resolver_wanted_ = false;
  bool taken_ = false, ready_ = false, draining_ = false;
};

// The guard is nobody's child that is waited for, and holds nothing of the engine's.
[[noreturn]] void BecomeGuard(const Flags& flags, UniqueFd netns, UniqueFd client, const Surroundings& container) {
  setsid();
  if (fork() != 0) _exit(0);
  prctl(PR_SET_NAME, "sluice-guard");
  CloseAllBut({netns.get(), client.get(), LogFileFd()});
  const int null = open("/dev/null", O_RDWR);
  for (int fd = 0; fd <= 2; ++fd) dup2(null, fd);
  if (null > 2) close(null);
  if (chdir("/") < 0) _exit(1);
  umask(077);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGHUP, SIG_IGN);
  if (!SetOomScore(getpid(), kLastVictim)) Log(LogLevel::kDebug, "cannot set oom_score_adj%s", ErrnoText(errno).c_str());
  (new SandboxGuard(flags, std::move(netns), std::move(client), container))->Run();
}

Status StartGuard(const Flags& flags, int netns, const ContainerRequest& first, UniqueFd* channel) {
  SocketPair pair;
  SLUICE_RETURN_IF_ERROR(MakeSeqpacketPair(&pair));
  const Surroundings container = SurroundingsOf(first);
  const pid_t pid = fork();
  if (pid == 0) {
    pair.a.Reset();
    BecomeGuard(flags, UniqueFd(fcntl(netns, F_DUPFD_CLOEXEC, 3)), std::move(pair.b), container);
  }
  if (pid < 0) return Status::Error("cannot start the sandbox's guard" + ErrnoText(errno));
  pair.b.Reset();
  waitpid(pid, nullptr, 0);
  *channel = std::move(pair.a);
  return {};
}

// The keeper ends by itself, some seconds after its guard; the sentry with it.
void EndKeeper(const NamespaceId& id) {
  for (const pid_t pid : ProcessesIn(id)) {
    const UniqueFd keeper = PidfdOpen(pid);
    if (!keeper || ReadSmallFile(Format("/proc/%d/comm", pid)).value_or("") != "sluice-keeper\n") continue;
    PidfdSignal(keeper.get(), SIGKILL);
    WaitForEnd(keeper.get(), kKillMs);
  }
}

// The container's namespace, by its name or by a process that is still in it; invalid where it is gone.
UniqueFd OpenNamespaceOf(const Container& container) {
  std::vector<std::string> paths{container.netns_path};
  for (const pid_t pid : ProcessesIn(container.netns)) paths.push_back(Format("/proc/%d/ns/net", pid));
  for (const std::string& path : paths) {
    UniqueFd netns(path.empty() ? -1 : open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (netns && IdOfNamespace(netns.get()) == container.netns) return netns;
  }
  return UniqueFd();
}

// Guard and broker of the namespace were both killed, or it never had any: what they would have undone. One that still holds the
// namespace does it itself.
void LiftRemains(const Container& container) {
  const NamespaceId& id = container.netns;
  SandboxPlan plan;
  plan.flags = ContainerFlags();
  plan.netns_id = id;
  if (!TakeNamespace(plan, &plan.lock).ok()) return;
  plan.netns = OpenNamespaceOf(container);
  EndKeeper(id);
  const Status lifted = Silencing(plan).Recover();
  if (!lifted.ok()) LogLine(LogLevel::kWarning, lifted.line());
  for (const Registration& r : ListRegistrations(plan.flags)) {
    if (!(r.id == id)) continue;
    plan.guard_pid = r.guard_pid;
    RemoveOptionGroup(plan);
    RecallSandboxGroups(plan);
    RemoveSandboxGroups(plan, {});
  }
  RemoveRegistration(plan);
}

enum class Outcome { kDone, kFailed, kGone, kBusy };

// One request, one answer. kGone: the guard ends, or ended; kBusy: another has the namespace.
Outcome Ask(int channel, const json& request, const std::vector<int>& fds, std::string* error) {
  json answer;
  *error = "the sandbox ended while it was asked";
  if (!SendJson(channel, request, fds) || !ReceiveJson(channel, &answer, nullptr) || answer.value("retry", false))
    return Outcome::kGone;
  if (!answer.contains("error")) return Outcome::kDone;
  *error = answer.value("error", "");
  return answer.value("busy", false) ? Outcome::kBusy : Outcome::kFailed;
}

}  // namespace

Status JoinSandbox(const Flags& flags, int netns, const ContainerRequest& request) {
  const auto id = IdOfNamespace(netns);
  if (!id) return Status::Error("cannot identify the network namespace" + ErrnoText(errno));
  const json message{{"op", "add"}, {"settings", Settings(flags)}, {"container", ToJson(request.container)}};
  const std::vector<int> fds{request.init.get(), request.listening.get(), request.seccomp.get()};
  // A guard that ends has the namespace for some milliseconds more, and of two that start together one gets it.
  constexpr int kTries = 100;
  constexpr timespec kPause{0, 50000000};
  std::string error;
  for (int i = 0; i < kTries; ++i) {
    UniqueFd channel = ConnectTo(GuardSocket(*id), SOCK_SEQPACKET);
    if (!channel) SLUICE_RETURN_IF_ERROR(StartGuard(flags, netns, request, &channel));
    const Outcome outcome = Ask(channel.get(), message, fds, &error);
    if (outcome == Outcome::kDone) return {};
    if (outcome == Outcome::kFailed) break;
    nanosleep(&kPause, nullptr);
  }
  return Status::Error(error);
}

Status SynchronizeSandbox(const Container& container) {
  UniqueFd channel = ConnectTo(GuardSocket(container.netns), SOCK_SEQPACKET);
  if (!channel) return Status::Error("the sandbox of container " + container.id + " has ended", kExitKilled);
  std::string error;
  return Ask(channel.get(), {{"op", "synchronize"}}, {}, &error) == Outcome::kDone ? Status() : Status::Error(error);
}

Status LeaveSandbox(const Container& container, LeaveMode mode) {
  std::vector<UniqueFd> guards;
  if (container.netns.inode != 0) {
    guards.push_back(ConnectTo(GuardSocket(container.netns), SOCK_SEQPACKET));
    if (!guards[0]) LiftRemains(container);
  } else {
    // One that has no such container says so.
    for (const Registration& r : ListRegistrations(ContainerFlags()))
      guards.push_back(ConnectTo(GuardSocket(r.id), SOCK_SEQPACKET));
  }
  const json message{{"op", "remove"}, {"key", container.key()}, {"kill", mode == LeaveMode::kKill}};
  for (const UniqueFd& guard : guards) {
    std::string error;
    if (guard && Ask(guard.get(), message, {}, &error) == Outcome::kFailed) return Status::Error(error);
  }
  return {};
}

bool SandboxRuns(const NamespaceId& netns) { return static_cast<bool>(ConnectTo(GuardSocket(netns), SOCK_SEQPACKET)); }

}  // namespace sluice::oci
