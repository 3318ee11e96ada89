#include "control/run/silencing.h"

#include <gtest/gtest.h>
#include <net/if.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>

#include "dataplane/testing/test_netns.h"

namespace sluice {
namespace {

class SilencingTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = testing::WhyNoNetns(); !why.empty()) GTEST_SKIP() << why;
    veth_ = std::make_unique<testing::VethPair>();
    elsewhere_ = testing::NewNetns();
    struct stat netns{};
    ASSERT_EQ(fstat(veth_->ours(), &netns), 0);
    plan_.netns_id.inode = netns.st_ino;
  }
  void TearDown() override {
    if (!veth_) return;
    testing::InNetns in(veth_->ours());
    silencing_.LiftAll();
  }
  // With what it cannot keep: the addresses.
  void MoveOutAndBack() {
    const std::string here = std::to_string(getpid()) + "/fd/" + std::to_string(veth_->ours());
    const std::string there = std::to_string(getpid()) + "/fd/" + std::to_string(elsewhere_.get());
    ASSERT_EQ(veth_->Run(veth_->ours(), "ip link set sl0 netns /proc/" + there, &output_), 0) << output_;
    ASSERT_EQ(veth_->Run(elsewhere_.get(), "ip link set sl0 netns /proc/" + here, &output_), 0) << output_;
    ASSERT_EQ(veth_->Run(veth_->ours(), "ip link set sl0 up; ip addr add 10.77.0.1/24 dev sl0", &output_), 0) << output_;
  }

  std::unique_ptr<testing::VethPair> veth_;
  UniqueFd elsewhere_;
  SandboxPlan plan_;
  Silencing silencing_{plan_};
  std::string output_;
};

TEST_F(SilencingTest, ADeviceThatWasMovedOutAndBackIsSilencedAgain) {
  const int index = static_cast<int>(veth_->our_index());
  testing::InNetns in(veth_->ours());
  ASSERT_TRUE(silencing_.Silence(index, "sl0").ok());
  EXPECT_TRUE(silencing_.Check().ok());
  MoveOutAndBack();
  // The index is the old one, the silence is gone.
  ASSERT_EQ(if_nametoindex("sl0"), veth_->our_index());
  EXPECT_FALSE(silencing_.Check().ok());
  EXPECT_TRUE(silencing_.Silence(index, "sl0").ok());
  EXPECT_TRUE(silencing_.Check().ok());
  EXPECT_NE(veth_->Run(veth_->peer(), "ping -c1 -W1 -q 10.77.0.1", &output_), 0);
}

TEST_F(SilencingTest, OnlyWhatWasSilencedIsRenewed) {
  testing::InNetns in(veth_->ours());
  EXPECT_TRUE(silencing_.Renew(static_cast<int>(veth_->our_index()), "sl0").ok());
  EXPECT_TRUE(plan_.silenced.empty());
  ASSERT_EQ(veth_->Run(veth_->ours(), "tc qdisc show dev sl0", &output_), 0);
  EXPECT_EQ(output_.find("clsact"), std::string::npos) << output_;
}

}  // namespace
}  // namespace sluice
