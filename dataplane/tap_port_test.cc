// What is of the tap port alone; the rest is checked by port_conformance_test.cc.
#include "dataplane/tap_port.h"

#include <gtest/gtest.h>
#include <net/if.h>
#include <poll.h>

#include "dataplane/testing/test_frames.h"
#include "dataplane/testing/test_netns.h"

namespace sluice {
namespace {

using testing::CheckedPayload;
using testing::MakeFrame;
using testing::Pattern;

class Tap : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = testing::WhyNoNetns(); !why.empty()) GTEST_SKIP() << why;
    veth_ = std::make_unique<testing::VethPair>();
  }
  Errno Open(const TapOptions& options, TapQueues* out, std::string* error) {
    testing::InNetns in(veth_->ours());
    return OpenTap(options, out, error);
  }
  static size_t ReceiveOne(Port& port, Packet* out) {
    for (int i = 0; i < 20; ++i) {
      pollfd p{port.wait_fds()[0], POLLIN, 0};
      if (poll(&p, 1, 100) > 0 && port.Receive(std::span(out, 1)) == 1 && testing::IsTestFrame(*out)) return 1;
    }
    return 0;
  }

  HeapBlockPool pool_{64 << 20};
  std::unique_ptr<testing::VethPair> veth_;
};

TEST_F(Tap, RefusesANameThatIsTakenAndOneThatIsNone) {
  TapQueues queues, more;
  std::string error;
  ASSERT_EQ(Open({.name = "tp0"}, &queues, &error), Errno::kOk) << error;
  EXPECT_EQ(Open({.name = "tp0"}, &more, &error), Errno::kEEXIST);
  EXPECT_NE(error.find("tp0"), std::string::npos) << error;
  EXPECT_EQ(Open({.name = "sl0"}, &more, &error), Errno::kEEXIST);
  EXPECT_EQ(Open({.name = "longer-than-a-name"}, &more, &error), Errno::kEINVAL);
}

TEST_F(Tap, DeviceGoesWithItsLastQueue) {
  TapQueues queues;
  std::string error;
  ASSERT_EQ(Open({.name = "tp0", .queues = 2}, &queues, &error), Errno::kOk) << error;
  ASSERT_EQ(queues.fds.size(), 2u);
  queues.fds.pop_back();
  EXPECT_EQ(veth_->Run(veth_->ours(), "ip link show tp0 >/dev/null"), 0);
  queues.fds.pop_back();
  EXPECT_NE(veth_->Run(veth_->ours(), "ip link show tp0 >/dev/null 2>&1"), 0);
}

// Every queue sends and receives; a flow's frames come to the queue that sent last for it.
TEST_F(Tap, QueuesFollowTheFlow) {
  TapQueues queues;
  std::string error;
  ASSERT_EQ(Open({.name = "tp0", .queues = 4}, &queues, &error), Errno::kOk) << error;
  ASSERT_EQ(veth_->Run(veth_->ours(),
                       "ip addr add 10.99.0.2/24 dev tp0 && ip link set tp0 address 02:00:00:00:00:02 && ip link set tp0 up && "
                       "ip neigh add 10.99.0.1 lladdr 02:00:00:00:00:01 dev tp0"),
            0);
  std::vector<std::unique_ptr<TapPort>> ports;
  for (UniqueFd& fd : queues.fds)
    ports.push_back(std::make_unique<TapPort>(std::move(fd), queues.facts, TapPortOptions{}, pool_));
  // The kernel of the device answers an ACK for a port that nobody listens on with a reset of the same flow. It learns the queue
  // of a frame behind its answer to it, so the second answer comes to the right one.
  for (auto& port : ports) {
    for (int i = 0; i < 2; ++i) {
      Packet frame = MakeFrame(pool_, {.payload = Pattern(10, 1)});
      ASSERT_EQ(port->Transmit(std::span(&frame, 1)), 1u);
    }
    Packet got;
    bool reset = false;
    for (int i = 0; i < 20 && !reset; ++i) {
      pollfd p{port->wait_fds()[0], POLLIN, 0};
      if (poll(&p, 1, 100) <= 0 || port->Receive(std::span(&got, 1)) != 1) continue;
      reset = got.size() >= 54 && got.data()[12] == 8 && got.data()[13] == 0 && got.data()[23] == 6 && (got.data()[47] & 4) != 0;
    }
    EXPECT_TRUE(reset);
  }
}

TEST_F(Tap, DropsAndCountsWhenMemoryIsAtItsBound) {
  TapQueues queues;
  std::string error;
  ASSERT_EQ(Open({.name = "tp0"}, &queues, &error), Errno::kOk) << error;
  HeapBlockPool tiny(3 << 10);
  TapPort port(std::move(queues.fds[0]), queues.facts, {}, tiny);
  ASSERT_EQ(veth_->Run(veth_->ours(), "ip link set tp0 up"), 0);
  PacketSocket socket;
  {
    testing::InNetns in(veth_->ours());
    ASSERT_EQ(OpenPacketSocket(queues.facts.ifindex, {}, &socket, &error), Errno::kOk) << error;
  }
  PacketPort peer(std::move(socket.fd), socket.facts, {}, pool_);
  for (uint32_t i = 0; i < 3; ++i) {
    Packet frame = MakeFrame(pool_, {.payload = Pattern(500, i)});
    ASSERT_EQ(peer.Transmit(std::span(&frame, 1)), 1u);
  }
  Packet held, more;
  ASSERT_EQ(ReceiveOne(port, &held), 1u);
  for (int i = 0; i < 100 && port.stats().rx_dropped < 2; ++i) {
    pollfd p{port.wait_fds()[0], POLLIN, 0};
    poll(&p, 1, 100);
    port.Receive(std::span(&more, 1));
  }
  EXPECT_EQ(port.stats().rx_frames, 1u);
  EXPECT_EQ(port.stats().rx_dropped, 2u);
}

}  // namespace
}  // namespace sluice
