// One mechanism each, frames in and frames out in virtual time.
#include <gtest/gtest.h>

#include "netstack/tcp/testing/programs.h"
#include "netstack/tcp/testing/wire_peer.h"

namespace sluice::testing {
namespace {

using tcp::kAck;
using tcp::kFin;
using tcp::kPsh;
using tcp::kRst;
using tcp::kSyn;
using tcp::kUrg;

constexpr int kEstablished = 1, kFinWait2 = 5, kClosed = 7, kCloseWait = 8;
constexpr Duration Ms(int64_t n) { return Duration::Milliseconds(n); }

std::string Text(size_t n) {
  std::string s(n, ' ');
  for (size_t i = 0; i < n; ++i) s[i] = static_cast<char>('a' + i % 26);
  return s;
}

// --- opening

TEST(TcpOpen, AnswersSynWithItsOptionsAndAccepts) {
  WirePeer p;
  p.timestamps = p.sack = true;
  p.wscale = 7;
  p.Listener();
  p.Send(kSyn, 0, 0);
  const Seen s = p.One();
  EXPECT_EQ(s.Flags(), "SA");
  EXPECT_EQ(s.ack, 1u);
  EXPECT_EQ(s.raw.mss, 1460);
  EXPECT_TRUE(s.raw.sack_permitted && s.raw.has_window_scale && s.raw.has_timestamps);
  EXPECT_EQ(s.raw.ts_ecr, p.ts_val);
  EXPECT_EQ(p.listener->Accept(), nullptr);
  EXPECT_EQ(p.listener->events(), 0u);
  p.Send(kAck, 1, 1);
  EXPECT_EQ(p.listener->events(), uint32_t{kReadable});
  StreamSocket* c = p.listener->Accept();
  ASSERT_NE(c, nullptr);
  EXPECT_EQ(p.listener->events(), 0u);
  EXPECT_EQ(c->state(), kEstablished);
  EXPECT_EQ(ToString(*c->remote()), "10.0.0.2:5000");
  EXPECT_EQ(ToString(c->local()), "10.0.0.1:80");
}

TEST(TcpOpen, OffersNothingThePeerDidNot) {
  WirePeer p;
  p.Listener();
  p.Send(kSyn, 0, 0);
  const Seen s = p.One();
  EXPECT_FALSE(s.raw.sack_permitted || s.raw.has_window_scale || s.raw.has_timestamps);
}

TEST(TcpOpen, RetransmitsSynAckThenGivesUp) {
  WirePeer p;
  p.Listener();
  p.Send(kSyn, 0, 0);
  p.One();
  p.host.Advance(Ms(1100));
  EXPECT_EQ(p.One().Flags(), "SA");
  p.host.Advance(Duration::Seconds(70));
  EXPECT_EQ(p.Take().size(), 4u);
  p.host.Advance(Duration::Seconds(200));
  p.ExpectSilence();
  EXPECT_EQ(p.host.counter(Counter::kTcpAttemptFails), 1u);
}

TEST(TcpOpen, ConnectsActively) {
  WirePeer p;
  p.timestamps = p.sack = true;
  p.wscale = 7;
  Watcher w;
  StreamSocket* s = p.Socket();
  s->set_observer(&w);
  EXPECT_EQ(s->Connect({IpAddress::V4(10, 0, 0, 2), 5000}), Errno::kEINPROGRESS);
  EXPECT_EQ(s->Connect({IpAddress::V4(10, 0, 0, 2), 5000}), Errno::kEALREADY);
  EXPECT_EQ(s->events() & kWritable, 0u);
  p.host.Turn();
  const Seen syn = p.One();
  EXPECT_EQ(syn.Flags(), "S");
  p.host_port = syn.raw.source_port;
  EXPECT_GE(p.host_port, 32768);
  p.Send(kSyn | kAck, 0, 1);
  EXPECT_EQ(p.One().Flags(), "A");
  EXPECT_EQ(w.seen & (kConnected | kWritable), uint32_t{kConnected | kWritable});
  EXPECT_EQ(s->Connect({IpAddress::V4(10, 0, 0, 2), 5000}), Errno::kEISCONN);
}

TEST(TcpOpen, ReportsRefusal) {
  WirePeer p;
  StreamSocket* s = p.Socket();
  EXPECT_EQ(s->Connect({IpAddress::V4(10, 0, 0, 2), 5000}), Errno::kEINPROGRESS);
  p.host.Turn();
  p.host_port = p.One().raw.source_port;
  p.Send(kRst | kAck, 0, 1);
  EXPECT_EQ(s->events() & (kError | kHangup), uint32_t{kError | kHangup});
  EXPECT_EQ(s->TakeError(), Errno::kECONNREFUSED);
  EXPECT_EQ(s->TakeError(), Errno::kOk);
}

TEST(TcpOpen, TimesOutAfterSynRetries) {
  WirePeer p;
  StreamSocket* s = p.Socket();
  ASSERT_EQ(s->SetOption(SockOpt::kTcpSynCnt, 2), Errno::kOk);
  EXPECT_EQ(s->Connect({IpAddress::V4(10, 0, 0, 2), 5000}), Errno::kEINPROGRESS);
  p.host.Advance(Duration::Seconds(20));
  EXPECT_EQ(p.Take().size(), 3u);
  EXPECT_EQ(s->TakeError(), Errno::kETIMEDOUT);
}

TEST(TcpOpen, OpensSimultaneously) {  // RFC 9293 figure 7
  WirePeer p;
  StreamSocket* s = p.Socket();
  EXPECT_EQ(s->Connect({IpAddress::V4(10, 0, 0, 2), 5000}), Errno::kEINPROGRESS);
  p.host.Turn();
  p.host_port = p.One().raw.source_port;
  p.Send(kSyn, 0, 0);
  const Seen both = p.One();
  EXPECT_EQ(both.Flags(), "SA");
  EXPECT_EQ(both.seq, 0u);
  EXPECT_EQ(both.ack, 1u);
  p.Send(kSyn | kAck, 0, 1);
  EXPECT_EQ(s->state(), kEstablished);
  p.Take();
  p.Send(kAck | kPsh, 1, 1, "hi");
  EXPECT_EQ(p.Read(s), "hi");
}

TEST(TcpOpen, ResetsSegmentsForNothing) {
  WirePeer p;
  p.Send(kSyn, 0, 0);
  Seen s = p.One();
  EXPECT_EQ(s.Flags(), "RA");
  EXPECT_EQ(s.ack, 1u);
  p.Send(kAck, 1, 77);
  s = p.One();
  EXPECT_EQ(s.Flags(), "R");
  EXPECT_EQ(s.raw.seq, p.host_iss + 77);
  p.Send(kRst, 1, 0);
  p.ExpectSilence();
}

TEST(TcpOpen, SendsCookiesWhenTheQueueIsFull) {
  WirePeer p;
  p.timestamps = p.sack = true;
  p.wscale = 9;
  p.Listener(2);
  for (int i = 0; i < 2; ++i) {
    p.port = static_cast<uint16_t>(6000 + i);
    p.Send(kSyn, 0, 0);
    p.One();
  }
  p.port = 5000;
  p.Send(kSyn, 0, 0);
  const Seen cookie = p.One();
  EXPECT_EQ(cookie.Flags(), "SA");
  EXPECT_EQ(p.host.counter(Counter::kTcpSyncookiesSent), 1u);
  tcp::HeaderSpec bad = p.Header(kAck, 1, 2);
  p.Send(bad);
  EXPECT_EQ(p.One().Flags(), "R");
  p.Send(kAck | kPsh, 1, 1, "data");
  StreamSocket* c = p.listener->Accept();
  ASSERT_NE(c, nullptr);
  EXPECT_EQ(p.Read(c), "data");
  EXPECT_EQ(c->info().options, 7);  // timestamps, SACK and scale came back in the timestamp
  EXPECT_EQ(c->info().snd_wscale, 9);
}

TEST(TcpOpen, KeepsTheHandshakeWhileTheAcceptQueueIsFull) {
  WirePeer p;
  p.Listener(0);
  p.Handshake();
  p.port = 5001;
  p.Send(kSyn, 0, 0);
  p.ExpectSilence();
  EXPECT_EQ(p.host.counter(Counter::kTcpListenOverflows), 1u);
  ASSERT_NE(p.listener->Accept(), nullptr);
  p.Send(kSyn, 0, 0);
  EXPECT_EQ(p.One().Flags(), "SA");
}

TEST(TcpOpen, DefersAcceptUntilDataComes) {
  WirePeer p;
  p.Listener();
  ASSERT_EQ(p.listener->SetOption(SockOpt::kTcpDeferAccept, 10), Errno::kOk);
  p.Handshake();
  EXPECT_EQ(p.listener->Accept(), nullptr);
  p.Send(kAck | kPsh, 1, 1, "get");
  StreamSocket* c = p.listener->Accept();
  ASSERT_NE(c, nullptr);
  EXPECT_EQ(p.Read(c), "get");
}

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

// --- closing

TEST(TcpClose, ClosesActivelyThroughTimeWait) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  c->Close();
  p.host.Turn();
  EXPECT_EQ(p.One().Flags(), "FA");
  p.Send(kAck, 1, 2);
  p.Send(kFin | kAck, 1, 2);
  const Seen s = p.One();
  EXPECT_EQ(s.Flags(), "A");
  EXPECT_EQ(s.ack, 2u);
  std::vector<SocketInfo> all = p.host.stack().Sockets(false);
  EXPECT_TRUE(std::any_of(all.begin(), all.end(), [](const SocketInfo& i) { return i.state == 6; }));
  p.Send(kFin | kAck, 1, 2);
  EXPECT_EQ(p.One().Flags(), "A");
  p.host.Advance(Duration::Seconds(61));
  all = p.host.stack().Sockets(false);
  EXPECT_EQ(all.size(), 1u);  // the listener
}

TEST(TcpClose, ClosesPassively) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  Watcher w;
  c->set_observer(&w);
  p.Send(kFin | kAck | kPsh, 1, 1, "last");
  EXPECT_EQ(p.One().ack, 6u);
  EXPECT_EQ(c->state(), kCloseWait);
  EXPECT_EQ(w.seen & (kReadable | kReadClosed), uint32_t{kReadable | kReadClosed});
  EXPECT_FALSE(c->at_end());
  EXPECT_EQ(p.Read(c), "last");
  EXPECT_TRUE(c->at_end());
  p.Write(c, "reply");
  p.Take();
  c->Close();
  p.host.Turn();
  EXPECT_EQ(p.One().Flags(), "FA");
  p.Send(kAck, 6, 7);
  EXPECT_EQ(p.host.stack().Sockets(false).size(), 1u);
}

