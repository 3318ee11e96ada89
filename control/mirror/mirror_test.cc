// In a network namespace of the test's own, where it may have one.
#include "control/mirror/mirror.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/socket.h>

#include <cstdlib>
#include <memory>
#include <string>

namespace sluice {
namespace {

class MirrorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    before_.Reset(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
    if (!before_ || unshare(CLONE_NEWNET) != 0) GTEST_SKIP() << "needs a network namespace of its own";
    Ip("link add d0 index 50 mtu 1400 up type veth peer name peer");
    UniqueFd events, dumps;
    ASSERT_TRUE(NetlinkClient::Open(Mirror::Groups(), &events).ok());
    ASSERT_TRUE(NetlinkClient::Open({}, &dumps).ok());
    events_ = events.get();
    mirror_ = std::make_unique<Mirror>(std::move(events), std::move(dumps));
    ASSERT_TRUE(mirror_->ReadAll().ok());
  }
  void TearDown() override { EXPECT_TRUE(!before_ || setns(before_.get(), CLONE_NEWNET) == 0); }

  static void Ip(const std::string& words) { ASSERT_EQ(system(("ip " + words).c_str()), 0) << words; }
  void Follow() {
    bool changed = false;
    ASSERT_TRUE(mirror_->Follow(&changed).ok());
    ASSERT_TRUE(changed);
  }
  Mirror::LinkChanges changes() const {
    const auto found = mirror_->link_changes().find(50);
    return found == mirror_->link_changes().end() ? Mirror::LinkChanges{} : found->second;
  }

  UniqueFd before_;
  int events_ = -1;
  std::unique_ptr<Mirror> mirror_;
};

TEST_F(MirrorTest, CountsEachChangeOfADevice) {
  for (const char* change : {"down", "up", "mtu 1300", "down", "up", "mtu 1400"}) Ip(std::string("link set d0 ") + change);
  Follow();
  EXPECT_EQ(changes().downs, 2u);
  EXPECT_EQ(changes().mtu_changes, 2u);
}

TEST_F(MirrorTest, ADeviceThatComesWithTheIndexOfAnotherHasItsOwnCounts) {
  Ip("link set d0 mtu 1300");
  Ip("link del d0");
  Follow();
  Ip("link add d1 index 50 mtu 1500 up type veth peer name peer");
  Follow();
  EXPECT_EQ(changes().downs, 0u);
  EXPECT_EQ(changes().mtu_changes, 0u);
  Ip("link set d1 mtu 1400");
  Follow();
  EXPECT_EQ(changes().mtu_changes, 1u);
}

// After the first event that finds no room the kernel keeps back all until the socket is empty.
TEST_F(MirrorTest, WhatDiffersAfterEventsWereLostCountsOnce) {
  const int least = 1;
  ASSERT_EQ(setsockopt(events_, SOL_SOCKET, SO_RCVBUFFORCE, &least, sizeof least), 0);
  for (int i = 0; i < 40; ++i) Ip("link set d0 txqueuelen " + std::to_string(100 + i));
  Ip("link set d0 mtu 1300");
  Ip("link set d0 down");
  Follow();
  EXPECT_EQ(changes().downs, 1u);
  EXPECT_EQ(changes().mtu_changes, 1u);
  Ip("link set d0 mtu 1400");
  Follow();
  EXPECT_EQ(changes().mtu_changes, 2u);
}

}  // namespace
}  // namespace sluice
