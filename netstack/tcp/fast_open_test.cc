// TCP Fast Open (RFC 7413), one mechanism each, frames in and frames out in virtual time.
#include "netstack/tcp/fast_open.h"

#include <gtest/gtest.h>

#include "netstack/tcp/testing/programs.h"
#include "netstack/tcp/testing/wire_peer.h"

namespace sluice::testing {
namespace {

using tcp::FastOpenCookie;
using tcp::FastOpenKeys;
using tcp::kAck;
using tcp::kFin;
using tcp::kPsh;
using tcp::kRst;
using tcp::kSyn;

constexpr int kSynReceived = 3, kSynSent = 2;
constexpr char kKey[] = "00112233-44556677-8899aabb-ccddeeff";
const Endpoint kPeer{IpAddress::V4(10, 0, 0, 2), 5000};
constexpr uint8_t kSynData = 32;  // of tcpi_options

FastOpenCookie Cookie(std::initializer_list<uint8_t> bytes) {
  FastOpenCookie c;
  c.length = static_cast<int8_t>(bytes.size());
  std::copy(bytes.begin(), bytes.end(), c.bytes.begin());
  return c;
}

// What the kernel (Linux 6.18) gives 10.0.0.2 at 10.0.0.1 with kKey.
const FastOpenCookie kCookie = Cookie({0xdc, 0x60, 0xbf, 0x54, 0x7b, 0xe9, 0xbb, 0x12});

class FastOpenPeer : public WirePeer {
 public:
  explicit FastOpenPeer(const char* mode = "3") {
    Sysctl("tcp_fastopen", mode);
    Sysctl("tcp_fastopen_key", kKey);
  }
  void Sysctl(const std::string& name, const std::string& value) {
    host.config().sysctls["net.ipv4." + name] = value;
    host.ApplyConfig();
  }

  // --- the host is the server
  void Serve(int queue = 5) {
    Listener();
    EXPECT_EQ(listener->SetOption(SockOpt::kTcpFastOpen, queue), Errno::kOk);
  }
  Seen SendSyn(const FastOpenCookie& cookie, std::string_view data = {}) {
    tcp::HeaderSpec h = Header(kSyn, 0, 0);
    h.fast_open = cookie;
    Send(h, data);
    return One();
  }