TEST(TcpClose, ClosesSimultaneously) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  ASSERT_EQ(c->Shutdown(true, true), Errno::kOk);
  p.host.Turn();
  EXPECT_EQ(p.One().Flags(), "FA");
  p.Send(kFin | kAck, 1, 1);
  EXPECT_EQ(p.One().ack, 2u);
  EXPECT_EQ(c->state(), 11);
  p.Send(kAck, 2, 2);
  EXPECT_EQ(c->state(), kClosed);
  EXPECT_EQ(p.host.stack().Sockets(false).size(), 3u);  // listener, closed handle, TIME_WAIT
  c->Close();
}

TEST(TcpClose, FinWaitsForASimultaneousHandshake) {  // found by fuzzing
  WirePeer p;
  StreamSocket* s = p.Socket();
  EXPECT_EQ(s->Connect({IpAddress::V4(10, 0, 0, 2), 5000}), Errno::kEINPROGRESS);
  p.host.Turn();
  p.host_port = p.One().raw.source_port;
  p.Send(kSyn, 0, 0);
  p.Take();
  s->Close();
  p.host.Turn();
  p.ExpectSilence();
  p.Send(kSyn | kAck, 0, 1);
  const std::vector<Seen> all = p.Take();
  ASSERT_GE(all.size(), 1u);
  EXPECT_EQ(all.back().seq, 1u);
  EXPECT_TRUE(all.back().raw.Has(kFin));
}

