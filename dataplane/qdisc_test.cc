// Queueing disciplines in virtual time, and the port that they stand before.
#include "dataplane/qdisc.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <vector>

#include "base/rng.h"
#include "dataplane/qdisc_port.h"

namespace sluice {
namespace {

constexpr uint32_t kHeaders = 14 + 20 + 20;

// An IPv4 TCP frame of the flow, `payload` bytes long, a super-segment where `mss` is not 0.
Packet MakeFrame(BlockPool& pool, uint16_t flow, uint32_t payload, uint16_t mss = 0) {
  Packet p = Packet::Allocate(pool, kHeaders + payload);
  uint8_t* b = p.Append(kHeaders + payload);
  std::memset(b, 0, kHeaders + payload);
  b[12] = 8;
  uint8_t* ip = b + 14;
  ip[0] = 0x45;
  StoreBe16(ip + 2, static_cast<uint16_t>(std::min<uint32_t>(40 + payload, 65535)));
  ip[8] = 64;
  ip[9] = 6;
  StoreBe32(ip + 12, 0x0a000001);
  StoreBe32(ip + 16, 0x0a000002);
  uint8_t* tcp = ip + 20;
  StoreBe16(tcp, static_cast<uint16_t>(1000 + flow));
  StoreBe16(tcp + 2, 80);
  tcp[12] = 5 << 4;
  p.offload.checksum = ChecksumState::kPartial;
  p.offload.csum_start = 34;
  p.offload.csum_offset = 16;
  if (mss != 0) {
    p.offload.gso = GsoType::kTcpV4;
    p.offload.gso_size = mss;
    p.offload.hdr_len = kHeaders;
  }
  return p;
}

uint16_t FlowOf(const Packet& p) { return static_cast<uint16_t>(LoadBe16(p.data() + 34) - 1000); }

struct Left {
  Instant at;
  uint64_t bytes;
  uint16_t flow;
};

// Takes all that leaves until nothing waits or `end`.
void Drain(Qdisc& q, Instant* now, Instant end, std::vector<Left>* left) {
  for (;;) {
    Packet p;
    while (q.Dequeue(*now, &p)) left->push_back({*now, WireBytes(p), FlowOf(p)});
    if (q.next() > end) break;
    ASSERT_GT(q.next(), *now);
    *now = q.next();
  }
}

// Over every interval between two frames: what left is within rate * t + burst.
void ExpectWithin(const std::vector<Left>& left, double rate, double burst) {
  double worst = 0, drained = 0;  // bytes of the bucket in use
  Instant last;
  for (const Left& l : left) {
    drained = std::max(0.0, drained - rate * static_cast<double>((l.at - last).ns()) * 1e-9) + static_cast<double>(l.bytes);
    last = l.at;
    worst = std::max(worst, drained);
  }
  EXPECT_LE(worst, burst + 1);
}

class QdiscTest : public ::testing::Test {
 protected:
  HeapBlockPool pool_{64 << 20};
  Instant now_{1'000'000'000};
  std::vector<Left> left_;
};

TEST_F(QdiscTest, WireBytesCountTheHeadersOfEverySegment) {
  EXPECT_EQ(WireBytes(MakeFrame(pool_, 0, 100)), kHeaders + 100);
  const Packet super = MakeFrame(pool_, 0, 10'000, 1460);
  EXPECT_EQ(WireFrames(super), 7u);
  EXPECT_EQ(WireBytes(super), 10'000 + 7 * kHeaders);
}

struct TbfCase {
  uint64_t rate;
  uint32_t burst;
};
class TbfRates : public QdiscTest, public ::testing::WithParamInterface<TbfCase> {};

// Frames of all sizes, super-segments of 64 KiB among them, come in bursts with pauses between.
TEST_P(TbfRates, NeverExceedsRateAndBurst) {
  const TbfCase c = GetParam();
  const auto q = MakeQdisc({QdiscKind::kTbf, c.rate, c.burst}, pool_);
  Rng rng(5);
  for (int round = 0; round < 300; ++round) {
    for (uint32_t n = rng.Uniform(8); n > 0; --n) {
      const bool super = rng.Uniform(3) == 0;
      q->Enqueue(MakeFrame(pool_, 0, super ? 1461 + rng.Uniform(60'000) : rng.Uniform(1460), super ? 1460 : 0), now_);
    }
    const Instant end = now_ + Duration::Microseconds(rng.Uniform(4000));
    Drain(*q, &now_, end, &left_);
    now_ = std::max(now_, end);
  }
  Drain(*q, &now_, Instant::Max() - Duration(1), &left_);
  ExpectWithin(left_, static_cast<double>(c.rate), c.burst);
  const QdiscStats& s = q->stats();
  EXPECT_EQ(s.backlog_frames, 0u);
  EXPECT_EQ(s.backlog_bytes, 0u);
  uint64_t bytes = 0;
  for (const Left& l : left_) bytes += l.bytes;
  EXPECT_EQ(s.sent_bytes, bytes);
  EXPECT_EQ(pool_.bytes_in_use(), 0u);
}
INSTANTIATE_TEST_SUITE_P(Rates, TbfRates,
                         ::testing::Values(TbfCase{1'250'000, 2048}, TbfCase{12'500'000, 32'768}, TbfCase{125'000'000, 131'072},
                                           TbfCase{1000, 4096}, TbfCase{999'999'937, 70'001}));

// A source that stays below loses nothing and waits for nothing.
TEST_F(QdiscTest, TbfPassesWhatStaysBelow) {
  const auto q = MakeQdisc({QdiscKind::kTbf, 12'500'000, 3 * 1514}, pool_);
  for (int i = 0; i < 1000; ++i) {
    q->Enqueue(MakeFrame(pool_, 0, 1460), now_);
    Packet p;
    EXPECT_TRUE(q->Dequeue(now_, &p)) << i;
    now_ = now_ + Duration::Microseconds(122);  // 1514 bytes at 12.41 MB/s
  }
  EXPECT_EQ(q->stats().overlimits, 0u);
  EXPECT_EQ(q->stats().dropped(), 0u);
}

// A full queue is drained at exactly the rate.
TEST_F(QdiscTest, TbfUsesItsRateInFull) {
  const auto q = MakeQdisc({QdiscKind::kTbf, 12'500'000, 1514 * 10}, pool_);
  uint64_t bytes = 0;
  const Instant start = now_;
  for (int i = 0; i < 1000; ++i) {
    for (int n = 0; n < 40; ++n) q->Enqueue(MakeFrame(pool_, 0, 1460), now_);
    const Instant end = now_ + Duration::Milliseconds(1);
    Drain(*q, &now_, end, &left_);
    now_ = end;
  }
  for (const Left& l : left_) bytes += l.bytes;
  const double seconds = static_cast<double>((now_ - start).ns()) * 1e-9;
  EXPECT_GE(static_cast<double>(bytes), 12'500'000 * seconds - 1514);
  EXPECT_GT(q->stats().dropped_limit, 0u);
  EXPECT_GT(q->stats().overlimits, 0u);
}

TEST_F(QdiscTest, TbfCutsSuperSegmentsAboveItsBurstAndDropsLongFrames) {
  const auto q = MakeQdisc({QdiscKind::kTbf, 12'500'000, 16'384}, pool_);
  q->Enqueue(MakeFrame(pool_, 0, 10'000, 1460), now_);  // fits: one frame
  EXPECT_EQ(q->stats().backlog_frames, 1u);
  q->Enqueue(MakeFrame(pool_, 0, 60'000, 1460), now_);
  EXPECT_EQ(q->stats().backlog_frames, 1u + 42);
  EXPECT_EQ(q->stats().backlog_bytes, 10'000u + 7 * kHeaders + 60'000 + 42 * kHeaders);
  q->Enqueue(MakeFrame(pool_, 0, 17'000), now_);
  EXPECT_EQ(q->stats().dropped_too_long, 1u);
  Drain(*q, &now_, Instant::Max() - Duration(1), &left_);
  EXPECT_EQ(q->stats().sent_frames, 7u + 42);
  ExpectWithin(left_, 12'500'000, 16'384);
}

TEST_F(QdiscTest, ShareOfAWorker) {
  const QdiscOptions half = QdiscOptions{QdiscKind::kTbf, 1'000'000, 10'000}.Share(2);
  EXPECT_EQ(half, (QdiscOptions{QdiscKind::kTbf, 500'000, 5000}));
  EXPECT_EQ(QdiscOptions{.kind = QdiscKind::kFq}.Share(2), QdiscOptions{.kind = QdiscKind::kFq});
}

// Flows with much and with little to send: the same bytes for all that have enough, at once for those that have little.
TEST_F(QdiscTest, FqSharesFairly) {
  const auto q = MakeQdisc({.kind = QdiscKind::kFq}, pool_);
  for (int i = 0; i < 90; ++i) q->Enqueue(MakeFrame(pool_, 1, 14'600, 1460), now_);  // super-segments
  for (int i = 0; i < 90; ++i) q->Enqueue(MakeFrame(pool_, 2, 1460), now_);
  for (int i = 0; i < 90; ++i) q->Enqueue(MakeFrame(pool_, 3, 400), now_);
  std::map<uint16_t, uint64_t> bytes;
  auto take = [&](int n) {
    for (; n > 0; --n) {
      Packet p;
      ASSERT_TRUE(q->Dequeue(now_, &p));
      bytes[FlowOf(p)] += WireBytes(p);
    }
  };
  take(80);
  EXPECT_NEAR(static_cast<double>(bytes[1]), static_cast<double>(bytes[2]), 16'000);
  EXPECT_NEAR(static_cast<double>(bytes[2]), static_cast<double>(bytes[3]), 6'000);
  q->Enqueue(MakeFrame(pool_, 4, 100), now_);
  take(1);
  EXPECT_EQ(bytes.count(4), 1u);
}

// A flow that has one frame at a time is new each time, and gets no more than the others for it.
TEST_F(QdiscTest, FqIsNotMisledByAFlowThatComesAndGoes) {
  const auto q = MakeQdisc({.kind = QdiscKind::kFq}, pool_);
  std::map<uint16_t, uint64_t> bytes, waiting;
  for (int i = 0; i < 3000; ++i) {
    for (uint16_t flow = 1; flow <= 4; ++flow) {
      for (const uint64_t most = flow == 4 ? 1 : 50; waiting[flow] < most; ++waiting[flow]) {
        q->Enqueue(MakeFrame(pool_, flow, 1460), now_);
      }
    }
    Packet p;
    ASSERT_TRUE(q->Dequeue(now_, &p));
    --waiting[FlowOf(p)];
    bytes[FlowOf(p)] += WireBytes(p);
  }
  for (uint16_t flow = 1; flow <= 3; ++flow) EXPECT_GE(bytes[flow] * 11 / 10, bytes[4]) << flow;
}

TEST_F(QdiscTest, FqKeepsTheOrderOfAFlow) {
  const auto q = MakeQdisc({.kind = QdiscKind::kFq}, pool_);
  Rng rng(3);
  std::map<uint16_t, uint16_t> sent, seen;
  int taken = 0;
  for (int i = 0; i < 5000; ++i) {
    const auto flow = static_cast<uint16_t>(rng.Uniform(200));
    Packet p = MakeFrame(pool_, flow, 10 + rng.Uniform(1000));
    StoreBe16(p.data() + kHeaders, sent[flow]++);
    if (rng.Uniform(2) == 0) p.departure = now_ + Duration::Microseconds(rng.Uniform(1000));
    q->Enqueue(std::move(p), now_);
    now_ = now_ + Duration::Microseconds(10);
    Packet out;
    while (rng.Uniform(8) != 0 && q->Dequeue(now_, &out)) {
      ASSERT_LE(out.departure, now_);
      ASSERT_EQ(LoadBe16(out.data() + kHeaders), seen[FlowOf(out)]++);
      ++taken;
    }
  }
  Packet out;
  while (q->stats().backlog_frames > 0) {
    while (q->Dequeue(now_, &out)) {
      ASSERT_EQ(LoadBe16(out.data() + kHeaders), seen[FlowOf(out)]++);
      ++taken;
    }
    if (q->next() != Instant::Max()) now_ = q->next();
  }
  EXPECT_EQ(taken + static_cast<int>(q->stats().dropped()), 5000);
}

TEST_F(QdiscTest, FqPacesEachFlowAndHoldsNobodyElse) {
  const auto q = MakeQdisc({.kind = QdiscKind::kFq}, pool_);
  for (int i = 0; i < 10; ++i) {
    Packet p = MakeFrame(pool_, 1, 1000);
    p.departure = now_ + Duration::Milliseconds(i + 1);
    q->Enqueue(std::move(p), now_);
  }
  const Instant start = now_;
  for (int i = 0; i < 5; ++i) q->Enqueue(MakeFrame(pool_, 2, 1000), now_);
  Drain(*q, &now_, start + Duration::Seconds(1), &left_);
  ASSERT_EQ(left_.size(), 15u);
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(left_[i].at, start) << i;
  for (size_t i = 5; i < 15; ++i) {
    EXPECT_EQ(left_[i].flow, 1);
    EXPECT_EQ(left_[i].at, start + Duration::Milliseconds(static_cast<int64_t>(i) - 4));
  }
  EXPECT_EQ(q->next(), Instant::Max());
}

TEST_F(QdiscTest, FqIsBounded) {
  const auto q = MakeQdisc({.kind = QdiscKind::kFq}, pool_);
  for (int i = 0; i < 150; ++i) q->Enqueue(MakeFrame(pool_, 1, 10), now_);
  EXPECT_EQ(q->stats().backlog_frames, 100u);
  EXPECT_EQ(q->stats().dropped_flow_limit, 50u);
  for (uint16_t flow = 2; flow < 202; ++flow) {
    for (int i = 0; i < 60; ++i) q->Enqueue(MakeFrame(pool_, flow, 10), now_);
  }
  EXPECT_EQ(q->stats().backlog_frames, 10'000u);
  EXPECT_EQ(q->stats().dropped_limit, 2'100u);
  Drain(*q, &now_, Instant::Max() - Duration(1), &left_);
  EXPECT_EQ(left_.size(), 10'000u);
}

// A device that takes as many frames as it is told to.
class NarrowPort final : public Port {
 public:
  LinkFeatures features() const override { return {.tx_checksum = true, .gso = true}; }
  size_t Transmit(std::span<Packet> burst) override {
    const size_t n = std::min(burst.size(), room);
    for (size_t i = 0; i < n; ++i) sent.push_back(std::move(burst[i]));
    room -= n;
    return n;
  }
  IfIndex ifindex() const override { return 2; }
  std::string_view kind() const override { return "narrow"; }
  size_t Receive(std::span<Packet>) override { return 0; }
  std::vector<int> wait_fds() const override { return {}; }
  PortStats stats() const override { return {}; }

  size_t room = SIZE_MAX;
  std::deque<Packet> sent;
};

Instant g_now{1};

TEST_F(QdiscTest, PortSendsWhatIsDueAndTellsWhenTheNextIs) {
  g_now = Instant(1'000'000'000);
  auto inner = std::make_unique<NarrowPort>();
  NarrowPort& device = *inner;
  QdiscPort port(std::move(inner), MakeQdisc({QdiscKind::kTbf, 1'514'000, 3028}, pool_), [] { return g_now; });
  EXPECT_FALSE(port.features().paces);
  std::vector<Packet> burst;
  for (int i = 0; i < 5; ++i) burst.push_back(MakeFrame(pool_, 0, 1460));
  EXPECT_EQ(port.Transmit(burst), 5u);
  EXPECT_EQ(device.sent.size(), 2u);
  EXPECT_FALSE(port.tx_pending());
  EXPECT_EQ(port.transmit_at(), g_now + Duration::Milliseconds(1));
  g_now = port.transmit_at();
  device.room = 0;
  port.Transmit({});
  EXPECT_TRUE(port.tx_pending());  // waits for the device now, not for the time
  EXPECT_EQ(port.transmit_at(), Instant::Max());
  QdiscStats s = *port.qdisc();
  EXPECT_EQ(s.kind, "tbf");
  EXPECT_EQ(s.sent_frames, 2u);
  EXPECT_EQ(s.backlog_frames, 3u);
  EXPECT_EQ(s.backlog_bytes, 3u * 1514);
  EXPECT_EQ(s.requeues, 1u);
  device.room = SIZE_MAX;
  g_now = g_now + Duration::Seconds(1);
  port.Transmit({});
  EXPECT_EQ(device.sent.size(), 5u);
  EXPECT_EQ(port.transmit_at(), Instant::Max());
  EXPECT_EQ(port.qdisc()->backlog_frames, 0u);
}

TEST_F(QdiscTest, PortOfEachKind) {
  EXPECT_EQ(WithQdisc(std::make_unique<NarrowPort>(), {.kind = QdiscKind::kFifo}, pool_)->kind(), "narrow");
  EXPECT_TRUE(WithQdisc(std::make_unique<NarrowPort>(), {}, pool_)->features().queues);
  EXPECT_FALSE(WithQdisc(std::make_unique<NarrowPort>(), {.kind = QdiscKind::kNone}, pool_)->features().queues);
  EXPECT_TRUE(WithQdisc(std::make_unique<NarrowPort>(), {.kind = QdiscKind::kFq}, pool_)->features().paces);
}

}  // namespace
}  // namespace sluice
