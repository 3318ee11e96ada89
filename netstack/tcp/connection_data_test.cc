// One mechanism each, frames in and frames out in virtual time. Bytes, acknowledgements, recovery and windows.
#include <gtest/gtest.h>

#include "netstack/tcp/testing/programs.h"
#include "netstack/tcp/testing/wire_peer.h"

namespace sluice::testing {
namespace {

using tcp::kAck;
using tcp::kPsh;
using tcp::kUrg;

// --- data

TEST(TcpData, DelaysTheAckOfALoneSegmentOnceQuickAcksAreUsedUp) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  ASSERT_EQ(c->SetOption(SockOpt::kTcpQuickAck, 0), Errno::kOk);
  p.Send(kAck | kPsh, 1, 1, "x");
  p.Take();
  p.host.Advance(Ms(100));
  p.Take();
  ASSERT_EQ(c->SetOption(SockOpt::kTcpQuickAck, 0), Errno::kOk);
  p.Send(kAck | kPsh, 2, 1, "y");
  p.ExpectSilence();
  p.host.Advance(Ms(250));
  const Seen s = p.One();
  EXPECT_EQ(s.ack, 3u);
}

TEST(TcpData, AcknowledgesAShortSegmentOnceItIsReadWhereNoAnswersAreGiven) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  uint32_t next = 1;
  for (; next < 40; ++next) {  // beyond the quick ACKs of the start
    p.Send(kAck | kPsh, next, 1, "x");
    EXPECT_EQ(p.Read(c), "x");
    p.Take();
  }
  p.Send(kAck | kPsh, next, 1, "y");
  p.ExpectSilence();
  EXPECT_EQ(p.Read(c), "y");
  const Seen s = p.One();
  EXPECT_EQ(s.ack, next + 1);
}

TEST(TcpData, PiggybacksTheAckOnTheAnswerOfTheTurn) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  ASSERT_EQ(c->SetOption(SockOpt::kTcpQuickAck, 0), Errno::kOk);
  p.Send(kAck | kPsh, 1, 1, "question");
  p.Take();
  EXPECT_EQ(p.Read(c), "question");
  p.Write(c, "answer");
  const Seen s = p.One();
  EXPECT_EQ(s.payload, "answer");
  EXPECT_EQ(s.ack, 9u);
  EXPECT_EQ(s.Flags(), "PA");
}

TEST(TcpData, SendsOneSuperSegmentWithinTheInitialWindow) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  p.Write(c, Text(40000));
  const Seen s = p.One();
  EXPECT_EQ(s.gso_size, 1460);
  EXPECT_EQ(s.payload, Text(40000).substr(0, 14600));  // ten segments (RFC 6928)
  p.Send(kAck, 1, 14601);
  const std::vector<Seen> more = p.Take();
  ASSERT_EQ(more.size(), 1u);
  EXPECT_EQ(more[0].payload.size(), 25400u);  // slow start: 20 segments' window, 17.4 left
}

TEST(TcpData, BelowTheUnsentLimitItIsWritableOnceWhatWaitedHasLeft) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  Watcher watcher;
  c->set_observer(&watcher);
  c->SetUnsentLimit(5000);
  EXPECT_NE(c->events() & kWritable, 0u);
  p.Write(c, Text(20000));  // 14600 leave
  EXPECT_EQ(c->unsent_bytes(), 5400u);
  EXPECT_EQ(c->events() & kWritable, 0u);
  EXPECT_GT(c->send_space(), 0u);
  watcher.seen = 0;
  p.Send(kAck, 1, 14601);  // the rest leaves, and nothing is to be waited for
  EXPECT_EQ(c->unsent_bytes(), 0u);
  EXPECT_NE(watcher.seen & kWritable, 0u);
  c->set_observer(nullptr);
}

TEST(TcpData, NagleHoldsTheSecondSmallSegment) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  p.Write(c, "a");
  EXPECT_EQ(p.One().payload, "a");
  p.Write(c, "b");
  p.Write(c, "c");
  p.ExpectSilence();
  p.Send(kAck, 1, 2);
  EXPECT_EQ(p.One().payload, "bc");
  ASSERT_EQ(c->SetOption(SockOpt::kTcpNoDelay, 1), Errno::kOk);
  p.Write(c, "d");
  EXPECT_EQ(p.One().payload, "d");
}