TEST(TcpClose, ResetsWhereDataIsUnread) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  p.Send(kAck | kPsh, 1, 1, "unread");
  p.Take();
  c->Close();
  p.host.Turn();
  EXPECT_EQ(p.One().Flags(), "RA");
}

TEST(TcpClose, LingerZeroResets) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  c->SetLinger(0);
  c->Close();
  p.host.Turn();
  EXPECT_EQ(p.One().Flags(), "RA");
  EXPECT_EQ(p.host.stack().Sockets(false).size(), 1u);
}

TEST(TcpClose, SendsWhatIsQueuedBeforeTheFinOfAnOrphan) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  p.Write(c, Text(20000));
  c->Close();
  p.host.Turn();
  std::string got;
  uint32_t acked = 1;
  for (int i = 0; i < 10; ++i) {
    for (const Seen& s : p.Take()) {
      got += s.payload;
      acked = s.seq + static_cast<uint32_t>(s.payload.size()) + (s.raw.Has(kFin) ? 1 : 0);
    }
    p.Send(kAck, 1, acked);
  }
  EXPECT_EQ(got, Text(20000));
  EXPECT_EQ(acked, 20002u);
}

TEST(TcpClose, ResetsAnOrphanThatGetsData) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  c->Close();
  p.host.Turn();
  p.Take();
  p.Send(kAck, 1, 2);
  p.Send(kAck | kPsh, 1, 2, "too late");
  const std::vector<Seen> all = p.Take();
  ASSERT_EQ(all.size(), 1u);
  EXPECT_TRUE(all[0].raw.Has(kRst));
}

