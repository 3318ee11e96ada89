#include "control/run/sandbox_groups.h"

#include <gtest/gtest.h>

namespace sluice {
namespace {

std::vector<std::string> Folders(const std::vector<SandboxGroup>& groups) {
  std::vector<std::string> out;
  out.reserve(groups.size());
  for (const SandboxGroup& group : groups) out.push_back(group.folder + " <- " + group.before);
  return out;
}

using Lines = std::vector<std::string>;

constexpr char kHybrid[] =
    "30 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755\n"
    "31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
    "32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:1 - cgroup cgroup rw,cpu,cpuacct\n"
    "33 30 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "34 30 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";

TEST(SandboxGroups, BesideTheContainerInEveryHierarchy) {
  const auto groups =
      PlaceSandboxGroups("9:name=systemd:/docker/c1\n4:memory:/docker/c1\n2:cpu,cpuacct:/docker/c1\n0::/docker/c1\n",
                         "9:name=systemd:/shim\n4:memory:/shim/x\n2:cpu,cpuacct:/\n0::/\n", kHybrid, "sluice-7");
  EXPECT_EQ(Folders(groups), (Lines{"/sys/fs/cgroup/systemd/docker/sluice-7 <- /sys/fs/cgroup/systemd/shim",
                                    "/sys/fs/cgroup/memory/docker/sluice-7 <- /sys/fs/cgroup/memory/shim/x",
                                    "/sys/fs/cgroup/cpu,cpuacct/docker/sluice-7 <- /sys/fs/cgroup/cpu,cpuacct",
                                    "/sys/fs/cgroup/unified/docker/sluice-7 <- /sys/fs/cgroup/unified"}));
}

TEST(SandboxGroups, UnderSystemd) {
  const char* mounts = "31 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
  const auto groups =
      PlaceSandboxGroups("0::/system.slice/docker-c1.scope\n", "0::/system.slice/docker.service\n", mounts, "sluice-7");
  EXPECT_EQ(Folders(groups), Lines{"/sys/fs/cgroup/system.slice/sluice-7 <- /sys/fs/cgroup/system.slice/docker.service"});
}

TEST(SandboxGroups, NoneWhereTheContainerHasNoneOrItIsOurs) {
  EXPECT_TRUE(PlaceSandboxGroups("4:memory:/\n0::/same\n", "4:memory:/shim\n0::/same\n", kHybrid, "s").empty());
  EXPECT_TRUE(PlaceSandboxGroups("5:blkio:/docker/c1\n", "5:blkio:/\n", kHybrid, "s").empty());  // not mounted
  EXPECT_TRUE(PlaceSandboxGroups("", "", "", "s").empty());
  EXPECT_TRUE(PlaceSandboxGroups("nonsense\n::\n", "", "- - -\nx - cgroup\n", "s").empty());
}

// An engine inside a container: a part of the hierarchy, bound at the usual place, whose name has a blank.
TEST(SandboxGroups, MountOfAPart) {
  const char* mounts = "33 30 0:29 /outer /a\\040b/memory rw - cgroup cgroup rw,memory\n";
  EXPECT_EQ(Folders(PlaceSandboxGroups("4:memory:/outer/docker/c1\n", "4:memory:/outer\n", mounts, "s")),
            Lines{"/a b/memory/docker/s <- /a b/memory"});
  EXPECT_EQ(Folders(PlaceSandboxGroups("4:memory:/outer/docker/c1\n", "4:memory:/\n", mounts, "s")),
            Lines{"/a b/memory/docker/s <- "});
  EXPECT_TRUE(PlaceSandboxGroups("4:memory:/outermost/c1\n", "4:memory:/\n", mounts, "s").empty());
}

}  // namespace
}  // namespace sluice
