// Streams between two stacks over simulated links: byte-exact whatever the link does, and without a collapse of throughput.
#include <gtest/gtest.h>

#include "netstack/tcp/testing/programs.h"

namespace sluice::testing {
namespace {

const Endpoint kServer{IpAddress::V4(10, 0, 0, 2), 80};

struct Pair {
  Pair(uint64_t seed, const LinkProfile& profile)
      : net(seed), a(net.AddHost("a", HostConfig("10.0.0.1/24"))), b(net.AddHost("b", HostConfig("10.0.0.2/24"))) {
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

struct Impairment {
  const char* name;
  LinkProfile profile;
  uint64_t bytes;
  int seconds;  // generous bound of virtual time
};

class TcpImpaired : public ::testing::TestWithParam<Impairment> {};

TEST_P(TcpImpaired, DeliversExactlyBothWays) {
  const Impairment& i = GetParam();
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    SCOPED_TRACE(seed);
    Pair p(seed, i.profile);
    p.Open(i.bytes, i.bytes);
    EXPECT_TRUE(p.net.RunUntil([&] { return p.Done(); }, Duration::Seconds(i.seconds)));
    p.Check(i.bytes, i.bytes);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Links, TcpImpaired,
    ::testing::Values(
        Impairment{"Loss1", {.rate_bps = 100'000'000, .delay = Duration::Milliseconds(5), .loss = 0.01}, 4 << 20, 30},
        Impairment{"Loss5", {.rate_bps = 100'000'000, .delay = Duration::Milliseconds(5), .loss = 0.05}, 2 << 20, 60},
        Impairment{"Loss20", {.rate_bps = 100'000'000, .delay = Duration::Milliseconds(5), .loss = 0.20}, 128 << 10, 600},
        Impairment{"Reorder", {.rate_bps = 100'000'000, .delay = Duration::Milliseconds(5), .reorder = 0.05}, 4 << 20, 30},
        Impairment{"Duplicate", {.rate_bps = 100'000'000, .delay = Duration::Milliseconds(5), .duplicate = 0.1}, 4 << 20, 30},
        Impairment{"Corrupt", {.rate_bps = 100'000'000, .delay = Duration::Milliseconds(5), .corrupt = 0.01}, 2 << 20, 60},
        Impairment{"All",
                   {.rate_bps = 50'000'000,
                    .delay = Duration::Milliseconds(20),
                    .loss = 0.02,
                    .duplicate = 0.02,
                    .corrupt = 0.005,
                    .reorder = 0.02},
                   2 << 20,
                   120},
        Impairment{"Super", {.delay = Duration::Milliseconds(1), .loss = 0.02, .reorder = 0.02, .cut_gso = false}, 8 << 20, 60},
        Impairment{
            "SmallQueue", {.rate_bps = 20'000'000, .delay = Duration::Milliseconds(10), .queue_bytes = 16 << 10}, 4 << 20, 60}),
    [](const auto& p) { return std::string(p.param.name); });

// Bytes of all receive buffers after a while of `streams` that send what they can.
int64_t ReceiveBuffers(size_t streams, Duration delay) {
  SimNetwork net(3);
  SimHost &a = net.AddHost("a", HostConfig("10.0.0.1/24"), 1 << 30), &b = net.AddHost("b", HostConfig("10.0.0.2/24"), 1 << 30);
  net.Join(a, b, {.rate_bps = 10'000'000'000, .delay = delay, .queue_bytes = 64 << 20});
  StreamSocket* listener = b.stack().NewTcpSocket(Family::kIpv4);
  EXPECT_EQ(listener->Bind(kServer), Errno::kOk);
  EXPECT_EQ(listener->Listen(64), Errno::kOk);
  std::vector<std::unique_ptr<StreamPeer>> senders, receivers;
  for (size_t i = 0; i < streams; ++i) {
    StreamSocket* s = a.stack().NewTcpSocket(Family::kIpv4);
    EXPECT_EQ(s->Connect(kServer), Errno::kEINPROGRESS);
    senders.push_back(std::make_unique<StreamPeer>(a, s, 1, uint64_t{1} << 40, 2));
  }
  a.on_turn = [&] {
    for (auto& s : senders) s->Work();
  };
  b.on_turn = [&] {
    while (StreamSocket* s = listener->Accept()) receivers.push_back(std::make_unique<StreamPeer>(b, s, 2, 0, 1));
    for (auto& r : receivers) r->Work();
  };
  net.RunFor(delay * 40 + Duration::Milliseconds(100));
  int64_t sum = 0;
  for (auto& r : receivers) {
    EXPECT_EQ(r->failure(), "");
    int64_t bytes = 0;
    EXPECT_EQ(r->socket()->GetOption(SockOpt::kRcvBuf, &bytes), Errno::kOk);
    sum += bytes;
    r->socket()->Abort();
  }
  for (auto& s : senders) s->socket()->Abort();
  listener->Close();
  return sum;
}

TEST(TcpTransfer, PeersNearbyShareWhatReceiveBuffersGrowTo) {
  EXPECT_LE(ReceiveBuffers(16, Duration::Microseconds(20)), 6 << 20);
  EXPECT_GT(ReceiveBuffers(16, Duration::Milliseconds(10)), 8 << 20);
}

// Without a collapse: Mathis' bound for Reno is 1.22 MSS / (RTT sqrt(p)); CUBIC is not below it.
TEST(TcpThroughput, HoldsWhatTheoryAllowsAtOnePercentLoss) {
  Pair p(7, {.rate_bps = 1'000'000'000, .delay = Duration::Milliseconds(5), .queue_bytes = 4 << 20, .loss = 0.01});
  constexpr uint64_t kTotal = 16 << 20;
  const Instant start = p.net.now();
  p.Open(kTotal, 0);
  EXPECT_TRUE(p.net.RunUntil([&] { return p.Done(); }, Duration::Seconds(120)));
  p.Check(kTotal, 0);
  const double seconds = static_cast<double>((p.net.now() - start).ns()) * 1e-9;
  const double rate = static_cast<double>(kTotal) / seconds;
  const double theory = 1.22 * 1448 / (0.010 * 0.1);
  EXPECT_GT(rate, theory / 2);
}

struct Sizes {
  const char* name;
  int64_t rcvbuf, sndbuf;
  size_t write_size, read_limit;
};

class TcpBuffers : public ::testing::TestWithParam<Sizes> {};

TEST_P(TcpBuffers, DeliversExactly) {
  const Sizes& z = GetParam();
  Pair p(3, {.rate_bps = 100'000'000, .delay = Duration::Milliseconds(1), .loss = 0.005});
  constexpr uint64_t kTotal = 200'000;
  p.listener = p.b.stack().NewTcpSocket(Family::kIpv4);
  p.configure_right = [&](StreamPeer& r) {
    r.read_limit = z.read_limit;
    r.write_size = z.write_size;
  };
  p.listener->Close();
  p.Open(kTotal, kTotal);
  ASSERT_EQ(p.listener->SetOption(SockOpt::kRcvBuf, z.rcvbuf), Errno::kOk);
  ASSERT_EQ(p.listener->SetOption(SockOpt::kSndBuf, z.sndbuf), Errno::kOk);
  p.left->write_size = z.write_size;
  EXPECT_TRUE(p.net.RunUntil([&] { return p.Done(); }, Duration::Seconds(600)));
  p.Check(kTotal, kTotal);
}

INSTANTIATE_TEST_SUITE_P(Sizes, TcpBuffers,
                         ::testing::Values(Sizes{"Smallest", 1, 1, 1000, 100000}, Sizes{"ByteWrites", 100000, 100000, 1, 100000},
                                           Sizes{"SlowReader", 8000, 8000, 4000, 700}, Sizes{"OddSizes", 5000, 9000, 1777, 1333}),
                         [](const auto& p) { return std::string(p.param.name); });

}  // namespace
}  // namespace sluice::testing