TEST(TcpClose, ForgetsFinWait2AfterItsTimeout) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  ASSERT_EQ(c->SetOption(SockOpt::kTcpLinger2, 5), Errno::kOk);
  c->Close();
  p.host.Turn();
  p.Send(kAck, 1, 2);
  std::vector<SocketInfo> all = p.host.stack().Sockets(false);
  EXPECT_TRUE(std::any_of(all.begin(), all.end(), [](const SocketInfo& i) { return i.state == kFinWait2; }));
  p.host.Advance(Duration::Seconds(6));
  EXPECT_EQ(p.host.stack().Sockets(false).size(), 1u);
}

TEST(TcpClose, ListenerResetsWhatWasNotAccepted) {
  WirePeer p;
  p.Listener();
  p.Handshake();
  p.listener->Close();
  p.host.Turn();
  EXPECT_TRUE(p.One().raw.Has(kRst));
  EXPECT_EQ(p.host.stack().Sockets(false).size(), 0u);
}

TEST(TcpClose, ReportsAReset) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  p.Send(kRst, 1, 0);
  EXPECT_EQ(c->events() & (kError | kHangup | kReadable), uint32_t{kError | kHangup | kReadable});
  EXPECT_EQ(c->TakeError(), Errno::kECONNRESET);
  EXPECT_TRUE(c->at_end());
  c->Close();
}

// --- attacks and oddities (RFC 5961, 7323, 5927)

struct Blind {
  const char* name;
  uint8_t flags;
  uint32_t seq, ack;
  const char* payload;
  bool challenge;  // answered by an ACK; otherwise silence
};

