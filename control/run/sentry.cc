// The sentry, once it is jailed: each worker's thread runs a stack, its queues of the devices and its share of the program's
// calls; the main thread follows the namespace's configuration and answers the admin socket.
#include <malloc.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <latch>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "control/broker/port_opener.h"
#include "control/broker/sysctl_reader.h"
#include "control/log.h"
#include "control/mirror/mirror.h"
#include "control/run/admin.h"
#include "control/run/control_protocol.h"
#include "control/run/device_faults.h"
#include "control/run/plan.h"
#include "control/run/port_maker.h"
#include "control/run/sentry_filter.h"
#include "dataplane/system.h"
#include "dataplane/worker_group.h"
#include "netstack/socket/held_ports.h"
#include "netstack/stack.h"
#include "netstack/sysctls.h"
#include "sentry/call_server.h"

namespace sluice {
namespace {

using control::Type;

// A peer that acknowledges nothing for so long is dead to whoever waits for `sluice do` to end.
constexpr Duration kDrainStall = Duration::Seconds(60);
constexpr uint64_t kMaxPacketMemory = uint64_t{512} << 20;

// How --sentry-memory is divided, so that what programs and peers do meets the bound of its kind (the stack drops and its sockets
// wait) and the control group's never: packets a half, the kernel's part of the sockets and what is unread in it an eighth each
// (unread_memory.h lets it be twice that), calls that wait a sixteenth. The rest is for the program itself.
size_t PacketMemory(const Flags& flags) {
  return flags.sentry_memory == 0 ? kMaxPacketMemory : std::min(kMaxPacketMemory, flags.sentry_memory / 2);
}
size_t UnreadBytes(const Flags& flags) { return PacketMemory(flags) / 8; }
size_t HeldBytes(const Flags& flags) { return std::min(CallServer::Options().container_held_bytes, PacketMemory(flags) / 8); }

// A quarter of the descriptors is for the rest: seccomp listeners, which come with every exec, connections that wait, devices.
size_t MaxSockets(const Flags& flags) {
  constexpr size_t kSocketMemory = 10 << 10;  // a stand-in, its socket, and the two of the kernel
  size_t most = CallServer::kMaxSockets;
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) most = std::min<size_t>(most, limit.rlim_cur / 4 * 3);
  return flags.sentry_memory == 0 ? most : std::min<size_t>(most, flags.sentry_memory / 8 / kSocketMemory);
}

// Whoever relays connections to the loopback hears where the stack listens: at once, and again when the last was heard. The
// worker's thread.
class ListeningWatch final : public TurnTask {
 public:
  ListeningWatch(Stack& stack, int channel) : stack_(stack), channel_(channel) {}

  bool OnTurn() override {
    if (!HasWork()) return false;
    told_ = stack_.listening_changes();
    heard_ = false;
    SendRecord(channel_, control::Encode(Type::kListening, 0, Listeners()), {});
    return true;
  }
  bool HasWork() const override { return heard_ && told_ != stack_.listening_changes(); }
  void OnHeard() { heard_ = true; }

 private:
  std::string Listeners() const {
    constexpr int kListen = 10;
    std::map<uint16_t, control::LoopbackListener> ports;
    for (const SocketInfo& s : stack_.Sockets(false)) {
      const IpAddress at = s.local.address.Unmapped();
      if (s.protocol != 6 || s.state != kListen || ports.size() >= control::kMaxLoopbackListeners) continue;
      const bool v4 = at == IpAddress::Loopback(Family::kIpv4) || (at.IsAny() && !s.v6_only);
      const bool v6 = at == IpAddress::Loopback(Family::kIpv6) || (at.IsAny() && at.is_v6());
      if (!v4 && !v6) continue;
      control::LoopbackListener& l = ports[s.local.port];
      l.port = s.local.port;
      l.v4 |= v4;
      l.v6 |= v6;
    }
    std::string out;
    for (const auto& [port, l] : ports) out.append(reinterpret_cast<const char*>(&l), sizeof l);
    return out;
  }

