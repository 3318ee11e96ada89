// Process 1 of the sandbox's pid namespace: puts the program's surroundings right, installs the filter, starts CMD, reaps,
// forwards signals.
#include <dirent.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/mount.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "control/capabilities.h"
#include "control/log.h"
#include "control/run/plan.h"
#include "sentry/filter.h"

namespace sluice {
namespace {

[[noreturn]] void Die(const std::string& what, int error) {
  LogLine(LogLevel::kError, what + (error != 0 ? ErrnoText(error) : ""));
  _exit(kExitKilled);
}

int OpenTree(const char* path) {
  return static_cast<int>(syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE));
}

bool MakeReadOnly(const char* path) {
  mount_attr attr{};
  attr.attr_set = MOUNT_ATTR_RDONLY;
  return syscall(SYS_mount_setattr, AT_FDCWD, path, AT_RECURSIVE, &attr, sizeof attr) == 0;
}

void BindOver(const char* from, const char* to) {
  if (mount(from, to, nullptr, MS_BIND | MS_REC, nullptr) < 0) Die(Format("cannot mount over %s", to), errno);
}

// Configuration of a named namespace, as `ip netns exec` does: /etc/netns/NAME/resolv.conf over /etc/resolv.conf ...
void MountEtcFiles(const std::string& name) {
  const std::string folder = "/etc/netns/" + name;
  DIR* dir = name.empty() ? nullptr : opendir(folder.c_str());
  if (dir == nullptr) return;
  while (const dirent* entry = readdir(dir)) {
    if (entry->d_name[0] == '.') continue;
    const std::string to = std::string("/etc/") + entry->d_name;
    if (mount((folder + "/" + entry->d_name).c_str(), to.c_str(), nullptr, MS_BIND, nullptr) < 0) {
      Log(LogLevel::kWarning, "cannot put %s/%s over %s: %s", folder.c_str(), entry->d_name, to.c_str(), strerror(errno));
    }
  }
  closedir(dir);
}

// A /proc that shows only the sandbox. What of it acts on the whole machine is read-only or hidden, as container engines have it:
// a writer of kernel.core_pattern, for one, would run a program outside.
void MountProc() {
  if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr) < 0) Die("cannot mount /proc", errno);
  const int net = OpenTree("/proc/sys/net");  // its keys are the namespace's own
  for (const char* path : {"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"}) {
    struct stat st{};
    if (stat(path, &st) < 0) continue;
    BindOver(path, path);
    if (!MakeReadOnly(path)) Die(Format("cannot make %s read-only", path), errno);
  }
  if (net < 0 || syscall(SYS_move_mount, net, "", AT_FDCWD, "/proc/sys/net", MOVE_MOUNT_F_EMPTY_PATH) < 0)
    Die("cannot mount /proc/sys/net", errno);
  close(net);
  for (const char* path : {"/proc/kcore", "/proc/keys", "/proc/timer_list"}) {
    struct stat st{};
    if (stat(path, &st) == 0) BindOver("/dev/null", path);
  }
}

// A /sys of this network namespace, so that /sys/class/net shows its devices. Read-only: much of it acts on the machine.
void MountSys() {
  const int cgroup = OpenTree("/sys/fs/cgroup");
  umount2("/sys", MNT_DETACH);
  if (mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, nullptr) < 0) Die("cannot mount /sys", errno);
  if (cgroup < 0) return;
  if (syscall(SYS_move_mount, cgroup, "", AT_FDCWD, "/sys/fs/cgroup", MOVE_MOUNT_F_EMPTY_PATH) == 0)
    MakeReadOnly("/sys/fs/cgroup");
  close(cgroup);
}

void MountAll(const SandboxPlan& plan) {
  if (mount("", "/", nullptr, MS_SLAVE | MS_REC, nullptr) < 0) Die("cannot make mounts private", errno);
  MountEtcFiles(plan.netns_name);
  MountSys();
  MountProc();
}

// What would let a program out: to the machine (modules, raw memory, reboot, clock), to other namespaces and mounts, to tracing.
// docs/limits.md lists them.
constexpr int kDroppedCapabilities[] = {
    CAP_SYS_ADMIN, CAP_SYS_MODULE,     CAP_SYS_RAWIO,  CAP_SYS_BOOT,      CAP_SYS_TIME,           CAP_SYSLOG,
    CAP_BPF,       CAP_PERFMON,        CAP_MAC_ADMIN,  CAP_MAC_OVERRIDE,  CAP_AUDIT_CONTROL,      CAP_AUDIT_READ,
    CAP_SYS_PACCT, CAP_SYS_TTY_CONFIG, CAP_WAKE_ALARM, CAP_BLOCK_SUSPEND, CAP_CHECKPOINT_RESTORE, CAP_DAC_READ_SEARCH};

