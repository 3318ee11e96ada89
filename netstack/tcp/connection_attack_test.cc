// One mechanism each, frames in and frames out in virtual time. Attacks and oddities (RFC 5961, 7323, 5927).
#include <gtest/gtest.h>

#include "netstack/tcp/testing/programs.h"
#include "netstack/tcp/testing/wire_peer.h"

namespace sluice::testing {
namespace {

using tcp::kAck;
using tcp::kPsh;
using tcp::kRst;
using tcp::kSyn;

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

INSTANTIATE_TEST_SUITE_P(
    Segments, TcpBlind,
    ::testing::Values(Blind{"ResetInWindow", kRst, 1000, 0, "", true}, Blind{"ResetBelow", kRst, 0, 0, "", false},
                      Blind{"ResetBeyond", kRst, 1u << 20, 0, "", false}, Blind{"SynInWindow", kSyn, 500, 0, "", true},
                      Blind{"SynExact", kSyn, 1, 0, "", true}, Blind{"AckOfTheFuture", kAck, 1, 5000, "evil", true},
                      Blind{"AckOfThePast", kAck, 1, 1u << 31, "evil", true},
                      Blind{"AckOlderThanTheConnection", kAck, 1, static_cast<uint32_t>(-100), "evil", true},
                      Blind{"DataBeyond", kAck, 1u << 20, 1, "evil", true},
                      Blind{"DataBelow", kAck, static_cast<uint32_t>(-10), 1, "evil", true},
                      Blind{"NoAck", 0, 1, 0, "evil", false}, Blind{"NoAckBeyond", kPsh, 1u << 20, 0, "evil", false}),
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
  p.timestamps = p.sack = true;
  StreamSocket* c = p.Accepted();
  p.ts_val += 50;
  p.Send(kAck | kPsh, 1, 1, "new");
  p.Take();
  p.ts_val -= 100;
  p.Send(kAck | kPsh, 4, 1, "old");
  const Seen said = p.One();
  EXPECT_EQ(said.ack, 4u);
  EXPECT_EQ(said.raw.sack_count, 0);  // it was not taken
  EXPECT_EQ(p.Read(c), "new");
  EXPECT_EQ(p.host.counter(Counter::kDropTcpPaws), 1u);
}

TEST(TcpAttack, ASynMovesNoTimestamp) {
  WirePeer p;
  p.timestamps = true;
  StreamSocket* c = p.Accepted();
  p.ts_val += 1 << 20;
  p.Send(kSyn, 0, 0);
  EXPECT_EQ(p.One().ack, 1u);
  p.ts_val -= 1 << 20;
  p.Send(kAck | kPsh, 1, 1, "alive");
  EXPECT_EQ(p.Read(c), "alive");
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

}  // namespace
}  // namespace sluice::testing