  Stack& stack_;
  int channel_;
  uint64_t told_ = 0;
  bool heard_ = true;
};

class Sentry {
 public:
  explicit Sentry(SandboxPlan& plan)
      : plan_(plan),
        group_(MakeGroupOptions(plan)),
        native_options_(OpenNativeOptions(plan)),
        calls_(group_, {.calls_fd = plan.calls.b.get(),
                        .offers_fd = plan.offers.b.get(),
                        .net_raw = plan.flags.net_raw,
                        .max_sockets = MaxSockets(plan.flags),
                        .container_sockets = plan.flags.container_sockets,
                        .container_held_bytes = HeldBytes(plan.flags),
                        .unread_bytes = UnreadBytes(plan.flags),
                        .native_options = native_options_.get()}),
        mirror_(std::move(plan.event_netlink), std::move(plan.dump_netlink)),
        ports_(plan, group_),
        admin_(plan.admin_listener.get(), AdminContext{plan.flags, group_, calls_, told_faults_}),
        listening_(group_.stack(0), plan.control.b.get()) {}

  [[noreturn]] void Run() {
    ShareHeldPorts();
    ReceiveFirstSysctls();
    CheckStatus(mirror_.ReadAll());
    Publish();
    if (plan_.tell_listening) group_.worker(0).AddTask(&listening_);
    std::thread workers([this] { group_.Run(); });
    // The filter has no room for what a thread does once, at its start.
    std::latch run(group_.size());
    for (uint32_t i = 0; i < group_.size(); ++i) group_.worker(i).Post([&run] { run.count_down(); });
    run.wait();
    std::string error;
    if (!InstallSentryFilter(&error)) Fatal("cannot install the sentry's seccomp filter: " + error);
    AskForPorts();
    for (;;) {
      TellReady();
      Turn();
    }
  }

 private:
  static WorkerGroupOptions MakeGroupOptions(const SandboxPlan& plan) {
    const uint32_t workers = plan.flags.num_network_channels;
    return {.workers = workers,
            .worker = {.poll = plan.flags.poll, .spin = plan.flags.poll_spin},
            .pool_bytes = PacketMemory(plan.flags) / workers,
            .gro = false,  // PortMaker knows where it is worth something
            .ports_have_homes = true,
            .key = plan.steering_key};
  }

  // Null where these options are notified calls. Where they are not, there is no going back: the program's filter counts on it.
  std::unique_ptr<NativeOptions> OpenNativeOptions(SandboxPlan& plan) {
    if (!plan.native_options()) return nullptr;
    std::string error;
    std::unique_ptr<NativeOptions> options = NativeOptions::Open(std::move(plan.option_group.maps), &error);
    if (options == nullptr) Fatal("cannot use the program that answers socket options: " + error);
    return options;
  }

  // With the engine's flows, which keep away from what our stack holds.
  void ShareHeldPorts() {
    if (!plan_.flow_maps.held) return;
    const std::span<uint64_t> words = MapHeldPorts(plan_.flow_maps.held.get());
    if (words.empty()) Fatal("cannot map the table of held ports" + ErrnoText(errno));
    if (group_.size() > 1) held_counts_ = std::make_unique<HeldPortCounts>();
    for (uint32_t i = 0; i < group_.size(); ++i) group_.stack(i).PublishHeldPorts(words, SLUICE_ENGINE_PORT, held_counts_.get());
    plan_.flow_maps.held.Reset();
  }

  [[noreturn]] void Fatal(const std::string& line) {
    Send(Type::kFatal, 0, line);
    // The guard ends the sandbox first and this process then: the program must not see its descriptors close.
    for (;;) pause();
  }

  void CheckStatus(const Status& status) {
    if (!status.ok()) Fatal(status.line());
  }

  void Send(Type type, int32_t number = 0, std::string_view body = {}) {
    SendRecord(plan_.control.b.get(), control::Encode(type, number, body), {});
  }

  void ReceiveFirstSysctls() {
    Record record;
    control::Header header;
    std::string_view body;
    if (ReceiveRecord(plan_.control.b.get(), &record, control::kMaxRecord, 0) != 1 ||
        !control::Decode(record.data, &header, &body) || header.type != Type::kSysctls) {
      Fatal("the broker does not answer");
    }
    TakeSysctls(body);
  }

  void TakeSysctls(std::string_view lines) {
    sysctls_ = ParseSysctlLines(lines);
    std::vector<std::string> problems;
    ParseSysctls(sysctls_, &problems);
    for (const std::string& problem : problems) LogLine(LogLevel::kWarning, problem);
    for (const std::string& key : SysctlsWithoutEffect(sysctls_)) {
      if (told_.insert(key).second)
        LogLine(LogLevel::kWarning, key + " = " + sysctls_.find(key)->second + " has no effect on sluice's stack");
    }
  }

  bool Usable(const LinkConfig& link) const {
    if (plan_.flags.network == NetworkMode::kNone) return false;
    const auto& named = plan_.options.devices;
    return named.empty() || std::find(named.begin(), named.end(), link.name) != named.end();
  }

