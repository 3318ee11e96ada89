// Several workers as one host, against another such host over in-memory queues: by single turns in the test's thread, and with
// all threads running. The parameter is whether the queues are steered by the host's own hash, or by another, as a device may do.
#include "dataplane/worker_group.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <set>
#include <thread>

#include "dataplane/pipe_queues.h"
#include "netstack/config_builder.h"
#include "netstack/wire/checksum.h"
#include "netstack/wire/headers.h"

namespace sluice {
namespace {

constexpr IfIndex kDevice = 2;
constexpr uint32_t kOur = 3, kTheir = 2;  // workers
const IpAddress kA = IpAddress::V4(10, 0, 0, 1), kB = IpAddress::V4(10, 0, 0, 2), kAny = IpAddress::Any(Family::kIpv4);
const MacAddress kMacA{{2, 0, 0, 0, 0, 1}}, kMacB{{2, 0, 0, 0, 0, 2}};

Bytes AsBytes(std::string_view s) { return {reinterpret_cast<const uint8_t*>(s.data()), s.size()}; }

std::shared_ptr<const NetConfig> ConfigOf(const IpAddress& address, const MacAddress& mac) {
  auto config = std::make_shared<NetConfig>(LoopbackOnlyConfig());
  AddDevice(config.get(), kDevice, "eth0", mac, 1500);
  AddAddress(config.get(), kDevice, {address, 24});
  return config;
}

PipeSide SideOf(WorkerGroup& group, bool steered) {
  PipeSide side{.ifindex = kDevice, .key = steered ? group.key() : wire::SteeringKey{1, 1}};
  for (uint32_t i = 0; i < group.size(); ++i) side.pools.push_back(&group.pool(i));
  return side;
}

class WorkerGroupTest : public ::testing::TestWithParam<bool> {
 protected:
  WorkerGroupTest() {
    PipeQueues pipe = MakePipeQueues(SideOf(a_, GetParam()), SideOf(b_, GetParam()));
    a_.ApplyConfig(ConfigOf(kA, kMacA));
    b_.ApplyConfig(ConfigOf(kB, kMacB));
    a_.AddQueues(std::move(pipe.first));
    b_.AddQueues(std::move(pipe.second));
  }

  void Turn() {
    for (WorkerGroup* group : {&a_, &b_}) {
      for (uint32_t i = 0; i < group->size(); ++i) group->worker(i).RunOnce();
    }
  }
  template <typename Done>
  [[nodiscard]] bool RunUntil(Done done) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!done() && std::chrono::steady_clock::now() < until) Turn();
    return done();
  }
  static uint64_t Sum(WorkerGroup& group, Counter c) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < group.size(); ++i) sum += group.stack(i).counters().Get(c);
    return sum;
  }
  static ShardMailStats Mail(WorkerGroup& group) {
    ShardMailStats sum;
    for (uint32_t i = 0; i < group.size(); ++i) {
      sum.frames_sent += group.mail(i)->stats().frames_sent;
      sum.packets_sent += group.mail(i)->stats().packets_sent;
      sum.dropped += group.mail(i)->stats().dropped;
    }
    return sum;
  }
  static StreamSocket* Listen(Stack& stack, uint16_t port) {
    StreamSocket* s = stack.NewTcpSocket(Family::kIpv4);
    EXPECT_EQ(s->Bind({kAny, port, 0}), Errno::kOk);
    EXPECT_EQ(s->Listen(1024), Errno::kOk);
    return s;
  }
  static StreamSocket* Connect(Stack& stack, const IpAddress& to, uint16_t port, uint16_t from = 0) {
    StreamSocket* s = stack.NewTcpSocket(Family::kIpv4);
    EXPECT_EQ(from != 0 ? s->Bind({kAny, from, 0}) : Errno::kOk, Errno::kOk);
    EXPECT_EQ(s->Connect({to, port, 0}), Errno::kEINPROGRESS);
    return s;
  }
  static DatagramSocket* Udp(Stack& stack, uint16_t port) {
    DatagramSocket* s = stack.NewUdpSocket(Family::kIpv4);
    EXPECT_EQ(port != 0 ? s->Bind({kAny, port, 0}) : Errno::kOk, Errno::kOk);
    return s;
  }
  static void SendTo(DatagramSocket* s, const IpAddress& to, uint16_t port, std::string_view text) {
    const Bytes part = AsBytes(text);
    const DatagramSend how{.destination = Endpoint{to, port, 0}};
    EXPECT_EQ(s->Send(how, {&part, 1}), Errno::kOk);
  }
  static bool Established(const StreamSocket* s) { return s->state() == 1; }
  static std::string Read(StreamSocket* s) {
    std::string text;
    Bytes spans[4];
    for (size_t n; (n = s->Peek(spans)) > 0;) {
      size_t bytes = 0;
      for (size_t i = 0; i < n; ++i) {
        text.append(reinterpret_cast<const char*>(spans[i].data()), spans[i].size());
        bytes += spans[i].size();
      }
      s->Consume(bytes);
    }
    return text;
  }
  static void Write(BlockPool& pool, StreamSocket* s, std::string_view text) {
    BlockRef block(pool.Allocate(text.size()));
    std::memcpy(block->data, text.data(), text.size());
    EXPECT_EQ(s->Send(Slice{std::move(block), 0, static_cast<uint32_t>(text.size())}, false), Errno::kOk);
  }
  // Both ends say something; both hear it.
  void Exchange(StreamSocket* one, BlockPool& one_pool, StreamSocket* other, BlockPool& other_pool) {
    Write(one_pool, one, "question");
    Write(other_pool, other, "answer");
    std::string at_one, at_other;
    EXPECT_TRUE(RunUntil([&] {
      at_one += Read(one);
      at_other += Read(other);
      return at_one == "answer" && at_other == "question";
    })) << at_one
        << "/" << at_other;
  }

  WorkerGroup a_{{.workers = kOur, .pool_bytes = 32 << 20}};
  WorkerGroup b_{{.workers = kTheir, .pool_bytes = 32 << 20}};
};