TEST(TcpData, CorkHoldsAPartUntilItIsPulledOrTwoHundredMilliseconds) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  ASSERT_EQ(c->SetOption(SockOpt::kTcpCork, 1), Errno::kOk);
  p.Write(c, "head");
  p.ExpectSilence();
  ASSERT_EQ(c->SetOption(SockOpt::kTcpCork, 0), Errno::kOk);
  p.host.Turn();
  EXPECT_EQ(p.One().payload, "head");
  p.Send(kAck, 1, 5);
  p.Write(c, "more", true);
  p.ExpectSilence();
  p.host.Advance(Ms(210));
  EXPECT_EQ(p.One().payload, "more");
}

TEST(TcpData, UncorkingPushesWhatWaitsAlsoWhenCorkedAgainAtOnce) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  ASSERT_EQ(c->SetOption(SockOpt::kTcpCork, 1), Errno::kOk);
  p.Write(c, "head");
  p.ExpectSilence();
  ASSERT_EQ(c->SetOption(SockOpt::kTcpCork, 0), Errno::kOk);
  ASSERT_EQ(c->SetOption(SockOpt::kTcpCork, 1), Errno::kOk);
  p.Write(c, "next");
  EXPECT_EQ(p.One().payload, "head");
  p.Send(kAck, 1, 5);
  p.ExpectSilence();
  // As Linux: an explicit push, also of what waits under the cork; what follows waits again.
  ASSERT_EQ(c->SetOption(SockOpt::kTcpNoDelay, 1), Errno::kOk);
  p.Write(c, "last");
  EXPECT_EQ(p.One().payload, "next");
  p.Send(kAck, 1, 9);
  p.ExpectSilence();
  ASSERT_EQ(c->SetOption(SockOpt::kTcpCork, 0), Errno::kOk);
  p.host.Turn();
  EXPECT_EQ(p.One().payload, "last");
}

TEST(TcpData, UncorkingLeavesNaglesRule) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  p.Write(c, "a");
  EXPECT_EQ(p.One().payload, "a");
  ASSERT_EQ(c->SetOption(SockOpt::kTcpCork, 1), Errno::kOk);
  p.Write(c, "b");
  ASSERT_EQ(c->SetOption(SockOpt::kTcpCork, 0), Errno::kOk);
  ASSERT_EQ(c->SetOption(SockOpt::kTcpCork, 1), Errno::kOk);
  p.host.Turn();
  p.ExpectSilence();
}

TEST(TcpData, ReassemblesAndReportsSackBlocks) {
  WirePeer p;
  p.sack = true;
  StreamSocket* c = p.Accepted();
  p.Send(kAck, 4, 1, "def");
  Seen s = p.One();
  EXPECT_EQ(s.ack, 1u);
  ASSERT_EQ(s.raw.sack_count, 1);
  EXPECT_EQ(s.raw.sack[0].start, p.iss + 4);
  EXPECT_EQ(s.raw.sack[0].end, p.iss + 7);
  p.Send(kAck, 10, 1, "jkl");
  s = p.One();
  ASSERT_EQ(s.raw.sack_count, 2);
  EXPECT_EQ(s.raw.sack[0].start, p.iss + 10);  // the latest first
  p.Send(kAck, 1, 1, "abc");
  s = p.One();
  EXPECT_EQ(s.ack, 7u);
  EXPECT_EQ(s.raw.sack_count, 1);
  p.Send(kAck, 5, 1, "efghi");  // overlaps what is there
  EXPECT_EQ(p.One().ack, 13u);
  EXPECT_EQ(p.Read(c), "abcdefghijkl");
}

TEST(TcpData, ReportsDuplicatesByDsack) {
  WirePeer p;
  p.sack = true;
  p.Accepted();
  p.Send(kAck, 1, 1, "abc");
  p.Take();
  p.Send(kAck, 1, 1, "abc");
  const Seen s = p.One();
  EXPECT_EQ(s.ack, 4u);
  ASSERT_EQ(s.raw.sack_count, 1);
  EXPECT_EQ(s.raw.sack[0].start, p.iss + 1);
  EXPECT_EQ(s.raw.sack[0].end, p.iss + 4);
}

TEST(TcpData, TakesASuperSegmentWhole) {
  WirePeer p;
  p.wscale = 7;
  StreamSocket* c = p.Accepted();
  p.Send(p.Header(kAck | kPsh, 1, 1), Text(29200), 1460);
  EXPECT_EQ(p.One().ack, 29201u);
  EXPECT_EQ(c->info().rcv_mss, 1460u);
  EXPECT_EQ(p.Read(c), Text(29200));
}

