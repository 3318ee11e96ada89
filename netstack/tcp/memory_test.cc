// Many sockets whose programs do not read (or whose peers do not), on a host with little memory: what they hold together stays in
// bounds, others work, and every byte comes in the end.
#include <gtest/gtest.h>

#include "netstack/tcp/testing/programs.h"

namespace sluice::testing {
namespace {

constexpr size_t kPool = 8 << 20;
constexpr uint64_t kEach = 512 << 10;
const Endpoint kServer{IpAddress::V4(10, 0, 0, 2), 80};

// `b` has little memory; `count` streams from `a` to its port 80.
struct Crowd {
  explicit Crowd(size_t count, const LinkProfile& profile = {.rate_bps = 1'000'000'000,
                                                             .delay = Duration::Microseconds(100),
                                                             .queue_bytes = 8 << 20})
      : net(1), a(net.AddHost("a", HostConfig("10.0.0.1/24"), 512 << 20)), b(net.AddHost("b", HostConfig("10.0.0.2/24"), kPool)) {
    net.Join(a, b, profile);
    listener = b.stack().NewTcpSocket(Family::kIpv4);
    EXPECT_EQ(listener->Bind(kServer), Errno::kOk);
    EXPECT_EQ(listener->Listen(4096), Errno::kOk);
    for (size_t i = 0; i < count; ++i) Connect();
    a.on_turn = [this] {
      for (auto& peer : left) peer->Work();
    };
    b.on_turn = [this] {
      while (StreamSocket* s = listener->Accept()) {
        right.push_back(std::make_unique<StreamPeer>(b, s, 2, b_total, 1));
        right.back()->read_limit = reading ? SIZE_MAX : 0;
        right.back()->write_size = 2048;  // a write may go beyond send_space()
      }
      for (auto& peer : right) peer->Work();
      most = std::max(most, b.stack().stream_memory().held());
    };
  }
  ~Crowd() {
    for (auto* peers : {&left, &right})
      for (auto& peer : *peers) peer->socket()->Close();
    listener->Close();
  }
  StreamPeer& Connect() {
    StreamSocket* s = a.stack().NewTcpSocket(Family::kIpv4);
    EXPECT_EQ(s->Connect(kServer), Errno::kEINPROGRESS);
    left.push_back(std::make_unique<StreamPeer>(a, s, 1, a_total, 2));
    left.back()->read_limit = a_reads ? SIZE_MAX : 0;
    return *left.back();
  }
  void Read(bool on) {
    reading = on;
    for (auto& peer : right) peer->read_limit = on ? SIZE_MAX : 0;
  }
  bool Finished() const {
    if (right.size() != left.size()) return false;
    for (const auto* peers : {&left, &right})
      for (const auto& peer : *peers)
        if (!peer->finished() && !peer->failed()) return false;
    return true;
  }
  void Check() const {
    for (const auto* peers : {&left, &right})
      for (const auto& peer : *peers) EXPECT_EQ(peer->failure(), "");
    for (const auto& peer : right) EXPECT_EQ(peer->received(), a_total);
    for (const auto& peer : left) EXPECT_EQ(peer->received(), b_total);
  }

  SimNetwork net;
  SimHost& a;
  SimHost& b;
  uint64_t a_total = kEach, b_total = 0;
  bool reading = false, a_reads = true;
  StreamSocket* listener;
  std::vector<std::unique_ptr<StreamPeer>> left, right;
  size_t most = 0;
};

TEST(TcpMemory, UnreadStreamsStayWithinTheLimitAndDeliverEveryByteWhenRead) {
  Crowd c(200);
  c.net.RunFor(Duration::Seconds(20));
  ASSERT_EQ(c.right.size(), 200u);
  EXPECT_TRUE(c.b.stack().stream_memory().pressure());
  EXPECT_GT(c.b.counter(Counter::kDropTcpMemory), 0u);
  EXPECT_LT(c.most, c.b.stack().stream_memory().limits().high + (size_t{200} * 4096));
  EXPECT_LT(c.b.pool().bytes_in_use(), kPool);

  // Another one, whose program reads.
  StreamPeer& other = c.Connect();
  EXPECT_TRUE(c.net.RunUntil(
      [&] {
        if (c.right.size() == 201) c.right.back()->read_limit = SIZE_MAX;
        return c.right.size() == 201 && c.right.back()->ended();
      },
      Duration::Seconds(30)))
      << other.sent();

  c.Read(true);
  EXPECT_TRUE(c.net.RunUntil([&] { return c.Finished(); }, Duration::Seconds(120)));
  c.Check();
  EXPECT_FALSE(c.b.stack().stream_memory().pressure());
}

TEST(TcpMemory, HolesAreGivenUpFirst) {
  Crowd c(200, {.rate_bps = 1'000'000'000, .delay = Duration::Microseconds(100), .queue_bytes = 8 << 20, .loss = 0.05});
  c.net.RunFor(Duration::Seconds(10));
  EXPECT_LT(c.b.pool().bytes_in_use(), kPool);
  c.Read(true);
  EXPECT_TRUE(c.net.RunUntil([&] { return c.Finished(); }, Duration::Seconds(600)));
  c.Check();
}

TEST(TcpMemory, SendersWhosePeersDoNotReadShareAndEachGoesOn) {
  Crowd c(0);
  c.a_total = 0;
  c.b_total = kEach;
  c.a_reads = false;
  for (int i = 0; i < 200; ++i) c.Connect();
  c.net.RunFor(Duration::Seconds(20));
  ASSERT_EQ(c.right.size(), 200u);
  EXPECT_LT(c.b.pool().bytes_in_use(), kPool);
  for (const auto& peer : c.right) EXPECT_GT(peer->sent(), 0u);
  for (auto& peer : c.left) peer->read_limit = SIZE_MAX;
  EXPECT_TRUE(c.net.RunUntil([&] { return c.Finished(); }, Duration::Seconds(300)));
  c.Check();
}

TEST(QueueMemory, SharesUnderPressure) {
  QueueMemory m({.low = 50, .pressure = 70, .high = 100, .minimum = 5});
  for (int i = 0; i < 4; ++i) m.AddSocket();
  m.Add(60);
  EXPECT_FALSE(m.pressure());
  EXPECT_FALSE(m.MayGrow());
  EXPECT_EQ(m.Room(60), 40u);
  m.Add(20);
  EXPECT_TRUE(m.pressure());
  EXPECT_EQ(m.Room(80), 0u);   // over its quarter
  EXPECT_EQ(m.Room(10), 15u);  // up to it
  EXPECT_EQ(m.Room(0), 20u);   // what there is
  m.Add(30);
  EXPECT_FALSE(m.exhausted());
  EXPECT_EQ(m.Room(10), 0u);
  EXPECT_EQ(m.Room(2), 3u);
  m.Add(3);
  EXPECT_TRUE(m.exhausted());
  m.Remove(58);
  EXPECT_TRUE(m.pressure());  // until it is low again
  m.Remove(5);
  EXPECT_FALSE(m.pressure());
  EXPECT_TRUE(m.MayGrow());
}

}  // namespace
}  // namespace sluice::testing