INSTANTIATE_TEST_SUITE_P(Queues, WorkerGroupTest, ::testing::Bool(),
                         [](const auto& i) { return i.param ? "SteeredByUs" : "SteeredByTheDevice"; });

TEST_P(WorkerGroupTest, ConnectionsSpreadOverListenersAndStayAtHome) {
  std::vector<StreamSocket*> listeners, clients, accepted;
  for (uint32_t i = 0; i < kOur; ++i) listeners.push_back(Listen(a_.stack(i), 80));
  // Neighbours first, so that what is mailed below is of flows.
  for (uint32_t i = 0; i < kTheir; ++i) clients.push_back(Connect(b_.stack(i), kA, 80));
  ASSERT_TRUE(RunUntil([&] { return std::all_of(clients.begin(), clients.end(), Established); }));
  for (uint32_t i = 0; i < 300; ++i) clients.push_back(Connect(b_.stack(i % kTheir), kA, 80));
  ASSERT_TRUE(RunUntil([&] { return std::all_of(clients.begin(), clients.end(), Established); }));
  std::vector<size_t> here(kOur);
  EXPECT_TRUE(RunUntil([&] {
    for (uint32_t i = 0; i < kOur; ++i) {
      for (; StreamSocket* s = listeners[i]->Accept(); ++here[i]) accepted.push_back(s);
    }
    return accepted.size() == clients.size();
  })) << accepted.size();
  for (const size_t n : here) EXPECT_GT(n, 60u);
  EXPECT_EQ(Mail(a_).packets_sent + Mail(b_).packets_sent, 0u);
  const uint64_t mailed = Mail(a_).frames_sent + Mail(b_).frames_sent;
  EXPECT_EQ(mailed > 100, !GetParam());
  EXPECT_EQ(mailed == 0, GetParam());
  for (StreamSocket* s : clients) s->Close();
  for (StreamSocket* s : accepted) s->Close();
  for (StreamSocket* s : listeners) s->Close();
}

TEST_P(WorkerGroupTest, AnArpRequestIsAnsweredOnceAndAllLearn) {
  DatagramSocket* s = Udp(b_.stack(1), 0);
  SendTo(s, kA, 9, "x");
  ASSERT_TRUE(RunUntil([&] { return Sum(b_, Counter::kArpInReplies) == kTheir; }));
  EXPECT_EQ(Sum(b_, Counter::kArpOutRequests), 2u);  // its announcement, and the question
  EXPECT_EQ(Sum(a_, Counter::kArpOutReplies), 1u);
  for (uint32_t i = 0; i < kOur; ++i) {
    const auto known = a_.stack(i).Neighbors();
    ASSERT_EQ(known.size(), 1u) << i;
    EXPECT_EQ(known[0].mac, kMacB);
  }
  s->Close();
}

TEST_P(WorkerGroupTest, ASocketOfOneWorkerGetsAllOfItsDatagrams) {
  DatagramSocket* server = Udp(a_.stack(2), 53);
  std::vector<DatagramSocket*> clients;
  for (uint32_t i = 0; i < 40; ++i) {
    clients.push_back(Udp(b_.stack(i % kTheir), 0));
    SendTo(clients.back(), kA, 53, "question");
  }
  size_t asked = 0, answered = 0;
  ASSERT_TRUE(RunUntil([&] {
    Datagram d;
    for (; server->Receive(&d); ++asked) SendTo(server, d.meta.source.address, d.meta.source.port, "answer");
    for (DatagramSocket* c : clients) answered += c->Receive(&d);
    return answered == clients.size();
  })) << asked
      << " questions, " << answered << " answers";
  EXPECT_EQ(asked, clients.size());
  EXPECT_EQ(Sum(a_, Counter::kUdpNoPorts), 0u);
  for (DatagramSocket* c : clients) c->Close();
  server->Close();
}

