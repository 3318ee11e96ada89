#include "sentry/call_server.h"

#include <sys/syscall.h>

#include "sentry/call_engine.h"
#include "sentry/call_hub.h"

namespace sluice {

CallServer::CallServer(WorkerGroup& group, const Options& options) : hub_(std::make_unique<CallHub>(group, options)) {}
CallServer::~CallServer() = default;
bool CallServer::connected() const { return hub_->engine(0).connected(); }
void CallServer::OnConfig(uint32_t worker) { hub_->engine(worker).OnConfig(); }
CallServer::Stats CallServer::stats(uint32_t worker) const {
  Stats stats = hub_->engine(worker).stats();
  stats.unread_bytes = hub_->engine(worker).unread().held();
  return stats;
}
std::vector<CallServer::Owner> CallServer::Owners(uint32_t worker) const { return hub_->engine(worker).Owners(); }
std::vector<std::shared_ptr<const ContainerUse>> CallServer::Containers() const { return hub_->engine(0).Containers(); }

std::span<const int> CallServer::RequiredSyscalls() {
  static constexpr int kCalls[] = {
      SYS_socket,
      SYS_socketpair,
      SYS_bind,
      SYS_connect,
      SYS_listen,
      SYS_shutdown,
      SYS_getsockname,
      SYS_getsockopt,
      SYS_setsockopt,
      SYS_sendto,
      SYS_recvfrom,
      SYS_sendmsg,
      SYS_recvmsg,
      SYS_close,
      SYS_read,
      SYS_fcntl,
      SYS_ioctl,
      SYS_newfstatat,
      SYS_fstat,
      SYS_inotify_add_watch,
      SYS_inotify_rm_watch,
      SYS_timerfd_settime,
      SYS_clock_gettime,
      SYS_getrandom,
      SYS_getpid,
      SYS_poll,
      SYS_epoll_ctl,
      SYS_epoll_wait,
      SYS_epoll_pwait,
      SYS_mmap,
      SYS_munmap,
      SYS_madvise,
      SYS_brk,
      SYS_mremap,
      SYS_futex,
      SYS_rt_sigreturn,
  };
  return kCalls;
}

}  // namespace sluice
