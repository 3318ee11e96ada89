// Explicit Congestion Notification (RFC 3168 6.1), frames in and frames out in virtual time.
#include <gtest/gtest.h>

#include "netstack/tcp/testing/programs.h"
#include "netstack/tcp/testing/wire_peer.h"

namespace sluice::testing {
namespace {

using tcp::kAck;
using tcp::kCwr;
using tcp::kEce;
using tcp::kSyn;

constexpr uint8_t kEct0 = 2, kCe = 3;
constexpr uint8_t kInfoEcn = 8, kInfoEcnSeen = 16;

void Set(WirePeer& p, const char* key, const char* value) {
  p.host.config().sysctls[key] = value;
  p.host.ApplyConfig();
}

// The peer asks, the host agrees.
StreamSocket* Agreed(WirePeer& p) {
  p.Listener();
  p.Send(kSyn | kEce | kCwr, 0, 0);
  EXPECT_EQ(p.One().Flags(), "SAE");
  p.Send(kAck, 1, 1);
  StreamSocket* s = p.listener->Accept();
  EXPECT_NE(s, nullptr);
  EXPECT_EQ(s->info().options & kInfoEcn, kInfoEcn);
  return s;
}

TEST(TcpEcn, IsAgreedToWhereThePeerAsksUnlessTheSysctlForbids) {
  WirePeer p;
  Agreed(p);
  WirePeer off;
  Set(off, "net.ipv4.tcp_ecn", "0");
  off.Listener();
  off.Send(kSyn | kEce | kCwr, 0, 0);
  EXPECT_EQ(off.One().Flags(), "SA");
  WirePeer plain;
  EXPECT_EQ(plain.Accepted()->info().options & kInfoEcn, 0);
}

TEST(TcpEcn, ASynThatCanBeMarkedIsNotAgreedTo) {
  WirePeer p;
  p.Listener();
  p.tos = kEct0;
  p.Send(kSyn | kEce | kCwr, 0, 0);
  EXPECT_EQ(p.One().Flags(), "SA");
}

TEST(TcpEcn, AConnectionAsksByItsSynWhereTheSysctlSaysSo) {
  struct {
    uint8_t answer, agreed;
  } const cases[] = {{kEce, kInfoEcn}, {kEce | kCwr, 0}, {0, 0}};
  for (const auto& c : cases) {
    WirePeer p;
    Set(p, "net.ipv4.tcp_ecn", "1");
    StreamSocket* s = p.Socket();
    ASSERT_EQ(s->Connect({IpAddress::V4(10, 0, 0, 2), 5000}), Errno::kEINPROGRESS);
    p.host.Turn();
    const Seen syn = p.One();
    EXPECT_EQ(syn.Flags(), "SEC");
    EXPECT_EQ(syn.tos, 0);
    p.host_port = syn.raw.source_port;
    p.Send(static_cast<uint8_t>(kSyn | kAck | c.answer), 0, 1);
    EXPECT_EQ(p.One().Flags(), "A");
    EXPECT_EQ(s->info().options & kInfoEcn, c.agreed);
    p.Write(s, "x");
    EXPECT_EQ(p.One().tos, c.agreed != 0 ? kEct0 : 0);
  }
}

TEST(TcpEcn, ASynThatIsSentAgainDoesNotAskUnlessTheSysctlSaysSo) {
  for (const char* fallback : {"1", "0"}) {
    WirePeer p;
    Set(p, "net.ipv4.tcp_ecn", "1");
    Set(p, "net.ipv4.tcp_ecn_fallback", fallback);
    ASSERT_EQ(p.Socket()->Connect({IpAddress::V4(10, 0, 0, 2), 5000}), Errno::kEINPROGRESS);
    p.host.Turn();
    EXPECT_EQ(p.One().Flags(), "SEC");
    p.host.Advance(Ms(1100));
    EXPECT_EQ(p.One().Flags(), *fallback == '1' ? "S" : "SEC");
  }
}

TEST(TcpEcn, ACookieRemembersWhereThereAreTimestamps) {
  for (const bool timestamps : {true, false}) {
    WirePeer p;
    p.timestamps = timestamps;
    Set(p, "net.ipv4.tcp_syncookies", "2");
    p.Listener();
    p.Send(kSyn | kEce | kCwr, 0, 0);
    EXPECT_EQ(p.One().Flags(), timestamps ? "SAE" : "SA");
    p.Send(kAck, 1, 1);
    StreamSocket* s = p.listener->Accept();
    ASSERT_NE(s, nullptr);
    EXPECT_EQ(s->info().options & kInfoEcn, timestamps ? kInfoEcn : 0);
  }
}

TEST(TcpEcn, OnlyNewDataSaysThatItCanBeMarked) {
  WirePeer p;
  StreamSocket* s = Agreed(p);
  p.Write(s, Text(100));
  EXPECT_EQ(p.One().tos, kEct0);
  p.host.Advance(Ms(2000));
  std::vector<Seen> again = p.Take();
  ASSERT_FALSE(again.empty());
  for (const Seen& one : again) EXPECT_EQ(one.tos, 0);
  p.Send(kAck, 1, 101, "hello");
  p.host.Advance(Ms(300));
  const Seen ack = p.One();
  EXPECT_EQ(ack.Flags(), "A");
  EXPECT_EQ(ack.tos, 0);
}

TEST(TcpEcn, AMarkIsEchoedUntilThePeerSaysThatItHasReduced) {
  WirePeer p;
  StreamSocket* s = Agreed(p);
  p.tos = kEct0;
  p.Send(kAck, 1, 1, Text(10));
  p.host.Advance(Ms(300));
  for (const Seen& one : p.Take()) EXPECT_EQ(one.Flags(), "A");
  EXPECT_EQ(s->info().options & kInfoEcnSeen, kInfoEcnSeen);
  p.tos = kCe;
  p.Send(kAck, 11, 1, Text(10));
  EXPECT_EQ(p.One().Flags(), "AE");  // at once
  EXPECT_EQ(p.host.counter(Counter::kIpInCEPkts), 1u);
  p.tos = kEct0;
  p.Send(kAck, 21, 1, Text(10));
  p.host.Advance(Ms(300));
  EXPECT_EQ(p.One().Flags(), "AE");
  p.Write(s, "y");
  EXPECT_EQ(p.One().Flags(), "PAE");
  p.Send(kAck | kCwr, 31, 2, Text(10));
  EXPECT_EQ(p.One().Flags(), "A");
  p.tos = kCe;
  p.Send(kAck | kCwr, 41, 2, Text(10));  // marked on its way
  EXPECT_EQ(p.One().Flags(), "AE");
}

TEST(TcpEcn, MarksOfAPeerThatDidNotAgreeMeanNothing) {
  WirePeer p;
  StreamSocket* s = p.Accepted();
  p.tos = kCe;
  p.Send(kAck, 1, 1, Text(10));
  p.host.Advance(Ms(300));
  for (const Seen& one : p.Take()) EXPECT_EQ(one.Flags(), "A");
  const uint32_t before = s->info().snd_cwnd;
  p.Write(s, Text(1000));
  EXPECT_EQ(p.One().tos, 0);
  p.Send(kAck | kEce, 11, 1001);
  EXPECT_GE(s->info().snd_cwnd, before);
}

TEST(TcpEcn, AnEchoReducesTheWindowOnceAndSaysSoWithTheNextData) {
  WirePeer p;
  p.sack = true;
  StreamSocket* s = Agreed(p);
  const uint32_t before = s->info().snd_cwnd;
  p.Write(s, Text(size_t{1460} * 8));
  const auto sent = static_cast<uint32_t>(1460 * 8);
  for (const Seen& one : p.Take()) EXPECT_EQ(one.tos, kEct0);
  p.Send(kAck | kEce, 1, 1 + 2 * 1460);
  EXPECT_EQ(s->info().ca_state, 2);  // CWR
  const uint32_t ssthresh = s->info().snd_ssthresh;
  EXPECT_LT(ssthresh, before);
  EXPECT_EQ(s->info().delivered_ce, 2u);
  p.Send(kAck | kEce, 1, 1 + sent);  // the same window
  EXPECT_EQ(s->info().snd_ssthresh, ssthresh);
  EXPECT_EQ(s->info().total_retrans, 0u);
  p.Take();
  p.Write(s, Text(size_t{1460} * 2));
  const std::vector<Seen> next = p.Take();
  ASSERT_FALSE(next.empty());
  EXPECT_TRUE(next[0].raw.Has(kCwr));
  EXPECT_EQ(next[0].gso_ecn, next[0].gso_size != 0);
  for (size_t i = 1; i < next.size(); ++i) EXPECT_FALSE(next[i].raw.Has(kCwr));
  p.Send(kAck, 1, 1 + sent + 2 * 1460);
  EXPECT_EQ(s->info().ca_state, 0);
  EXPECT_EQ(s->info().snd_cwnd, ssthresh);
}

TEST(TcpEcn, AnEchoWithNothingInFlightMeansNothing) {
  WirePeer p;
  StreamSocket* s = Agreed(p);
  const uint32_t before = s->info().snd_cwnd;
  p.Send(kAck | kEce, 1, 1);
  EXPECT_EQ(s->info().ca_state, 0);
  EXPECT_EQ(s->info().snd_cwnd, before);
}

// A timeout that proves needless is undone, but not what a mark says in the same breath.
TEST(TcpEcn, AMarkStandsThoughTheRetransmissionWasNeedless) {
  for (const bool marked : {false, true}) {
    WirePeer p;
    p.timestamps = true;
    StreamSocket* s = Agreed(p);
    const uint32_t before = s->info().snd_cwnd;
    p.Write(s, Text(size_t{1448} * 8));
    p.Take();
    const uint32_t first_stamp = p.ts_ecr;
    p.host.Advance(Ms(1100));
    ASSERT_EQ(s->info().ca_state, 4);  // loss
    p.Take();
    p.ts_ecr = first_stamp;
    p.Send(static_cast<uint8_t>(kAck | (marked ? kEce : 0)), 1, 1 + 2 * 1448);
    EXPECT_EQ(s->info().ca_state, marked ? 2 : 0);
    if (marked)
      EXPECT_LT(s->info().snd_ssthresh, 3u);
    else
      EXPECT_GE(s->info().snd_cwnd, before);
  }
}

TEST(TcpEcn, ATimeoutInAWindowThatIsReducedForAMarkReducesNoMore) {
  WirePeer p;
  StreamSocket* s = Agreed(p);
  p.Write(s, Text(size_t{1460} * 8));
  p.Send(kAck | kEce, 1, 1 + 2 * 1460);
  ASSERT_EQ(s->info().ca_state, 2);
  const uint32_t ssthresh = s->info().snd_ssthresh;
  p.host.Advance(Ms(2000));
  EXPECT_EQ(s->info().ca_state, 4);
  EXPECT_EQ(s->info().snd_ssthresh, ssthresh);
}

TEST(TcpEcn, SaysThatItHasReducedThoughThereWasNoMemoryAtFirst) {
  WirePeer p;
  StreamSocket* s = Agreed(p);
  p.Write(s, Text(1460));
  p.Send(kAck | kEce, 1, 1461);
  p.Take();
  const std::string data = Text(1000);
  Block* b = p.host.pool().Allocate(data.size());
  std::copy(data.begin(), data.end(), b->data);
  ASSERT_EQ(s->Send(Slice{BlockRef(b), 0, static_cast<uint32_t>(data.size())}, false), Errno::kOk);
  std::vector<BlockRef> all = p.AllMemory();
  p.host.Turn();
  p.ExpectSilence();
  all.clear();
  p.host.Advance(Ms(2000));
  const std::vector<Seen> out = p.Take();
  ASSERT_FALSE(out.empty());
  EXPECT_TRUE(out[0].raw.Has(kCwr));
}

// A bottleneck that marks long before it would drop.
TEST(TcpEcn, AMarkingBottleneckIsFilledWithoutALoss) {
  constexpr uint64_t kRate = 100'000'000;
  constexpr uint64_t kBytes = 30'000'000;
  for (const char* control : {"cubic", "reno"}) {
    SCOPED_TRACE(control);
    SimNetwork net(1);
    SimHost& a = net.AddHost("a", HostConfig("10.0.0.1/24"));
    SimHost& b = net.AddHost("b", HostConfig("10.0.0.2/24"));
    const LinkProfile link{.rate_bps = kRate, .delay = Ms(5), .queue_bytes = 1 << 20, .mark_bytes = 100'000};
    net.Join(a, kSimIfIndex, b, kSimIfIndex, link, link);
    a.SetSysctl("net.ipv4.tcp_ecn", "1");
    a.SetSysctl("net.ipv4.tcp_congestion_control", control);
    a.ApplyConfig();
    StreamSocket* listener = b.stack().NewTcpSocket(Family::kIpv4);
    ASSERT_EQ(listener->Bind({IpAddress::V4(10, 0, 0, 2), 80}), Errno::kOk);
    ASSERT_EQ(listener->Listen(16), Errno::kOk);
    StreamSocket* client = a.stack().NewTcpSocket(Family::kIpv4);
    ASSERT_EQ(client->Connect({IpAddress::V4(10, 0, 0, 2), 80}), Errno::kEINPROGRESS);
    StreamPeer sender(a, client, 1, kBytes, 2);
    std::unique_ptr<StreamPeer> receiver;
    a.on_turn = [&] { sender.Work(); };
    b.on_turn = [&] {
      if (StreamSocket* s = receiver ? nullptr : listener->Accept()) receiver = std::make_unique<StreamPeer>(b, s, 2, 0, 1);
      if (receiver) receiver->Work();
    };
    ASSERT_TRUE(net.RunUntil([&] { return receiver && receiver->received() == kBytes; }, Duration::Seconds(4)));
    EXPECT_EQ(net.stats(a).queue_drops, 0u);
    EXPECT_GT(net.stats(a).marked, 10u);
    EXPECT_EQ(client->info().retrans + client->info().total_retrans, 0u);
    EXPECT_GT(client->info().delivered_ce, 0u);
  }
}

}  // namespace
}  // namespace sluice::testing