TEST(TcpData, SendsUrgentDataWithItsMarkAndReceivesOne) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  Block* b = p.host.pool().Allocate(1);
  b->data[0] = '!';
  ASSERT_EQ(c->SendUrgent(Slice{BlockRef(b), 0, 1}), Errno::kOk);
  p.host.Turn();
  const Seen s = p.One();
  EXPECT_TRUE(s.raw.Has(kUrg));
  EXPECT_EQ(s.raw.urgent, 1);
  tcp::HeaderSpec h = p.Header(kAck | kUrg, 1, 2);
  h.urgent = 3;
  p.Send(h, "ab!d");
  EXPECT_NE(c->events() & kUrgent, 0u);
  EXPECT_EQ(c->urgent_mark(), std::optional<size_t>(2));
  p.Read(c, 2);
  EXPECT_EQ(c->urgent_mark(), std::optional<size_t>(0));
  p.Read(c, 1);
  EXPECT_EQ(c->urgent_mark(), std::nullopt);
}

// --- recovery

TEST(TcpRecovery, RetransmitsAfterTheTimeoutWithBackoff) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  p.Write(c, "lost");
  EXPECT_EQ(p.One().payload, "lost");
  p.host.Advance(Ms(190));
  p.ExpectSilence();
  p.host.Advance(Ms(150));
  EXPECT_EQ(p.One().payload, "lost");
  p.host.Advance(Ms(250));
  p.ExpectSilence();
  p.host.Advance(Ms(200));
  EXPECT_EQ(p.One().payload, "lost");
  EXPECT_EQ(c->info().snd_cwnd, 1u);
  p.Send(kAck, 1, 5);
  EXPECT_EQ(c->info().unacked, 0u);
  EXPECT_EQ(c->info().backoff, 0);
}

TEST(TcpRecovery, FastRetransmitsTheHoleThatSackShows) {
  WirePeer p;
  p.sack = true;
  StreamSocket* c = p.Accepted();
  p.Write(c, Text(14600));
  p.Take();
  tcp::HeaderSpec h = p.Header(kAck, 1, 1461);  // segments 2 and 3 are missing
  h.sack_count = 1;
  h.sack[0] = {p.host_iss + 4381, p.host_iss + 14601};
  p.Send(h);
  const Seen s = p.One();  // adjacent losses as one super-segment
  EXPECT_EQ(s.seq, 1461u);
  EXPECT_EQ(s.payload.size() % 1460, 0u);
  EXPECT_GE(s.payload.size(), 1460u);
  EXPECT_EQ(c->info().ca_state, 3);
  p.Send(kAck, 1, 14601);
  EXPECT_EQ(c->info().ca_state, 0);
  EXPECT_EQ(p.host.counter(Counter::kTcpTimeouts), 0u);
}

TEST(TcpRecovery, FastRetransmitsAfterThreeDuplicateAcksWithoutSack) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  p.Write(c, Text(14600));
  p.Take();
  p.Send(kAck, 1, 1);
  p.Send(kAck, 1, 1);
  p.ExpectSilence();
  p.Send(kAck, 1, 1);
  const Seen s = p.One();
  EXPECT_EQ(s.seq, 1u);
  EXPECT_EQ(s.payload.size(), 1460u);
  p.Send(kAck, 1, 1461);  // partial: the next hole at once (RFC 6582)
  EXPECT_EQ(p.One().seq, 1461u);
  p.Send(kAck, 1, 14601);
  EXPECT_EQ(c->info().ca_state, 0);
}

// It says nothing of what has left the network.
TEST(TcpRecovery, WithoutSackAWindowUpdateIsNoDuplicateAck) {
  WirePeer p;
  p.window = 60000;
  StreamSocket* c = p.Accepted();
  ASSERT_EQ(c->SetCongestionControl("reno"), Errno::kOk);
  p.Write(c, Text(14600));
  for (int i = 0; i < 3; ++i) p.Send(kAck, 1, 1);
  ASSERT_EQ(c->info().ca_state, 3);
  p.Write(c, Text(14600));
  p.Take();
  const uint32_t cwnd = c->info().snd_cwnd;
  for (int i = 0; i < 8; ++i) {
    ++p.window;
    p.Send(kAck, 1, 1);
  }
  EXPECT_EQ(c->info().snd_cwnd, cwnd);
  p.ExpectSilence();
}

// What a model leaves knows no threshold that the window could go back to.
TEST(TcpRecovery, OfAModelEndsUnderAnotherControl) {
  WirePeer p;
  p.sack = true;
  StreamSocket* c = p.Accepted();
  ASSERT_EQ(c->SetCongestionControl("bbr"), Errno::kOk);
  p.Write(c, Text(14600));
  tcp::HeaderSpec h = p.Header(kAck, 1, 1461);
  h.sack_count = 1;
  h.sack[0] = {p.host_iss + 4381, p.host_iss + 14601};
  p.Send(h);
  ASSERT_EQ(c->info().ca_state, 3);
  ASSERT_EQ(c->SetCongestionControl("cubic"), Errno::kOk);
  p.Send(kAck, 1, 14601);
  EXPECT_EQ(c->info().ca_state, 0);
  EXPECT_LT(c->info().snd_cwnd, 100u);
}

