#include "sentry/filter.h"

#include <errno.h>
#include <fcntl.h>
#include <seccomp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <vector>

namespace sluice {
namespace {

constexpr uint64_t kLow32 = 0xffffffff;
constexpr uint32_t kTunSetIff = 0x400454ca;
constexpr uint32_t kSiocOutq = 0x5411;
constexpr uint32_t kFilterFlagNewListener = 1u << 3;

struct ContextDeleter {
  void operator()(void* ctx) const { seccomp_release(ctx); }
};
using Context = std::unique_ptr<void, ContextDeleter>;
using Conditions = std::vector<scmp_arg_cmp>;

// A condition on an argument of which the kernel looks at 32 bits only.
scmp_arg_cmp Masked(unsigned arg, uint32_t mask, uint32_t value) { return {arg, SCMP_CMP_MASKED_EQ, mask, value}; }
scmp_arg_cmp Equals(unsigned arg, uint32_t value) { return {arg, SCMP_CMP_MASKED_EQ, kLow32, value}; }
scmp_arg_cmp NotNull(unsigned arg) { return {arg, SCMP_CMP_NE, 0, 0}; }
// Compares 64 bits: a value that differs in its upper half only is caught too, which is refused later.
scmp_arg_cmp Differs(unsigned arg, uint32_t value) { return {arg, SCMP_CMP_NE, value, 0}; }

class Builder {
 public:
  explicit Builder(scmp_filter_ctx ctx) : ctx_(ctx) {}
  void Rule(uint32_t action, int nr, const Conditions& conditions = {}) {
    if (error_ != 0) return;
    error_ = seccomp_rule_add_array(ctx_, action, nr, static_cast<unsigned>(conditions.size()), conditions.data());
  }
  void Notify(int nr, const Conditions& conditions = {}) { Rule(SCMP_ACT_NOTIFY, nr, conditions); }
  void Refuse(int nr, int error, const Conditions& conditions = {}) {
    Rule(SCMP_ACT_ERRNO(static_cast<unsigned>(error)), nr, conditions);
  }
  int error() const { return error_; }

 private:
  scmp_filter_ctx ctx_;
  int error_ = 0;
};

void AddAddressCalls(Builder* b) {
  // Lengths of inet, inet6 (24: without the scope), netlink (within 16..28) and storage addresses; a program's own AF_UNIX sockets
  // mostly use others, and those that do not are answered with CONTINUE.
  for (int nr : {SCMP_SYS(bind), SCMP_SYS(connect)}) {
    b->Notify(nr, {Masked(2, 0xfffffff8, 16)});
    b->Notify(nr, {Masked(2, 0xfffffffc, 24)});
    b->Notify(nr, {Equals(2, 28)});
    b->Notify(nr, {Equals(2, 12)});   // sockaddr_nl
    b->Notify(nr, {Equals(2, 128)});
  }
}

void AddDataCalls(Builder* b) {
  b->Notify(SCMP_SYS(sendto), {NotNull(4)});
  b->Notify(SCMP_SYS(recvfrom), {NotNull(4)});
  // AF_UNIX ignores MSG_ERRQUEUE and would return stream bytes; MSG_TRUNC on a stream discards on TCP and copies on AF_UNIX.
  b->Notify(SCMP_SYS(recvfrom), {Masked(3, MSG_ERRQUEUE, MSG_ERRQUEUE)});
  b->Notify(SCMP_SYS(recvfrom), {Masked(3, MSG_TRUNC, MSG_TRUNC)});
  for (int nr : {SCMP_SYS(sendmsg), SCMP_SYS(recvmsg), SCMP_SYS(sendmmsg), SCMP_SYS(recvmmsg)}) b->Notify(nr);
}

void AddRefusals(Builder* b) {
  b->Refuse(SCMP_SYS(socketpair), EOPNOTSUPP, {Differs(0, AF_UNIX)});
  // io_uring reaches sockets without system calls that a filter sees.
  for (int nr : {SCMP_SYS(io_uring_setup), SCMP_SYS(io_uring_enter), SCMP_SYS(io_uring_register)}) b->Refuse(nr, ENOSYS);
  b->Refuse(SCMP_SYS(bpf), EPERM);
  // Memory that blocks whoever copies it.
  b->Refuse(SCMP_SYS(userfaultfd), EPERM);
  b->Refuse(SCMP_SYS(ioctl), EPERM, {Equals(1, kTunSetIff)});
  // A listener of the program's own could answer CONTINUE to socket() once ours is gone; with ours open Linux says EBUSY too.
  b->Refuse(SCMP_SYS(seccomp), EBUSY, {Equals(0, 1), Masked(1, kFilterFlagNewListener, kFilterFlagNewListener)});
}

Context Build(int* error) {
  Context ctx(seccomp_init(SCMP_ACT_ALLOW));
  if (ctx == nullptr) {
    *error = ENOMEM;
    return ctx;
  }
  *error = -seccomp_attr_set(ctx.get(), SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_ERRNO(ENOSYS));
  if (*error == 0) *error = -seccomp_attr_set(ctx.get(), SCMP_FLTATR_CTL_OPTIMIZE, 2);
  if (*error != 0) return ctx;
  Builder b(ctx.get());
  b.Notify(SCMP_SYS(socket), {Differs(0, AF_UNIX)});
  AddAddressCalls(&b);
  // Also accept without an address: a connection that was accepted natively could not be told reset from ended (docs/limits.md).
  for (int nr : {SCMP_SYS(listen), SCMP_SYS(accept), SCMP_SYS(accept4), SCMP_SYS(shutdown), SCMP_SYS(getsockname), SCMP_SYS(getpeername),
                 SCMP_SYS(getsockopt), SCMP_SYS(setsockopt)}) {
    b.Notify(nr);
  }
  AddDataCalls(&b);
  b.Notify(SCMP_SYS(ioctl), {Masked(1, 0xffffff00, 0x8900)});
  b.Notify(SCMP_SYS(ioctl), {Equals(1, kSiocOutq)});
  AddRefusals(&b);
  *error = -b.error();
  return ctx;
}

}  // namespace

UniqueFd InstallProgramFilter(bool no_new_privs, std::string* error) {
  int err = 0;
  Context ctx = Build(&err);
  if (err == 0) err = -seccomp_attr_set(ctx.get(), SCMP_FLTATR_CTL_NNP, no_new_privs ? 1 : 0);
  if (err == 0) err = -seccomp_load(ctx.get());
  if (err != 0) {
    // ECANCELED: the kernel refused; libseccomp keeps the reason to itself. EBUSY of an outer listener ends up here.
    *error = std::string("cannot install the seccomp filter: ") + strerror(err) +
             (err == ECANCELED ? " (is another seccomp listener active, or CAP_SYS_ADMIN missing?)" : "");
    return UniqueFd();
  }
  int fd = seccomp_notify_fd(ctx.get());
  // The context closes its descriptor: keep one of our own.
  UniqueFd listener(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!listener) *error = std::string("cannot keep the seccomp listener: ") + strerror(errno);
  return listener;
}

std::string DescribeProgramFilter() {
  int err = 0;
  Context ctx = Build(&err);
  if (err != 0) return "";
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) return "";
  UniqueFd in(pipe_fds[0]), out(pipe_fds[1]);
  fcntl(out.get(), F_SETPIPE_SZ, 1 << 20);
  fcntl(out.get(), F_SETFL, O_NONBLOCK);
  seccomp_export_pfc(ctx.get(), out.get());
  out.reset();
  std::string text;
  char buffer[4096];
  for (ssize_t n = 0; (n = read(in.get(), buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(n));
  return text;
}

}  // namespace sluice
