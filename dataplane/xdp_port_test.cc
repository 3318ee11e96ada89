// What is the AF_XDP port's own, over a veth with a packet socket on the other end: its program, its rings, the socket beside
// them.
#include "dataplane/xdp_port.h"

#include <gtest/gtest.h>
#include <linux/if_xdp.h>
#include <poll.h>
#include <sys/socket.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dataplane/tap_port.h"
#include "dataplane/testing/test_frames.h"
#include "dataplane/testing/test_netns.h"
#include "dataplane/testing/test_ports.h"

namespace sluice {
namespace {

using testing::CheckedPayload;
using testing::MakeFrame;
using testing::OpenPacket;
using testing::Pattern;

// An xdp port on one end of a veth, with what was told beside it, and a packet socket on the other.
class XdpOnVeth : public ::testing::Test {
 protected:
  static constexpr int kQueuesOfVeth = 4;

  void SetUp() override {
    if (const std::string why = testing::WhyNoNetns(); !why.empty()) GTEST_SKIP() << why;
    veth_ = std::make_unique<testing::VethPair>(kQueuesOfVeth);
    testing::InNetns in(veth_->peer());
    peer_ = OpenPacket(veth_->peer_index(), pool_, true);
  }
  std::unique_ptr<XdpPort> Open(const XskOptions& options, BlockPool& pool, bool beside = false) {
    testing::InNetns in(veth_->ours());
    std::unique_ptr<Port> packet = beside ? OpenPacket(veth_->our_index(), pool, true) : nullptr;
    std::vector<Xsk> sockets;
    std::string error;
    EXPECT_EQ(OpenXdpDevice(veth_->our_index(), 1, {.veth = true}, options, &attachment_, &sockets, &error), Errno::kOk) << error;
    if (sockets.empty()) return nullptr;
    auto port = XdpPort::Create(std::move(sockets[0].fd), std::move(sockets[0].umem), sockets[0].facts, {}, pool, &error);
    EXPECT_NE(port, nullptr) << error;
    if (beside) port->HearBeside(std::move(packet));
    return port;
  }
  // The peer's frame with this source port: does it come?
  bool Hears(Port& port, uint16_t source_port = 1000) {
    Packet frame = MakeFrame(pool_, {.payload = Pattern(100, 1), .partial = true, .source_port = source_port});
    EXPECT_EQ(peer_->Transmit(std::span(&frame, 1)), 1u);
    for (int i = 0; i < 200; ++i, poll(nullptr, 0, 1)) {
      Packet got[4];
      const size_t n = port.Receive(got);
      for (size_t k = 0; k < n; ++k) {
        if (testing::IsTestFrame(got[k])) return CheckedPayload(got[k]) == Pattern(100, 1);
      }
    }
    return false;
  }
  // How many of 64 flows.
  int FlowsHeard(Port& port) {
    int heard = 0;
    for (uint16_t flow = 0; flow < 64; ++flow) heard += Hears(port, static_cast<uint16_t>(2000 + flow)) ? 1 : 0;
    return heard;
  }
  void TakeProgramOff() {
    std::string said;
    ASSERT_EQ(veth_->Run(veth_->ours(),
                         "id=$(ip -d link show sl0 | grep -o 'prog/xdp id [0-9]*' | cut -d' ' -f3);"
                         "/usr/sbin/bpftool link detach id $(/usr/sbin/bpftool link show | awk \"/ prog $id /{print \\$1+0}\")",
                         &said),
              0)
        << said;
  }
  void SetQueues(const char* queues) {
    const std::string command = std::string(" rx ") + queues + " tx " + queues;
    // With a program in native mode ours may not have fewer than the peer sends by: once before, once after the peer's.
    std::string refused;
    (void)veth_->Run(veth_->ours(), "ethtool -L sl0" + command, &refused);
    ASSERT_EQ(veth_->Run(veth_->peer(), "ethtool -L pe0" + command), 0);
    std::string now;
    (void)veth_->Run(veth_->ours(), "ethtool -L sl0" + command, &now);
    ASSERT_EQ(veth_->Run(veth_->ours(), "ethtool -l sl0 | tail -4 | grep -q 'RX:.*" + std::string(queues) + "'"), 0) << now;
  }