TEST_P(WorkerGroupTest, AClosedPortIsRefusedOnceAndTheSenderHearsOfIt) {
  std::vector<DatagramSocket*> clients;
  for (uint32_t i = 0; i < 6; ++i) {
    clients.push_back(Udp(b_.stack(i % kTheir), 0));
    EXPECT_EQ(clients.back()->SetOption(SockOpt::kIpRecvErr, 1), Errno::kOk);
    SendTo(clients.back(), kA, 9, "x");
  }
  ASSERT_TRUE(RunUntil([&] {
    return std::all_of(clients.begin(), clients.end(), [](DatagramSocket* c) { return (c->events() & kErrorQueue) != 0; });
  }));
  for (DatagramSocket* c : clients) {
    SocketError e;
    EXPECT_TRUE(c->ReceiveError(&e));
    EXPECT_EQ(e.error, Errno::kECONNREFUSED);
    EXPECT_FALSE(c->ReceiveError(&e));
    c->Close();
  }
  EXPECT_EQ(Sum(a_, Counter::kUdpNoPorts), 6u);
}

TEST_P(WorkerGroupTest, AConnectedDatagramSocketIsAtHome) {
  std::vector<DatagramSocket*> servers, clients;
  for (uint32_t i = 0; i < kOur; ++i) servers.push_back(Udp(a_.stack(i), 53));
  for (uint32_t i = 0; i < 20; ++i) {
    clients.push_back(Udp(b_.stack(i % kTheir), 0));
    ASSERT_EQ(clients.back()->Connect(Endpoint{kA, 53, 0}), Errno::kOk);
    const Bytes part = AsBytes("x");
    EXPECT_EQ(clients.back()->Send({}, {&part, 1}), Errno::kOk);
  }
  size_t answered = 0;
  ASSERT_TRUE(RunUntil([&] {
    Datagram d;
    for (DatagramSocket* s : servers) {
      while (s->Receive(&d)) SendTo(s, d.meta.source.address, d.meta.source.port, "answer");
    }
    for (DatagramSocket* c : clients) answered += c->Receive(&d);
    return answered == clients.size();
  }));
  EXPECT_EQ(Mail(b_).packets_sent, 0u);
  for (DatagramSocket* c : clients) c->Close();
  for (DatagramSocket* s : servers) s->Close();
}

TEST_P(WorkerGroupTest, AListenerOfOneWorkerServesThePeerAndTheOtherWorkers) {
  StreamSocket* listener = Listen(a_.stack(1), 80);
  std::vector<std::pair<StreamSocket*, BlockPool*>> clients;
  for (uint32_t i = 0; i < 8; ++i) clients.emplace_back(Connect(b_.stack(i % kTheir), kA, 80), &b_.pool(i % kTheir));
  for (uint32_t i = 0; i < kOur; ++i) {
    clients.emplace_back(Connect(a_.stack(i), kA, 80), &a_.pool(i));
    clients.emplace_back(Connect(a_.stack(i), IpAddress::Loopback(Family::kIpv4), 80), &a_.pool(i));
  }
  ASSERT_TRUE(
      RunUntil([&] { return std::all_of(clients.begin(), clients.end(), [](auto& c) { return Established(c.first); }); }));
  std::vector<StreamSocket*> accepted;
  ASSERT_TRUE(RunUntil([&] {
    while (StreamSocket* s = listener->Accept()) accepted.push_back(s);
    return accepted.size() == clients.size();
  }));
  for (auto& [client, pool] : clients) {
    const auto server = std::find_if(accepted.begin(), accepted.end(), [&, c = client](StreamSocket* s) {
      return s->remote()->port == c->local().port && s->remote()->address == c->local().address;
    });
    ASSERT_NE(server, accepted.end());
    Exchange(client, *pool, *server, a_.pool(1));
  }
  // What nobody has is refused, from wherever.
  StreamSocket* refused = Connect(a_.stack(0), kA, 81);
  EXPECT_TRUE(RunUntil([&] { return (refused->events() & kError) != 0; }));
  EXPECT_EQ(refused->TakeError(), Errno::kECONNREFUSED);
  refused->Close();
  for (auto& c : clients) c.first->Close();
  for (StreamSocket* s : accepted) s->Close();
  listener->Close();
}

TEST_P(WorkerGroupTest, AConnectionFromAPortOfTheProgramsChoiceWorksWhereverItsHomeIs) {
  std::vector<StreamSocket*> listeners;
  for (uint32_t i = 0; i < kOur; ++i) listeners.push_back(Listen(a_.stack(i), 80));
  std::vector<StreamSocket*> clients;
  for (uint16_t i = 0; i < 10; ++i) clients.push_back(Connect(b_.stack(0), kA, 80, static_cast<uint16_t>(5000 + i)));
  ASSERT_TRUE(RunUntil([&] { return std::all_of(clients.begin(), clients.end(), Established); }));
  EXPECT_GT(Mail(b_).packets_sent, 0u);
  for (StreamSocket* s : clients) s->Close();
  for (StreamSocket* s : listeners) s->Close();
}

