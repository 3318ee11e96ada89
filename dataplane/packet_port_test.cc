// What is the packet port's own, over a veth with another one on the other end.
#include <gtest/gtest.h>
#include <poll.h>

#include <memory>
#include <vector>

#include "dataplane/testing/test_frames.h"
#include "dataplane/testing/test_netns.h"
#include "dataplane/testing/test_ports.h"

namespace sluice {
namespace {

using testing::CheckedPayload;
using testing::MakeFrame;
using testing::OpenPacket;
using testing::Pattern;

TEST(PacketPort, PassesVlanTagsBothWays) {
  if (const std::string why = testing::WhyNoNetns(); !why.empty()) GTEST_SKIP() << why;
  HeapBlockPool pool(64 << 20);
  testing::VethPair veth;
  std::unique_ptr<Port> ours, peer;
  {
    testing::InNetns in(veth.ours());
    ours = OpenPacket(veth.our_index(), pool, true);
  }
  {
    testing::InNetns in(veth.peer());
    peer = OpenPacket(veth.peer_index(), pool, true);
  }
  Packet frame = MakeFrame(pool, {.payload = Pattern(500, 3), .partial = true});
  frame.has_vlan = true;
  frame.vlan_tci = 0x2007;
  ASSERT_EQ(ours->Transmit(std::span(&frame, 1)), 1u);
  Packet got[4];
  size_t n = 0;
  for (int i = 0; i < 100 && n == 0; ++i) {
    pollfd p{peer->wait_fds()[0], POLLIN, 0};
    poll(&p, 1, 100);
    n = peer->Receive(got);
  }
  ASSERT_EQ(n, 1u);
  EXPECT_TRUE(got[0].has_vlan);
  EXPECT_EQ(got[0].vlan_tci, 0x2007);
  EXPECT_EQ(CheckedPayload(got[0]), Pattern(500, 3));
}

TEST(PacketPort, DropsAndCountsWhenMemoryIsAtItsBound) {
  if (const std::string why = testing::WhyNoNetns(); !why.empty()) GTEST_SKIP() << why;
  HeapBlockPool pool(64 << 20), tiny(3 << 10);
  testing::VethPair veth;
  std::unique_ptr<Port> ours, peer;
  {
    testing::InNetns in(veth.ours());
    ours = OpenPacket(veth.our_index(), tiny, true);
  }
  {
    testing::InNetns in(veth.peer());
    peer = OpenPacket(veth.peer_index(), pool, true);
  }
  for (uint32_t i = 0; i < 3; ++i) {
    Packet frame = MakeFrame(pool, {.payload = Pattern(500, i)});
    ASSERT_EQ(peer->Transmit(std::span(&frame, 1)), 1u);
  }
  std::vector<Packet> held;
  for (int i = 0; i < 100 && ours->stats().rx_dropped < 2; ++i) {
    pollfd p{ours->wait_fds()[0], POLLIN, 0};
    poll(&p, 1, 100);
    Packet got[4];
    const size_t n = ours->Receive(got);
    for (size_t k = 0; k < n; ++k) held.push_back(std::move(got[k]));
  }
  EXPECT_EQ(held.size(), 1u);
  EXPECT_EQ(ours->stats().rx_dropped, 2u);
  EXPECT_EQ(ours->faults().rx_no_memory, 2u);
}

}  // namespace
}  // namespace sluice
