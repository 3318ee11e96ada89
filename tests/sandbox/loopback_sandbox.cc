// Runs one command under the interception with a stack that has nothing but its loopback: broker, sentry and program as three
// processes, no device, no `sluice do`. For tests of the socket calls.
//
//   loopback_sandbox [--stats] CMD [ARG...]      exit status: the command's (128 + signal)
//
// Of the environment: SLUICE_WORKERS, how many (1); SLUICE_THREADS, which threads run them (auto, together, apart, restless);
// SLUICE_POLL=interrupt. Empty ones are as if not set.
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "control/broker/call_broker.h"
#include "dataplane/worker_group.h"
#include "netstack/config.h"
#include "sentry/call_server.h"
#include "sentry/filter.h"

namespace {

using namespace sluice;

constexpr unsigned long kMostWorkers = 16;

struct Shared {
  std::atomic<int> listener{-1};
  std::atomic<int> go{0};
};

[[noreturn]] void Die(const char* what) {
  perror(what);
  _exit(125);
}

[[noreturn]] void Refuse(const char* name, const char* value, const char* wanted) {
  fprintf(stderr, "loopback_sandbox: %s=%s: %s\n", name, value, wanted);
  exit(2);
}

// What is empty is not set.
const char* Setting(const char* name, const char* otherwise) {
  const char* value = getenv(name);
  return value == nullptr || *value == 0 ? otherwise : value;
}

WorkerGroupOptions SettingsOfWorkers() {
  WorkerGroupOptions options{.ports_have_homes = true};
  const char* number = Setting("SLUICE_WORKERS", "1");
  char* end = nullptr;
  const unsigned long workers = strtoul(number, &end, 10);
  if (*end != 0 || workers < 1 || workers > kMostWorkers) Refuse("SLUICE_WORKERS", number, "a number from 1 to 16 is wanted");
  options.workers = static_cast<uint32_t>(workers);
  const std::string_view threads = Setting("SLUICE_THREADS", "auto");
  constexpr std::pair<std::string_view, Threads> kThreads[] = {
      {"auto", Threads::kAuto}, {"together", Threads::kTogether}, {"apart", Threads::kApart}, {"restless", Threads::kRestless}};
  const auto* known = std::ranges::find(kThreads, threads, [](const auto& t) { return t.first; });
  if (known == std::end(kThreads)) Refuse("SLUICE_THREADS", threads.data(), "auto, together, apart or restless is wanted");
  options.threads = known->second;
  const std::string_view poll = Setting("SLUICE_POLL", "");
  if (!poll.empty() && poll != "interrupt") Refuse("SLUICE_POLL", poll.data(), "interrupt, or nothing, is wanted");
  if (!poll.empty()) options.worker.poll = PollMode::kInterrupt;
  return options;
}

[[noreturn]] void RunSentry(const WorkerGroupOptions& options, int calls_fd, int offers_fd) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  WorkerGroup group(options);
  group.ApplyConfig(std::make_shared<NetConfig>(LoopbackOnlyConfig()));
  CallServer server(group, {.calls_fd = calls_fd, .offers_fd = offers_fd, .net_raw = true});
  group.Run();
  _exit(0);
}

[[noreturn]] void RunProgram(Shared* shared, char** argv) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::string error;
  UniqueFd listener = InstallProgramFilter({}, &error);
  if (!listener) {
    fprintf(stderr, "loopback_sandbox: %s\n", error.c_str());
    _exit(125);
  }
  shared->listener = listener.get();
  while (shared->go == 0) usleep(100);
  listener.reset();
  execvp(argv[0], argv);
  Die(argv[0]);
}

uint64_t NetnsCookie() {
  UniqueFd s(socket(AF_UNIX, SOCK_DGRAM, 0));
  uint64_t cookie = 0;
  socklen_t length = sizeof cookie;
  if (getsockopt(s.get(), SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &length) != 0) Die("SO_NETNS_COOKIE");
  return cookie;
}

}  // namespace

int main(int argc, char** argv) {
  bool stats = argc > 1 && strcmp(argv[1], "--stats") == 0;
  if (stats) --argc, ++argv;
  if (argc < 2) return fprintf(stderr, "usage: loopback_sandbox [--stats] CMD [ARG...]\n"), 2;
  const WorkerGroupOptions options = SettingsOfWorkers();
  auto* shared = static_cast<Shared*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  new (shared) Shared;
  int calls[2], offers[2];
  for (int* pair : {calls, offers}) {
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) Die("socketpair");
  }
  // The program's namespace is an empty one: what gets past the interception finds nothing.
  if (unshare(CLONE_NEWNET) != 0) Die("unshare");
  UniqueFd target(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
  pid_t program = fork();
  if (program == 0) {
    for (int fd : {calls[0], calls[1], offers[0], offers[1]}) close(fd);
    RunProgram(shared, argv + 1);
  }
  if (unshare(CLONE_NEWNET) != 0) Die("unshare");
  if (FILE* f = fopen("/proc/sys/net/unix/max_dgram_qlen", "we")) fputs("100000", f), fclose(f);
  uint64_t cookie = NetnsCookie();
  pid_t sentry = fork();
  if (sentry == 0) {
    close(calls[0]), close(offers[0]);
    RunSentry(options, calls[1], offers[1]);
  }
  close(calls[1]), close(offers[1]);
  UniqueFd sentry_pidfd(static_cast<int>(syscall(SYS_pidfd_open, sentry, 0)));
  CallBroker broker({.calls_fd = calls[0],
                     .offers_fd = offers[0],
                     .sentry_pidfd = sentry_pidfd.get(),
                     .netns_cookie = cookie,
                     .target_netns_fd = target.get()});
  while (shared->listener < 0) {
    int status;
    if (waitpid(program, &status, WNOHANG) == program) return 125;
    usleep(100);
  }
  int pidfd = static_cast<int>(syscall(SYS_pidfd_open, program, 0));
  UniqueFd listener(static_cast<int>(syscall(SYS_pidfd_getfd, pidfd, shared->listener.load(), 0)));
  if (!listener) Die("listener");
  broker.AddListener(std::move(listener));
  shared->go = 1;
  int status = 0;
  bool alive = true;
  while (waitpid(program, &status, WNOHANG) == 0 && alive) alive = broker.RunOnce(20);
  if (!alive) {
    int end = 0;
    waitpid(sentry, &end, 0);
    fprintf(stderr, "loopback_sandbox: the sentry is gone, wait status %#x\n", static_cast<unsigned>(end));
    kill(program, SIGKILL);
    waitpid(program, &status, 0);
    return 124;
  }
  // What CMD left behind goes with it; the sentry last.
  kill(sentry, SIGKILL);
  waitpid(sentry, nullptr, 0);
  if (stats) {
    CallBroker::Stats s = broker.stats();
    fprintf(stderr, "calls %lu continued %lu passed %lu faults %lu dead %lu refused %lu fetches %lu\n", s.calls, s.continued,
            s.passed, s.faults, s.dead, s.refused, s.fetches);
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