TEST_P(WorkerGroupTest, StraySegmentsAtAListeningPortCostNoMail) {
  std::vector<StreamSocket*> listeners;
  for (uint32_t i = 0; i < kOur; ++i) listeners.push_back(Listen(a_.stack(i), 80));
  DatagramSocket* raw = b_.stack(0).NewRawSocket(Family::kIpv4, kIpProtoTcp);
  constexpr uint16_t kEach = 50;
  for (uint16_t i = 0; i < kEach; ++i) {
    for (const uint8_t flags : {0x10, 0x04}) {  // ACK, RST
      uint8_t segment[20] = {};
      StoreBe16(segment, static_cast<uint16_t>(6000 + i));
      StoreBe16(segment + 2, 80);
      segment[12] = 0x50;
      segment[13] = flags;
      wire::StoreSum(segment + 16,
                     static_cast<uint16_t>(~wire::OnesSum(Bytes{segment}, wire::PseudoHeaderSum(kB, kA, kIpProtoTcp, 20))));
      const Bytes part{segment};
      const DatagramSend how{.destination = Endpoint{kA, 0, 0}};
      EXPECT_EQ(raw->Send(how, {&part, 1}), Errno::kOk);
    }
  }
  EXPECT_TRUE(RunUntil([&] { return Sum(a_, Counter::kTcpOutRsts) == kEach; }));
  EXPECT_EQ(Sum(a_, Counter::kTcpInSegs), 2u * kEach);
  EXPECT_EQ(Mail(a_).packets_sent, 0u);
  raw->Close();
  for (StreamSocket* l : listeners) l->Close();
}

TEST_P(WorkerGroupTest, FragmentsGoWhereTheirFlowIs) {
  std::vector<DatagramSocket*> servers;
  for (uint32_t i = 0; i < kOur; ++i) servers.push_back(Udp(a_.stack(i), 53));
  for (int round = 0; round < 8; ++round) {
    DatagramSocket* client = Udp(b_.stack(0), 0);
    SendTo(client, kA, 53, "short");
    SendTo(client, kA, 53, std::string(5000, 'x'));
    std::vector<size_t> got(kOur);
    ASSERT_TRUE(RunUntil([&] {
      Datagram d;
      for (uint32_t i = 0; i < kOur; ++i) {
        while (servers[i]->Receive(&d)) {
          ++got[i];
          EXPECT_TRUE(d.payload.size() == 5 || d.payload.size() == 5000);
        }
      }
      return std::accumulate(got.begin(), got.end(), size_t{0}) == 2;
    }));
    EXPECT_EQ(*std::max_element(got.begin(), got.end()), 2u) << "the flow is split";
    client->Close();
  }
  for (DatagramSocket* s : servers) s->Close();
}

TEST_P(WorkerGroupTest, PingsAreAnsweredOnceAndAnswersFindTheirSocket) {
  std::vector<DatagramSocket*> pings;
  for (uint32_t i = 0; i < 12; ++i) {
    pings.push_back(b_.stack(i % kTheir).NewPingSocket(Family::kIpv4));
    uint8_t echo[64] = {wire::kIcmpEcho};
    const Bytes part{echo, sizeof echo};
    const DatagramSend how{.destination = Endpoint{kA, 0, 0}};
    ASSERT_EQ(pings.back()->Send(how, {&part, 1}), Errno::kOk);
  }
  size_t answers = 0;
  ASSERT_TRUE(RunUntil([&] {
    Datagram d;
    for (DatagramSocket* p : pings) answers += p->Receive(&d);
    return answers == pings.size();
  }));
  EXPECT_EQ(Sum(a_, Counter::kIcmpOutEchoReps), pings.size());
  for (DatagramSocket* p : pings) p->Close();
}

TEST_P(WorkerGroupTest, BroadcastAndGroupsReachEveryWorkersSockets) {
  const IpAddress group = IpAddress::V4(239, 1, 2, 3);
  std::vector<DatagramSocket*> sockets;
  for (uint32_t i = 0; i < kOur; ++i) {
    sockets.push_back(Udp(a_.stack(i), 700));
    EXPECT_EQ(sockets.back()->JoinGroup({.group = group, .ifindex = kDevice}), Errno::kOk);
  }
  DatagramSocket* peer = Udp(b_.stack(1), 0);
  EXPECT_EQ(peer->SetOption(SockOpt::kBroadcast, 1), Errno::kOk);
  EXPECT_EQ(peer->SetMulticastInterface({}, kDevice), Errno::kOk);
  SendTo(peer, IpAddress::V4(10, 0, 0, 255), 700, "all");
  SendTo(peer, group, 700, "group");
  // And from one of our own workers.
  DatagramSocket* own = Udp(a_.stack(0), 0);
  EXPECT_EQ(own->SetMulticastInterface({}, kDevice), Errno::kOk);
  SendTo(own, group, 700, "own");
  std::vector<size_t> got(kOur);
  ASSERT_TRUE(RunUntil([&] {
    Datagram d;
    for (uint32_t i = 0; i < kOur; ++i) got[i] += sockets[i]->Receive(&d);
    return std::all_of(got.begin(), got.end(), [](size_t n) { return n >= 3; });
  }));
  for (int i = 0; i < 100; ++i) Turn();
  for (uint32_t i = 0; i < kOur; ++i) {
    Datagram d;
    EXPECT_FALSE(sockets[i]->Receive(&d)) << "twice";
    sockets[i]->Close();
  }
  own->Close();
  peer->Close();
}

