#include "control/metrics/service.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "control/admin_client.h"
#include "control/log.h"
#include "control/metrics/address.h"
#include "control/metrics/server.h"
#include "control/os.h"
#include "control/run/jail.h"
#include "control/run/plan.h"
#include "control/run/sentry_filter.h"
#include "control/sandboxes.h"

namespace sluice {
namespace {

// Above those of the sentries and keepers (run/jail.h).
constexpr uid_t kFirstUid = 0x72000000;

std::string LockPath(const Flags& flags) {
  std::string name = flags.metrics;
  std::ranges::replace(name, '/', '_');
  return flags.root + "/metrics-" + name + ".lock";
}

// Who holds the file that has the name has the address. Invalid where another holds it and `operation` does not wait.
UniqueFd LockAddress(const Flags& flags, int operation) {
  const std::string path = LockPath(flags);
  for (;;) {
    UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!fd || flock(fd.get(), operation) < 0) return UniqueFd();
    struct stat ours{}, named{};
    if (fstat(fd.get(), &ours) == 0 && stat(path.c_str(), &named) == 0 && ours.st_ino == named.st_ino) return fd;
  }
}

[[noreturn]] void Fail(int channel, const std::string& what) {
  SendMetricsRecord(channel, {{"error", what}});
  _exit(1);
}

// Until it is jailed, the process does nothing but wait for its turn and listen.
[[noreturn]] void BeServer(const Flags& flags, pid_t guard_pid, UniqueFd lock, UniqueFd listener, UniqueFd channel) {
  prctl(PR_SET_NAME, "sluice-metrics");
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  setsid();
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  signal(SIGPIPE, SIG_IGN);
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  for (int fd = 0; fd <= 2; ++fd) dup2(null, fd);
  CloseAllBut({lock.get(), listener.get(), channel.get()});
  if (!listener) {
    lock = LockAddress(flags, LOCK_EX);
    const Status status = ListenForMetrics(flags.metrics, &listener);
    if (!lock || !status.ok()) Fail(channel.get(), status.line());
  }
  std::string error;
  if (!EnterEmptyRoot() || !BecomeUnowned(kFirstUid + static_cast<uid_t>(guard_pid)))
    Fail(channel.get(), "--metrics: cannot drop rights" + ErrnoText(errno));
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // the kernel forgets it at a change of user
  if (!InstallServerFilter(&error)) Fail(channel.get(), "--metrics: cannot install a seccomp filter: " + error);
  ServeMetrics(std::move(listener), std::move(channel));
}

}  // namespace

Status MetricsService::Start(const Flags& flags, pid_t guard_pid) {
  flags_ = flags;
  UniqueFd lock = LockAddress(flags, LOCK_EX | LOCK_NB), listener;
  if (!lock && errno != EWOULDBLOCK) return Status::Error("cannot open " + LockPath(flags) + ErrnoText(errno));
  const Status status = lock ? ListenForMetrics(flags.metrics, &listener) : Status();
  if (!status.ok()) unlink(LockPath(flags).c_str());
  SLUICE_RETURN_IF_ERROR(status);
  SocketPair pair;
  SLUICE_RETURN_IF_ERROR(MakeSeqpacketPair(&pair));
  pid_ = CloneProcess(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS, &process_);
  if (pid_ == 0) {
    pair.a.Reset();
    BeServer(flags, guard_pid, std::move(lock), std::move(listener), std::move(pair.b));
  }
  if (pid_ < 0) return Status::Error("cannot start the process that serves --metrics" + ErrnoText(errno));
  channel_ = std::move(pair.a);
  return {};
}

// The process has parsed what sentries say: it is told nothing but what it serves anyway, and nobody waits for it.
void MetricsService::OnPolled() {
  nlohmann::json record;
  if (ReceiveMetricsRecord(channel_.get(), &record, nullptr) && !record.contains("error")) return GiveSandboxes();
  const auto error = record.is_object() ? record.find("error") : record.end();
  Log(LogLevel::kWarning, "counters are not served any more: %s",
      record.is_object() && error != record.end() ? Plain(*error).c_str() : "the process that serves --metrics died");
  channel_.Reset();
}

void MetricsService::GiveSandboxes() {
  for (const RunningSandbox& s : ListSandboxes(flags_)) {
    if (s.registration.metrics != flags_.metrics) continue;
    UniqueFd fd = ConnectAdmin(flags_, s.registration.id);
    if (!fd) continue;  // it starts, or ends
    std::string containers;
    for (const std::string& id : s.containers) containers += (containers.empty() ? "" : ",") + id;
    if (!SendMetricsRecord(channel_.get(), {{"sandbox", s.name()}, {"container", containers}}, fd.get())) return;
  }
  SendMetricsRecord(channel_.get(), nlohmann::json::object());
}

void MetricsService::Stop() {
  if (pid_ <= 0) return;
  PidfdSignal(process_.get(), SIGKILL);
  WaitForEnd(process_.get(), -1);
  waitpid(pid_, nullptr, __WALL);
  pid_ = -1;
  channel_.Reset();
  // The last one takes the files along.
  const UniqueFd lock = LockAddress(flags_, LOCK_EX | LOCK_NB);
  if (!lock) return;
  const auto address = ParseMetricsAddress(flags_.metrics);
  if (address && !address->path.empty()) unlink(address->path.c_str());
  unlink(LockPath(flags_).c_str());
}

}  // namespace sluice