  HeapBlockPool pool_{64 << 20};
  std::unique_ptr<testing::VethPair> veth_;
  std::unique_ptr<Port> peer_;
  XdpAttachment attachment_;
};

TEST_F(XdpOnVeth, PutsItsProgramBackWhereSomebodyTookItOff) {
  auto port = Open({}, pool_);
  std::string error;
  EXPECT_TRUE(Hears(*port));
  // Without the link the kernel refuses, with it the link's end stays with us and the program is off.
  EXPECT_NE(veth_->Run(veth_->ours(), "ip link set dev sl0 xdpgeneric off"), 0);
  testing::InNetns in(veth_->ours());
  EXPECT_EQ(attachment_.Restore(&error), Errno::kOk);
  EXPECT_EQ(attachment_.restored(), 0u);
  TakeProgramOff();
  EXPECT_FALSE(Hears(*port));
  EXPECT_EQ(attachment_.Restore(&error), Errno::kOk) << error;
  EXPECT_EQ(attachment_.restored(), 1u);
  EXPECT_TRUE(Hears(*port));
  ASSERT_EQ(veth_->Run(veth_->ours(), "ip link del sl0"), 0);
  EXPECT_EQ(attachment_.Restore(&error), Errno::kENODEV);
}

TEST_F(XdpOnVeth, HearsBesideTheRingWhileItsProgramIsOff) {
  for (const XdpMode mode : {XdpMode::kGeneric, XdpMode::kNative}) {
    auto port = Open({.mode = mode}, pool_, true);
    EXPECT_TRUE(Hears(*port));
    EXPECT_EQ(port->faults().rx_beside_ring, 0u);
    TakeProgramOff();
    EXPECT_TRUE(Hears(*port));
    EXPECT_GE(port->faults().rx_beside_ring, 1u);
    const uint64_t beside = port->faults().rx_beside_ring;
    std::string error;
    testing::InNetns in(veth_->ours());
    EXPECT_EQ(attachment_.Restore(&error), Errno::kOk) << error;
    EXPECT_TRUE(Hears(*port));
    EXPECT_EQ(port->faults().rx_beside_ring, beside);
    attachment_ = XdpAttachment();
  }
}

TEST_F(XdpOnVeth, HearsQueuesThatComeAndGo) {
  for (const XdpMode mode : {XdpMode::kGeneric, XdpMode::kNative}) {
    auto port = Open({.mode = mode}, pool_, true);
    EXPECT_EQ(FlowsHeard(*port), 64);
    EXPECT_EQ(port->faults().rx_beside_ring, 0u);
    SetQueues("4");
    EXPECT_EQ(FlowsHeard(*port), 64);
    const uint64_t beside = port->faults().rx_beside_ring;
    EXPECT_GT(beside, 0u);
    // A veth in native mode runs no program for queues that were added later.
    if (mode == XdpMode::kGeneric) {
      EXPECT_EQ(attachment_.missed(), beside);
    }
    SetQueues("1");
    EXPECT_EQ(FlowsHeard(*port), 64);
    EXPECT_EQ(port->faults().rx_beside_ring, beside);
    EXPECT_GE(port->stats().rx_frames, 3u * 64);
    attachment_ = XdpAttachment();
  }
}

// A ring that never runs dry does not silence what comes beside it.
TEST_F(XdpOnVeth, ABusyRingLeavesTurnsToTheSocketBeside) {
  auto port = Open({.mode = XdpMode::kNative}, pool_, true);
  SetQueues("4");
  uint16_t ring = 0, other = 0;
  for (uint16_t flow = 2000; ring == 0 || other == 0; ++flow) {
    const uint64_t before = port->faults().rx_beside_ring;
    ASSERT_TRUE(Hears(*port, flow));
    (port->faults().rx_beside_ring == before ? ring : other) = flow;
  }
  const auto send = [&](uint16_t flow, int count) {
    for (int i = 0; i < count; ++i) {
      Packet frame = MakeFrame(pool_, {.payload = Pattern(100, 1), .source_port = flow});
      ASSERT_EQ(peer_->Transmit(std::span(&frame, 1)), 1u);
    }
  };
  send(ring, 1500);
  send(other, 1);
  const uint64_t before = port->faults().rx_beside_ring;
  size_t taken = 0;
  for (int i = 0; i < 200 && port->faults().rx_beside_ring == before; ++i) {
    Packet got[4];
    taken += port->Receive(got);
  }
  EXPECT_GT(port->faults().rx_beside_ring, before);
  EXPECT_LT(taken, 1500u);
  // While there is more, every other turn is its.
  send(other, 24);
  int turns = 0;
  for (; turns < 200 && port->faults().rx_beside_ring < before + 25; ++turns) {
    Packet got[4];
    taken += port->Receive(got);
  }
  EXPECT_LT(taken, 1500u) << "the ring ran dry";
  EXPECT_LE(turns, 64 + 2 * 6);
}

TEST_F(XdpOnVeth, SocketsOfOneQueueCountItsFillRingOnce) {
  const wire::SteeringKey key{77, 88};
  std::vector<Xsk> sockets;
  std::string error;
  testing::InNetns in(veth_->ours());
  ASSERT_EQ(OpenXdpDevice(veth_->our_index(), 2, {.veth = true}, {.rx_chunks = 64, .tx_chunks = 16, .steering = &key},
                          &attachment_, &sockets, &error),
            Errno::kOk)
      << error;
  ASSERT_EQ(sockets[0].facts.sharers, 2u);
  BlockPool* const pools[] = {&pool_, &pool_};
  std::vector<std::unique_ptr<Port>> ports;
  ASSERT_EQ(XdpPort::CreateQueues(std::move(sockets), {}, pools, &ports, &error), Errno::kOk) << error;
  // Nobody receives: both rings take all chunks there are, then the fill ring is empty.
  for (uint16_t i = 0; i < 1000; ++i) {
    Packet frame = MakeFrame(pool_, {.payload = Pattern(100, 1), .source_port = static_cast<uint16_t>(2000 + i)});
    ASSERT_EQ(peer_->Transmit(std::span(&frame, 1)), 1u);
  }
  const auto empty = [&](size_t port) {
    xdp_statistics counts{};
    socklen_t length = sizeof counts;
    EXPECT_EQ(getsockopt(ports[port]->wait_fds()[0], SOL_XDP, XDP_STATISTICS, &counts, &length), 0);
    return counts.rx_fill_ring_empty_descs;
  };
  const auto lost = [&] {
    return ports[0]->faults().rx_no_buffer + ports[0]->faults().rx_ring_full + ports[1]->faults().rx_ring_full;
  };
  for (int i = 0; i < 1000 && lost() < 1000 - 128; ++i) poll(nullptr, 0, 1);
  ASSERT_GT(empty(0), 0u);
  EXPECT_EQ(empty(1), empty(0)) << "the kernel says it of each";
  EXPECT_EQ(ports[0]->faults().rx_no_buffer, empty(0));
  EXPECT_EQ(ports[1]->faults().rx_no_buffer, 0u);
}

TEST_F(XdpOnVeth, WaitsForChunksWhereTheUmemIsUsedUp) {
  auto port = Open({.rx_chunks = 64, .tx_chunks = 16}, pool_);
  std::vector<Packet> frames;
  for (uint32_t i = 0; i < 100; ++i) frames.push_back(MakeFrame(pool_, {.payload = Pattern(500, i)}));
  size_t sent = 0, came = 0;
  for (int i = 0; i < 10000 && came < frames.size(); ++i) {
    sent += port->Transmit(std::span(frames).subspan(sent));
    Packet got[16];
    const size_t n = peer_->Receive(got);
    for (size_t k = 0; k < n; ++k) came += testing::IsTestFrame(got[k]) ? 1 : 0;
    if (n == 0) poll(nullptr, 0, 1);
  }
  EXPECT_EQ(came, frames.size());
  EXPECT_GT(port->faults().tx_no_buffer, 0u);
}

TEST_F(XdpOnVeth, CountsARingThatIsFullAndGoesOn) {
  auto port = Open({.rx_chunks = 64, .tx_chunks = 16}, pool_);
  for (int i = 0; i < 200; ++i) {
    Packet frame = MakeFrame(pool_, {.payload = Pattern(500, 1)});
    ASSERT_EQ(peer_->Transmit(std::span(&frame, 1)), 1u);
  }
  const auto lost = [&] { return port->faults().rx_ring_full + port->faults().rx_no_buffer; };
  for (int i = 0; i < 1000 && lost() < 136; ++i) poll(nullptr, 0, 1);
  EXPECT_GE(lost(), 136u);
  size_t kept = 0;
  for (Packet got[16]; const size_t n = port->Receive(got);) {
    for (size_t k = 0; k < n; ++k) kept += testing::IsTestFrame(got[k]) ? 1 : 0;
  }
  EXPECT_EQ(port->stats().rx_dropped + kept, 200u);  // each frame once
  EXPECT_TRUE(Hears(*port));
}

TEST_F(XdpOnVeth, DropsAndCountsWhenMemoryIsAtItsBound) {
  HeapBlockPool tiny(3 << 10);
  auto port = Open({.rx_chunks = 64}, tiny);
  std::vector<Packet> held;
  uint64_t lost = 0;
  const auto exchange = [&] {
    Packet frame = MakeFrame(pool_, {.payload = Pattern(500, 1)}), got[16];
    EXPECT_EQ(peer_->Transmit(std::span(&frame, 1)), 1u);
    const size_t before = held.size();
    for (int i = 0; i < 1000 && held.size() == before && port->stats().rx_dropped == lost; ++i) {
      const size_t n = port->Receive(got);
      for (size_t k = 0; k < n; ++k) held.push_back(std::move(got[k]));
      if (n == 0) poll(nullptr, 0, 1);
    }
    lost = port->stats().rx_dropped;
  };
  for (int i = 0; i < 200; ++i) exchange();  // more than there are chunks: each goes back
  EXPECT_GE(lost, 150u);
  EXPECT_EQ(port->faults().rx_no_memory, lost);
  EXPECT_FALSE(held.empty());
  held.clear();
  exchange();
  EXPECT_FALSE(held.empty());
}

TEST(XdpDevice, FallsBackAndRefusesWithReasons) {
  if (const std::string why = testing::WhyNoNetns(); !why.empty()) GTEST_SKIP() << why;
  testing::VethPair veth;
  testing::InNetns in(veth.ours());
  XdpAttachment attachment, second;
  std::vector<Xsk> sockets, others;
  std::string error;
  const XdpDeviceFacts device{.veth = true};
  // As before 6.6: generic mode would lose super-segments.
  EXPECT_EQ(
      OpenXdpDevice(veth.our_index(), 1, device, {.mode = XdpMode::kGeneric, .scatter = false}, &attachment, &sockets, &error),
      Errno::kEOPNOTSUPP);
  EXPECT_NE(error.find("super-segments"), std::string::npos) << error;
  ASSERT_EQ(OpenXdpDevice(veth.our_index(), 1, device, {.scatter = false}, &attachment, &sockets, &error), Errno::kOk) << error;
  EXPECT_TRUE(sockets[0].facts.native);
  // The program of another is not pushed off.
  EXPECT_EQ(OpenXdpDevice(veth.our_index(), 1, device, {.mode = XdpMode::kNative}, &second, &others, &error), Errno::kEBUSY);
  EXPECT_NE(error.find("another XDP program"), std::string::npos) << error;
  // A second socket at once after the first is closed: the kernel's asynchronous end is waited for.
  sockets.clear();
  attachment = XdpAttachment();
  ASSERT_EQ(OpenXdpDevice(veth.our_index(), 1, device, {}, &attachment, &sockets, &error), Errno::kOk) << error;
  EXPECT_FALSE(sockets[0].facts.native);
  EXPECT_TRUE(sockets[0].facts.scatter);
  std::string link;
  veth.Run(veth.ours(), "ip link show sl0", &link);
  EXPECT_NE(link.find("xdpgeneric"), std::string::npos) << link;
  attachment = XdpAttachment();
  veth.Run(veth.ours(), "ip link show sl0", &link);
  EXPECT_EQ(link.find("xdp"), std::string::npos) << "still attached: " << link;
}

TEST(XdpDevice, NeedsOneQueueOrOneForEachSocket) {
  if (const std::string why = testing::WhyNoNetns(); !why.empty()) GTEST_SKIP() << why;
  testing::VethPair veth;
  testing::InNetns in(veth.ours());
  XdpAttachment attachment;
  std::vector<Xsk> sockets;
  std::string error;
  EXPECT_EQ(OpenXdpDevice(veth.our_index(), 2, {.veth = true, .rx_queues = 3}, {}, &attachment, &sockets, &error),
            Errno::kEINVAL);
  EXPECT_NE(error.find("the device uses 3"), std::string::npos) << error;
  EXPECT_EQ(OpenXdpDevice(veth.our_index(), 2, {.veth = true}, {}, &attachment, &sockets, &error), Errno::kEINVAL);
  EXPECT_NE(error.find("steering key"), std::string::npos) << error;
  // One UMEM for the sockets of several queues, rings for each.
  ASSERT_EQ(veth.Run(veth.ours(), "ethtool -L sl0 rx 2 tx 2"), 0);
  ASSERT_EQ(OpenXdpDevice(veth.our_index(), 2, {.veth = true, .rx_queues = 2}, {}, &attachment, &sockets, &error), Errno::kOk)
      << error;
  EXPECT_EQ(sockets[1].facts.queue, 1u);
  EXPECT_EQ(sockets[1].facts.first_chunk, sockets[0].facts.rx_chunks + sockets[0].facts.tx_chunks);
  HeapBlockPool pool(64 << 20);
  BlockPool* const pools[] = {&pool, &pool};
  std::vector<std::unique_ptr<Port>> ports;
  EXPECT_EQ(XdpPort::CreateQueues(std::move(sockets), {}, pools, &ports, &error), Errno::kOk) << error;
}

// A device whose queues we feed ourselves: a tap with two descriptors.
TEST(XdpDevice, CountsFramesOfQueuesWithoutSocket) {
  if (const std::string why = testing::WhyNoNetns(); !why.empty()) GTEST_SKIP() << why;
  testing::VethPair veth;
  HeapBlockPool pool(64 << 20);
  testing::InNetns in(veth.ours());
  TapQueues tap;
  std::string error;
  ASSERT_EQ(OpenTap({.name = "tp0", .queues = 2}, &tap, &error), Errno::kOk) << error;
  ASSERT_EQ(veth.Run(veth.ours(), "ip link set tp0 up"), 0);
  XdpAttachment attachment;
  std::vector<Xsk> sockets;
  ASSERT_EQ(OpenXdpDevice(tap.facts.ifindex, 1, {}, {.mode = XdpMode::kGeneric}, &attachment, &sockets, &error), Errno::kOk)
      << error;
  TapPort first(std::move(tap.fds[0]), tap.facts, {}, pool), second(std::move(tap.fds[1]), tap.facts, {}, pool);
  for (const uint64_t queue : {0, 1}) {
    TapPort& port = queue == 0 ? first : second;
    Packet frame = MakeFrame(pool, {.payload = Pattern(100, 1)});
    ASSERT_EQ(port.Transmit(std::span(&frame, 1)), 1u);
    for (int i = 0; i < 1000 && attachment.missed() < queue; ++i) poll(nullptr, 0, 1);
    EXPECT_EQ(attachment.missed(), queue);
  }
}

}  // namespace
}  // namespace sluice
