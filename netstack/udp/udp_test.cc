#include <gtest/gtest.h>

#include <string>

#include "netstack/testing/frames.h"
#include "netstack/wire/checksum.h"

namespace sluice::testing {
namespace {

Bytes AsBytes(std::string_view s) { return {reinterpret_cast<const uint8_t*>(s.data()), s.size()}; }
Endpoint At(std::string_view address, uint16_t port) { return Endpoint{*IpAddress::Parse(address), port, 0}; }

std::string Text(const Packet& p) {
  std::string s(p.size(), 0);
  p.CopyOut(0, {reinterpret_cast<uint8_t*>(s.data()), s.size()});
  return s;
}

Errno SendText(DatagramSocket* s, std::string_view text, std::optional<Endpoint> to = std::nullopt) {
  const Bytes part = AsBytes(text);
  DatagramSend how;
  how.destination = to;
  return s->Send(how, {&part, 1});
}

std::string ReceiveText(DatagramSocket* s, DatagramMeta* meta = nullptr) {
  Datagram d;
  if (!s->Receive(&d)) return "<none>";
  if (meta != nullptr) *meta = d.meta;
  return Text(d.payload);
}

struct Closer {
  void operator()(DatagramSocket* s) const { s->Close(); }
};
using Udp = std::unique_ptr<DatagramSocket, Closer>;
Udp NewUdp(Stack& stack, Family f = Family::kIpv4) { return Udp(stack.NewUdpSocket(f)); }

Frame UdpIn(const FrameHost& h, uint16_t from_port, uint16_t to_port, std::string_view text, std::string_view to = "10.0.0.1",
            const MacAddress* mac = nullptr) {
  const IpAddress source = IpAddress::V4(10, 0, 0, 2), destination = *IpAddress::Parse(to);
  return Ipv4Frame(mac != nullptr ? *mac : h.mac(), {.source = source, .destination = destination, .protocol = kIpProtoUdp},
                   UdpMessage(source, destination, from_port, to_port, AsBytes(text)));
}
MacAddress MacOf(FrameHost& h) { return h.mac(); }

Frame IcmpAbout(FrameHost& h, const Frame& sent, uint8_t type, uint8_t code, uint32_t rest, std::string_view from = "10.0.0.2") {
  const size_t n = std::min<size_t>(sent.size() - wire::kEthernetHeader, 28);
  const Bytes quoted = Bytes(sent).subspan(wire::kEthernetHeader, n);
  return Ipv4Frame(MacOf(h),
                   {.source = *IpAddress::Parse(from), .destination = IpAddress::V4(10, 0, 0, 1), .protocol = kIpProtoIcmp},
                   IcmpMessage(type, code, rest, quoted));
}

TEST(Udp, EchoBetweenTwoHosts) {
  SimNetwork net(1);
  SimHost& a = net.AddHost("a", HostConfig("10.0.0.1/24"));
  SimHost& b = net.AddHost("b", HostConfig("10.0.0.2/24"));
  net.Join(a, b, {.delay = Duration::Milliseconds(1)});
  Udp server = NewUdp(b.stack()), client = NewUdp(a.stack());
  ASSERT_EQ(server->Bind(At("0.0.0.0", 7)), Errno::kOk);
  b.on_turn = [&] {
    Datagram d;
    while (server->Receive(&d)) EXPECT_EQ(SendText(server.get(), Text(d.payload), d.meta.source), Errno::kOk);
  };
  ASSERT_EQ(client->Connect(At("10.0.0.2", 7)), Errno::kOk);
  EXPECT_EQ(client->local().address, IpAddress::V4(10, 0, 0, 1));
  EXPECT_GE(client->local().port, 32768);
  ASSERT_EQ(SendText(client.get(), "hello"), Errno::kOk);
  ASSERT_TRUE(net.RunUntil([&] { return (client->events() & kReadable) != 0; }, Duration::Seconds(1)));
  DatagramMeta meta;
  EXPECT_EQ(ReceiveText(client.get(), &meta), "hello");
  EXPECT_EQ(meta.source, At("10.0.0.2", 7));
  EXPECT_EQ(meta.ttl, 64);
}

TEST(Udp, BigDatagramsAreFragmentedAndReassembledUnderReorderingAndDuplication) {
  SimNetwork net(2);
  SimHost& a = net.AddHost("a", HostConfig("10.0.0.1/24"));
  SimHost& b = net.AddHost("b", HostConfig("10.0.0.2/24"));
  net.Join(a, b, {.delay = Duration::Milliseconds(1), .duplicate = 0.2, .reorder = 0.3});
  Udp server = NewUdp(b.stack()), client = NewUdp(a.stack());
  ASSERT_EQ(server->SetOption(SockOpt::kRcvBufForce, 4 << 20), Errno::kOk);
  ASSERT_EQ(server->Bind(At("0.0.0.0", 9)), Errno::kOk);
  for (const size_t size : {size_t{1472}, size_t{1473}, size_t{9000}, size_t{65507}}) {
    std::string text(size, 'x');
    for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>('a' + i % 23);
    ASSERT_EQ(SendText(client.get(), text, At("10.0.0.2", 9)), Errno::kOk);
    ASSERT_TRUE(net.RunUntil([&] { return server->next_size().has_value(); }, Duration::Seconds(1)));
    EXPECT_EQ(ReceiveText(server.get()), text);
    net.RunFor(Duration::Milliseconds(100));
    while (server->next_size()) ReceiveText(server.get());  // duplicates of whole datagrams
  }
  EXPECT_EQ(SendText(client.get(), std::string(65508, 'x'), At("10.0.0.2", 9)), Errno::kEMSGSIZE);
  EXPECT_GE(b.counter(Counter::kIpReasmOKs), 3u);
}

TEST(Udp, LoopbackOfBothFamilies) {
  FrameHost h;
  Udp server = NewUdp(h.stack(), Family::kIpv6);
  ASSERT_EQ(server->Bind(At("::", 5353)), Errno::kOk);
  for (const char* address : {"127.0.0.1", "127.9.9.9", "10.0.0.1", "0.0.0.0"}) {
    Udp client = NewUdp(h.stack());
    ASSERT_EQ(SendText(client.get(), "v4", At(address, 5353)), Errno::kOk) << address;
    h.Turn();
    DatagramMeta meta;
    EXPECT_EQ(ReceiveText(server.get(), &meta), "v4") << address;
    EXPECT_TRUE(meta.source.address.IsV4Mapped());
  }
  Udp client = NewUdp(h.stack(), Family::kIpv6);
  ASSERT_EQ(SendText(client.get(), "v6", At("::1", 5353)), Errno::kOk);
  ASSERT_EQ(SendText(client.get(), "mapped", At("::ffff:127.0.0.1", 5353)), Errno::kOk);
  h.Turn();
  DatagramMeta meta;
  EXPECT_EQ(ReceiveText(server.get(), &meta), "v6");
  EXPECT_EQ(meta.source.address, *IpAddress::Parse("::1"));
  EXPECT_EQ(ReceiveText(server.get()), "mapped");
  EXPECT_TRUE(h.AllOut().empty());
  EXPECT_EQ(h.drops(), 0u);
}

TEST(Udp, ClosedPortOfTheLoopbackRefuses) {
  FrameHost h;
  for (const auto& [family, address] : {std::pair(Family::kIpv4, "127.0.0.1"), std::pair(Family::kIpv6, "::1")}) {
    Udp client = NewUdp(h.stack(), family);
    ASSERT_EQ(client->Connect(At(address, 9)), Errno::kOk);
    ASSERT_EQ(SendText(client.get(), "x"), Errno::kOk);
    h.Turn();
    EXPECT_NE(client->events() & kError, 0u) << address;
    EXPECT_EQ(SendText(client.get(), "x"), Errno::kECONNREFUSED) << address;
    EXPECT_EQ(SendText(client.get(), "x"), Errno::kOk) << address;
  }
}

TEST(Udp, BindRules) {
  FrameHost h;
  Stack& s = h.stack();
  Udp a = NewUdp(s), b = NewUdp(s), c = NewUdp(s), d = NewUdp(s, Family::kIpv6), e = NewUdp(s, Family::kIpv6);
  ASSERT_EQ(a->Bind(At("0.0.0.0", 100)), Errno::kOk);
  EXPECT_EQ(a->Bind(At("0.0.0.0", 101)), Errno::kEINVAL);
  EXPECT_EQ(b->Bind(At("10.0.0.1", 100)), Errno::kEADDRINUSE);
  EXPECT_EQ(d->Bind(At("::", 100)), Errno::kEADDRINUSE);
  ASSERT_EQ(e->SetOption(SockOpt::kIpv6V6Only, 1), Errno::kOk);
  EXPECT_EQ(e->Bind(At("::", 100)), Errno::kOk);
  EXPECT_EQ(b->Bind(At("10.0.0.99", 100)), Errno::kEADDRNOTAVAIL);
  ASSERT_EQ(b->SetOption(SockOpt::kIpFreebind, 1), Errno::kOk);
  EXPECT_EQ(b->Bind(At("10.0.0.99", 101)), Errno::kOk);
  EXPECT_EQ(c->Bind(At("::1", 102)), Errno::kEAFNOSUPPORT);
  Udp f = NewUdp(s), g = NewUdp(s);
  for (auto* x : {f.get(), g.get()}) ASSERT_EQ(x->SetOption(SockOpt::kReuseAddr, 1), Errno::kOk);
  EXPECT_EQ(f->Bind(At("0.0.0.0", 200)), Errno::kOk);
  EXPECT_EQ(g->Bind(At("0.0.0.0", 200)), Errno::kOk);
  a.reset();
  EXPECT_EQ(c->Bind(At("10.0.0.1", 100)), Errno::kOk);
}

TEST(Udp, EphemeralPortsComeFromTheRangeAndRunOut) {
  FrameHost h;
  h.config().sysctls["net.ipv4.ip_local_port_range"] = "5000 5009";
  h.ApplyConfig();
  std::vector<Udp> sockets;
  for (int i = 0; i < 10; ++i) {
    sockets.push_back(NewUdp(h.stack()));
    ASSERT_EQ(sockets.back()->Bind(At("0.0.0.0", 0)), Errno::kOk);
    EXPECT_GE(sockets.back()->local().port, 5000);
    EXPECT_LE(sockets.back()->local().port, 5009);
  }
  Udp more = NewUdp(h.stack());
  EXPECT_EQ(more->Bind(At("0.0.0.0", 0)), Errno::kEADDRINUSE);
  EXPECT_EQ(SendText(more.get(), "x", At("10.0.0.2", 9)), Errno::kEAGAIN);
}

TEST(Udp, ConnectedSocketTakesOnlyItsPeer) {
  FrameHost h;
  Udp any = NewUdp(h.stack()), connected = NewUdp(h.stack());
  for (auto* s : {any.get(), connected.get()}) {
    ASSERT_EQ(s->SetOption(SockOpt::kReuseAddr, 1), Errno::kOk);
    ASSERT_EQ(s->Bind(At("0.0.0.0", 53)), Errno::kOk);
  }
  ASSERT_EQ(connected->Connect(At("10.0.0.2", 1000)), Errno::kOk);
  h.In(UdpIn(h, 1000, 53, "mine"));
  h.In(UdpIn(h, 1001, 53, "other"));
  EXPECT_EQ(ReceiveText(connected.get()), "mine");
  EXPECT_EQ(ReceiveText(any.get()), "other");
  EXPECT_EQ(ReceiveText(connected.get()), "<none>");
  ASSERT_EQ(connected->Connect(std::nullopt), Errno::kOk);
  EXPECT_FALSE(connected->remote());
  EXPECT_EQ(SendText(connected.get(), "x"), Errno::kEDESTADDRREQ);
}

TEST(Udp, ReusePortGroupSpreadsFlowsAndKeepsEachOnOneSocket) {
  FrameHost h;
  std::vector<Udp> group;
  for (int i = 0; i < 4; ++i) {
    group.push_back(NewUdp(h.stack()));
    ASSERT_EQ(group.back()->SetOption(SockOpt::kReusePort, 1), Errno::kOk);
    ASSERT_EQ(group.back()->Bind(At("0.0.0.0", 53)), Errno::kOk);
  }
  for (int round = 0; round < 2; ++round) {
    for (uint16_t port = 1000; port < 1064; ++port) h.In(UdpIn(h, port, 53, std::to_string(port)));
  }
  size_t total = 0;
  for (auto& s : group) {
    std::map<std::string, int> seen;
    for (std::string t; (t = ReceiveText(s.get())) != "<none>";) ++seen[t];
    EXPECT_GT(seen.size(), 3u);
    for (auto& [text, count] : seen) EXPECT_EQ(count, 2) << text;
    total += seen.size();
  }
  EXPECT_EQ(total, 64u);
}

TEST(Udp, MalformedDatagramsAreCountedOnce) {
  FrameHost h;
  Udp s = NewUdp(h.stack());
  ASSERT_EQ(s->Bind(At("0.0.0.0", 53)), Errno::kOk);
  Frame f = UdpIn(h, 1, 53, "payload");
  f[f.size() - 1] ^= 1;
  h.In(f);
  EXPECT_EQ(h.counter(Counter::kDropUdpChecksum), 1u);
  f = UdpIn(h, 1, 53, "payload");
  StoreBe16(&f[wire::kEthernetHeader + 20 + 4], 7);
  h.In(f);
  StoreBe16(&f[wire::kEthernetHeader + 20 + 4], 16);
  h.In(f);
  EXPECT_EQ(h.counter(Counter::kDropUdpMalformed), 2u);
  EXPECT_EQ(h.drops(), 3u);
  f = UdpIn(h, 1, 53, "no checksum");
  StoreBe16(&f[wire::kEthernetHeader + 20 + 6], 0);
  h.In(f);
  EXPECT_EQ(ReceiveText(s.get()), "no checksum");
}

TEST(Udp, ReceiveBufferIsBoundedAndSmallDatagramsDoNotHoldBigBlocks) {
  FrameHost h;
  Udp s = NewUdp(h.stack());
  ASSERT_EQ(s->Bind(At("0.0.0.0", 53)), Errno::kOk);
  const Frame f = UdpIn(h, 1, 53, std::string(100, 'x'));
  for (int i = 0; i < 400; ++i) {
    Packet p = Packet::Allocate(h.pool(), 65536);
    std::memcpy(p.Append(f.size()), f.data(), f.size());
    h.In(std::move(p));
  }
  int received = 0;
  while (ReceiveText(s.get()) != "<none>") ++received;
  EXPECT_GT(received, 200);
  EXPECT_LT(received, 300);
  EXPECT_EQ(h.counter(Counter::kDropUdpReceiveBuffer), static_cast<uint64_t>(400 - received));
}

TEST(Udp, UnreadSocketsTogetherAreBoundedAndEachStillGetsADatagram) {
  FrameHost h;
  std::vector<Udp> sockets;
  for (uint16_t port = 1000; port < 1100; ++port) {
    sockets.push_back(NewUdp(h.stack()));
    ASSERT_EQ(sockets.back()->Bind(At("0.0.0.0", port)), Errno::kOk);
  }
  for (int i = 0; i < 200; ++i)
    for (uint16_t port = 1000; port < 1099; ++port) h.In(UdpIn(h, 1, port, std::string(1000, 'x')));
  const QueueMemory& memory = h.stack().datagram_memory();
  EXPECT_TRUE(memory.pressure());
  EXPECT_LE(memory.held(), memory.limits().high + 99 * memory.limits().minimum);
  EXPECT_GT(h.counter(Counter::kDropUdpMemory), 0u);
  EXPECT_EQ(h.counter(Counter::kDropUdpReceiveBuffer), 0u);
  h.In(UdpIn(h, 1, 1099, "late"));
  EXPECT_EQ(ReceiveText(sockets.back().get()), "late");
  sockets.clear();
  EXPECT_EQ(memory.held(), 0u);
}

TEST(Udp, NoListenerGetsPortUnreachableButNotForBroadcast) {
  FrameHost h;
  h.In(UdpIn(h, 1, 53, "x"));
  const Frame out = h.Out();
  const auto ip = wire::Ipv4View::Parse(Bytes(out).subspan(wire::kEthernetHeader), out.size() - wire::kEthernetHeader);
  ASSERT_TRUE(ip);
  EXPECT_EQ(ip->protocol(), kIpProtoIcmp);
  const auto icmp = wire::IcmpView::Parse(Bytes(out).subspan(wire::kEthernetHeader + 20));
  EXPECT_EQ(icmp->type(), wire::kIcmpUnreachable);
  EXPECT_EQ(icmp->code(), wire::kIcmpPortUnreachable);
  h.In(UdpIn(h, 1, 53, "x", "10.0.0.255", &kBroadcastMac));
  h.In(UdpIn(h, 1, 53, "x", "10.0.0.1", &kBroadcastMac));
  EXPECT_TRUE(h.AllOut().empty());
  EXPECT_EQ(h.counter(Counter::kUdpNoPorts), 3u);
}

TEST(Udp, BroadcastReachesAllAndNeedsPermissionToSend) {
  FrameHost h;
  Udp a = NewUdp(h.stack()), b = NewUdp(h.stack()), bound = NewUdp(h.stack());
  for (auto* s : {a.get(), b.get(), bound.get()}) ASSERT_EQ(s->SetOption(SockOpt::kReuseAddr, 1), Errno::kOk);
  ASSERT_EQ(a->Bind(At("0.0.0.0", 67)), Errno::kOk);
  ASSERT_EQ(b->Bind(At("0.0.0.0", 67)), Errno::kOk);
  ASSERT_EQ(bound->Bind(At("10.0.0.1", 67)), Errno::kOk);
  h.In(UdpIn(h, 68, 67, "all", "255.255.255.255", &kBroadcastMac));
  EXPECT_EQ(ReceiveText(a.get()), "all");
  EXPECT_EQ(ReceiveText(b.get()), "all");
  EXPECT_EQ(ReceiveText(bound.get()), "<none>");
  EXPECT_EQ(SendText(a.get(), "x", At("10.0.0.255", 67)), Errno::kEACCES);
  ASSERT_EQ(a->SetOption(SockOpt::kBroadcast, 1), Errno::kOk);
  ASSERT_EQ(SendText(a.get(), "out", At("10.0.0.255", 67)), Errno::kOk);
  h.Turn();
  const Frame out = h.Out();
  ASSERT_FALSE(out.empty());
  EXPECT_EQ(wire::EthernetView::Parse(out)->destination(), kBroadcastMac);
  EXPECT_EQ(ReceiveText(b.get()), "out");  // ourselves too
}

TEST(Udp, MulticastNeedsMembership) {
  FrameHost h;
  Udp s = NewUdp(h.stack());
  ASSERT_EQ(s->Bind(At("0.0.0.0", 5353)), Errno::kOk);
  const MacAddress group_mac{{1, 0, 0x5e, 1, 2, 3}};
  h.In(UdpIn(h, 1, 5353, "early", "239.1.2.3", &group_mac));
  EXPECT_EQ(ReceiveText(s.get()), "<none>");
  ASSERT_EQ(s->JoinGroup({.group = IpAddress::V4(239, 1, 2, 3), .ifindex = kSimIfIndex}), Errno::kOk);
  h.Turn();
  const Frame report = h.Out();
  ASSERT_GT(report.size(), wire::kEthernetHeader + 24u);
  EXPECT_EQ(report[wire::kEthernetHeader + 9], kIpProtoIgmp);
  EXPECT_EQ(report[wire::kEthernetHeader + 24], 0x22);
  h.In(UdpIn(h, 1, 5353, "joined", "239.1.2.3", &group_mac));
  EXPECT_EQ(ReceiveText(s.get()), "joined");
  EXPECT_EQ(s->JoinGroup({.group = IpAddress::V4(239, 1, 2, 3), .ifindex = kSimIfIndex}), Errno::kEADDRINUSE);
  ASSERT_EQ(SendText(s.get(), "self", At("239.1.2.3", 5353)), Errno::kOk);
  h.Turn();
  EXPECT_EQ(ReceiveText(s.get()), "self");
  const Frame out = h.Out();
  EXPECT_EQ(wire::EthernetView::Parse(out)->destination(), group_mac);
  EXPECT_EQ(out[wire::kEthernetHeader + 8], 1);  // TTL
  ASSERT_EQ(s->LeaveGroup({.group = IpAddress::V4(239, 1, 2, 3)}), Errno::kOk);
  h.In(UdpIn(h, 1, 5353, "late", "239.1.2.3", &group_mac));
  EXPECT_EQ(ReceiveText(s.get()), "<none>");
}

TEST(Udp, IcmpErrorsReachConnectedSocketsAndTheErrorQueue) {
  FrameHost h;
  Udp plain = NewUdp(h.stack()), with_queue = NewUdp(h.stack());
  ASSERT_EQ(plain->Connect(At("10.0.0.2", 9)), Errno::kOk);
  ASSERT_EQ(SendText(plain.get(), "abcdefgh"), Errno::kOk);
  h.Turn();
  h.In(IcmpAbout(h, h.Out(), wire::kIcmpUnreachable, wire::kIcmpPortUnreachable, 0));
  EXPECT_EQ(plain->TakeError(), Errno::kECONNREFUSED);
  EXPECT_EQ(plain->TakeError(), Errno::kOk);

  ASSERT_EQ(with_queue->SetOption(SockOpt::kIpRecvErr, 1), Errno::kOk);
  ASSERT_EQ(SendText(with_queue.get(), "abcdefgh", At("10.0.0.2", 77)), Errno::kOk);
  h.Turn();
  h.In(IcmpAbout(h, h.Out(), wire::kIcmpUnreachable, wire::kIcmpHostUnreachable, 0, "10.0.0.254"));
  EXPECT_NE(with_queue->events() & kErrorQueue, 0u);
  SocketError e;
  ASSERT_TRUE(with_queue->ReceiveError(&e));
  EXPECT_EQ(e.error, Errno::kEHOSTUNREACH);
  EXPECT_EQ(e.origin, 2);
  EXPECT_EQ(e.offender.address, IpAddress::V4(10, 0, 0, 254));
  EXPECT_EQ(e.destination, At("10.0.0.2", 77));
  EXPECT_FALSE(with_queue->ReceiveError(&e));
}

TEST(Udp, ForgedIcmpErrorsAreIgnored) {
  FrameHost h;
  Udp s = NewUdp(h.stack());
  ASSERT_EQ(s->Connect(At("10.0.0.2", 9)), Errno::kOk);
  ASSERT_EQ(SendText(s.get(), "abcdefgh"), Errno::kOk);
  h.Turn();
  const Frame sent = h.Out();
  Frame other = sent;
  StoreBe16(&other[wire::kEthernetHeader + 22], 10);  // another remote port
  h.In(IcmpAbout(h, other, wire::kIcmpUnreachable, wire::kIcmpPortUnreachable, 0));
  other = sent;
  other[wire::kEthernetHeader + 12] = 99;  // not from an address of ours
  h.In(IcmpAbout(h, other, wire::kIcmpUnreachable, wire::kIcmpPortUnreachable, 0));
  EXPECT_EQ(s->TakeError(), Errno::kOk);
}

TEST(Udp, PathMtuIsLearntAndObeyed) {
  FrameHost h;
  Udp s = NewUdp(h.stack());
  ASSERT_EQ(s->SetOption(SockOpt::kIpMtuDiscover, 2), Errno::kOk);  // IP_PMTUDISC_DO
  ASSERT_EQ(s->Connect(At("10.0.0.2", 9)), Errno::kOk);
  EXPECT_EQ(SendText(s.get(), std::string(1473, 'x')), Errno::kEMSGSIZE);
  ASSERT_EQ(SendText(s.get(), std::string(1472, 'x')), Errno::kOk);
  h.Turn();
  h.In(IcmpAbout(h, h.Out(), wire::kIcmpUnreachable, wire::kIcmpFragNeeded, 1300, "10.0.0.254"));
  EXPECT_EQ(s->TakeError(), Errno::kEMSGSIZE);
  int64_t mtu = 0;
  ASSERT_EQ(s->GetOption(SockOpt::kIpMtu, &mtu), Errno::kOk);
  EXPECT_EQ(mtu, 1300);
  EXPECT_EQ(SendText(s.get(), std::string(1472, 'x')), Errno::kEMSGSIZE);
  EXPECT_EQ(SendText(s.get(), std::string(1272, 'x')), Errno::kOk);
  h.Advance(Duration::Seconds(601));
  ASSERT_EQ(s->GetOption(SockOpt::kIpMtu, &mtu), Errno::kOk);
  EXPECT_EQ(mtu, 1500);
}

TEST(Udp, UnansweredNeighborGivesHostUnreachable) {
  FrameHost h(false);
  Udp s = NewUdp(h.stack());
  ASSERT_EQ(s->SetOption(SockOpt::kIpRecvErr, 1), Errno::kOk);
  ASSERT_EQ(s->Connect(At("10.0.0.77", 9)), Errno::kOk);
  ASSERT_EQ(SendText(s.get(), "x"), Errno::kOk);
  h.Advance(Duration::Seconds(4));
  EXPECT_EQ(s->TakeError(), Errno::kEHOSTUNREACH);
}

TEST(Udp, ChecksumIsPartialWhereTheLinkTakesItAndCompleteWhereNot) {
  FrameHost h;
  Udp s = NewUdp(h.stack());
  ASSERT_EQ(SendText(s.get(), "x", At("10.0.0.2", 9)), Errno::kOk);
  h.Turn();
  ASSERT_EQ(h.offloads.size(), 1u);
  EXPECT_EQ(h.offloads[0].checksum, ChecksumState::kPartial);
  EXPECT_EQ(h.offloads[0].csum_start, 34);
  EXPECT_EQ(h.offloads[0].csum_offset, 6);
  h.AllOut();
  h.SetFeatures(LinkFeatures{});
  ASSERT_EQ(SendText(s.get(), "x", At("10.0.0.2", 9)), Errno::kOk);
  h.Turn();
  Udp peer_view = NewUdp(h.stack());
  bool seen = false;
  for (const Frame& out : h.AllOut()) {
    if (wire::EthernetView::Parse(out)->type() != wire::kEtherIpv4) continue;
    seen = true;
    const uint16_t pseudo = wire::PseudoHeaderSum(IpAddress::V4(10, 0, 0, 1), IpAddress::V4(10, 0, 0, 2), kIpProtoUdp, 9);
    EXPECT_EQ(wire::OnesSum(Bytes(out).subspan(34), pseudo), 0xffff);
  }
  EXPECT_TRUE(seen);
}

TEST(Udp, SegmentationOffloadBothWays) {
  SimNetwork net(3);
  SimHost& a = net.AddHost("a", HostConfig("10.0.0.1/24"));
  SimHost& b = net.AddHost("b", HostConfig("10.0.0.2/24"));
  for (const bool cut : {true, false}) {
    if (cut) net.Join(a, b, {.delay = Duration::Milliseconds(1)});
    LinkProfile profile{.delay = Duration::Milliseconds(1)};
    profile.cut_gso = cut;
    net.SetProfile(a, kSimIfIndex, profile);
    Udp server = NewUdp(b.stack()), client = NewUdp(a.stack());
    ASSERT_EQ(server->Bind(At("0.0.0.0", 9)), Errno::kOk);
    ASSERT_EQ(server->SetOption(SockOpt::kUdpGro, cut ? 0 : 1), Errno::kOk);
    ASSERT_EQ(client->SetOption(SockOpt::kUdpSegment, 1000), Errno::kOk);
    ASSERT_EQ(SendText(client.get(), std::string(4500, 'y'), At("10.0.0.2", 9)), Errno::kOk);
    net.RunFor(Duration::Milliseconds(50));
    DatagramMeta meta;
    if (cut) {
      for (int i = 0; i < 4; ++i) EXPECT_EQ(ReceiveText(server.get(), &meta), std::string(1000, 'y'));
      EXPECT_EQ(ReceiveText(server.get(), &meta), std::string(500, 'y'));
    } else {
      EXPECT_EQ(ReceiveText(server.get(), &meta), std::string(4500, 'y'));
      EXPECT_EQ(meta.gro_size, 1000);
    }
    EXPECT_EQ(ReceiveText(server.get()), "<none>");
  }
}

TEST(Udp, OptionsAsLinux) {
  FrameHost h;
  Udp s = NewUdp(h.stack());
  int64_t v = 0;
  ASSERT_EQ(s->GetOption(SockOpt::kRcvBuf, &v), Errno::kOk);
  EXPECT_EQ(v, 212992);
  ASSERT_EQ(s->SetOption(SockOpt::kRcvBuf, 1000000), Errno::kOk);
  ASSERT_EQ(s->GetOption(SockOpt::kRcvBuf, &v), Errno::kOk);
  EXPECT_EQ(v, 425984);
  ASSERT_EQ(s->SetOption(SockOpt::kRcvBuf, 1), Errno::kOk);
  ASSERT_EQ(s->GetOption(SockOpt::kRcvBuf, &v), Errno::kOk);
  EXPECT_EQ(v, 2304);
  EXPECT_EQ(s->SetOption(SockOpt::kIpTtl, 0), Errno::kEINVAL);
  EXPECT_EQ(s->SetOption(SockOpt::kIpTtl, 256), Errno::kEINVAL);
  ASSERT_EQ(s->SetOption(SockOpt::kIpTtl, 3), Errno::kOk);
  ASSERT_EQ(s->SetOption(SockOpt::kIpTos, 0x10), Errno::kOk);
  ASSERT_EQ(SendText(s.get(), "x", At("10.0.0.2", 9)), Errno::kOk);
  h.Turn();
  const Frame out = h.Out();
  EXPECT_EQ(out[wire::kEthernetHeader + 8], 3);
  EXPECT_EQ(out[wire::kEthernetHeader + 1], 0x10);
  EXPECT_EQ(s->SetOption(SockOpt::kTcpNoDelay, 1), Errno::kENOPROTOOPT);
  EXPECT_EQ(s->SetOption(SockOpt::kIpv6V6Only, 1), Errno::kENOPROTOOPT);
  EXPECT_EQ(s->SetOption(SockOpt::kBindToIfIndex, 77), Errno::kOk);  // a device that may come yet
  EXPECT_EQ(s->SetOption(SockOpt::kBindToIfIndex, 0), Errno::kOk);
  EXPECT_EQ(s->GetOption(SockOpt::kIpMtu, &v), Errno::kENOTCONN);
}

TEST(Udp, SocketsKeepTheirAddressWhenItVanishes) {
  FrameHost h;
  Udp s = NewUdp(h.stack());
  ASSERT_EQ(s->Bind(At("10.0.0.1", 53)), Errno::kOk);
  const NetConfig with = h.config();
  h.config() = LoopbackOnlyConfig();
  h.ApplyConfig();
  EXPECT_EQ(s->local(), At("10.0.0.1", 53));
  EXPECT_NE(SendText(s.get(), "x", At("10.0.0.2", 9)), Errno::kOk);
  h.config() = with;
  h.ApplyConfig();
  h.In(UdpIn(h, 1, 53, "back"));
  EXPECT_EQ(ReceiveText(s.get()), "back");
}

}  // namespace
}  // namespace sluice::testing
