// Path MTU discovery without ICMP (RFC 4821), over a simulated way that swallows what is too large.
#include <gtest/gtest.h>

#include "netstack/tcp/testing/programs.h"
#include "netstack/tcp/testing/wire_peer.h"
#include "netstack/wire/headers.h"

namespace sluice::testing {
namespace {

constexpr uint64_t kBytes = 3'000'000;

class MtuProbe : public ::testing::Test {
 protected:
  // A transfer from a to b over a way that takes IP packets of up to `mtu` bytes.
  void Start(size_t mtu, const char* mode, bool sack = true) {
    LinkProfile link{.rate_bps = 100'000'000, .delay = Duration::Milliseconds(2), .queue_bytes = 16 << 20};
    net_.Join(a_, kSimIfIndex, b_, kSimIfIndex, link, link);
    link.largest = mtu + wire::kEthernetHeader;
    net_.SetProfile(a_, kSimIfIndex, link);
    a_.SetSysctl("net.ipv4.tcp_mtu_probing", mode);
    if (!sack) a_.SetSysctl("net.ipv4.tcp_sack", "0");
    a_.ApplyConfig();
    listener_ = b_.stack().NewTcpSocket(Family::kIpv4);
    ASSERT_EQ(listener_->Bind({IpAddress::V4(10, 0, 0, 2), 80}), Errno::kOk);
    ASSERT_EQ(listener_->Listen(16), Errno::kOk);
    client_ = a_.stack().NewTcpSocket(Family::kIpv4);
    ASSERT_EQ(client_->Connect({IpAddress::V4(10, 0, 0, 2), 80}), Errno::kEINPROGRESS);
    sender_ = std::make_unique<StreamPeer>(a_, client_, 1, kBytes, 2);
    a_.on_turn = [this] { sender_->Work(); };
    b_.on_turn = [this] {
      if (StreamSocket* s = receiver_ ? nullptr : listener_->Accept()) receiver_ = std::make_unique<StreamPeer>(b_, s, 2, 0, 1);
      if (receiver_) receiver_->Work();
    };
  }
  bool Arrives(int seconds) {
    return net_.RunUntil([this] { return receiver_ && receiver_->received() == kBytes; }, Duration::Seconds(seconds));
  }

  SimNetwork net_{1};
  SimHost& a_ = net_.AddHost("a", HostConfig("10.0.0.1/24"));
  SimHost& b_ = net_.AddHost("b", HostConfig("10.0.0.2/24"));
  StreamSocket *listener_ = nullptr, *client_ = nullptr;
  std::unique_ptr<StreamPeer> sender_, receiver_;
};

TEST_F(MtuProbe, IsOffByDefaultAsOnLinux) {
  Start(1300, "0");
  EXPECT_FALSE(Arrives(20));
  EXPECT_EQ(receiver_->received(), 0u);
  EXPECT_EQ(client_->info().snd_mss, 1448u);
}

TEST_F(MtuProbe, AHoleIsFoundAfterSomeTimeoutsAndTheWayMeasured) {
  Start(1300, "1");
  ASSERT_TRUE(Arrives(20));
  const uint32_t mss = client_->info().snd_mss;
  EXPECT_LE(mss, 1300u - 52);
  EXPECT_GE(mss, 1300u - 52 - 8);
  EXPECT_GT(a_.counter(Counter::kTcpMTUPSuccess), 0u);
  EXPECT_GT(a_.counter(Counter::kTcpMTUPFail), 0u);
}

TEST_F(MtuProbe, AHoleBelowTheBaseSizeIsFoundToo) {
  Start(600, "1");
  ASSERT_TRUE(Arrives(60));
  EXPECT_LE(client_->info().snd_mss, 600u - 52);
}

TEST_F(MtuProbe, WithoutSackAProbeThatIsLostIsFoundByDuplicates) {
  Start(1300, "2", false);
  ASSERT_TRUE(Arrives(20));
  EXPECT_LE(client_->info().snd_mss, 1300u - 52);
  EXPECT_GT(a_.counter(Counter::kTcpMTUPFail), 0u);
  EXPECT_EQ(a_.counter(Counter::kTcpTimeouts), 0u);
  EXPECT_EQ(a_.counter(Counter::kTcpRenoRecovery), 0u);
}

// The window is not reduced for a probe, and what is lost with it is sent again.
TEST_F(MtuProbe, AProbeThatIsLostIsNoCongestion) {
  Start(1300, "2");
  ASSERT_TRUE(Arrives(20));
  EXPECT_GT(a_.counter(Counter::kTcpMTUPFail), 0u);
  EXPECT_EQ(a_.counter(Counter::kTcpTimeouts), 0u);
  EXPECT_EQ(a_.counter(Counter::kTcpSackRecovery), 0u);
  EXPECT_EQ(net_.stats(a_).too_large, a_.counter(Counter::kTcpMTUPFail));
}

TEST_F(MtuProbe, AWayThatTakesAllIsFilledFromTheBaseSizeUp) {
  Start(1500, "2");
  ASSERT_TRUE(Arrives(20));
  EXPECT_GE(client_->info().snd_mss, 1448u - 8);
  EXPECT_EQ(client_->info().total_retrans, 0u);
  EXPECT_EQ(a_.counter(Counter::kTcpMTUPFail), 0u);
}

TEST(MtuProbePaced, WaitsForItsDepartureAsOtherData) {
  WirePeer p;
  for (const auto& [name, value] : {std::pair{"tcp_mtu_probing", "2"}, {"tcp_slow_start_after_idle", "0"}})
    p.host.config().sysctls[std::string("net.ipv4.") + name] = value;
  p.host.ApplyConfig();
  StreamSocket* c = p.Accepted();
  ASSERT_EQ(c->SetOption(SockOpt::kMaxPacingRate, 10'000), Errno::kOk);
  p.Write(c, Text(10240));
  p.Send(tcp::kAck, 1, 10241);
  p.host.Advance(Duration::Seconds(2));
  p.Take();
  p.Write(c, Text(2048));
  EXPECT_EQ(p.One().payload.size(), 2048u);
  p.Write(c, Text(20000));
  p.Send(tcp::kAck, 1, 12289);
  p.ExpectSilence();
  p.host.Advance(Ms(210));
  EXPECT_GT(p.One().payload.size(), 1024u);  // the probe
}

}  // namespace
}  // namespace sluice::testing
