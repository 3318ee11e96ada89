// IPv4 and ICMP: frames in, frames out.
#include <gtest/gtest.h>

#include <tuple>

#include "netstack/testing/frames.h"
#include "netstack/wire/checksum.h"

namespace sluice::testing {
namespace {

const IpAddress kUs = IpAddress::V4(10, 0, 0, 1), kPeer = IpAddress::V4(10, 0, 0, 2);

std::vector<uint8_t> EchoRequest(size_t size, uint32_t id_seq = 0x00010001) {
  std::vector<uint8_t> data(size);
  for (size_t i = 0; i < size; ++i) data[i] = static_cast<uint8_t>(i * 7);
  return IcmpMessage(wire::kIcmpEcho, 0, id_seq, data);
}

Frame Ping(FrameHost& h, wire::Ipv4Fields f = {}, size_t size = 32) {
  if (!f.source) f.source = kPeer;
  if (!f.destination) f.destination = kUs;
  f.protocol = kIpProtoIcmp;
  return Ipv4Frame(h.mac(), f, EchoRequest(size));
}

struct Parsed {
  bool ok = false;
  uint8_t protocol = 0, tos = 0, icmp_type = 255, icmp_code = 255;
  IpAddress source, destination;
  std::vector<uint8_t> payload;  // behind the IP header
};

Parsed Parse(const Frame& f) {
  Parsed p;
  if (f.size() < wire::kEthernetHeader) return p;
  const Bytes ip_bytes = Bytes(f).subspan(wire::kEthernetHeader);
  const auto ip = wire::Ipv4View::Parse(ip_bytes, ip_bytes.size());
  if (!ip || !ip->ChecksumOk()) return p;
  p.ok = true;
  p.protocol = ip->protocol();
  p.tos = ip->tos();
  p.source = ip->source();
  p.destination = ip->destination();
  p.payload.assign(ip_bytes.begin() + static_cast<ptrdiff_t>(ip->header_length()), ip_bytes.end());
  if (p.protocol == kIpProtoIcmp && p.payload.size() >= 8) p.icmp_type = p.payload[0], p.icmp_code = p.payload[1];
  return p;
}

// Cuts an IP payload into fragments of `step` bytes.
std::vector<Frame> Fragments(FrameHost& h, Bytes payload, size_t step, uint16_t id, uint8_t protocol = kIpProtoIcmp) {
  std::vector<Frame> out;
  for (size_t at = 0; at < payload.size(); at += step) {
    const size_t n = std::min(step, payload.size() - at);
    wire::Ipv4Fields f;
    f.source = kPeer;
    f.destination = kUs;
    f.id = id;
    f.protocol = protocol;
    f.fragment = static_cast<uint16_t>((at / 8) | (at + n < payload.size() ? wire::kIpv4MoreFragments : 0));
    out.push_back(Ipv4Frame(h.mac(), f, payload.subspan(at, n)));
  }
  return out;
}

TEST(Icmp, AnswersEchoWithTheSameBytes) {
  FrameHost h;
  h.In(Ping(h));
  const Parsed p = Parse(h.Out());
  ASSERT_TRUE(p.ok);
  EXPECT_EQ(p.icmp_type, wire::kIcmpEchoReply);
  EXPECT_EQ(p.source, kUs);
  EXPECT_EQ(p.destination, kPeer);
  EXPECT_EQ(wire::OnesSum(Bytes(p.payload)), 0xffff);
  const auto request = EchoRequest(32);
  EXPECT_TRUE(std::equal(request.begin() + 4, request.end(), p.payload.begin() + 4));
  EXPECT_EQ(h.counter(Counter::kIcmpOutEchoReps), 1u);
}

TEST(Icmp, SysctlsSwitchEchoOff) {
  FrameHost h;
  h.In(Ipv4Frame(kBroadcastMac, {.source = kPeer, .destination = IpAddress::V4(10, 0, 0, 255), .protocol = kIpProtoIcmp},
                 EchoRequest(8)));
  EXPECT_TRUE(h.AllOut().empty());
  h.config().sysctls["net.ipv4.icmp_echo_ignore_broadcasts"] = "0";
  h.ApplyConfig();
  h.In(Ipv4Frame(kBroadcastMac, {.source = kPeer, .destination = IpAddress::V4(10, 0, 0, 255), .protocol = kIpProtoIcmp},
                 EchoRequest(8)));
  EXPECT_EQ(Parse(h.Out()).source, kUs);
  h.config().sysctls["net.ipv4.icmp_echo_ignore_all"] = "1";
  h.ApplyConfig();
  h.In(Ping(h));
  EXPECT_TRUE(h.AllOut().empty());
}

TEST(Icmp, EchoOfManyFragmentsIsAnsweredInFragments) {
  FrameHost h;
  const auto request = EchoRequest(60000);
  for (const Frame& f : Fragments(h, request, 1480, 77)) h.In(f);
  std::vector<uint8_t> reply(request.size());
  size_t bytes = 0;
  for (const Frame& f : h.AllOut()) {
    EXPECT_LE(f.size(), wire::kEthernetHeader + 1500u);
    const auto ip = wire::Ipv4View::Parse(Bytes(f).subspan(14), f.size() - 14);
    ASSERT_TRUE(ip && ip->ChecksumOk());
    const Bytes piece = Bytes(f).subspan(14 + ip->header_length());
    ASSERT_LE(ip->fragment_offset() + piece.size(), reply.size());
    std::memcpy(reply.data() + ip->fragment_offset(), piece.data(), piece.size());
    bytes += piece.size();
  }
  EXPECT_EQ(bytes, request.size());
  EXPECT_EQ(reply[0], wire::kIcmpEchoReply);
  EXPECT_EQ(wire::OnesSum(Bytes(reply)), 0xffff);
  EXPECT_TRUE(std::equal(request.begin() + 4, request.end(), reply.begin() + 4));
}

TEST(Icmp, DamagedMessagesAreCounted) {
  FrameHost h;
  Frame f = Ping(h);
  f.back() ^= 1;
  h.In(f);
  EXPECT_EQ(h.counter(Counter::kDropIcmpMalformed), 1u);
  h.In(Ipv4Frame(h.mac(), {.source = kPeer, .destination = kUs, .protocol = kIpProtoIcmp}, std::vector<uint8_t>(7)));
  EXPECT_EQ(h.counter(Counter::kDropIcmpMalformed), 2u);
  EXPECT_TRUE(h.AllOut().empty());
  EXPECT_EQ(h.drops(), 2u);
}

TEST(Icmp, ErrorsAreRateLimitedPerTargetAndInAll) {
  FrameHost h;
  const std::vector<uint8_t> payload(20);
  for (int i = 0; i < 20; ++i) h.In(Ipv4Frame(h.mac(), {.source = kPeer, .destination = kUs, .protocol = 200}, payload));
  EXPECT_EQ(h.AllOut().size(), 6u);
  EXPECT_EQ(h.counter(Counter::kIcmpOutRateLimited), 14u);
  h.Advance(Duration::Seconds(2));
  for (int i = 0; i < 20; ++i) h.In(Ipv4Frame(h.mac(), {.source = kPeer, .destination = kUs, .protocol = 200}, payload));
  EXPECT_EQ(h.AllOut().size(), 2u);
}

TEST(Icmp, NoErrorAboutErrorsGroupsOrLaterFragments) {
  FrameHost h;
  const std::vector<uint8_t> payload(24);
  auto unknown = [&](wire::Ipv4Fields f, const MacAddress& mac) {
    f.source = f.source ? f.source : kPeer;
    f.destination = f.destination ? f.destination : kUs;
    f.protocol = 200;
    h.In(Ipv4Frame(mac, f, payload));
  };
  unknown({.destination = IpAddress::V4(255, 255, 255, 255)}, kBroadcastMac);
  unknown({}, kBroadcastMac);  // to us, but by a link broadcast
  EXPECT_TRUE(h.AllOut().empty());
  unknown({}, h.mac());
  const Parsed p = Parse(h.Out());
  EXPECT_EQ(p.icmp_type, wire::kIcmpUnreachable);
  EXPECT_EQ(p.icmp_code, wire::kIcmpProtocolUnreachable);
  EXPECT_EQ(p.payload.size(), 8u + 20 + 24);
}

TEST(Ipv4, DropsWhatCannotBe) {
  struct Case {
    const char* source;
    const char* destination;
  };
  for (const Case& c : {Case{"10.0.0.1", "10.0.0.1"},   // land
                        Case{"127.0.0.1", "10.0.0.1"},  // martians
                        Case{"10.0.0.2", "127.0.0.1"}, Case{"224.0.0.1", "10.0.0.1"}, Case{"255.255.255.255", "10.0.0.1"},
                        Case{"10.0.0.255", "10.0.0.1"}, Case{"0.0.0.0", "10.0.0.1"}, Case{"0.1.2.3", "10.0.0.1"},
                        Case{"241.0.0.1", "10.0.0.1"}, Case{"10.0.0.2", "10.0.0.3"}, Case{"10.0.0.2", "0.0.0.0"}}) {
    FrameHost h;
    h.In(Ping(h, {.source = *IpAddress::Parse(c.source), .destination = *IpAddress::Parse(c.destination)}));
    EXPECT_EQ(h.counter(Counter::kDropIpAddress), 1u) << c.source << " > " << c.destination;
    EXPECT_EQ(h.drops(), 1u);
    EXPECT_TRUE(h.AllOut().empty()) << c.source << " > " << c.destination;
  }
}

TEST(Ipv4, DropsMalformedHeaders) {
  FrameHost h;
  Frame f = Ping(h);
  f[14] = 0x44;
  h.In(f);
  f = Ping(h);
  f[14] = 0x65;
  h.In(f);
  f = Ping(h);
  StoreBe16(&f[16], 1000);
  h.In(f);
  f.resize(30);
  h.In(f);
  EXPECT_EQ(h.counter(Counter::kDropIpHeader), 4u);
  f = Ping(h);
  f[22] ^= 1;
  h.In(f);
  EXPECT_EQ(h.counter(Counter::kDropIpChecksum), 1u);
  EXPECT_EQ(h.drops(), 5u);
  EXPECT_TRUE(h.AllOut().empty());
}

TEST(Ipv4, IgnoresLinkPaddingAndHarmlessOptions) {
  FrameHost h;
  Frame f = Ping(h);
  f.resize(f.size() + 100, 0xee);
  h.In(f);
  EXPECT_EQ(Parse(h.Out()).payload.size(), 40u);
  const uint8_t record_route[] = {1, 7, 7, 4, 0, 0, 0, 0};
  h.In(Ping(h, {.options = record_route}));
  EXPECT_EQ(Parse(h.Out()).icmp_type, wire::kIcmpEchoReply);
}

TEST(Ipv4, SourceRoutesAreDroppedAndBrokenOptionsAnswered) {
  FrameHost h;
  const uint8_t lsrr[] = {131, 7, 4, 10, 0, 0, 3, 0};
  h.In(Ping(h, {.options = lsrr}));
  EXPECT_TRUE(h.AllOut().empty());
  EXPECT_EQ(h.counter(Counter::kDropIpHeader), 1u);
  // Broken options of something that an error may be sent about.
  const uint8_t broken[] = {7, 99, 4, 0};
  wire::Ipv4Fields f{.source = kPeer, .destination = kUs, .protocol = kIpProtoUdp, .options = broken};
  h.In(Ipv4Frame(h.mac(), f, std::vector<uint8_t>(16)));
  EXPECT_EQ(Parse(h.Out()).icmp_type, wire::kIcmpParameterProblem);
  EXPECT_EQ(h.counter(Counter::kDropIpHeader), 2u);
}

TEST(Reassembly, AnyOrderAndDuplicates) {
  FrameHost h;
  const auto request = EchoRequest(5000);
  auto frames = Fragments(h, request, 1000, 5);
  for (const size_t i : {3, 0, 5, 5, 1, 4, 0}) h.In(frames[i]);
  EXPECT_TRUE(h.AllOut().empty());
  h.In(frames[2]);
  EXPECT_EQ(h.AllOut().size(), 4u);  // the reply, in fragments of our MTU
  EXPECT_EQ(h.counter(Counter::kIpReasmOKs), 1u);
  EXPECT_EQ(h.counter(Counter::kDropIpFragment), 2u);
}

TEST(Reassembly, OverlapDropsTheWholeDatagram) {
  FrameHost h;
  const auto request = EchoRequest(2000);
  auto frames = Fragments(h, request, 1000, 5);
  h.In(frames[0]);
  wire::Ipv4Fields f{
      .source = kPeer, .destination = kUs, .id = 5, .fragment = uint16_t{wire::kIpv4MoreFragments | 120}, .protocol = 1};
  h.In(Ipv4Frame(h.mac(), f, std::vector<uint8_t>(80, 0xff)));  // [960, 1040) over [0, 1000)
  h.In(frames[1]);
  h.In(frames[2]);
  EXPECT_TRUE(h.AllOut().empty());
  EXPECT_EQ(h.counter(Counter::kIpReasmOKs), 0u);
  EXPECT_EQ(h.counter(Counter::kDropIpFragment), 2u);
}

TEST(Reassembly, EndsThatContradictDropTheWholeDatagram) {
  FrameHost h;
  auto piece = [&](uint16_t offset, bool more, size_t size, uint16_t id) {
    wire::Ipv4Fields f{.source = kPeer,
                       .destination = kUs,
                       .id = id,
                       .fragment = static_cast<uint16_t>((more ? wire::kIpv4MoreFragments : 0) | offset),
                       .protocol = 1};
    h.In(Ipv4Frame(h.mac(), f, std::vector<uint8_t>(size)));
  };
  piece(10, false, 8, 1);
  piece(20, false, 8, 1);  // another end
  EXPECT_EQ(h.counter(Counter::kDropIpFragment), 2u);
  piece(10, false, 8, 2);
  piece(12, true, 8, 2);  // behind the end
  EXPECT_EQ(h.counter(Counter::kDropIpFragment), 4u);
  piece(0, true, 9, 3);       // not a multiple of 8
  piece(8190, false, 64, 4);  // beyond 64 KiB
  piece(8191, false, 0, 5);   // empty
  EXPECT_EQ(h.counter(Counter::kDropIpFragment), 7u);
  EXPECT_EQ(h.drops(), 7u);
}

// RFC 3168 5.3
TEST(Reassembly, OneMarkMarksTheWholeAndAMixtureIsDropped) {
  const std::vector<uint8_t> request = EchoRequest(2000);
  auto answer = [&](uint8_t first, uint8_t second) {
    FrameHost h;
    auto frames = Fragments(h, request, 1000, 5);
    for (size_t i = 0; i < frames.size(); ++i) {
      wire::Ipv4Fields f{.source = kPeer, .destination = kUs, .id = 5, .tos = i == 0 ? first : second, .protocol = kIpProtoIcmp};
      f.fragment = static_cast<uint16_t>(i * 125 | (i + 1 < frames.size() ? wire::kIpv4MoreFragments : 0));
      const size_t size = std::min<size_t>(1000, request.size() - i * 1000);
      h.In(Ipv4Frame(h.mac(), f, Bytes(request).subspan(i * 1000, size)));
    }
    const auto out = h.AllOut();
    if (out.empty()) {
      EXPECT_EQ(h.counter(Counter::kDropIpFragment), frames.size());
      return -1;
    }
    return Parse(out[0]).tos & 3;  // an echo is answered with the request's
  };
  EXPECT_EQ(answer(0, 0), 0);
  EXPECT_EQ(answer(2, 2), 2);
  EXPECT_EQ(answer(2, 3), 3);
  EXPECT_EQ(answer(3, 1), 3);
  EXPECT_EQ(answer(0, 3), -1);
  EXPECT_EQ(answer(2, 0), -1);
}

TEST(Reassembly, TimesOutWithAMessageWhereTheFirstPieceIsThere) {
  FrameHost h;
  auto frames = Fragments(h, EchoRequest(2000), 1000, 5);
  h.In(frames[0]);
  auto others = Fragments(h, EchoRequest(2000), 1000, 6);
  h.In(others[1]);
  h.Advance(Duration::Seconds(31));
  const auto out = h.AllOut();
  bool told = false;
  for (const Frame& f : out) told |= Parse(f).icmp_type == wire::kIcmpTimeExceeded && Parse(f).icmp_code == 1;
  EXPECT_TRUE(told);
  EXPECT_EQ(h.counter(Counter::kIcmpOutMsgs), 1u);
  EXPECT_EQ(h.counter(Counter::kIpReasmTimeout), 2u);
  EXPECT_EQ(h.counter(Counter::kDropIpFragment), 2u);
}

TEST(Reassembly, MemoryIsBoundedAndGivenBack) {
  FrameHost h;
  h.config().sysctls["net.ipv4.ipfrag_high_thresh"] = "100000";
  h.ApplyConfig();
  const size_t before = h.pool().bytes_in_use();
  for (uint16_t id = 0; id < 2000; ++id) {
    wire::Ipv4Fields f{.source = kPeer, .destination = kUs, .id = id, .fragment = wire::kIpv4MoreFragments, .protocol = 17};
    h.In(Ipv4Frame(h.mac(), f, std::vector<uint8_t>(8)));
  }
  EXPECT_LE(h.pool().bytes_in_use(), before + 120000);
  EXPECT_GT(h.counter(Counter::kDropIpFragment), 1500u);
  h.Advance(Duration::Seconds(31));
  h.AllOut();
  EXPECT_EQ(h.pool().bytes_in_use(), before);
}

TEST(Ping, SocketSendsItsIdentAndHearsItsReply) {
  SimNetwork net(4);
  SimHost& a = net.AddHost("a", HostConfig("10.0.0.1/24"));
  SimHost& b = net.AddHost("b", HostConfig("10.0.0.2/24"));
  net.Join(a, b, {.delay = Duration::Milliseconds(1)});
  DatagramSocket* ping = a.stack().NewPingSocket(Family::kIpv4);
  DatagramSocket* other = a.stack().NewPingSocket(Family::kIpv4);
  ASSERT_EQ(other->Bind(Endpoint{IpAddress::Any(Family::kIpv4), 99, 0}), Errno::kOk);
  auto message = IcmpMessage(wire::kIcmpEcho, 0, 0x00630007, std::vector<uint8_t>(48, 3));
  const Bytes part = message;
  DatagramSend how;
  how.destination = Endpoint{IpAddress::V4(10, 0, 0, 2), 0, 0};
  ASSERT_EQ(ping->Send(how, {&part, 1}), Errno::kOk);
  ASSERT_TRUE(net.RunUntil([&] { return ping->next_size().has_value(); }, Duration::Seconds(1)));
  Datagram d;
  ASSERT_TRUE(ping->Receive(&d));
  EXPECT_EQ(d.payload.size(), 56u);
  const auto icmp = wire::IcmpView::Parse(d.payload.linear());
  EXPECT_EQ(icmp->type(), wire::kIcmpEchoReply);
  EXPECT_EQ(icmp->ident(), ping->local().port);
  EXPECT_EQ(icmp->sequence(), 7);
  EXPECT_FALSE(other->next_size());
  message[0] = wire::kIcmpEchoReply;
  EXPECT_EQ(ping->Send(how, {&part, 1}), Errno::kEINVAL);
  const Bytes short_part = part.first(7);
  EXPECT_EQ(ping->Send(how, {&short_part, 1}), Errno::kEINVAL);
  ping->Close();
  other->Close();
}

TEST(Ping, LoopbackOfBothFamilies) {
  FrameHost h;
  for (const Family family : {Family::kIpv4, Family::kIpv6}) {
    DatagramSocket* ping = h.stack().NewPingSocket(family);
    const uint8_t type = family == Family::kIpv6 ? uint8_t{wire::kIcmpV6Echo} : uint8_t{wire::kIcmpEcho};
    const auto message = IcmpMessage(type, 0, 1, {});
    const Bytes part = message;
    DatagramSend how;
    how.destination = Endpoint{IpAddress::Loopback(family), 0, 0};
    ASSERT_EQ(ping->Send(how, {&part, 1}), Errno::kOk);
    h.Turn();
    EXPECT_TRUE(ping->next_size());
    ping->Close();
  }
}

class RecordingTap final : public FrameTap {
 public:
  void OnFrame(IfIndex ifindex, Direction direction, const Packet& frame) override {
    seen.emplace_back(ifindex, direction, frame.size());
  }
  std::vector<std::tuple<IfIndex, Direction, size_t>> seen;
};

TEST(Tap, SeesEveryFrameOnceUntilItIsRemoved) {
  FrameHost h;
  RecordingTap tap;
  h.stack().AddTap(&tap);
  const Frame request = Ping(h);
  const size_t size = request.size();
  h.In(request);
  h.Turn();
  ASSERT_GE(tap.seen.size(), 2u);
  EXPECT_EQ(tap.seen[0], std::tuple(kSimIfIndex, FrameTap::Direction::kIn, size));
  EXPECT_EQ(tap.seen[1], std::tuple(kSimIfIndex, FrameTap::Direction::kOut, size));
  tap.seen.clear();
  DatagramSocket* udp = h.stack().NewUdpSocket(Family::kIpv4);
  DatagramSend how;
  how.destination = Endpoint{IpAddress::Loopback(Family::kIpv4), 9, 0};
  const uint8_t byte = 1;
  const Bytes part{&byte, 1};
  ASSERT_EQ(udp->Send(how, {&part, 1}), Errno::kOk);
  h.Turn();
  ASSERT_GE(tap.seen.size(), 1u);
  EXPECT_EQ(tap.seen[0], std::tuple(kLoopbackIfIndex, FrameTap::Direction::kIn, size_t{29}));
  udp->Close();
  h.stack().RemoveTap(&tap);
  tap.seen.clear();
  h.In(Ping(h));
  h.Turn();
  EXPECT_TRUE(tap.seen.empty());
}

TEST(Raw, SeesPacketsWithHeaderAndFiltersTypes) {
  FrameHost h;
  DatagramSocket* raw = h.stack().NewRawSocket(Family::kIpv4, kIpProtoIcmp);
  h.In(Ping(h));
  Datagram d;
  ASSERT_TRUE(raw->Receive(&d));
  EXPECT_EQ(d.payload.size(), 60u);
  EXPECT_EQ(d.payload.data()[0], 0x45);
  ASSERT_EQ(raw->SetIcmpFilter(1u << wire::kIcmpEcho), Errno::kOk);
  h.In(Ping(h));
  EXPECT_FALSE(raw->Receive(&d));
  EXPECT_EQ(h.AllOut().size(), 2u);  // and the stack answered all the same
  raw->Close();
}

TEST(Raw, ProtocolSocketsSendAndAnswerForTheirProtocol) {
  FrameHost h;
  DatagramSocket* raw = h.stack().NewRawSocket(Family::kIpv4, 200);
  h.In(Ipv4Frame(h.mac(), {.source = kPeer, .destination = kUs, .protocol = 200}, std::vector<uint8_t>(8, 9)));
  EXPECT_TRUE(h.AllOut().empty());  // no protocol unreachable
  EXPECT_EQ(raw->next_size(), 28u);
  const std::vector<uint8_t> payload(30, 1);
  const Bytes part = payload;
  DatagramSend how;
  how.destination = Endpoint{kPeer, 0, 0};
  ASSERT_EQ(raw->Send(how, {&part, 1}), Errno::kOk);
  h.Turn();
  Parsed p = Parse(h.Out());
  EXPECT_EQ(p.protocol, 200);
  EXPECT_EQ(p.payload, payload);
  ASSERT_EQ(raw->SetOption(SockOpt::kIpHdrIncl, 1), Errno::kOk);
  std::vector<uint8_t> own(40);
  wire::Ipv4Fields f{.source = IpAddress::Any(Family::kIpv4), .destination = kPeer, .ttl = 9, .protocol = 201};
  f.Write(own.data());
  const Bytes own_part = own;
  ASSERT_EQ(raw->Send(how, {&own_part, 1}), Errno::kOk);
  h.Turn();
  const Frame out = h.Out();
  p = Parse(out);
  EXPECT_EQ(p.protocol, 201);
  EXPECT_EQ(p.source, kUs);
  EXPECT_EQ(out[14 + 8], 9);
  raw->Close();
}

TEST(Lookup, SourcesLocalPathsAndErrors) {
  FrameHost h;
  Stack& s = h.stack();
  Route r = s.Lookup({.destination = IpAddress::V4(8, 8, 8, 8)});
  ASSERT_TRUE(r.ok());
  EXPECT_EQ(r.source, kUs);
  EXPECT_EQ(r.next_hop, IpAddress::V4(10, 0, 0, 254));
  EXPECT_EQ(r.mtu, 1500u);
  r = s.Lookup({.destination = kUs});
  EXPECT_TRUE(r.local);
  EXPECT_EQ(r.source, kUs);
  r = s.Lookup({.destination = *IpAddress::Parse("::1")});
  EXPECT_TRUE(r.ok() && r.local);
  EXPECT_EQ(s.Lookup({.destination = *IpAddress::Parse("2001:db8::1")}).error, Errno::kENETUNREACH);
  EXPECT_EQ(s.Lookup({.destination = kPeer, .source = IpAddress::V4(9, 9, 9, 9)}).error, Errno::kEINVAL);
  const uint64_t before = s.Lookup({.destination = kPeer}).generation;
  h.ApplyConfig();
  EXPECT_NE(s.Lookup({.destination = kPeer}).generation, before);
}

}  // namespace
}  // namespace sluice::testing