[[noreturn]] void Execute(const SandboxPlan& plan) {
  for (const std::string& variable : plan.options.env) putenv(strdup(variable.c_str()));
  sigprocmask(SIG_SETMASK, &plan.user_mask, nullptr);
  std::vector<char*> argv;
  for (const std::string& arg : plan.options.command) argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);
  execvp(argv[0], argv.data());
  const int error = errno;
  Log(LogLevel::kError, "do: cannot run %s: %s", argv[0], strerror(error));
  _exit(error == ENOENT ? kExitNotFound : kExitNotExecutable);
}

// CMD has ended. Its background processes end with it; a daemon, which has left CMD's session, keeps the sandbox until it ends:
// `sluice do -- nginx` serves although the first process of nginx exits at once.
void KillSession() {
  DIR* dir = opendir("/proc");
  if (dir == nullptr) return;
  while (const dirent* entry = readdir(dir)) {
    const int pid = atoi(entry->d_name);
    // The session of CMD began outside of this pid namespace: it has no number here.
    if (pid > 1 && getsid(pid) == 0) kill(pid, SIGKILL);
  }
  closedir(dir);
}

int ExitCode(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status); }

// Until no process is left. Returns CMD's exit code. Writes to `stops` the signals that have stopped CMD.
int Serve(pid_t cmd, const sigset_t& signals, int stops) {
  int code = kExitKilled;
  bool cmd_ended = false, looked = false;
  for (;;) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG | WUNTRACED)) > 0) {
      if (pid == cmd && WIFSTOPPED(status)) {
        const int number = WSTOPSIG(status);
        (void)WriteAll(stops, &number, sizeof number);
      } else if (pid == cmd) {
        cmd_ended = true;
        code = ExitCode(status);
      }
    }
    if (pid < 0 && errno == ECHILD) return code;
    siginfo_t info{};
    // A daemon makes its session a moment after its parent's exit(2). The look is repeated after every end: a child that
    // was being forked meanwhile is orphaned then.
    const timespec grace{0, 300000000};
    const int signal = cmd_ended && !looked ? sigtimedwait(&signals, &info, &grace) : sigwaitinfo(&signals, &info);
    if (cmd_ended && signal < 0 && errno == EAGAIN) {
      KillSession();
      looked = true;
    }
    if (signal == SIGCHLD) looked = false;
    if (signal <= 0 || signal == SIGCHLD) continue;
    // What the terminal sends reaches CMD's process group by itself.
    if (!cmd_ended && info.si_code != SI_KERNEL) kill(cmd, signal);
    if (cmd_ended) kill(-1, signal);
  }
}

}  // namespace

void CloseAllBut(std::vector<int> keep) {
  std::sort(keep.begin(), keep.end());
  unsigned from = 3;
  for (const int fd : keep) {
    if (fd < static_cast<int>(from)) continue;
    if (fd > static_cast<int>(from)) syscall(SYS_close_range, from, static_cast<unsigned>(fd) - 1, 0);
    from = static_cast<unsigned>(fd) + 1;
  }
  syscall(SYS_close_range, from, ~0U, 0);
}

void RunInit(SandboxPlan& plan) {
  prctl(PR_SET_NAME, "sluice-init");
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::vector<int> keep = plan.inherited;
  keep.insert(keep.end(), {plan.init_ready_write.get(), plan.init_go_read.get(), LogFileFd()});
  CloseAllBut(keep);
  MountAll(plan);

  UniqueFd listener;
  if (plan.intercepted()) {
    std::string error;
    listener = InstallProgramFilter({.native_options = plan.native_options()}, &error);
    if (!listener) Die("cannot install the seccomp filter: " + error, 0);
  }
  if (!DropCapabilities(kDroppedCapabilities)) Die("cannot drop capabilities", errno);

  const int number = listener.get();
  if (!WriteAll(plan.init_ready_write.get(), &number, sizeof number)) _exit(kExitKilled);
  char go = 0;
  ssize_t n;
  do {
    n = read(plan.init_go_read.get(), &go, 1);
  } while (n < 0 && errno == EINTR);
  if (n != 1) _exit(kExitKilled);  // the guard is gone or gave up
  listener.Reset();                // the program must never see it

  sigset_t signals;
  sigfillset(&signals);
  sigprocmask(SIG_SETMASK, &signals, nullptr);
  const pid_t cmd = fork();
  if (cmd == 0) Execute(plan);
  if (cmd < 0) Die("cannot fork", errno);
  // Pipes and terminals of the user are CMD's alone from here on.
  CloseAllBut({plan.init_ready_write.get()});
  syscall(SYS_close_range, 0U, 2U, 0);
  _exit(Serve(cmd, signals, plan.init_ready_write.get()));
}

}  // namespace sluice
