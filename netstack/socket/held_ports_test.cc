#include "netstack/socket/held_ports.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>

#include "netstack/tcp/testing/wire_peer.h"

namespace sluice::testing {
namespace {

using tcp::kAck;
using tcp::kRst;

class HeldPortsTest : public ::testing::Test {
 protected:
  HeldPortsTest() { p.host.stack().PublishHeldPorts(words, p.port); }
  bool Held(uint8_t protocol, uint16_t port) const {
    const uint32_t bit = port | (protocol == kIpProtoTcp ? 0x10000u : 0);
    return (words[bit / 64] >> bit % 64 & 1) != 0;
  }
  size_t Count() const {
    size_t count = 0;
    for (const uint64_t word : words) count += static_cast<size_t>(std::popcount(word));
    return count;
  }

  std::array<uint64_t, HeldPorts::kWords> words{};
  WirePeer p;
};

TEST_F(HeldPortsTest, OfUdpWhileASocketHasIt) {
  Stack& stack = p.host.stack();
  DatagramSocket *a = stack.NewUdpSocket(Family::kIpv4), *b = stack.NewUdpSocket(Family::kIpv6);
  DatagramSocket* ping = stack.NewPingSocket(Family::kIpv4);
  for (DatagramSocket* s : {a, b}) {
    ASSERT_EQ(s->SetOption(SockOpt::kReusePort, 1), Errno::kOk);
    ASSERT_EQ(s->Bind(Endpoint{IpAddress::Any(s->family()), 4000, 0}), Errno::kOk);
  }
  ASSERT_EQ(ping->Bind(Endpoint{IpAddress::Any(Family::kIpv4), 4001, 0}), Errno::kOk);
  EXPECT_TRUE(Held(kIpProtoUdp, 4000));
  EXPECT_EQ(Count(), 1u);
  a->Close();
  EXPECT_TRUE(Held(kIpProtoUdp, 4000));
  b->Close();
  DatagramSocket* c = stack.NewUdpSocket(Family::kIpv4);
  ASSERT_EQ(c->Connect(Endpoint{IpAddress::V4(10, 0, 0, 2), 7, 0}), Errno::kOk);
  EXPECT_TRUE(Held(kIpProtoUdp, c->local().port));
  EXPECT_EQ(Count(), 1u);
  c->Close();
  ping->Close();
  EXPECT_EQ(Count(), 0u);
}

TEST_F(HeldPortsTest, OfTcpBoundAndListeningWithItsConnections) {
  StreamSocket* bound = p.Socket();
  ASSERT_EQ(bound->Bind(Endpoint{IpAddress::Any(Family::kIpv4), 4000, 0}), Errno::kOk);
  EXPECT_TRUE(Held(kIpProtoTcp, 4000));
  EXPECT_FALSE(Held(kIpProtoUdp, 4000));
  bound->Close();
  p.host.Turn();
  EXPECT_EQ(Count(), 0u);
  StreamSocket* accepted = p.Accepted();
  p.listener->Close();
  p.host.Turn();
  EXPECT_TRUE(Held(kIpProtoTcp, 80)) << "a connection has it";
  p.Send(kRst | kAck, 1, 1);
  accepted->Close();
  p.host.Turn();
  EXPECT_EQ(Count(), 0u);
}

TEST_F(HeldPortsTest, OfConnectionsThatChoseThemOnlyToThatPort) {
  StreamSocket* there = p.Socket();
  StreamSocket* elsewhere = p.Socket();
  ASSERT_EQ(there->Connect(Endpoint{IpAddress::V4(10, 0, 0, 2), p.port, 0}), Errno::kEINPROGRESS);
  ASSERT_EQ(elsewhere->Connect(Endpoint{IpAddress::V4(10, 0, 0, 2), 443, 0}), Errno::kEINPROGRESS);
  EXPECT_TRUE(Held(kIpProtoTcp, there->local().port));
  EXPECT_EQ(Count(), 1u);
  there->Close();
  elsewhere->Close();
  p.host.Turn();
  EXPECT_EQ(Count(), 0u);
  p.Take();
  // To the end of TIME_WAIT.
  StreamSocket* c = p.Connected();
  EXPECT_EQ(Count(), 1u);
  c->Close();
  p.host.Turn();
  p.Take();
  p.Send(tcp::kFin | kAck, 1, 2);
  p.Take();
  EXPECT_EQ(Count(), 1u);
  p.host.Advance(Duration::Seconds(61));
  EXPECT_EQ(Count(), 0u);
}

}  // namespace
}  // namespace sluice::testing
