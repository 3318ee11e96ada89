// One mechanism each, frames in and frames out in virtual time. Connections end: by FIN, reset, timers.
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

TEST(TcpClose, SendsWhatWasWrittenBeforeTheReset) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  c->SetLinger(0);
  p.Write(c, "last words");
  c->Close();
  p.host.Turn();
  const std::vector<Seen> seen = p.Take();
  ASSERT_EQ(seen.size(), 2u);
  EXPECT_EQ(seen[0].payload, "last words");
  EXPECT_EQ(seen[1].Flags(), "RA");
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

TEST(TcpClose, AFinAheadOfMissingTextNeedNotComeAgain) {
  WirePeer p;
  p.sack = true;
  StreamSocket* c = p.Accepted();
  p.Send(kFin | kAck, 4, 1, "def");
  const Seen hole = p.One();
  EXPECT_EQ(hole.ack, 1u);
  ASSERT_EQ(hole.raw.sack_count, 1);
  EXPECT_EQ(hole.raw.sack[0].end - p.iss, 8u);  // the FIN as well
  p.Send(kAck, 1, 1, "abc");
  EXPECT_EQ(p.One().ack, 8u);
  EXPECT_EQ(c->state(), kCloseWait);
  EXPECT_EQ(p.Read(c), "abcdef");
}

TEST(TcpClose, LingerZeroSendsNoResetWhereBothHaveClosed) {
  WirePeer p;
  StreamSocket* c = p.Accepted();
  p.Send(kFin | kAck, 1, 1);
  p.Take();
  ASSERT_EQ(c->Shutdown(false, true), Errno::kOk);
  p.host.Turn();
  EXPECT_EQ(p.One().Flags(), "FA");
  c->SetLinger(0);
  c->Close();
  p.host.Turn();
  p.ExpectSilence();
}

TEST(TcpClose, WhatALocalPeersWindowTakesArrivesBeforeAReset) {
  WirePeer p;
  const Endpoint here{IpAddress::V4(127, 0, 0, 1), 80};
  StreamSocket *listener = p.Listener(), *client = p.Socket();
  ASSERT_EQ(client->Connect(here), Errno::kEINPROGRESS);
  p.host.Turn();
  StreamSocket* server = listener->Accept();
  ASSERT_NE(server, nullptr);
  Block* b = p.host.pool().Allocate(90000);
  ASSERT_EQ(client->Send(Slice{BlockRef(b), 0, 90000}, false), Errno::kOk);
  p.host.stack().DeliverLooped();
  EXPECT_EQ(client->unsent_bytes(), 0u);
  client->Abort();
  p.host.Turn();
  EXPECT_EQ(server->readable_bytes(), 90000u);
  EXPECT_EQ(server->TakeError(), Errno::kECONNRESET);
  server->Close();
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

}  // namespace
}  // namespace sluice::testing
