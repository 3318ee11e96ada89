// What the sentry goes on doing behind its filter, libraries included, makes no call that the filter kills.
#include "control/run/sentry_filter.h"

#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <functional>
#include <memory>
#include <string>

#include "base/sanitizer.h"
#include "control/log.h"
#include "control/mirror/mirror.h"

namespace sluice {
namespace {

class SentryFilter : public testing::Test {
 protected:
  void SetUp() override {
    if (SLUICE_ASAN || SLUICE_TSAN) GTEST_SKIP() << "a sanitizer makes calls of its own";
  }
};

// How a process ends that installs the filter and runs `body`: its exit status, or minus the signal.
int EndBehindFilter(const std::function<void()>& before, const std::function<void()>& body) {
  const pid_t pid = fork();
  if (pid == 0) {
    before();
    std::string error;
    if (!InstallSentryFilter(&error)) _exit(1);
    body();
    _exit(0);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

TEST_F(SentryFilter, KillsWhatIsNotAllowed) {
  EXPECT_EQ(EndBehindFilter([] {}, [] {}), 0);
  EXPECT_EQ(EndBehindFilter([] {}, [] { syscall(SYS_getppid); }), -SIGSYS);
}

TEST_F(SentryFilter, LetsLogLinesThrough) {
  const auto before = [] {
    if (!StartLog({.debug = true}).ok()) _exit(1);
    LogToPipe(STDERR_FILENO);
  };
  EXPECT_EQ(EndBehindFilter(before, [] { Log(LogLevel::kDebug, "the first line of this process, %d", 1); }), 0);
}

TEST_F(SentryFilter, LetsTheMirrorRead) {
  std::unique_ptr<Mirror> mirror;
  const auto before = [&] {
    UniqueFd events, dumps;
    if (!NetlinkClient::Open(Mirror::Groups(), &events).ok() || !NetlinkClient::Open({}, &dumps).ok()) _exit(1);
    mirror = std::make_unique<Mirror>(std::move(events), std::move(dumps));
  };
  const auto body = [&] {
    bool changed = false;
    if (!mirror->ReadAll().ok() || !mirror->Follow(&changed).ok() || mirror->tables().links.empty()) _exit(2);
  };
  EXPECT_EQ(EndBehindFilter(before, body), 0);
}

}  // namespace
}  // namespace sluice
