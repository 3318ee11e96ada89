#include "sentry/call_server.h"

#include <sys/syscall.h>

#include "sentry/call_engine.h"

namespace sluice {

class CallServer::Impl : public CallEngine {
 public:
  using CallEngine::CallEngine;
};

CallServer::CallServer(Worker& worker, const Options& options) : impl_(std::make_unique<Impl>(worker, options)) {}
CallServer::~CallServer() = default;
bool CallServer::connected() const { return impl_->connected(); }
void CallServer::OnConfig() { impl_->OnConfig(); }
CallServer::Stats CallServer::stats() const {
  Stats stats = impl_->stats();
  stats.unread_bytes = impl_->unread().held();
  return stats;
}
std::vector<CallServer::Owner> CallServer::Owners() const { return impl_->Owners(); }
std::vector<ContainerUse> CallServer::Containers() const { return impl_->Containers(); }

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