  static bool TakesPort(const LinkConfig& link) { return link.type == 1 && !link.loopback(); }  // ARPHRD_ETHER

  // A snapshot for the stacks.
  void Publish() {
    auto config = std::make_shared<NetConfig>(
        MakeConfig(mirror_.tables(), [this](const LinkConfig& link) { return Usable(link); }, attached_));
    config->sysctls = sysctls_;
    config->generation = ++generation_;
    group_.PostToAll([this, config = std::shared_ptr<const NetConfig>(std::move(config))](uint32_t i) {
      group_.stack(i).ApplyConfig(config);
      calls_.OnConfig(i);
    });
  }

  void AskForPorts() {
    std::set<IfIndex> present;
    for (const LinkConfig& link : mirror_.tables().links) {
      if (!TakesPort(link) || !Usable(link)) continue;
      present.insert(link.index);
      if (attached_.count(link.index) != 0 || !asked_.insert(link.index).second) continue;
      Send(Type::kOpenPort, link.index);
      if (starting_) waiting_.insert(link.index);
    }
    starting_ = false;
    // Devices that are gone.
    for (auto it = asked_.begin(); it != asked_.end();) {
      if (present.count(*it) != 0) {
        ++it;
        continue;
      }
      const IfIndex gone = *it;
      if (attached_.erase(gone) != 0) group_.RemoveQueues(gone);
      waiting_.erase(gone);
      Send(Type::kClosePort, gone);
      it = asked_.erase(it);
    }
  }

  // Everything that is in the namespace by now, before the answer: a container engine has configured it, and starts the program.
  void Synchronize() {
    CheckStatus(mirror_.ReadAll());
    ready_ = false;
    starting_ = true;
    AskForPorts();
    for (const IfIndex asked : asked_) {
      if (attached_.count(asked) == 0) waiting_.insert(asked);
    }
    Publish();
  }

  void TellReady() {
    if (ready_ || !waiting_.empty()) return;
    ready_ = true;
    // Behind what was posted before: CMD finds the addresses there.
    group_.PostToAll([](uint32_t) {}, [this] { Send(Type::kReady); });
  }

  void Turn() {
    std::vector<pollfd> polled{{plan_.control.b.get(), POLLIN, 0}, {mirror_.event_fd(), POLLIN, 0}};
    admin_.AddPolled(&polled);
    if (draining_) WatchDrain();
    if (poll(polled.data(), polled.size(), draining_ ? 20 : -1) < 0) return;
    if (polled[0].revents != 0) FromBroker();
    if (polled[1].revents != 0) FollowMirror();
    admin_.OnPolled(polled);
  }

  void FollowMirror() {
    bool changed = false;
    const Status status = mirror_.Follow(&changed);
    if (!status.ok()) LogLine(LogLevel::kWarning, status.line());
    if (!changed) return;
    AskForPorts();
    Publish();
    for (const auto& [index, changes] : mirror_.link_changes()) {
      faults_[index].downs = changes.downs;
      faults_[index].mtu_changes = changes.mtu_changes;
    }
    const auto& links = mirror_.tables().links;
    std::erase_if(faults_,
                  [&](const auto& entry) { return std::ranges::find(links, entry.first, &LinkConfig::index) == links.end(); });
    TellFaults();
  }

  void TellFaults() {
    group_.worker(0).Post([this, faults = faults_] { told_faults_ = faults; });
  }

  void TakePortFaults(IfIndex index, std::string_view body) {
    control::PortFaultCounts counts;
    if (body.size() != sizeof counts) return;
    std::memcpy(&counts, body.data(), sizeof counts);
    faults_[index].queue_changes = counts.queue_changes;
    faults_[index].xdp_programs_restored = counts.xdp_programs_restored;
    TellFaults();
  }

  void FromBroker() {
    Record record;
    const int n = ReceiveRecord(plan_.control.b.get(), &record, control::kMaxRecord, control::kMaxFds, MSG_DONTWAIT);
    if (n < 0) return;
    if (n == 0) {
      for (;;) pause();  // the broker died; the guard ends the sandbox, then us
    }
    control::Header header;
    std::string_view body;
    if (!control::Decode(record.data, &header, &body)) return;
    switch (header.type) {
      case Type::kSysctls:
        TakeSysctls(body);
        Publish();
        break;
      case Type::kPort:
        TakePort(header.number, body, std::move(record.fds));
        break;
      case Type::kPortFailed:
        if (waiting_.erase(header.number) != 0) Fatal(std::string(body));
        asked_.erase(header.number);  // tried again with the next change of the namespace
        Log(LogLevel::kWarning, "%.*s", static_cast<int>(body.size()), body.data());
        break;
      case Type::kPortFaults:
        TakePortFaults(header.number, body);
        break;
      case Type::kSynchronize:
        Synchronize();
        break;
      case Type::kListeningHeard:
        group_.worker(0).Post([this] { listening_.OnHeard(); });
        break;
      case Type::kDrain:
        draining_ = true;
        break;
      default:
        break;
    }
  }