class TcpBlind : public ::testing::TestWithParam<Blind> {};

TEST_P(TcpBlind, DoesNotHarmTheConnection) {
  const Blind& b = GetParam();
  WirePeer p;
  StreamSocket* c = p.Accepted();
  p.host.Advance(Duration::Seconds(2));
  p.Send(b.flags, b.seq, b.ack, b.payload);
  if (b.challenge) {
    const Seen s = p.One();
    EXPECT_EQ(s.Flags(), "A");
    EXPECT_EQ(s.seq, 1u);
    EXPECT_EQ(s.ack, 1u);
  } else {
    p.ExpectSilence();
  }
  EXPECT_EQ(c->state(), kEstablished);
  EXPECT_EQ(c->readable_bytes(), 0u);
  p.Send(kAck | kPsh, 1, 1, "alive");
  EXPECT_EQ(p.Read(c), "alive");
}

INSTANTIATE_TEST_SUITE_P(Segments, TcpBlind,
                         ::testing::Values(Blind{"ResetInWindow", kRst, 1000, 0, "", true}, Blind{"ResetBelow", kRst, 0, 0, "", false},
                                           Blind{"ResetBeyond", kRst, 1u << 20, 0, "", false},
                                           Blind{"SynInWindow", kSyn, 500, 0, "", true}, Blind{"SynExact", kSyn, 1, 0, "", true},
                                           Blind{"AckOfTheFuture", kAck, 1, 5000, "evil", true},
                                           Blind{"AckOfThePast", kAck, 1, 1u << 31, "evil", true},
                                           Blind{"DataBeyond", kAck, 1u << 20, 1, "evil", true},
                                           Blind{"DataBelow", kAck, static_cast<uint32_t>(-10), 1, "evil", true},
                                           Blind{"NoAck", 0, 1, 0, "evil", false}),
                         [](const auto& blind) { return std::string(blind.param.name); });

TEST(TcpAttack, LimitsChallenges) {
  WirePeer p;
  p.Accepted();
  p.host.Advance(Duration::Seconds(2));
  for (int i = 0; i < 50; ++i) p.Send(kSyn, 500, 0);
  EXPECT_EQ(p.Take().size(), 1u);
  p.host.Advance(Ms(600));
  p.Send(kSyn, 500, 0);
  EXPECT_EQ(p.Take().size(), 1u);
}

TEST(TcpAttack, DropsOldTimestamps) {
  WirePeer p;
  p.timestamps = true;
  StreamSocket* c = p.Accepted();
  p.ts_val += 50;
  p.Send(kAck | kPsh, 1, 1, "new");
  p.Take();
  p.ts_val -= 100;
  p.Send(kAck | kPsh, 4, 1, "old");
  EXPECT_EQ(p.One().ack, 4u);
  EXPECT_EQ(p.Read(c), "new");
  EXPECT_EQ(p.host.counter(Counter::kDropTcpPaws), 1u);
}

TEST(TcpAttack, DropsAWrongChecksum) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  tcp::HeaderSpec h = p.Header(kAck, 1, 1);
  std::vector<uint8_t> m(tcp::HeaderLength(h) + 3, 'z');
  tcp::WriteHeader(h, m.data());
  wire::Ipv4Fields ip;
  ip.source = IpAddress::V4(10, 0, 0, 2);
  ip.destination = IpAddress::V4(10, 0, 0, 1);
  ip.protocol = kIpProtoTcp;
  p.host.In(Ipv4Frame(p.host.mac(), ip, m));
  EXPECT_EQ(p.host.counter(Counter::kDropTcpChecksum), 1u);
  EXPECT_EQ(c->readable_bytes(), 0u);
}