  // --- the host is the client
  Errno SendTo(StreamSocket* s, std::string_view data, size_t* taken, bool all = false) {
    Block* b = host.pool().Allocate(std::max<size_t>(data.size(), 1));
    std::copy(data.begin(), data.end(), b->data);
    const Errno e = s->ConnectWithData(kPeer, Slice{BlockRef(b), 0, static_cast<uint32_t>(data.size())}, all, taken);
    host.Turn();
    return e;
  }
  Seen TakeSyn() {
    const Seen syn = One();
    EXPECT_EQ(syn.Flags(), "S");
    host_port = syn.raw.source_port;
    return syn;
  }
  void AnswerSyn(uint32_t ack, const FastOpenCookie& cookie = {}) {
    tcp::HeaderSpec h = Header(kSyn | kAck, 0, ack);
    h.fast_open = cookie;
    Send(h);
  }
  // A connection that brings the cookie home.
  void LearnCookie() {
    StreamSocket* s = Socket();
    size_t taken = 0;
    EXPECT_EQ(SendTo(s, "x", &taken), Errno::kEINPROGRESS);
    EXPECT_EQ(taken, 0u);
    EXPECT_EQ(TakeSyn().raw.fast_open.length, 0);
    AnswerSyn(1, kCookie);
    EXPECT_EQ(One().Flags(), "A");
    s->Abort();
    host.Turn();
    Take();
  }
};

// --- keys and cookies

TEST(FastOpenKeys, AreReadAndPrintedAsTheKernelDoes) {
  EXPECT_EQ(FastOpenKeys::FromText(kKey)->ToText(), kKey);
  const std::string two = std::string(kKey) + ",1-2-3-4";
  EXPECT_EQ(FastOpenKeys::FromText(two)->ToText(), std::string(kKey) + ",00000001-00000002-00000003-00000004");
  EXPECT_EQ(FastOpenKeys::FromText("00000000-00000000-00000000-00000000")->count, 0u);
  for (const char* bad : {"", "1-2-3", "1-2-3-4-5", "1-2-3-x", "1-2-3-4,", "123456789-0-0-0", "1-2-3-4,1-2-3-4,1-2-3-4"})
    EXPECT_FALSE(FastOpenKeys::FromText(bad)) << bad;
}

TEST(FastOpenKeys, MakeTheKernelsCookies) {
  const tcp::FlowKey flow{IpAddress::V4(10, 0, 0, 1), IpAddress::V4(10, 0, 0, 2), 80, 5000};
  EXPECT_TRUE(MakeFastOpenCookie(FastOpenKeys::FromText(kKey)->keys[0], flow) == kCookie);
}

// --- server

TEST(FastOpenServer, GivesACookieToWhoAsks) {
  FastOpenPeer p;
  p.Serve();
  const Seen s = p.SendSyn(Cookie({}), "ignored");
  EXPECT_EQ(s.Flags(), "SA");
  EXPECT_EQ(s.ack, 1u);
  EXPECT_TRUE(s.raw.fast_open == kCookie);
  EXPECT_EQ(p.listener->Accept(), nullptr);
  EXPECT_EQ(p.host.counter(Counter::kTcpFastOpenCookieReqd), 1u);
  p.host.Advance(Ms(1100));
  EXPECT_FALSE(p.One().raw.fast_open.present());  // a repetition goes without
}

TEST(FastOpenServer, DeliversDataOfAValidCookieAndAnswersBeforeTheHandshakeIsOver) {
  FastOpenPeer p;
  p.timestamps = p.sack = true;
  p.wscale = 7;
  p.Serve();
  const Seen s = p.SendSyn(kCookie, "request");
  EXPECT_EQ(s.Flags(), "SA");
  EXPECT_EQ(s.ack, 8u);
  EXPECT_FALSE(s.raw.fast_open.present());
  StreamSocket* c = p.listener->Accept();
  ASSERT_NE(c, nullptr);
  EXPECT_EQ(c->state(), kSynReceived);
  EXPECT_EQ(ToString(*c->remote()), "10.0.0.2:5000");
  EXPECT_EQ(c->events() & (kReadable | kWritable), uint32_t{kReadable | kWritable});
  EXPECT_EQ(p.Read(c), "request");
  EXPECT_EQ(c->info().options & kSynData, kSynData);
  p.ExpectSilence();
  p.Write(c, "answer");
  const Seen answer = p.One();
  EXPECT_EQ(answer.payload, "answer");
  EXPECT_EQ(answer.seq, 1u);
  EXPECT_EQ(answer.ack, 8u);
  p.Send(kAck | kPsh, 8, 7, "more");
  EXPECT_EQ(c->state(), kEstablished);
  EXPECT_EQ(c->unacked_bytes(), 0u);
  EXPECT_EQ(p.Read(c), "more");
  EXPECT_EQ(p.host.counter(Counter::kTcpFastOpenPassive), 1u);
  EXPECT_EQ(p.host.counter(Counter::kTcpPassiveOpens), 1u);
  EXPECT_EQ(p.host.counter(Counter::kTcpAttemptFails), 0u);
}

TEST(FastOpenServer, TakesAValidCookieWithoutData) {
  FastOpenPeer p;
  p.Serve();
  EXPECT_EQ(p.SendSyn(kCookie).ack, 1u);
  StreamSocket* c = p.listener->Accept();
  ASSERT_NE(c, nullptr);
  EXPECT_EQ(c->info().options & kSynData, 0);
  p.Send(kAck, 1, 1);
  EXPECT_EQ(c->state(), kEstablished);
}

TEST(FastOpenServer, AnswersAWrongCookieWithTheRightOne) {
  FastOpenPeer p;
  p.Serve();
  const Seen s = p.SendSyn(Cookie({1, 2, 3, 4, 5, 6, 7, 8}), "data");
  EXPECT_EQ(s.ack, 1u);
  EXPECT_TRUE(s.raw.fast_open == kCookie);
  EXPECT_EQ(p.listener->Accept(), nullptr);
  EXPECT_EQ(p.host.counter(Counter::kTcpFastOpenPassiveFail), 1u);
  p.Send(kAck | kPsh, 1, 1, "data");
  StreamSocket* c = p.listener->Accept();
  ASSERT_NE(c, nullptr);
  EXPECT_EQ(p.Read(c), "data");
}

TEST(FastOpenServer, TakesACookieOfTheBackupKeyAndRenewsIt) {
  FastOpenPeer p;
  p.Serve();
  const std::vector<uint8_t> keys = FastOpenKeys::FromText(std::string("1-2-3-4,") + kKey)->ToBytes();
  ASSERT_EQ(p.listener->SetFastOpenKeys(keys), Errno::kOk);
  EXPECT_EQ(p.listener->fast_open_keys(), keys);
  EXPECT_EQ(p.listener->SetFastOpenKeys(Bytes(keys).first(15)), Errno::kEINVAL);
  const Seen s = p.SendSyn(kCookie, "data");
  EXPECT_EQ(s.ack, 5u);
  EXPECT_TRUE(s.raw.fast_open.has_cookie());
  EXPECT_FALSE(s.raw.fast_open == kCookie);
  EXPECT_NE(p.listener->Accept(), nullptr);
  EXPECT_EQ(p.host.counter(Counter::kTcpFastOpenPassiveAltKey), 1u);
  p.port = 5001;
  EXPECT_EQ(p.SendSyn(s.raw.fast_open, "data").ack, 5u);  // and the new one is good
}

TEST(FastOpenServer, NeedsTheSysctlAndTheOption) {
  for (const char* mode : {"1", "3"}) {
    FastOpenPeer p(mode);
    if (mode[0] == '1')
      p.Serve();
    else
      p.Listener();
    const Seen s = p.SendSyn(kCookie, "data");
    EXPECT_EQ(s.ack, 1u) << mode;
    EXPECT_FALSE(s.raw.fast_open.present()) << mode;
    EXPECT_EQ(p.listener->Accept(), nullptr) << mode;
  }
}

TEST(FastOpenServer, TheSysctlMakesEveryListenerOneAndCookiesNeedless) {
  FastOpenPeer p("1539");  // 0x603
  p.Listener(7);
  int64_t queue = 0;
  EXPECT_EQ(p.listener->GetOption(SockOpt::kTcpFastOpen, &queue), Errno::kOk);
  EXPECT_EQ(queue, 7);
  EXPECT_EQ(p.SendSyn({}, "data").ack, 5u);
  StreamSocket* c = p.listener->Accept();
  ASSERT_NE(c, nullptr);
  EXPECT_EQ(p.Read(c), "data");
  EXPECT_EQ(c->GetOption(SockOpt::kTcpFastOpen, &queue), Errno::kOk);
  EXPECT_EQ(queue, 0);  // is the listener's alone
}

TEST(FastOpenServer, BoundsTheQueueAndCountsResetsForAMinute) {
  FastOpenPeer p;
  p.Serve(1);
  EXPECT_EQ(p.SendSyn(kCookie, "data").ack, 5u);
  ASSERT_NE(p.listener->Accept(), nullptr);
  p.port = 5001;
  EXPECT_EQ(p.SendSyn(kCookie, "data").ack, 1u);  // a usual handshake
  EXPECT_EQ(p.host.counter(Counter::kTcpFastOpenListenOverflow), 1u);
  p.Send(kRst, 1, 0);
  p.port = 5000;
  p.Send(kRst, 5, 0);
  EXPECT_EQ(p.host.counter(Counter::kTcpAttemptFails), 2u);
  p.port = 5002;
  EXPECT_EQ(p.SendSyn(kCookie, "data").ack, 1u);  // the one that was reset still counts
  p.Send(kRst, 1, 0);
  p.host.Advance(Duration::Seconds(61));
  p.Take();
  p.port = 5003;
  EXPECT_EQ(p.SendSyn(kCookie, "data").ack, 5u);
  p.Send(kAck, 5, 1);  // complete: there is room again
  p.port = 5004;
  EXPECT_EQ(p.SendSyn(kCookie, "data").ack, 5u);
}

TEST(FastOpenServer, RepeatsTheSynAckAndNothingElseUntilItIsAcknowledged) {
  FastOpenPeer p;
  p.Serve();
  p.SendSyn(kCookie, "data");
  StreamSocket* c = p.listener->Accept();
  ASSERT_NE(c, nullptr);
  p.Write(c, "answer");
  p.Take();
  p.Send(kSyn, 0, 0);  // as a client repeats it: without the option and without data
  Seen s = p.One();
  EXPECT_EQ(s.Flags(), "SA");
  EXPECT_EQ(s.ack, 5u);
  p.host.Advance(Ms(1100));
  s = p.One();
  EXPECT_EQ(s.Flags(), "SA");
  EXPECT_EQ(s.ack, 5u);
  p.Send(kAck, 5, 1);
  EXPECT_EQ(c->state(), kEstablished);
  p.Take();
  p.host.Advance(Ms(3000));
  const std::vector<Seen> again = p.Take();
  ASSERT_FALSE(again.empty());
  EXPECT_EQ(again[0].payload, "answer");
}

TEST(FastOpenServer, BeforeTheHandshakeIsOverJudgesSegmentsAsThoseOfAnyHandshake) {
  FastOpenPeer p;
  p.timestamps = true;
  p.Sysctl("tcp_invalid_ratelimit", "0");
  p.Serve();
  p.SendSyn(kCookie, "data");
  StreamSocket* c = p.listener->Accept();
  ASSERT_NE(c, nullptr);
  p.Send(kFin | kAck, 4, 1);  // below the window
  EXPECT_EQ(p.One().Flags(), "A");
  p.Send(kPsh, 100005, 0);  // beyond it, without an acknowledgment
  EXPECT_EQ(p.One().Flags(), "A");
  p.ts_val -= 10;
  p.Send(kAck, 5, 1);  // too old
  EXPECT_EQ(p.One().Flags(), "A");
  EXPECT_EQ(c->state(), kSynReceived);
  p.ts_val += 20;
  p.Send(kAck, 5, 77);  // of what was not sent
  EXPECT_EQ(p.One().Flags(), "R");
  p.Send(kAck, 5, 1);
  EXPECT_EQ(c->state(), kEstablished);
}

TEST(FastOpenServer, GivesUpOneTimeoutLaterThanAUsualHandshake) {
  FastOpenPeer p;
  p.Sysctl("tcp_synack_retries", "2");
  p.Serve();
  p.SendSyn(kCookie, "data");
  StreamSocket* c = p.listener->Accept();
  ASSERT_NE(c, nullptr);
  p.Write(c, "answer");
  p.Take();
  p.host.Advance(Duration::Seconds(60));
  for (const Seen& s : p.Take()) EXPECT_EQ(s.Flags(), "SA");
  EXPECT_EQ(c->TakeError(), Errno::kETIMEDOUT);
  EXPECT_EQ(c->info().total_retrans, 3u);
  p.port = 5001;
  EXPECT_EQ(p.SendSyn(kCookie, "data").ack, 5u);
}

TEST(FastOpenServer, GivesUpThoughTheLimitIsTheLargestThereIs) {
  FastOpenPeer p;
  p.Sysctl("tcp_synack_retries", "255");
  p.Serve();
  p.SendSyn(kCookie, "data");
  StreamSocket* c = p.listener->Accept();
  ASSERT_NE(c, nullptr);
  p.host.Advance(Duration::Seconds(120 * 260));
  EXPECT_EQ(c->TakeError(), Errno::kETIMEDOUT);
}

TEST(FastOpenServer, AModelThatIsChosenBeforeTheHandshakeIsOverStarts) {
  FastOpenPeer p;
  p.Serve();
  p.SendSyn(kCookie, "data");
  StreamSocket* c = p.listener->Accept();
  ASSERT_NE(c, nullptr);
  ASSERT_EQ(c->SetCongestionControl("bbr"), Errno::kOk);
  EXPECT_NE(c->info().pacing_rate, ~uint64_t{0});
}

TEST(FastOpenServer, ClosesBeforeTheHandshakeIsOver) {
  FastOpenPeer p;
  p.Serve();
  p.SendSyn(kCookie, "data");
  StreamSocket* c = p.listener->Accept();
  ASSERT_NE(c, nullptr);
  EXPECT_EQ(p.Read(c), "data");
  p.Write(c, "answer");
  c->Close();
  p.host.Turn();
  const std::vector<Seen> out = p.Take();
  ASSERT_EQ(out.size(), 2u);
  EXPECT_EQ(out[1].Flags(), "FA");
  p.Send(kAck | kFin, 5, 8);
  EXPECT_EQ(p.One().ack, 6u);
  EXPECT_EQ(p.host.counter(Counter::kTcpTimeouts), 0u);
}

TEST(FastOpenServer, TheFinOfAShutdownWaitsForTheHandshake) {
  FastOpenPeer p;
  p.Serve();
  p.SendSyn(kCookie, "data");
  StreamSocket* c = p.listener->Accept();
  ASSERT_NE(c, nullptr);
  p.Write(c, "answer");
  EXPECT_EQ(p.One().payload, "answer");
  EXPECT_EQ(c->Shutdown(false, true), Errno::kOk);
  p.host.Turn();
  p.ExpectSilence();
  EXPECT_EQ(c->state(), kSynReceived);
  p.Send(kAck, 5, 1);
  EXPECT_EQ(p.One().Flags(), "FA");
}

TEST(FastOpenServer, ConnectionsInTheQueueEndWithTheListener) {
  FastOpenPeer p;
  p.Serve();
  p.SendSyn(kCookie, "data");
  p.listener->Close();
  p.host.Turn();
  EXPECT_EQ(p.One().Flags(), "RA");
}

TEST(FastOpenServer, ReusesTimeWait) {
  FastOpenPeer p;
  p.timestamps = true;
  p.Serve();
  p.Handshake();
  StreamSocket* c = p.listener->Accept();
  c->Close();
  p.host.Turn();
  p.Send(kFin | kAck, 1, 2);
  p.Take();
  p.ts_val += 1000;
  p.iss = SeqNum(500000);
  EXPECT_EQ(p.SendSyn(kCookie, "data").ack, 5u);
  EXPECT_NE(p.listener->Accept(), nullptr);
}

TEST(FastOpenServer, IsOffWhereSynCookiesAreSent) {
  FastOpenPeer p;
  p.Sysctl("tcp_syncookies", "2");
  p.Serve();
  const Seen s = p.SendSyn(kCookie, "data");
  EXPECT_EQ(s.ack, 1u);
  EXPECT_FALSE(s.raw.fast_open.present());
}

// --- client

TEST(FastOpenClient, AsksForACookieAndSendsDataWithItTheNextTime) {
  FastOpenPeer p;
  p.timestamps = p.sack = true;
  p.wscale = 7;
  p.LearnCookie();
  StreamSocket* s = p.Socket();
  size_t taken = 0;
  EXPECT_EQ(p.SendTo(s, "hello", &taken), Errno::kEINPROGRESS);
  EXPECT_EQ(taken, 5u);
  EXPECT_EQ(s->Connect(kPeer), Errno::kEALREADY);
  const Seen syn = p.TakeSyn();
  EXPECT_TRUE(syn.raw.fast_open == kCookie);
  EXPECT_EQ(syn.payload, "hello");
  EXPECT_EQ(s->events() & kWritable, 0u);
  p.AnswerSyn(6);
  const Seen ack = p.One();
  EXPECT_EQ(ack.Flags(), "A");
  EXPECT_EQ(ack.seq, 6u);
  EXPECT_EQ(s->unacked_bytes(), 0u);
  EXPECT_EQ(s->info().options & kSynData, kSynData);
  EXPECT_EQ(s->info().fastopen_client_fail, 0);
  EXPECT_EQ(p.host.counter(Counter::kTcpFastOpenActive), 1u);
  EXPECT_EQ(s->Connect(kPeer), Errno::kEISCONN);
  p.Write(s, "more");
  EXPECT_EQ(p.One().seq, 6u);
}

TEST(FastOpenClient, TakesAnswersThatComeBehindTheSynAck) {
  FastOpenPeer p;
  p.LearnCookie();
  StreamSocket* s = p.Socket();
  size_t taken = 0;
  EXPECT_EQ(p.SendTo(s, "hello", &taken), Errno::kEINPROGRESS);
  p.TakeSyn();
  p.AnswerSyn(6);
  p.Send(kAck | kPsh, 1, 6, "answer");
  EXPECT_EQ(p.Read(s), "answer");
}

TEST(FastOpenClient, QueuesAllWhereItIsAskedTo) {
  FastOpenPeer p;
  StreamSocket* s = p.Socket();
  size_t taken = 0;
  EXPECT_EQ(p.SendTo(s, "hello", &taken, true), Errno::kEINPROGRESS);
  EXPECT_EQ(taken, 5u);
  EXPECT_EQ(p.TakeSyn().payload, "");
  p.AnswerSyn(1);
  EXPECT_EQ(p.One().payload, "hello");
  EXPECT_EQ(s->info().fastopen_client_fail, 1);  // no cookie
  EXPECT_EQ(p.host.counter(Counter::kTcpFastOpenActiveFail), 0u);
}

TEST(FastOpenClient, LeavesRoomForOptionsInTheSyn) {
  FastOpenPeer p;
  p.LearnCookie();
  StreamSocket* s = p.Socket();
  size_t taken = 0;
  EXPECT_EQ(p.SendTo(s, Text(4000), &taken), Errno::kEINPROGRESS);
  EXPECT_EQ(taken, 1420u);
  EXPECT_EQ(p.TakeSyn().payload.size(), 1420u);
}

TEST(FastOpenClient, SendsAgainWhatTheSynAckDoesNotAcknowledge) {
  for (const uint32_t acked : {0u, 2u}) {
    FastOpenPeer p;
    p.LearnCookie();
    StreamSocket* s = p.Socket();
    size_t taken = 0;
    EXPECT_EQ(p.SendTo(s, "hello", &taken), Errno::kEINPROGRESS);
    p.TakeSyn();
    p.AnswerSyn(1 + acked);
    const Seen again = p.One();
    EXPECT_EQ(again.payload, std::string("hello").substr(acked));
    EXPECT_EQ(again.seq, 1 + acked);
    EXPECT_EQ(s->info().options & kSynData, 0);
    EXPECT_EQ(s->info().fastopen_client_fail, 2);
    EXPECT_EQ(s->info().total_retrans, 1u);
    EXPECT_EQ(p.host.counter(Counter::kTcpFastOpenActiveFail), 1u);
    p.Send(kAck, 1, 6);
    EXPECT_EQ(s->unacked_bytes(), 0u);
    EXPECT_EQ(s->info().snd_cwnd, 10u);  // no congestion
  }
}

TEST(FastOpenClient, SendsItAgainThoughThereWasNoMemoryAtFirst) {
  FastOpenPeer p;
  p.LearnCookie();
  StreamSocket* s = p.Socket();
  size_t taken = 0;
  EXPECT_EQ(p.SendTo(s, "hello", &taken), Errno::kEINPROGRESS);
  p.TakeSyn();
  Packet answer = p.Arriving(p.Header(kSyn | kAck, 0, 1));
  const BlockRef held = answer.head_block();
  std::vector<BlockRef> all = p.AllMemory();
  p.host.In(std::move(answer));
  p.ExpectSilence();
  EXPECT_EQ(s->state(), kEstablished);
  all.clear();
  p.host.Advance(Ms(3000));
  const std::vector<Seen> out = p.Take();
  EXPECT_TRUE(std::any_of(out.begin(), out.end(), [](const Seen& o) { return o.payload == "hello"; }));
}

TEST(FastOpenClient, ForgetsOptionAndDataWhereTheSynIsLost) {
  FastOpenPeer p;
  p.LearnCookie();
  StreamSocket* s = p.Socket();
  size_t taken = 0;
  EXPECT_EQ(p.SendTo(s, "hello", &taken), Errno::kEINPROGRESS);
  p.TakeSyn();
  p.host.Advance(Ms(1100));
  const Seen plain = p.One();
  EXPECT_EQ(plain.Flags(), "S");
  EXPECT_EQ(plain.payload, "");
  EXPECT_FALSE(plain.raw.fast_open.present());
  p.AnswerSyn(1);
  EXPECT_EQ(p.One().payload, "hello");
  EXPECT_EQ(s->info().fastopen_client_fail, 3);
}

TEST(FastOpenClient, TakesALateAnswerToTheFirstSyn) {
  FastOpenPeer p;
  p.LearnCookie();
  StreamSocket* s = p.Socket();
  size_t taken = 0;
  EXPECT_EQ(p.SendTo(s, "hello", &taken), Errno::kEINPROGRESS);
  p.TakeSyn();
  p.host.Advance(Ms(1100));
  p.One();
  p.AnswerSyn(6);
  EXPECT_EQ(p.One().Flags(), "A");
  EXPECT_EQ(s->unacked_bytes(), 0u);
  EXPECT_EQ(p.host.counter(Counter::kTcpFastOpenActive), 1u);
}

TEST(FastOpenClient, IsRefusedWhereTheSysctlForbidsIt) {
  FastOpenPeer p("2");
  StreamSocket* s = p.Socket();
  size_t taken = 0;
  EXPECT_EQ(p.SendTo(s, "hello", &taken), Errno::kEOPNOTSUPP);
  EXPECT_EQ(s->SetOption(SockOpt::kTcpFastOpenConnect, 1), Errno::kEOPNOTSUPP);
  p.ExpectSilence();
}

TEST(FastOpenClient, NeedsNoCookieWhereToldSo) {
  for (const bool by_sysctl : {false, true}) {
    FastOpenPeer p(by_sysctl ? "5" : "1");
    StreamSocket* s = p.Socket();
    if (!by_sysctl) {
      EXPECT_EQ(s->SetOption(SockOpt::kTcpFastOpenNoCookie, 2), Errno::kEINVAL);
      ASSERT_EQ(s->SetOption(SockOpt::kTcpFastOpenNoCookie, 1), Errno::kOk);
    }
    size_t taken = 0;
    EXPECT_EQ(p.SendTo(s, "hello", &taken), Errno::kEINPROGRESS);
    EXPECT_EQ(taken, 5u);
    const Seen syn = p.TakeSyn();
    EXPECT_EQ(syn.payload, "hello");
    EXPECT_FALSE(syn.raw.fast_open.present());
    p.AnswerSyn(6, kCookie);  // which nobody asked for
    p.Take();
    EXPECT_EQ(p.host.counter(Counter::kTcpFastOpenActive), 1u);
  }
}

TEST(FastOpenClient, ConnectWaitsForTheFirstDataWhereACookieIsKnown) {
  FastOpenPeer p;
  StreamSocket* first = p.Socket();
  ASSERT_EQ(first->SetOption(SockOpt::kTcpFastOpenConnect, 1), Errno::kOk);
  EXPECT_EQ(first->Connect(kPeer), Errno::kEINPROGRESS);  // none is: it asks for one
  p.host.Turn();
  EXPECT_EQ(p.TakeSyn().raw.fast_open.length, 0);
  p.AnswerSyn(1, kCookie);
  p.Take();
  StreamSocket* s = p.Socket();
  ASSERT_EQ(s->SetOption(SockOpt::kTcpFastOpenConnect, 1), Errno::kOk);
  EXPECT_EQ(s->Connect(kPeer), Errno::kOk);
  p.host.Turn();
  p.ExpectSilence();
  EXPECT_EQ(s->state(), kSynSent);
  EXPECT_EQ(s->events(), uint32_t{kWritable});
  EXPECT_FALSE(s->remote().has_value());
  EXPECT_EQ(s->Connect(kPeer), Errno::kEISCONN);
  EXPECT_EQ(s->SetOption(SockOpt::kTcpFastOpenConnect, 0), Errno::kEINVAL);
  EXPECT_GT(s->send_space(), 0u);
  p.Write(s, "hello");
  EXPECT_EQ(s->send_space(), 0u);
  EXPECT_EQ(p.TakeSyn().payload, "hello");
  p.AnswerSyn(6);
  EXPECT_EQ(p.One().Flags(), "A");
  EXPECT_EQ(s->events() & (kConnected | kWritable), uint32_t{kConnected | kWritable});
}

TEST(FastOpenClient, WhatWasWrittenEarlyIsSentThoughTheOwnerCloses) {
  FastOpenPeer p;
  p.LearnCookie();
  StreamSocket* s = p.Socket();
  ASSERT_EQ(s->SetOption(SockOpt::kTcpFastOpenConnect, 1), Errno::kOk);
  ASSERT_EQ(s->Connect(kPeer), Errno::kOk);
  p.Write(s, Text(2000));
  s->Close();
  EXPECT_EQ(p.TakeSyn().payload.size(), 1420u);
  p.AnswerSyn(1421);
  const Seen rest = p.One();
  EXPECT_EQ(rest.payload.size(), 580u);
  EXPECT_EQ(rest.Flags(), "FPA");
}

TEST(FastOpenClient, OneThatNeverWritesLeavesNoTrace) {
  FastOpenPeer p;
  p.LearnCookie();
  StreamSocket* s = p.Socket();
  ASSERT_EQ(s->SetOption(SockOpt::kTcpFastOpenConnect, 1), Errno::kOk);
  ASSERT_EQ(s->Connect(kPeer), Errno::kOk);
  s->Close();
  p.host.Advance(Duration::Seconds(5));
  p.ExpectSilence();
}

TEST(FastOpenClient, APathThatIsTooNarrowGetsASynWithoutData) {
  FastOpenPeer p;
  p.LearnCookie();
  StreamSocket* s = p.Socket();
  size_t taken = 0;
  EXPECT_EQ(p.SendTo(s, Text(1400), &taken), Errno::kEINPROGRESS);
  const Seen syn = p.TakeSyn();
  p.Icmp(3, 4, 1200, syn.raw, 0);
  const Seen plain = p.One();
  EXPECT_EQ(plain.Flags(), "S");
  EXPECT_EQ(plain.payload, "");
  p.AnswerSyn(1);
  EXPECT_EQ(p.Take().size(), 1u);
  EXPECT_EQ(s->info().pmtu, 1200u);
}

TEST(FastOpenClient, AConnectAfterOneThatFailedStartsAfresh) {
  FastOpenPeer p;
  p.LearnCookie();
  StreamSocket* s = p.Socket();
  ASSERT_EQ(s->Bind({IpAddress::V4(10, 0, 0, 1), 7777}), Errno::kOk);
  size_t taken = 0;
  EXPECT_EQ(p.SendTo(s, "hello", &taken), Errno::kEINPROGRESS);
  EXPECT_EQ(s->Shutdown(false, true), Errno::kOk);
  p.TakeSyn();
  p.host.Advance(Ms(1100));
  p.Take();
  p.Send(kRst | kAck, 0, 1);
  EXPECT_EQ(s->TakeError(), Errno::kECONNREFUSED);
  EXPECT_EQ(s->Connect(kPeer), Errno::kEINPROGRESS);
  p.host.Turn();
  const Seen syn = p.TakeSyn();
  EXPECT_EQ(syn.raw.source_port, 7777);
  EXPECT_EQ(syn.payload, "");
  EXPECT_FALSE(syn.raw.fast_open.present());
  EXPECT_EQ(s->info().retransmits, 0);
  p.AnswerSyn(1);
  EXPECT_EQ(p.One().Flags(), "A");
  EXPECT_EQ(s->state(), kEstablished);
  p.Write(s, "more");
  EXPECT_EQ(p.One().payload, "more");
}

TEST(FastOpenClient, OneThatNeverWroteCanConnectAgainAfterAShutdown) {
  FastOpenPeer p;
  p.LearnCookie();
  StreamSocket* s = p.Socket();
  ASSERT_EQ(s->SetOption(SockOpt::kTcpFastOpenConnect, 1), Errno::kOk);
  ASSERT_EQ(s->Connect(kPeer), Errno::kOk);
  EXPECT_EQ(s->Shutdown(true, true), Errno::kOk);
  EXPECT_EQ(s->TakeError(), Errno::kECONNRESET);
  EXPECT_EQ(s->Connect(kPeer), Errno::kOk);
  p.Write(s, "hello");
  EXPECT_EQ(p.TakeSyn().payload, "hello");
}

// Simultaneous open, of one whose SYN still waits.
TEST(FastOpenClient, AnswersASynWithAPlainOne) {
  FastOpenPeer p;
  p.LearnCookie();
  StreamSocket* s = p.Socket();
  ASSERT_EQ(s->SetOption(SockOpt::kTcpFastOpenConnect, 1), Errno::kOk);
  ASSERT_EQ(s->Connect(kPeer), Errno::kOk);
  p.host_port = s->local().port;
  p.Send(kSyn, 0, 0);
  const Seen answer = p.One();
  EXPECT_EQ(answer.Flags(), "SA");
  EXPECT_FALSE(answer.raw.fast_open.present());
  EXPECT_EQ(s->events() & kWritable, 0u);
  EXPECT_EQ(s->send_space(), 0u);
  p.Send(kAck, 1, 1);
  EXPECT_EQ(s->state(), kEstablished);
  p.Write(s, "hello");
  EXPECT_EQ(p.One().payload, "hello");
}

TEST(FastOpenClient, ResetsWhereAnAnswerComesForAnOwnerThatHasGone) {
  FastOpenPeer p;
  p.LearnCookie();
  StreamSocket* s = p.Socket();
  size_t taken = 0;
  EXPECT_EQ(p.SendTo(s, "hello", &taken), Errno::kEINPROGRESS);
  s->Close();
  p.TakeSyn();
  p.Send(kSyn | kAck, 0, 6, "answer");
  EXPECT_TRUE(p.One().raw.Has(kRst));
  EXPECT_EQ(p.host.counter(Counter::kTcpAbortOnData), 1u);
}

TEST(FastOpenClient, APauseCanBeAsLongAsTheSysctlAllows) {
  TestSecureRng secure(1);
  tcp::FastOpenClient c(secure);
  for (int i = 0; i < 10; ++i) c.Pause(Instant(1));
  for (const int seconds : {100, 200'000'000, INT32_MAX})
    EXPECT_TRUE(c.Paused(Duration::Seconds(seconds), Instant(2))) << seconds;
}

// Three timeouts in a row pause Fast Open for everybody, where the sysctl says for how long.
TEST(FastOpenClient, PausesBehindABlackhole) {
  FastOpenPeer p;
  p.Sysctl("tcp_fastopen_blackhole_timeout_sec", "100");
  p.LearnCookie();
  StreamSocket* lost = p.Socket();
  size_t taken = 0;
  EXPECT_EQ(p.SendTo(lost, "hello", &taken), Errno::kEINPROGRESS);
  p.host.Advance(Duration::Seconds(8));
  EXPECT_EQ(p.Take().size(), 4u);
  EXPECT_EQ(p.host.counter(Counter::kTcpFastOpenBlackhole), 1u);
  lost->Abort();
  p.host.Turn();

  StreamSocket* s = p.Socket();
  EXPECT_EQ(p.SendTo(s, "hello", &taken), Errno::kEINPROGRESS);
  EXPECT_EQ(taken, 0u);
  EXPECT_FALSE(p.TakeSyn().raw.fast_open.present());
  s->Abort();
  p.host.Advance(Duration::Seconds(100));
  p.Take();
  StreamSocket* later = p.Socket();
  EXPECT_EQ(p.SendTo(later, "hello", &taken), Errno::kEINPROGRESS);
  EXPECT_EQ(taken, 5u);
}

TEST(FastOpenClient, ByDefaultNothingIsPaused) {
  FastOpenPeer p;
  p.LearnCookie();
  StreamSocket* lost = p.Socket();
  size_t taken = 0;
  EXPECT_EQ(p.SendTo(lost, "hello", &taken), Errno::kEINPROGRESS);
  p.host.Advance(Duration::Seconds(8));
  EXPECT_EQ(p.host.counter(Counter::kTcpFastOpenActiveFail), 1u);
  EXPECT_EQ(p.host.counter(Counter::kTcpFastOpenBlackhole), 0u);
}

TEST(FastOpenClient, RemembersABoundedNumberOfServers) {
  TestSecureRng secure(1);
  tcp::FastOpenClient c(secure);
  const IpAddress local = IpAddress::V4(10, 0, 0, 1);
  int known = 0;
  for (uint8_t i = 0; i < 40; ++i) {
    for (uint8_t k = 0; k < 250; ++k) c.Remember(local, IpAddress::V4(10, 1, i, k), 1460, kCookie, Instant(1 + i));
  }
  for (uint8_t i = 0; i < 40; ++i) {
    for (uint8_t k = 0; k < 250; ++k) known += c.Find(local, IpAddress::V4(10, 1, i, k)) != nullptr ? 1 : 0;
  }
  EXPECT_LE(known, 1024);
  EXPECT_GT(known, 900);
  EXPECT_NE(c.Find(local, IpAddress::V4(10, 1, 39, 249)), nullptr);
  EXPECT_EQ(c.Find(IpAddress::V4(10, 0, 0, 7), IpAddress::V4(10, 1, 39, 249)), nullptr);
}

}  // namespace
}  // namespace sluice::testing