  void TakePort(IfIndex index, std::string_view blob, std::vector<UniqueFd> fds) {
    if (asked_.count(index) == 0) return;  // vanished meanwhile
    std::vector<std::unique_ptr<Port>> queues;
    const Status status = ports_.Make(blob, std::move(fds), &queues);
    if (!status.ok()) {
      if (waiting_.erase(index) != 0) Fatal(status.line());
      return LogLine(LogLevel::kWarning, status.line());
    }
    group_.AddQueues(std::move(queues));
    attached_.insert(index);
    waiting_.erase(index);
    Publish();
  }

  // CMD is gone: as the kernel does for the sockets of a dead process, go on until what was written is acknowledged. A connection
  // that is still open here has bytes between the program and the stack: its close comes behind them.
  void WatchDrain() {
    auto all = std::make_shared<std::vector<Owing>>(group_.size());
    group_.PostToAll([this, all](uint32_t i) { (*all)[i] = OwedBy(group_.stack(i)); }, [this, all] { JudgeDrain(*all); });
  }

  // Connections that owe bytes, and bytes acknowledged.
  struct Owing {
    uint64_t connections = 0, acknowledged = 0;
    bool operator==(const Owing&) const = default;
  };

  static Owing OwedBy(const Stack& stack) {
    Owing owing;
    for (const SocketInfo& s : stack.Sockets(true)) {
      constexpr int kEstablished = 1, kFinWait1 = 4, kCloseWait = 8, kLastAck = 9, kClosing = 11;
      if (s.protocol != 6) continue;
      if (s.state != kEstablished && s.state != kFinWait1 && s.state != kCloseWait && s.state != kLastAck && s.state != kClosing)
        continue;
      ++owing.connections;
      if (s.tcp) owing.acknowledged += s.tcp->bytes_acked;
    }
    return owing;
  }

  // The thread of the worker that answered last.
  void JudgeDrain(const std::vector<Owing>& all) {
    Owing seen;
    for (const Owing& one : all) seen.connections += one.connections, seen.acknowledged += one.acknowledged;
    const std::lock_guard lock(drain_mutex_);
    const Instant now = MonotonicNow();
    if (std::exchange(drain_seen_, seen) != seen) drain_progress_ = now;
    const bool stalled = seen.connections != 0 && now - drain_progress_ >= kDrainStall;
    if ((seen.connections != 0 && !stalled) || drained_.exchange(true)) return;
    if (stalled)
      Log(LogLevel::kWarning, "connections that the program left were cut: nothing was acknowledged for %d s",
          static_cast<int>(kDrainStall.seconds()));
    Send(Type::kDrained);
  }

  SandboxPlan& plan_;
  std::unique_ptr<HeldPortCounts> held_counts_;
  WorkerGroup group_;
  std::unique_ptr<NativeOptions> native_options_;
  CallServer calls_;
  Mirror mirror_;
  PortMaker ports_;
  std::map<IfIndex, DeviceFaults> faults_;
  std::map<IfIndex, DeviceFaults> told_faults_;  // the worker's copy
  AdminServer admin_;
  ListeningWatch listening_;
  SysctlMap sysctls_;
  std::set<std::string> told_;  // keys without effect that the log knows
  std::set<IfIndex> asked_, attached_, waiting_;
  uint64_t generation_ = 0;
  bool starting_ = true, ready_ = false, draining_ = false;
  std::atomic<bool> drained_{false};
  // What was owed at the last look, and when that changed. The looks of two ticks may end in two threads.
  std::mutex drain_mutex_;
  Owing drain_seen_;
  Instant drain_progress_;
};

}  // namespace

void RunSentry(SandboxPlan& plan) {
  // One heap for both threads: glibc opens /proc/sys/vm/overcommit_memory before it shrinks any other, which our own filter
  // kills.
  mallopt(M_ARENA_MAX, 1);
  // Never destroyed: the process ends by the guard's signal.
  (new Sentry(plan))->Run();
}

}  // namespace sluice