TEST(TcpIcmp, LowersTheMssForAValidTooBigOnly) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  p.Write(c, Text(14600));
  const Seen first = p.One();
  p.Icmp(3, 4, 1000, first.raw, 1u << 20);  // not in flight: forged
  p.ExpectSilence();
  EXPECT_EQ(c->info().snd_mss, 1460u);
  p.Icmp(3, 4, 1000, first.raw, 1);
  const std::vector<Seen> again = p.Take();
  EXPECT_EQ(c->info().snd_mss, 960u);
  ASSERT_GE(again.size(), 1u);
  EXPECT_EQ(again[0].seq, 1u);
  EXPECT_EQ(again[0].gso_size, 960);
}

TEST(TcpIcmp, FailsAConnectAndNotAConnection) {
  WirePeer p;
  StreamSocket* s = p.Socket();
  EXPECT_EQ(s->Connect({IpAddress::V4(10, 0, 0, 2), 5000}), Errno::kEINPROGRESS);
  p.host.Turn();
  const Seen syn = p.One();
  p.Icmp(3, 3, 0, syn.raw, 0);
  EXPECT_EQ(s->TakeError(), Errno::kECONNREFUSED);
  WirePeer q;
  StreamSocket* c = q.Accepted();
  q.Write(c, "data");
  const Seen data = q.One();
  q.Icmp(3, 3, 0, data.raw, 1);
  EXPECT_EQ(c->state(), kEstablished);
  EXPECT_EQ(c->TakeError(), Errno::kOk);
}

// --- timers

TEST(TcpTimers, KeepAliveProbesAndGivesUp) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  ASSERT_EQ(c->SetOption(SockOpt::kKeepAlive, 1), Errno::kOk);
  ASSERT_EQ(c->SetOption(SockOpt::kTcpKeepIdle, 10), Errno::kOk);
  ASSERT_EQ(c->SetOption(SockOpt::kTcpKeepIntvl, 2), Errno::kOk);
  ASSERT_EQ(c->SetOption(SockOpt::kTcpKeepCnt, 3), Errno::kOk);
  p.host.Advance(Ms(9900));
  p.ExpectSilence();
  p.host.Advance(Ms(200));
  EXPECT_EQ(p.One().seq, 0u);
  p.Send(kAck, 1, 1);  // alive: starts over
  p.host.Advance(Ms(9900));
  p.ExpectSilence();
  p.host.Advance(Duration::Seconds(5));
  EXPECT_EQ(p.Take().size(), 3u);
  p.host.Advance(Duration::Seconds(2));
  EXPECT_TRUE(p.One().raw.Has(kRst));
  EXPECT_EQ(c->TakeError(), Errno::kETIMEDOUT);
}

TEST(TcpTimers, UserTimeoutEndsAnUnansweredConnection) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  ASSERT_EQ(c->SetOption(SockOpt::kTcpUserTimeout, 3000), Errno::kOk);
  p.Write(c, "hello?");
  p.host.Advance(Duration::Seconds(10));
  EXPECT_EQ(c->TakeError(), Errno::kETIMEDOUT);
}

TEST(TcpTimers, RetriesTwoDecidesWhenToGiveUp) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  p.Write(c, "hello?");
  p.host.Advance(Duration::Seconds(900));
  EXPECT_EQ(c->TakeError(), Errno::kOk);
  p.host.Advance(Duration::Seconds(240));
  EXPECT_EQ(c->TakeError(), Errno::kETIMEDOUT);
}

// --- binding

