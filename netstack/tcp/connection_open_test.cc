// One mechanism each, frames in and frames out in virtual time. Connections come about: handshakes, refusals, cookies, binding.
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
