// Pacing and BBR between two stacks over a simulated bottleneck.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "netstack/tcp/testing/programs.h"
#include "netstack/tcp/types.h"
#include "netstack/wire/headers.h"

namespace sluice::testing {
namespace {

constexpr uint64_t kForever = uint64_t{1} << 40;
constexpr uint64_t kMbps100 = 100'000'000;
constexpr size_t kBdp = 100'000'000 / 8 / 1000 * 40;  // of 100 Mbit/s and 40 ms

LinkProfile Bottleneck(double bdps, double loss = 0) {
  return {.rate_bps = kMbps100,
          .delay = Duration::Milliseconds(20),
          .queue_bytes = static_cast<size_t>(bdps * static_cast<double>(kBdp)),
          .loss = loss};
}

// One program sends to another through the bottleneck.
class PacingTest : public ::testing::Test {
 protected:
  struct Flow {
    StreamSocket* client = nullptr;
    std::unique_ptr<StreamPeer> sender, receiver;
  };

  void Join(const LinkProfile& there, const char* control) {
    LinkProfile back = there;
    back.loss = 0;
    net_.Join(a_, kSimIfIndex, b_, kSimIfIndex, there, back);
    a_.SetSysctl("net.ipv4.tcp_congestion_control", control);
    a_.SetSysctl("net.ipv4.tcp_wmem", "4096 16384 16777216");
    b_.SetSysctl("net.ipv4.tcp_rmem", "4096 131072 16777216");
    a_.ApplyConfig();
    b_.ApplyConfig();
    listener_ = b_.stack().NewTcpSocket(Family::kIpv4);
    ASSERT_EQ(listener_->Bind({IpAddress::V4(10, 0, 0, 2), 80}), Errno::kOk);
    ASSERT_EQ(listener_->Listen(16), Errno::kOk);
    b_.on_turn = [this] {
      while (StreamSocket* s = listener_->Accept()) {
        Flow& flow = *std::ranges::find_if(flows_, [&](const Flow& f) { return f.client->local() == *s->remote(); });
        flow.receiver = std::make_unique<StreamPeer>(b_, s, 2, 0, 1);
      }
      for (Flow& f : flows_) {
        if (f.receiver) f.receiver->Work();
      }
    };
    a_.on_turn = [this] {
      for (Flow& f : flows_) f.sender->Work();
      if (program) program();
    };
  }

  StreamSocket* Open(uint64_t bytes = kForever) {
    Flow& f = flows_.emplace_back();
    f.client = a_.stack().NewTcpSocket(Family::kIpv4);
    EXPECT_EQ(f.client->Connect({IpAddress::V4(10, 0, 0, 2), 80}), Errno::kEINPROGRESS);
    f.sender = std::make_unique<StreamPeer>(a_, f.client, 1, bytes, 2);
    return f.client;
  }

  void Run(int ms) { net_.RunFor(Duration::Milliseconds(ms)); }
  uint64_t received(size_t flow = 0) const { return flows_[flow].receiver ? flows_[flow].receiver->received() : 0; }
  // Share of the bottleneck's payload rate in the next `ms`.
  double Share(int ms) {
    const uint64_t before = received();
    Run(ms);
    const double most = static_cast<double>(kMbps100) / 8 * ms / 1000 * 1448 / 1514;
    return static_cast<double>(received() - before) / most;
  }

