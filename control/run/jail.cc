// Keeper and the sentry's surroundings: an unowned user, no capability, an empty root, namespaces of its own.
#include "control/run/jail.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

#include "control/capabilities.h"
#include "control/log.h"
#include "control/os.h"
#include "control/run/control_protocol.h"
#include "control/run/plan.h"

namespace sluice {
namespace {

// Users of a range that nobody else hands out (above systemd's container range), four per sandbox and different for each that
// runs, so that neither signals, tracing, inotify limits nor process limits of one sandbox reach another.
constexpr uid_t kFirstUid = 0x70000000;

// Room in the descriptor table that sentry and keeper share, 64 KiB of the kernel's memory. A sandbox with more makes it double.
constexpr int kDescriptors = 8192;

[[noreturn]] void Fail(SandboxPlan& plan, const std::string& what) {
  const auto record = control::Encode(control::Type::kFatal, 0, "cannot set the sentry up: " + what + ErrnoText(errno));
  SendRecord(plan.control.b.get(), record, {});
  _exit(kExitKilled);
}

void RaiseToHard(int resource) {
  rlimit limit{};
  if (getrlimit(static_cast<__rlimit_resource>(resource), &limit) < 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(static_cast<__rlimit_resource>(resource), &limit);
}

void SetLimits() {
  RaiseToHard(RLIMIT_MEMLOCK);  // rings of AF_XDP
  const rlimit none{0, 0};
  setrlimit(RLIMIT_CORE, &none);
  // Threads: the control thread, each worker, who measures a wake-up at the start, and what a sanitizer runs.
  constexpr rlim_t kThreads = kMaxNetworkChannels + 4;
  const rlimit few{kThreads, kThreads};
  setrlimit(RLIMIT_NPROC, &few);
}

void StandardDescriptors(SandboxPlan& plan) {
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  dup2(null, STDIN_FILENO);
  dup2(null, STDOUT_FILENO);
  // A terminal or pipe of the user is never the sentry's: its lines go through the guard.
  dup2(plan.sentry_log_write.get(), STDERR_FILENO);
  LogToPipe(STDERR_FILENO);
}

[[noreturn]] void BeSentry(SandboxPlan& plan) {
  prctl(PR_SET_NAME, "sluice-sentry");
  setsid();
  signal(SIGPIPE, SIG_IGN);
  StandardDescriptors(plan);
  if (setns(plan.standin_netns.get(), CLONE_NEWNET) < 0) Fail(plan, "its network namespace");
  if (!EnterEmptyRoot()) Fail(plan, "an empty root");
  const NativeOptionMaps& options = plan.option_group.maps;
  CloseAllBut({plan.calls.b.get(), plan.offers.b.get(), plan.control.b.get(), plan.event_netlink.get(), plan.dump_netlink.get(),
               plan.admin_listener.get(), plan.pcap.get(), options.slots.get(), options.marks.get(), options.posted.get(),
               plan.flow_maps.held.get()});
  SetLimits();
  if (!BecomeUnowned(kFirstUid + static_cast<uid_t>(plan.guard_pid) * 4)) Fail(plan, "an unowned user");
  // When the keeper goes, so does the sentry (the kernel forgets this at a change of user).
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  RunSentry(plan);
}

}  // namespace

// Real, effective and saved ids differ: the call server tags datagrams with them.
bool BecomeUnowned(uid_t base) {
  if (setgroups(0, nullptr) < 0 || !DropBoundingSet()) return false;
  if (setresgid(base, base + 1, base + 2) < 0 || setresuid(base, base + 1, base + 2) < 0) return false;
  return DropHeldCapabilities() && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_DUMPABLE, 0) == 0;
}

bool EnterEmptyRoot() {
  if (mount("", "/", nullptr, MS_PRIVATE | MS_REC, nullptr) < 0) return false;
  if (mount("sluice", "/proc", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k,mode=555") < 0) return false;
  if (mkdir("/proc/proc", 0555) < 0) return false;
  // subset=pid hides everything but processes; older kernels (before 5.8) do not know it.
  const unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY;
  if (mount("proc", "/proc/proc", "proc", flags, "hidepid=2,subset=pid") < 0 &&
      mount("proc", "/proc/proc", "proc", flags, "hidepid=2") < 0)
    return false;
  if (chdir("/proc") < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0) return false;
  return mount("", "/", nullptr, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr) == 0;
}

void RunKeeper(SandboxPlan& plan, int* sentry_pid) {
  prctl(PR_SET_NAME, "sluice-keeper");
  setsid();
  RaiseToHard(RLIMIT_NOFILE);  // one descriptor per stand-in
  GrowDescriptorTable(kDescriptors);
  const pid_t pid =
      CloneProcess(CLONE_FILES | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS, nullptr, plan.option_group.fd.get());
  if (pid == 0) BeSentry(plan);
  std::atomic_ref<int>(*sentry_pid).store(pid);
  syscall(SYS_futex, sentry_pid, FUTEX_WAKE, 1, nullptr, nullptr, 0);
  if (pid < 0) Fail(plan, "its process");
  // The descriptor table is the sentry's: nothing is opened, closed or even said here.
  // Its real user is the sentry's saved one: the kernel sends the sentry the signal of our death only where we might send it
  // ourselves.
  const uid_t sentry = kFirstUid + static_cast<uid_t>(plan.guard_pid) * 4 + 2, keeper = sentry + 1;
  if (setgroups(0, nullptr) < 0 || setresgid(keeper, keeper, keeper) < 0 || setresuid(sentry, keeper, keeper) < 0 ||
      !DropHeldCapabilities()) {
    _exit(kExitKilled);
  }
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  // The guard or, where that died, the broker ends the keeper once the sandbox is gone. Where both died there is nobody to
  // do so: the kernel ends the sandbox then (its init dies with the guard), and the keeper goes some seconds later.
  sigset_t guard_died;
  sigemptyset(&guard_died);
  sigaddset(&guard_died, SIGUSR1);
  sigprocmask(SIG_SETMASK, &guard_died, nullptr);
  prctl(PR_SET_PDEATHSIG, SIGUSR1);
  if (getppid() == plan.guard_pid) {
    siginfo_t info;
    while (sigwaitinfo(&guard_died, &info) != SIGUSR1) {
    }
  }
  sleep(5);
  _exit(0);
}

}  // namespace sluice
