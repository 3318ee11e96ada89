// Streams between two stacks over simulated links: byte-exact whatever the link does, and without a collapse of throughput.
#include <gtest/gtest.h>

#include "netstack/tcp/testing/programs.h"

namespace sluice::testing {
namespace {

const Endpoint kServer{IpAddress::V4(10, 0, 0, 2), 80};

struct Pair {
  Pair(uint64_t seed, const LinkProfile& profile) : net(seed), a(net.AddHost("a", HostConfig("10.0.0.1/24"))), b(net.AddHost("b", HostConfig("10.0.0.2/24"))) {
    net.Join(a, b, profile);
  }
  void Open(uint64_t a_total, uint64_t b_total) {
    listener = b.stack().NewTcpSocket(Family::kIpv4);
    ASSERT_EQ(listener->Bind(kServer), Errno::kOk);
    ASSERT_EQ(listener->Listen(16), Errno::kOk);
    client = a.stack().NewTcpSocket(Family::kIpv4);
    ASSERT_EQ(client->Connect(kServer), Errno::kEINPROGRESS);
    left = std::make_unique<StreamPeer>(a, client, 1, a_total, 2);
    a.on_turn = [this] { left->Work(); };
    b.on_turn = [this, a_total, b_total] {
      (void)a_total;
      if (right == nullptr) {
        StreamSocket* s = listener->Accept();
        if (s == nullptr) return;
        server = s;
        right = std::make_unique<StreamPeer>(b, s, 2, b_total, 1);
        if (configure_right) configure_right(*right);
      }
      right->Work();
    };
  }
  bool Done() const { return left->failed() || (right && right->failed()) || (left->finished() && right && right->finished()); }
  void Check(uint64_t a_total, uint64_t b_total) {
    EXPECT_EQ(left->failure(), "");
    ASSERT_NE(right, nullptr);
    EXPECT_EQ(right->failure(), "");
    EXPECT_EQ(right->received(), a_total);
    EXPECT_EQ(left->received(), b_total);
  }

  SimNetwork net;
  SimHost& a;
  SimHost& b;
  StreamSocket* listener = nullptr;
  StreamSocket* client = nullptr;
  StreamSocket* server = nullptr;
  std::unique_ptr<StreamPeer> left, right;
  std::function<void(StreamPeer&)> configure_right;
};

TEST(TcpTransfer, ConnectsSendsBothWaysAndCloses) {
  Pair p(1, {.delay = Duration::Milliseconds(1)});
  p.Open(1000, 2000);
  EXPECT_TRUE(p.net.RunUntil([&] { return p.Done(); }, Duration::Seconds(5)));
  p.Check(1000, 2000);
  EXPECT_EQ(p.a.counter(Counter::kTcpRetransSegs), 0u);
  EXPECT_EQ(p.b.counter(Counter::kTcpRetransSegs), 0u);
}

TEST(TcpTransfer, MovesBulkWithoutRetransmission) {
  Pair p(2, {.rate_bps = 1'000'000'000, .delay = Duration::Milliseconds(1), .queue_bytes = 8 << 20});
  constexpr uint64_t kTotal = 32 << 20;
  p.Open(kTotal, 0);
  const Instant start = p.net.now();
  EXPECT_TRUE(p.net.RunUntil([&] { return p.Done(); }, Duration::Seconds(20)));
  p.Check(kTotal, 0);
  EXPECT_EQ(p.a.counter(Counter::kTcpRetransSegs), 0u);
  const double seconds = static_cast<double>((p.net.now() - start).ns()) * 1e-9;
  EXPECT_GT(static_cast<double>(kTotal) * 8 / seconds, 0.7e9);
}

}  // namespace
}  // namespace sluice::testing