TEST_P(WorkerGroupTest, AnEphemeralPortIsHeldByOneWorkerOnly) {
  std::set<uint16_t> ports;
  std::vector<Socket*> sockets;
  for (uint32_t i = 0; i < 300; ++i) {
    DatagramSocket* udp = a_.stack(i % kOur).NewUdpSocket(Family::kIpv4);
    ASSERT_EQ(udp->Bind({kAny, 0, 0}), Errno::kOk);
    EXPECT_TRUE(ports.insert(udp->local().port).second);
    sockets.push_back(udp);
  }
  ports.clear();
  for (uint32_t i = 0; i < 300; ++i) {
    StreamSocket* tcp = Listen(a_.stack(i % kOur), 0);
    EXPECT_TRUE(ports.insert(tcp->local().port).second);
    sockets.push_back(tcp);
  }
  for (Socket* s : sockets) s->Close();
}

TEST_P(WorkerGroupTest, RawSocketsSeeWhatComesToAnyWorkerOnce) {
  constexpr uint8_t kUdp = kIpProtoUdp, kIcmp = kIpProtoIcmp;
  std::vector<DatagramSocket*> raw{a_.stack(0).NewRawSocket(Family::kIpv4, kUdp), a_.stack(1).NewRawSocket(Family::kIpv4, kUdp)};
  DatagramSocket* pings = a_.stack(1).NewRawSocket(Family::kIpv4, kIcmp);
  DatagramSocket* server = Udp(a_.stack(2), 53);
  EXPECT_EQ(server->SetOption(SockOpt::kBroadcast, 1), Errno::kOk);
  constexpr size_t kClients = 30;
  std::vector<DatagramSocket*> clients;
  for (uint32_t i = 0; i < kClients; ++i) {
    clients.push_back(Udp(b_.stack(i % kTheir), 0));
    SendTo(clients.back(), kA, 53, "x");
    DatagramSocket* ping = b_.stack(i % kTheir).NewPingSocket(Family::kIpv4);
    uint8_t echo[16] = {wire::kIcmpEcho};
    const Bytes part{echo, sizeof echo};
    EXPECT_EQ(ping->Send({.destination = Endpoint{kA, 0, 0}}, {&part, 1}), Errno::kOk);
    clients.push_back(ping);
  }
  EXPECT_EQ(clients[0]->SetOption(SockOpt::kBroadcast, 1), Errno::kOk);
  SendTo(clients[0], IpAddress::V4(10, 0, 0, 255), 53, "all");
  std::vector<size_t> seen(raw.size());
  size_t pinged = 0, served = 0;
  Datagram d;
  const auto take = [&] {
    for (size_t i = 0; i < raw.size(); ++i) seen[i] += raw[i]->Receive(&d);
    pinged += pings->Receive(&d);
    served += server->Receive(&d);
  };
  EXPECT_TRUE(RunUntil([&] {
    take();
    return seen[0] == kClients + 1 && seen[1] == kClients + 1 && pinged == kClients && served == kClients + 1;
  })) << seen[0]
      << " " << seen[1] << " " << pinged << " " << served;
  for (int i = 0; i < 100; ++i) Turn();
  take();
  EXPECT_EQ(seen[0] + seen[1] + pinged + served, 4 * kClients + 3) << "twice";
  for (DatagramSocket* s : clients) s->Close();
  for (DatagramSocket* s : raw) s->Close();
  pings->Close();
  server->Close();
}

TEST_P(WorkerGroupTest, ARawSocketHearsOfErrorsThatComeToAnotherWorker) {
  constexpr uint8_t kProtocol = 254;  // nobody has it
  std::vector<DatagramSocket*> raw;
  for (uint32_t i = 0; i < kTheir; ++i) {
    raw.push_back(b_.stack(i).NewRawSocket(Family::kIpv4, kProtocol));
    EXPECT_EQ(raw.back()->SetOption(SockOpt::kIpRecvErr, 1), Errno::kOk);
  }
  const Bytes part = AsBytes("of no protocol");
  EXPECT_EQ(raw[0]->Send({.destination = Endpoint{kA, 0, 0}}, {&part, 1}), Errno::kOk);
  EXPECT_TRUE(RunUntil(
      [&] { return std::all_of(raw.begin(), raw.end(), [](DatagramSocket* s) { return (s->events() & kErrorQueue) != 0; }); }));
  for (DatagramSocket* s : raw) {
    SocketError e;
    EXPECT_TRUE(s->ReceiveError(&e));
    EXPECT_EQ(e.error, Errno::kENOPROTOOPT);
    EXPECT_FALSE(s->ReceiveError(&e)) << "twice";
    s->Close();
  }
}

