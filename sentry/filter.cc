#include "sentry/filter.h"

#include <errno.h>
#include <fcntl.h>
#include <seccomp.h>
#include <string.h>
#include <unistd.h>

#include <map>
#include <memory>
#include <set>
#include <vector>

#include "sentry/filter_table.h"
#include "xdp/native_options.h"

namespace sluice {
namespace {

struct ContextDeleter {
  void operator()(void* ctx) const { seccomp_release(ctx); }
};
using Context = std::unique_ptr<void, ContextDeleter>;

int AddRule(scmp_filter_ctx ctx, const filter::Rule& rule) {
  std::vector<scmp_arg_cmp> conditions;
  for (const filter::Test& t : rule.tests) {
    conditions.push_back(t.differs ? scmp_arg_cmp{t.arg, SCMP_CMP_NE, t.value, 0}
                                   : scmp_arg_cmp{t.arg, SCMP_CMP_MASKED_EQ, t.mask, t.value});
  }
  const uint32_t action = rule.error == 0 ? SCMP_ACT_NOTIFY : SCMP_ACT_ERRNO(static_cast<unsigned>(rule.error));
  return seccomp_rule_add_array(ctx, action, rule.nr, static_cast<unsigned>(conditions.size()), conditions.data());
}

// setsockopt is notified but for the options that the kernel answers: the complement of these, by single conditions where that is
// possible (bounds look at 64 bits: a value whose upper half is set is notified, and taken there as the kernel takes it).
std::vector<std::vector<scmp_arg_cmp>> NotNativeOptions() {
  constexpr unsigned kLevel = 1, kName = 2, kLength = 4;
  const auto equals = [](unsigned arg, int value) {
    return scmp_arg_cmp{arg, SCMP_CMP_MASKED_EQ, 0xffffffff, static_cast<uint32_t>(value)};
  };
  const auto at_least = [](unsigned arg, int value) { return scmp_arg_cmp{arg, SCMP_CMP_GE, static_cast<uint32_t>(value), 0}; };
  std::vector<std::vector<scmp_arg_cmp>> out{{{kLength, SCMP_CMP_NE, sizeof(int), 0}}};
  std::map<int, std::set<int>> natives;
  for (const OptionName& option : kNativeOptions) natives[option.level].insert(option.name);
  int next_level = 0;
  for (const auto& [level, names] : natives) {
    for (; next_level < level; ++next_level) out.push_back({equals(kLevel, next_level)});
    ++next_level;
    int next_name = 0;
    for (const int name : names) {
      for (; next_name < name; ++next_name) out.push_back({equals(kLevel, level), equals(kName, next_name)});
      ++next_name;
    }
    out.push_back({equals(kLevel, level), at_least(kName, next_name)});
  }
  out.push_back({at_least(kLevel, next_level)});
  return out;
}

Context Build(const ProgramFilterOptions& options, int* error) {
  Context ctx(seccomp_init(SCMP_ACT_ALLOW));
  if (ctx == nullptr) {
    *error = ENOMEM;
    return ctx;
  }
  *error = -seccomp_attr_set(ctx.get(), SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_ERRNO(ENOSYS));
  if (*error == 0) *error = -seccomp_attr_set(ctx.get(), SCMP_FLTATR_CTL_OPTIMIZE, 2);
  if (*error != 0) return ctx;
  for (const filter::Rule& rule : filter::ProgramRules()) {
    if (options.native_options && rule.nr == SCMP_SYS(setsockopt)) continue;
    if (*error == 0) *error = -AddRule(ctx.get(), rule);
  }
  if (!options.native_options) return ctx;
  for (const auto& c : NotNativeOptions()) {
    if (*error == 0)
      *error =
          -seccomp_rule_add_array(ctx.get(), SCMP_ACT_NOTIFY, SCMP_SYS(setsockopt), static_cast<unsigned>(c.size()), c.data());
  }
  return ctx;
}

}  // namespace

UniqueFd InstallProgramFilter(const ProgramFilterOptions& options, std::string* error) {
  int err = 0;
  Context ctx = Build(options, &err);
  if (err == 0) err = -seccomp_attr_set(ctx.get(), SCMP_FLTATR_CTL_NNP, options.no_new_privs ? 1 : 0);
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

std::string DescribeProgramFilter(const ProgramFilterOptions& options) {
  int err = 0;
  Context ctx = Build(options, &err);
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
