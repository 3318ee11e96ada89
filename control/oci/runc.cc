#include "control/oci/runc.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "control/log.h"
#include "control/os.h"

namespace sluice::oci {
namespace {

std::vector<char*> Pointers(const Arguments& argv) {
  std::vector<char*> out;
  for (const std::string& arg : argv) out.push_back(const_cast<char*>(arg.c_str()));
  out.push_back(nullptr);
  return out;
}

// Runs it and waits. `output` (may be null): the beginning of what it prints; its errors go nowhere.
int RunAside(const Arguments& argv, std::string* output) {
  constexpr size_t kMaxOutput = 4096;
  UniqueFd from, to(open("/dev/null", O_RDWR | O_CLOEXEC));
  if (output != nullptr && !MakePipe(&from, &to).ok()) return -1;
  const pid_t pid = fork();
  if (pid == 0) {
    const int null = open("/dev/null", O_RDWR);
    dup2(null, STDIN_FILENO);
    dup2(to.get(), STDOUT_FILENO);
    dup2(null, STDERR_FILENO);
    static_cast<void>(ExecRunc(argv));
    _exit(127);
  }
  to.Reset();
  char buffer[512];
  for (ssize_t n; from && (n = read(from.get(), buffer, sizeof buffer)) > 0;)
    output->append(buffer, std::min(static_cast<size_t>(n), kMaxOutput - output->size()));
  int status = 0;
  if (pid < 0 || waitpid(pid, &status, 0) != pid) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

Arguments RuncCommand(const Flags& flags, const Arguments& rest) {
  Arguments argv{"runc"};
  if (flags.root_given) argv.insert(argv.end(), {"--root", flags.root});
  if (!flags.log.empty()) argv.insert(argv.end(), {"--log", flags.log});
  if (flags.log_json) argv.insert(argv.end(), {"--log-format", "json"});
  if (flags.debug) argv.push_back("--debug");
  if (flags.systemd_cgroup) argv.push_back("--systemd-cgroup");
  if (!flags.rootless.empty()) argv.push_back("--rootless=" + flags.rootless);
  argv.insert(argv.end(), rest.begin(), rest.end());
  return argv;
}

Arguments RuncCommand(const std::string& root, const Arguments& rest) {
  Arguments argv{"runc"};
  if (!root.empty()) argv.insert(argv.end(), {"--root", root});
  argv.insert(argv.end(), rest.begin(), rest.end());
  return argv;
}

Status ExecRunc(const Arguments& argv) {
  execvp(argv[0].c_str(), Pointers(argv).data());
  return Status::Error("cannot run runc, which sluice wraps" + ErrnoText(errno) +
                       (errno == ENOENT ? ": install runc 1.1 or later" : ""));
}

pid_t SpawnRunc(const Arguments& argv, UniqueFd* pidfd) {
  const pid_t front_end = getpid();
  const pid_t pid = CloneProcess(0, pidfd);
  if (pid != 0) return pid;
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != front_end) _exit(1);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  LogLine(LogLevel::kError, ExecRunc(argv).line());
  _exit(1);
}

int RunQuietly(const Arguments& argv) { return RunAside(argv, nullptr); }

Status CheckRuncVersion() {
  constexpr int kMajor = 1, kMinor = 1;
  std::string output;
  int major = 0, minor = 0;
  if (RunAside({"runc", "--version"}, &output) != 0 || sscanf(output.c_str(), "runc version %d.%d", &major, &minor) != 2)
    return {};
  if (major > kMajor || (major == kMajor && minor >= kMinor)) return {};
  return Status::Error(Format("runc %d.%d is too old: install runc %d.%d or later, which hands over seccomp descriptors", major,
                              minor, kMajor, kMinor));
}

}  // namespace sluice::oci