TEST_P(WorkerGroupTest, AGroupThatOneWorkerJoinedIsHeardInAll) {
  const IpAddress group = IpAddress::V4(239, 1, 2, 3);
  DatagramSocket* member = a_.stack(1).NewUdpSocket(Family::kIpv4);
  DatagramSocket* bound = Udp(a_.stack(2), 700);
  DatagramSocket* peer = Udp(b_.stack(1), 0);
  EXPECT_EQ(peer->SetMulticastInterface({}, kDevice), Errno::kOk);
  const auto heard = [&](std::string_view last) {
    SendTo(peer, group, 700, "group");
    SendTo(peer, kA, 700, last);
    std::vector<std::string> all;
    EXPECT_TRUE(RunUntil([&] {
      Datagram d;
      while (bound->Receive(&d)) {
        std::string text(d.payload.size(), 0);
        d.payload.CopyOut(0, {reinterpret_cast<uint8_t*>(text.data()), text.size()});
        all.push_back(text);
      }
      return std::ranges::find(all, last) != all.end();
    }));
    return std::ranges::count(all, "group");
  };
  EXPECT_EQ(heard("before"), 0);
  EXPECT_EQ(member->JoinGroup({.group = group, .ifindex = kDevice}), Errno::kOk);
  // The group's packet and the last one come by different queues.
  EXPECT_TRUE(RunUntil([&] { return heard("joined") > 0; }));
  EXPECT_EQ(member->LeaveGroup({.group = group, .ifindex = kDevice}), Errno::kOk);
  for (int i = 0; i < 100; ++i) Turn();
  (void)heard("late ones");
  EXPECT_EQ(heard("after"), 0);
  for (DatagramSocket* s : {member, bound, peer}) s->Close();
}

TEST(WorkerGroupPorts, APortWithAHomeIsHeldByOneWorkerAtATime) {
  constexpr uint32_t kWorkers = 3;
  WorkerGroup group({.workers = kWorkers, .pool_bytes = 32 << 20, .ports_have_homes = true});
  group.ApplyConfig(ConfigOf(kA, kMacA));
  const auto udp = [&](uint32_t worker) { return group.stack(worker).NewUdpSocket(Family::kIpv4); };
  DatagramSocket *one = udp(0), *other = udp(1), *beside = udp(0);
  for (DatagramSocket* s : {one, other, beside}) EXPECT_EQ(s->SetOption(SockOpt::kReuseAddr, 1), Errno::kOk);
  EXPECT_EQ(one->Bind({kAny, 53, 0}), Errno::kOk);
  EXPECT_EQ(other->Bind({kAny, 53, 0}), Errno::kEADDRINUSE);
  EXPECT_EQ(beside->Bind({kAny, 53, 0}), Errno::kOk);
  one->Close();
  EXPECT_EQ(other->Bind({kAny, 53, 0}), Errno::kEADDRINUSE);
  beside->Close();
  EXPECT_EQ(other->Bind({kAny, 53, 0}), Errno::kOk);
  other->Close();
  // What the stack chooses is at home while it lasts; then any.
  std::vector<DatagramSocket*> sockets;
  std::set<uint16_t> ports;
  for (uint32_t i = 0; i < 600; ++i) {
    sockets.push_back(udp(i % kWorkers));
    ASSERT_EQ(sockets.back()->Connect(Endpoint{kA, 9, 0}), Errno::kOk);
    EXPECT_EQ(group.mail(0)->PortHome(sockets.back()->local().port), i % kWorkers);
    EXPECT_TRUE(ports.insert(sockets.back()->local().port).second);
  }
  for (DatagramSocket* s : sockets) s->Close();
}

// ---- All threads at once

// Echoes what its connections send; counts.
class Echo final : public TurnTask, private SocketObserver {
 public:
  Echo(Worker& worker, BlockPool& pool, uint16_t port)
      : worker_(worker), pool_(pool), listener_(worker.stack().NewTcpSocket(Family::kIpv4)) {
    EXPECT_EQ(listener_->Bind({kAny, port, 0}), Errno::kOk);
    EXPECT_EQ(listener_->Listen(1024), Errno::kOk);
    listener_->set_observer(this);
    worker_.AddTask(this);
  }
  ~Echo() override {
    worker_.RemoveTask(this);
    for (StreamSocket* s : sockets_) s->Abort();
    listener_->Close();
  }
  bool OnTurn() override {
    if (!std::exchange(due_, false)) return false;
    while (StreamSocket* s = listener_->Accept()) {
      s->set_observer(this);
      sockets_.push_back(s);
      accepted_.fetch_add(1);
    }
    for (StreamSocket* s : sockets_) Pass(s);
    return true;
  }
  bool HasWork() const override { return due_; }
  std::atomic<uint32_t> accepted_{0};

 private:
  void OnSocketEvents(uint32_t) override { due_ = true; }
  void Pass(StreamSocket* s) {
    Bytes span;
    while (s->send_space() > 0 && s->Peek({&span, 1}) > 0) {
      BlockRef block(pool_.Allocate(span.size()));
      std::memcpy(block->data, span.data(), span.size());
      const auto n = static_cast<uint32_t>(span.size());
      s->Consume(n);
      if (s->Send(Slice{std::move(block), 0, n}, false) != Errno::kOk) return;
    }
  }
  Worker& worker_;
  BlockPool& pool_;
  StreamSocket* listener_;
  std::vector<StreamSocket*> sockets_;
  bool due_ = true;
};

