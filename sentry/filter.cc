#include "sentry/filter.h"

#include <errno.h>
#include <fcntl.h>
#include <seccomp.h>
#include <string.h>
#include <unistd.h>

#include <memory>
#include <vector>

#include "sentry/filter_table.h"

namespace sluice {
namespace {

struct ContextDeleter {
  void operator()(void* ctx) const { seccomp_release(ctx); }
};
using Context = std::unique_ptr<void, ContextDeleter>;

int AddRule(scmp_filter_ctx ctx, const filter::Rule& rule) {
  std::vector<scmp_arg_cmp> conditions;
  for (const filter::Test& t : rule.tests) {
    conditions.push_back(t.differs ? scmp_arg_cmp{t.arg, SCMP_CMP_NE, t.value, 0} : scmp_arg_cmp{t.arg, SCMP_CMP_MASKED_EQ, t.mask, t.value});
  }
  const uint32_t action = rule.error == 0 ? SCMP_ACT_NOTIFY : SCMP_ACT_ERRNO(static_cast<unsigned>(rule.error));
  return seccomp_rule_add_array(ctx, action, rule.nr, static_cast<unsigned>(conditions.size()), conditions.data());
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
  for (const filter::Rule& rule : filter::ProgramRules()) {
    if (*error == 0) *error = -AddRule(ctx.get(), rule);
  }
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
