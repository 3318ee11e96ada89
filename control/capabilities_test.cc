#include "control/capabilities.h"

#include <gtest/gtest.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

#include "control/os.h"

namespace sluice {
namespace {

// Exit status of a role that runs `body`, made as roles are, by a process that used the library before.
int StatusOfRole(const std::function<int()>& body) {
  if (!HasCapability(CAP_SETPCAP)) return -1;
  const pid_t pid = CloneProcess(0, nullptr);
  if (pid == 0) _exit(body());
  int status = 0;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -2;
}

bool Bounding(int capability) { return prctl(PR_CAPBSET_READ, capability) == 1; }

TEST(Capabilities, DropsSomeFromEverySet) {
  if (!HasCapability(CAP_SETPCAP)) GTEST_SKIP() << "needs CAP_SETPCAP";
  const int status = StatusOfRole([] {
    constexpr int kSome[] = {CAP_SYS_ADMIN, CAP_CHECKPOINT_RESTORE, 63};  // the last one is none of any kernel
    if (!DropCapabilities(kSome)) return 1;
    if (HasCapability(CAP_SYS_ADMIN) || Bounding(CAP_SYS_ADMIN) || HasCapability(CAP_CHECKPOINT_RESTORE)) return 2;
    return HasCapability(CAP_NET_ADMIN) && Bounding(CAP_NET_ADMIN) ? 0 : 3;
  });
  EXPECT_EQ(status, 0);
}

TEST(Capabilities, DropsAll) {
  if (!HasCapability(CAP_SETPCAP)) GTEST_SKIP() << "needs CAP_SETPCAP";
  const int status = StatusOfRole([] {
    if (!DropBoundingSet() || Bounding(CAP_CHOWN) || !HasCapability(CAP_CHOWN)) return 1;
    return DropHeldCapabilities() && !HasCapability(CAP_CHOWN) ? 0 : 2;
  });
  EXPECT_EQ(status, 0);
}

// Nothing is said to be dropped that is still there.
TEST(Capabilities, SaysWhereTheRightIsMissing) {
  if (!HasCapability(CAP_SETPCAP)) GTEST_SKIP() << "needs CAP_SETPCAP";
  const int status = StatusOfRole([] {
    constexpr int kSome[] = {CAP_SYS_ADMIN};
    if (!DropHeldCapabilities() || !Bounding(CAP_SYS_ADMIN)) return 1;
    return DropBoundingSet() || DropCapabilities(kSome) ? 2 : 0;
  });
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace sluice