TEST(TcpBind, FollowsTheRulesOfSharing) {
  WirePeer p;
  const Endpoint any{IpAddress::Any(Family::kIpv4), 80}, one{IpAddress::V4(10, 0, 0, 1), 80};
  StreamSocket* a = p.Socket();
  ASSERT_EQ(a->Bind(any), Errno::kOk);
  StreamSocket* b = p.Socket();
  EXPECT_EQ(b->Bind(one), Errno::kEADDRINUSE);
  EXPECT_EQ(b->Bind({IpAddress::V4(10, 0, 0, 77), 80}), Errno::kEADDRNOTAVAIL);
  ASSERT_EQ(a->SetOption(SockOpt::kReuseAddr, 1), Errno::kOk);
  ASSERT_EQ(b->SetOption(SockOpt::kReuseAddr, 1), Errno::kOk);
  EXPECT_EQ(b->Bind(one), Errno::kOk);  // both reuse, none listens
  ASSERT_EQ(a->Listen(1), Errno::kOk);
  EXPECT_EQ(b->Listen(1), Errno::kEADDRINUSE);
  StreamSocket* v6 = p.host.stack().NewTcpSocket(Family::kIpv6);
  EXPECT_EQ(v6->Bind({IpAddress::Any(Family::kIpv6), 80}), Errno::kEADDRINUSE);  // dual stack
  ASSERT_EQ(v6->SetOption(SockOpt::kIpv6V6Only, 1), Errno::kOk);
  EXPECT_EQ(v6->Bind({IpAddress::Any(Family::kIpv6), 80}), Errno::kOk);
}

TEST(TcpBind, TimeWaitBlocksWithoutReuseAddr) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  c->Close();
  p.host.Turn();
  p.Send(kFin | kAck, 1, 2);
  p.Take();
  p.listener->Close();
  p.host.Turn();
  StreamSocket* again = p.Socket();
  EXPECT_EQ(again->Bind({IpAddress::Any(Family::kIpv4), 80}), Errno::kEADDRINUSE);
  p.host.Advance(Duration::Seconds(61));
  EXPECT_EQ(again->Bind({IpAddress::Any(Family::kIpv4), 80}), Errno::kOk);
}

TEST(TcpBind, ReusePortGroupSharesConnections) {
  WirePeer p;
  StreamSocket* group[3];
  for (StreamSocket*& s : group) {
    s = p.Socket();
    ASSERT_EQ(s->SetOption(SockOpt::kReusePort, 1), Errno::kOk);
    ASSERT_EQ(s->Bind({IpAddress::Any(Family::kIpv4), 80}), Errno::kOk);
    ASSERT_EQ(s->Listen(100), Errno::kOk);
  }
  for (int i = 0; i < 90; ++i) {
    p.port = static_cast<uint16_t>(10000 + i);
    p.Handshake();
  }
  int total = 0;
  for (StreamSocket* s : group) {
    int n = 0;
    while (s->Accept() != nullptr) ++n;
    EXPECT_GT(n, 10);
    total += n;
  }
  EXPECT_EQ(total, 90);
}

TEST(TcpBind, DualStackListenerSpeaksV4WithMappedAddresses) {
  WirePeer p;
  p.listener = p.host.stack().NewTcpSocket(Family::kIpv6);
  ASSERT_EQ(p.listener->Bind({IpAddress::Any(Family::kIpv6), 80}), Errno::kOk);
  ASSERT_EQ(p.listener->Listen(5), Errno::kOk);
  p.Handshake();
  StreamSocket* c = p.listener->Accept();
  ASSERT_NE(c, nullptr);
  EXPECT_EQ(c->family(), Family::kIpv6);
  EXPECT_EQ(ToString(*c->remote()), "[::ffff:10.0.0.2]:5000");
}

TEST(TcpTimeWait, LetsANewerSynIn) {
  WirePeer p;
  p.timestamps = true;
  StreamSocket* c = p.Accepted();
  c->Close();
  p.host.Turn();
  p.Send(kFin | kAck, 1, 2);
  p.Take();
  const SeqNum old = p.host_iss;
  p.ts_val += 1000;
  p.iss = SeqNum(500000);
  p.Send(kSyn, 0, 0);
  const Seen s = p.One();
  EXPECT_EQ(s.Flags(), "SA");
  EXPECT_GT(s.raw.seq, old + 60000);
  p.Send(kAck, 1, 1);
  EXPECT_NE(p.listener->Accept(), nullptr);
}

}  // namespace
}  // namespace sluice::testing