// Opens connections, each of which sends a pattern and checks what comes back.
class Clients final : public TurnTask, private SocketObserver {
 public:
  static constexpr uint32_t kBytes = 200'000;
  Clients(Worker& worker, BlockPool& pool, uint32_t count) : worker_(worker), pool_(pool) {
    worker_.AddTask(this);
    for (uint32_t i = 0; i < count; ++i) clients_.push_back({worker.stack().NewTcpSocket(Family::kIpv4)});
    for (Client& c : clients_) {
      c.socket->set_observer(this);
      EXPECT_EQ(c.socket->Connect({kA, 80, 0}), Errno::kEINPROGRESS);
    }
  }
  ~Clients() override {
    worker_.RemoveTask(this);
    for (Client& c : clients_) c.socket->Abort();
  }
  bool OnTurn() override {
    if (!std::exchange(due_, false)) return false;
    uint32_t complete = 0;
    for (Client& c : clients_) {
      Step(c);
      complete += c.received == kBytes;
    }
    complete_.store(complete);
    return true;
  }
  bool HasWork() const override { return due_; }
  std::atomic<uint32_t> complete_{0}, wrong_{0};

 private:
  struct Client {
    StreamSocket* socket;
    uint32_t sent = 0, received = 0;
  };
  void OnSocketEvents(uint32_t) override { due_ = true; }
  static uint8_t At(uint32_t i) { return static_cast<uint8_t>(i * 7 + (i >> 8)); }
  void Step(Client& c) {
    if (c.socket->state() != 1) return;
    while (c.sent < kBytes && c.socket->send_space() > 0) {
      const uint32_t n = std::min(kBytes - c.sent, 8000u);
      BlockRef block(pool_.Allocate(n));
      for (uint32_t i = 0; i < n; ++i) block->data[i] = At(c.sent + i);
      if (c.socket->Send(Slice{std::move(block), 0, n}, false) != Errno::kOk) return;
      c.sent += n;
    }
    Bytes span;
    while (c.socket->Peek({&span, 1}) > 0) {
      for (const uint8_t b : span) wrong_ += b != At(c.received++);
      c.socket->Consume(span.size());
    }
  }
  Worker& worker_;
  BlockPool& pool_;
  std::vector<Client> clients_;
  bool due_ = true;
};

TEST(WorkerGroup, HostsOfOneKeyHaveBothEndsOfAFlowInWorkersOfOneNumber) {
  constexpr uint32_t kWorkers = 3, kFlows = 30;
  WorkerGroup a({.workers = kWorkers, .pool_bytes = 32 << 20});
  WorkerGroup b({.workers = kWorkers, .pool_bytes = 32 << 20, .key = a.key()});
  PipeQueues pipe = MakePipeQueues(SideOf(a, true), SideOf(b, true));
  a.ApplyConfig(ConfigOf(kA, kMacA));
  b.ApplyConfig(ConfigOf(kB, kMacB));
  a.AddQueues(std::move(pipe.first));
  b.AddQueues(std::move(pipe.second));
  std::vector<StreamSocket*> listeners, clients, accepted;
  for (uint32_t i = 0; i < kWorkers; ++i) {
    listeners.push_back(a.stack(i).NewTcpSocket(Family::kIpv4));
    ASSERT_EQ(listeners[i]->Bind({kAny, 80, 0}), Errno::kOk);
    ASSERT_EQ(listeners[i]->Listen(1024), Errno::kOk);
    for (uint32_t flow = 0; flow < kFlows; ++flow) {
      clients.push_back(b.stack(i).NewTcpSocket(Family::kIpv4));
      ASSERT_EQ(clients.back()->Connect({kA, 80, 0}), Errno::kEINPROGRESS);
    }
  }
  std::vector<uint32_t> here(kWorkers);
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (accepted.size() < clients.size() && std::chrono::steady_clock::now() < until) {
    for (uint32_t i = 0; i < kWorkers; ++i) {
      a.worker(i).RunOnce();
      b.worker(i).RunOnce();
      for (; StreamSocket* s = listeners[i]->Accept(); ++here[i]) accepted.push_back(s);
    }
  }
  EXPECT_EQ(here, std::vector<uint32_t>(kWorkers, kFlows));
  for (auto* sockets : {&listeners, &clients, &accepted}) {
    for (StreamSocket* s : *sockets) s->Close();
  }
}

// Which threads run the workers, with and without steering of our own.
class WorkerGroupThreads : public ::testing::TestWithParam<std::tuple<Threads, bool>> {
 protected:
  WorkerGroupThreads() {
    const bool steered = std::get<1>(GetParam());
    PipeQueues pipe = MakePipeQueues(SideOf(a_, steered), SideOf(b_, steered));
    a_.ApplyConfig(ConfigOf(kA, kMacA));
    b_.ApplyConfig(ConfigOf(kB, kMacB));
    a_.AddQueues(std::move(pipe.first));
    b_.AddQueues(std::move(pipe.second));
  }
  static uint64_t MailDropped(WorkerGroup& group) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < group.size(); ++i) sum += group.mail(i)->stats().dropped;
    return sum;
  }
  static uint64_t Handovers(WorkerGroup& group) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < group.size(); ++i) sum += group.handovers(i);
    return sum;
  }
  const Threads how_ = std::get<0>(GetParam());
  WorkerGroup a_{{.workers = kOur, .threads = how_, .pool_bytes = 32 << 20}};
  WorkerGroup b_{{.workers = kTheir, .threads = how_, .pool_bytes = 32 << 20}};
};