TEST(TcpRecovery, UndoesATimeoutThatTimestampsProveNeedless) {
  WirePeer p;
  p.timestamps = p.sack = true;
  StreamSocket* c = p.Accepted();
  p.Write(c, Text(5000));
  p.Take();
  const uint32_t original = p.ts_ecr;
  const uint32_t cwnd = c->info().snd_cwnd;
  p.host.Advance(Ms(1200));
  p.Take();
  EXPECT_EQ(c->info().snd_cwnd, 1u);
  p.ts_ecr = original;  // the peer answers the original transmission
  p.Send(kAck, 1, 5001);
  EXPECT_GE(c->info().snd_cwnd, cwnd);
  EXPECT_EQ(p.host.counter(Counter::kTcpUndos), 1u);
}

TEST(TcpRecovery, ProbesTheTailBeforeTheTimeout) {
  WirePeer p;
  p.sack = true;
  StreamSocket* c = p.Accepted();
  p.Write(c, "x");
  p.Take();
  p.host.Advance(Ms(10));
  p.Send(kAck, 1, 2);  // an RTT sample of 10 ms
  p.Write(c, Text(4380));
  p.Take();
  p.host.Advance(Ms(60));
  const Seen s = p.One();
  EXPECT_EQ(s.seq, 2u + 2920u);
  EXPECT_EQ(p.host.counter(Counter::kTcpLossProbes), 1u);
  EXPECT_EQ(c->info().ca_state, 0);
}

// --- windows

TEST(TcpWindow, ProbesAZeroWindowAndGoesOn) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  p.window = 0;
  p.Send(kAck | kPsh, 1, 1, "full");
  p.Take();
  p.Read(c);
  p.Take();
  p.Write(c, "blocked");
  p.ExpectSilence();
  p.host.Advance(Ms(300));
  Seen s = p.One();
  EXPECT_EQ(s.seq, 0u);  // below the window
  EXPECT_EQ(s.payload, "");
  p.Send(kAck, 5, 1);
  p.host.Advance(Ms(3000));
  EXPECT_GE(p.Take().size(), 1u);
  p.window = 1000;
  p.Send(kAck, 5, 1);
  EXPECT_EQ(p.One().payload, "blocked");
}

TEST(TcpWindow, AvoidsSillySegments) {
  WirePeer p;
  p.window = 4000;
  StreamSocket* c = p.Accepted();
  p.Write(c, Text(10000));
  std::vector<Seen> all = p.Take();
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].payload.size(), 2920u);
  p.window = 1100;
  p.Send(kAck, 1, 2921);  // less than a segment: wait
  p.ExpectSilence();
  p.window = 1460;
  p.Send(kAck, 1, 2921);
  EXPECT_EQ(p.One().payload.size(), 1460u);
}

TEST(TcpWindow, ClosesWhenNobodyReadsAndReopens) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  ASSERT_EQ(c->SetOption(SockOpt::kRcvBuf, 8000), Errno::kOk);
  uint32_t seq = 1;
  uint32_t window = 65535;
  for (int i = 0; i < 100 && window > 0; ++i) {
    const size_t n = std::min<size_t>(1460, window);
    p.Send(kAck | kPsh, seq, 1, Text(n));
    seq += static_cast<uint32_t>(n);
    p.host.Advance(Ms(250));
    for (const Seen& s : p.Take()) {
      window = s.window;
      EXPECT_EQ(s.ack, seq);
    }
  }
  EXPECT_EQ(window, 0u);
  p.Send(kAck, seq, 1, "beyond");
  EXPECT_EQ(p.One().ack, seq);  // dropped, and told so
  EXPECT_EQ(p.Read(c).size(), seq - 1);
  const Seen update = p.One();
  EXPECT_GE(update.window, 4000u);
}

TEST(TcpData, AcknowledgesWithinAWindowThatWasTakenBack) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  p.Write(c, Text(1000));
  p.Take();
  tcp::HeaderSpec h = p.Header(kAck, 1, 1);
  h.window = 0;
  p.Send(h, "a");
  p.host.Advance(Ms(50));
  const Seen ack = p.One();
  EXPECT_EQ(ack.ack, 2u);
  EXPECT_EQ(ack.seq, 1u);  // 1001 would lie behind what the peer takes
}

}  // namespace
}  // namespace sluice::testing
