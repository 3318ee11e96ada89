#include "control/run/sentry_filter.h"

#include <linux/futex.h>
#include <linux/sockios.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <cstring>
#include <initializer_list>

#include "sentry/call_server.h"

namespace sluice {
namespace {

// Memory, waiting, time: what any thread of ours does. Nothing that opens a file, makes a process or asks about others.
constexpr int kAlways[] = {
    // memory; making memory executable is refused below
    SCMP_SYS(brk),
    SCMP_SYS(munmap),
    SCMP_SYS(mremap),
    SCMP_SYS(madvise),
    // descriptors that were passed
    SCMP_SYS(read),
    SCMP_SYS(write),
    SCMP_SYS(readv),
    SCMP_SYS(pread64),
    SCMP_SYS(writev),
    SCMP_SYS(close),
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    SCMP_SYS(recvmsg),
    SCMP_SYS(sendmsg),
    SCMP_SYS(recvfrom),
    SCMP_SYS(sendto),
    SCMP_SYS(recvmmsg),
    SCMP_SYS(sendmmsg),
    SCMP_SYS(accept4),
    SCMP_SYS(getsockopt),
    SCMP_SYS(setsockopt),
    SCMP_SYS(epoll_ctl),
    SCMP_SYS(epoll_wait),
    SCMP_SYS(epoll_pwait),
    SCMP_SYS(epoll_pwait2),
    SCMP_SYS(lseek),
    // waiting, time, randomness, threads that are there already
    SCMP_SYS(futex),
    SCMP_SYS(clock_gettime),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(clock_nanosleep),
    SCMP_SYS(nanosleep),
    SCMP_SYS(getrandom),
    SCMP_SYS(sched_yield),
    SCMP_SYS(getpid),
    SCMP_SYS(gettid),
    SCMP_SYS(getrusage),
    SCMP_SYS(sched_getaffinity),
    SCMP_SYS(timerfd_create),
    SCMP_SYS(timerfd_settime),
    SCMP_SYS(pause),
    SCMP_SYS(restart_syscall),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
    SCMP_SYS(rseq),
    SCMP_SYS(getcpu),
    SCMP_SYS(membarrier),
    // a failed check ends the process by abort(3)
    SCMP_SYS(rt_sigaction),
    SCMP_SYS(tgkill),
};

bool Allow(scmp_filter_ctx filter, int nr) { return seccomp_rule_add(filter, SCMP_ACT_ALLOW, nr, 0) == 0; }

// Null where a rule was refused.
scmp_filter_ctx Begin() {
  scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
  bool ok = filter != nullptr;
  for (const int nr : kAlways) ok = ok && Allow(filter, nr);
  for (const int nr : {SCMP_SYS(mmap), SCMP_SYS(mprotect)}) {
    ok = ok && seccomp_rule_add(filter, SCMP_ACT_ALLOW, nr, 1, SCMP_A2_32(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0)) == 0;
  }
  if (ok || filter == nullptr) return filter;
  seccomp_release(filter);
  return nullptr;
}

bool Load(scmp_filter_ctx filter, bool ok, std::string* error) {
  ok = ok && seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1) == 0;
  const int result = ok ? seccomp_load(filter) : -1;
  if (result != 0) *error = ok ? std::strerror(-result) : "a rule was refused";
  if (filter != nullptr) seccomp_release(filter);
  return result == 0;
}

}  // namespace

bool InstallServerFilter(std::string* error) {
  scmp_filter_ctx filter = Begin();
  return Load(filter, filter != nullptr, error);
}

bool InstallSentryFilter(std::string* error) {
  scmp_filter_ctx filter = Begin();
  bool ok = filter != nullptr;
  for (const int nr : CallServer::RequiredSyscalls()) {
    if (nr != SCMP_SYS(ioctl) && nr != SCMP_SYS(mmap) && nr != SCMP_SYS(mprotect)) ok = ok && Allow(filter, nr);
  }
  // FIONREAD, SIOCATMARK, SIOCOUTQ, FIONBIO; and the seccomp notification requests, whose type byte is '!'.
  for (const unsigned request : {static_cast<unsigned>(FIONREAD), static_cast<unsigned>(SIOCATMARK),
                                 static_cast<unsigned>(SIOCOUTQ), static_cast<unsigned>(FIONBIO)}) {
    ok = ok && seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1, SCMP_A1_32(SCMP_CMP_EQ, request)) == 0;
  }
  ok = ok && seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1, SCMP_A1_32(SCMP_CMP_MASKED_EQ, 0xff00, 0x2100)) == 0;
  // Marks the program's sockets: BPF_MAP_UPDATE_ELEM, which acts on maps whose descriptors we were given.
  constexpr uint32_t kMapUpdate = 2;
  ok = ok && seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(bpf), 1, SCMP_A0_32(SCMP_CMP_EQ, kMapUpdate)) == 0;
  return Load(filter, ok, error);
}

}  // namespace sluice