std::string NameOf(const ::testing::TestParamInfo<std::tuple<Threads, bool>>& info) {
  constexpr const char* kNames[] = {"Auto", "Together", "Apart", "Restless"};
  const auto [threads, steered] = info.param;
  return std::string(kNames[static_cast<size_t>(threads)]) + (steered ? "SteeredByUs" : "SteeredByTheDevice");
}

INSTANTIATE_TEST_SUITE_P(Threads, WorkerGroupThreads,
                         ::testing::Combine(::testing::Values(Threads::kAuto, Threads::kTogether, Threads::kApart,
                                                              Threads::kRestless),
                                            ::testing::Bool()),
                         NameOf);

// The first worker asks all others in every turn and waits for them, whoever runs them.
class Asker final : public TurnTask {
 public:
  explicit Asker(WorkerGroup& group) : group_(group) { group_.worker(0).AddTask(this); }
  ~Asker() override { group_.worker(0).RemoveTask(this); }
  bool OnTurn() override {
    std::vector<uint32_t> asked(group_.size());
    group_.Ask(group_.mail(0)->others(), [&](uint32_t i) { ++asked[i]; });
    wrong_ += static_cast<size_t>(std::count(asked.begin() + 1, asked.end(), 1u)) != asked.size() - 1;
    return false;
  }
  uint32_t wrong_ = 0;

 private:
  WorkerGroup& group_;
};

TEST_P(WorkerGroupThreads, AllBytesAreRight) {
  constexpr uint32_t kEach = 20;
  std::vector<std::unique_ptr<Echo>> servers;
  std::vector<std::unique_ptr<Clients>> clients;
  for (uint32_t i = 0; i < kOur; ++i) servers.push_back(std::make_unique<Echo>(a_.worker(i), a_.pool(i), uint16_t{80}));
  for (uint32_t i = 0; i < kTheir; ++i) clients.push_back(std::make_unique<Clients>(b_.worker(i), b_.pool(i), kEach));
  Asker asker(a_);
  std::thread ours([&] { a_.Run(); }), theirs([&] { b_.Run(); });
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  auto complete = [&] { return std::all_of(clients.begin(), clients.end(), [](auto& c) { return c->complete_ == kEach; }); };
  auto moved = [&] { return how_ != Threads::kRestless || Handovers(a_) > 10; };
  while (!(complete() && moved()) && std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    a_.ApplyConfig(ConfigOf(kA, kMacA));  // while they run
  }
  EXPECT_TRUE(complete());
  a_.Stop();
  b_.Stop();
  ours.join();
  theirs.join();
  uint32_t accepted = 0;
  for (const auto& s : servers) accepted += s->accepted_;
  EXPECT_EQ(accepted, kEach * kTheir);
  for (const auto& c : clients) EXPECT_EQ(c->wrong_, 0u);
  EXPECT_EQ(asker.wrong_, 0u);
  if (how_ == Threads::kTogether) EXPECT_EQ(Handovers(a_) + Handovers(b_), 0u);
  EXPECT_TRUE(moved());
  if (!std::get<1>(GetParam())) return;  // bulk may overflow the mail, which is loss to TCP
  EXPECT_EQ(MailDropped(a_) + MailDropped(b_), 0u);
}

// Two workers cannot be in each other's epoll, so that the first one's thread cannot run the second. The third goes on as it
// would.
TEST_P(WorkerGroupThreads, AWorkerThatTheFirstCannotRunHasItsOwnThreadForGood) {
  ASSERT_TRUE(a_.worker(1).Adopt(a_.worker(0)));
  std::atomic<uint32_t> rounds{0}, carried{0};
  std::thread ours([&] { a_.Run(); });
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  const auto moved = [&] { return how_ != Threads::kRestless || a_.handovers(2) > 10; };
  for (uint32_t round = 0; round < 20 || (!moved() && std::chrono::steady_clock::now() < until); ++round) {
    a_.PostToAll([&](uint32_t i) { carried += i == 1 && !a_.worker(i).stats().own_thread; },
                 [&] {
                   ++rounds;
                   rounds.notify_one();
                 });
    rounds.wait(round);
  }
  EXPECT_TRUE(moved());
  EXPECT_EQ(a_.handovers(1), 0u);
  a_.Stop();
  ours.join();
  EXPECT_EQ(carried, 0u);
}

// Whatever the threads do, a worker that nobody has anything for sleeps, and wakes for what is posted to it.
TEST_P(WorkerGroupThreads, PostedWorkRunsOnceForEachAndStopEndsAll) {
  std::atomic<uint32_t> done{0}, wrong{0};
  std::thread ours([&] { a_.Run(); });
  constexpr uint32_t kRounds = 200;
  for (uint32_t round = 0; round < kRounds; ++round) {
    auto ran = std::make_shared<std::array<std::atomic<uint32_t>, kOur>>();
    a_.PostToAll([ran](uint32_t i) { ++(*ran)[i]; },
                 [&, ran] {
                   for (const auto& n : *ran) wrong += n != 1;
                   ++done;
                   done.notify_one();
                 });
    done.wait(round);
  }
  a_.Stop();
  ours.join();
  EXPECT_EQ(done, kRounds);
  EXPECT_EQ(wrong, 0u);
}

}  // namespace
}  // namespace sluice
