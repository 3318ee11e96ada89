#include "control/oci/runc.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

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
  const pid_t pid = CloneProcess(0, pidfd);
  if (pid != 0) return pid;
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  LogLine(LogLevel::kError, ExecRunc(argv).line());
  _exit(1);
}

int RunQuietly(const Arguments& argv) {
  const pid_t pid = fork();
  if (pid == 0) {
    const int null = open("/dev/null", O_RDWR);
    for (int fd = 0; fd <= 2; ++fd) dup2(null, fd);
    static_cast<void>(ExecRunc(argv));
    _exit(127);
  }
  int status = 0;
  if (pid < 0 || waitpid(pid, &status, 0) != pid) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace sluice::oci