  SimNetwork net_{1};
  SimHost& a_ = net_.AddHost("a", HostConfig("10.0.0.1/24"));
  SimHost& b_ = net_.AddHost("b", HostConfig("10.0.0.2/24"));
  StreamSocket* listener_ = nullptr;
  std::vector<Flow> flows_;
  std::function<void()> program;
};

class BbrBottleneck : public PacingTest, public ::testing::WithParamInterface<double> {};

TEST_P(BbrBottleneck, IsFilledWithAShortQueue) {
  Join(Bottleneck(GetParam()), "bbr");
  StreamSocket* s = Open();
  Run(3000);
  const uint64_t drops = net_.stats(a_).queue_drops;
  EXPECT_GE(Share(5000), 0.9);
  EXPECT_EQ(net_.stats(a_).queue_drops, drops);
  const TcpInfo i = s->info();
  EXPECT_EQ(i.congestion_control, "bbr");
  EXPECT_LT(i.rtt, 40'000u * 3 / 2);
  EXPECT_GE(i.min_rtt, 40'000u);
  ASSERT_TRUE(i.model);
  EXPECT_NEAR(static_cast<double>(i.model->bandwidth), kMbps100 / 8.0, kMbps100 / 8.0 * 0.1);
  EXPECT_NEAR(static_cast<double>(i.pacing_rate), kMbps100 / 8.0, kMbps100 / 8.0 * 0.35);  // gains of 1.25 and 0.75
  EXPECT_NEAR(static_cast<double>(i.delivery_rate), kMbps100 / 8.0, kMbps100 / 8.0 * 0.3);
  EXPECT_FALSE(i.delivery_rate_app_limited);
  EXPECT_EQ(i.max_pacing_rate, ~uint64_t{0});
}
INSTANTIATE_TEST_SUITE_P(Buffers, BbrBottleneck, ::testing::Values(1.0, 2.0));

TEST_F(PacingTest, BbrKeepsItsRateAtOnePercentLossWhereCubicCollapses) {
  Join(Bottleneck(2, 0.01), "bbr");
  Open();
  Run(3000);
  EXPECT_GE(Share(5000), 0.9);
  for (Flow& f : flows_) f.client->Abort();
  flows_.clear();
  StreamSocket* s = a_.stack().NewTcpSocket(Family::kIpv4);
  ASSERT_EQ(s->SetCongestionControl("cubic"), Errno::kOk);
  ASSERT_EQ(s->Connect({IpAddress::V4(10, 0, 0, 2), 80}), Errno::kEINPROGRESS);
  flows_.push_back({s, std::make_unique<StreamPeer>(a_, s, 1, kForever, 2), nullptr});
  Run(3000);
  EXPECT_LT(Share(5000), 0.3);
}

TEST_F(PacingTest, BbrProbesTheRoundTripWithASmallWindow) {
  Join(Bottleneck(2), "bbr");
  StreamSocket* s = Open();
  Run(2000);
  // The path becomes longer: only a probe with an empty queue, ten seconds later, may believe it.
  for (SimHost* host : {&a_, &b_}) {
    LinkProfile longer = Bottleneck(4);
    longer.delay = Duration::Milliseconds(30);
    net_.SetProfile(*host, kSimIfIndex, longer);
  }
  uint32_t least = UINT32_MAX;
  Instant small_since, small_for;
  program = [&] {
    const TcpInfo i = s->info();
    least = std::min(least, i.unacked);
    if (i.snd_cwnd > 4) {
      small_since = Instant();
    } else if (small_since == Instant()) {
      small_since = net_.now();
    } else {
      small_for = std::max(small_for, Instant() + (net_.now() - small_since));
    }
  };
  Run(1000);
  EXPECT_LT(s->info().model->min_rtt_us, 45'000u);
  Run(12000);
  EXPECT_LE(least, 4u);
  EXPECT_GE(small_for, Instant() + Duration::Milliseconds(200));
  EXPECT_LE(small_for, Instant() + Duration::Milliseconds(500));
  EXPECT_NEAR(s->info().model->min_rtt_us, 60'000u, 2'000u);
  EXPECT_GE(Share(3000), 0.9);  // and it comes back
}

// A program that sends little says nothing about the path: the model keeps what it knows.
TEST_F(PacingTest, SamplesOfALimitedProgramDoNotLowerTheModel) {
  Join(Bottleneck(2), "bbr");
  StreamSocket* s = Open(20 << 20);
  flows_[0].sender->half_close = false;
  ASSERT_TRUE(net_.RunUntil([&] { return received() == (20 << 20); }, Duration::Seconds(10)));
  const uint64_t known = s->info().model->bandwidth;
  EXPECT_GE(known, kMbps100 / 8 * 9 / 10);
  // 2 Mbit/s for some round trips.
  Instant next = net_.now();
  program = [&] {
    if (net_.now() < next) return;
    next = net_.now() + Duration::Milliseconds(20);
    Packet p = Packet::Allocate(a_.pool(), 5000);
    p.Append(5000);
    EXPECT_EQ(s->Send(p.LinearSlice(0, 5000), false), Errno::kOk);
  };
  for (int i = 0; i < 100; ++i) {
    Run(20);
    flows_[0].receiver->socket()->Consume(flows_[0].receiver->socket()->readable_bytes());
  }
  EXPECT_TRUE(s->info().delivery_rate_app_limited || s->info().delivery_rate >= known / 2);
  EXPECT_EQ(s->info().model->bandwidth, known);
}

TEST_F(PacingTest, TwoBbrFlowsShare) {
  Join(Bottleneck(2), "bbr");
  Open();
  Run(2000);
  Open();
  Run(20000);
  const uint64_t first = received(0), second = received(1);
  Run(10000);
  const auto one = static_cast<double>(received(0) - first), two = static_cast<double>(received(1) - second);
  EXPECT_GE(std::min(one, two) / std::max(one, two), 0.4);
  EXPECT_GE((one + two) * 8 / 10, kMbps100 * 0.85);
}

// Frames with payload that the host sent: when, and how many bytes.
struct Sent {
  Instant at;
  size_t bytes;
};

TEST_F(PacingTest, MaxPacingRateSpreadsTheSegmentsOfCubic) {
  Join({.delay = Duration::Milliseconds(5)}, "cubic");
  StreamSocket* s = Open();
  constexpr uint64_t kRate = 5'000'000;  // bytes per second
  ASSERT_EQ(s->SetOption(SockOpt::kMaxPacingRate, kRate), Errno::kOk);
  Run(500);
  std::vector<Sent> sent;
  net_.set_frame_hook([&](SimHost& from, Packet& frame) {
    if (&from == &a_ && frame.size() > 100) sent.push_back({net_.now(), frame.size()});
    return true;
  });
  const uint64_t before = received();
  Run(2000);
  const double rate = static_cast<double>(received() - before) / 2;
  EXPECT_LE(rate, kRate * 1.02);
  EXPECT_GE(rate, kRate * 0.97);
  // A super-segment lasts a millisecond, and the next one leaves when it is over.
  ASSERT_GE(sent.size(), 1000u);
  const int64_t most = static_cast<int64_t>(kRate >> 10) + 1448 + 66;
  for (size_t i = 1; i < sent.size(); ++i) {
    EXPECT_LE(sent[i].bytes, static_cast<size_t>(most) + 66);
    EXPECT_GT(sent[i].at, sent[i - 1].at);
  }
  const TcpInfo info = s->info();
  EXPECT_EQ(info.pacing_rate, kRate);
  EXPECT_EQ(info.max_pacing_rate, kRate);
  int64_t value = 0;
  EXPECT_EQ(s->GetOption(SockOpt::kMaxPacingRate, &value), Errno::kOk);
  EXPECT_EQ(value, static_cast<int64_t>(kRate));
  // Lifted, it is as fast as the window.
  ASSERT_EQ(s->SetOption(SockOpt::kMaxPacingRate, -1), Errno::kOk);
  const uint64_t slow = received();
  Run(1000);
  EXPECT_GT(received() - slow, 4 * kRate);
}

TEST_F(PacingTest, PacedRateHoldsAtRatesAboveATimersTick) {
  Join({.delay = Duration::Microseconds(300)}, "cubic");
  ASSERT_EQ(listener_->SetOption(SockOpt::kRcvBufForce, 8 << 20), Errno::kOk);
  StreamSocket* s = Open();
  constexpr uint64_t kRate = 600'000'000;  // a super-segment in less than a tick of the timer wheel
  ASSERT_EQ(s->SetOption(SockOpt::kMaxPacingRate, kRate), Errno::kOk);
  Run(200);
  const uint64_t before = received();
  Run(100);
  const double rate = static_cast<double>(received() - before) * 10;
  EXPECT_LE(rate, kRate * 1.05);
  EXPECT_GE(rate, kRate * 0.8);
}

TEST_F(PacingTest, APacedRateBelowATimeoutsWorthIsKept) {
  Join({.delay = Duration::Milliseconds(1)}, "cubic");
  StreamSocket* s = Open();
  Run(100);
  ASSERT_EQ(s->SetOption(SockOpt::kMaxPacingRate, 4000), Errno::kOk);  // two segments in 0.7 s
  Run(60000);                                                          // what was queued before drains
  const uint64_t before = received();
  Run(30000);
  EXPECT_LE(received() - before, 4000u * 30 + 70'000);
  EXPECT_EQ(a_.counter(Counter::kTcpTimeouts), 0u);
  EXPECT_EQ(a_.counter(Counter::kTcpRetransSegs), 0u);
}

// A device that paces gets frames ahead of time, each with its departure.
TEST_F(PacingTest, ADeviceThatPacesGetsDepartures) {
  Join({.delay = Duration::Milliseconds(5)}, "cubic");
  LinkFeatures paces{.tx_checksum = true, .gso = true, .paces = true, .rx_checksum = true};
  net_.SetFeatures(a_, kSimIfIndex, paces);
  StreamSocket* s = Open();
  constexpr uint64_t kRate = 5'000'000;
  ASSERT_EQ(s->SetOption(SockOpt::kMaxPacingRate, kRate), Errno::kOk);
  Run(500);
  Instant last;
  Duration furthest{};
  int frames = 0;
  net_.set_frame_hook([&](SimHost& from, Packet& frame) {
    if (&from != &a_ || frame.size() <= 100) return true;
    ++frames;
    EXPECT_GT(frame.departure, last);
    last = frame.departure;
    furthest = std::max(furthest, frame.departure - net_.now());
    return true;
  });
  Run(1000);
  EXPECT_GE(frames, 500);
  EXPECT_GT(furthest, Duration());
  EXPECT_LE(furthest, Duration::Milliseconds(1));
}

}  // namespace
}  // namespace sluice::testing
