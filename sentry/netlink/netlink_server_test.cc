// Sockets: addresses, options, acknowledgements, changes and their order, dumps at the reader's pace, notifications, sock_diag.
#include "sentry/netlink/netlink_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/if_addr.h>
#include <linux/inet_diag.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "sentry/netlink/server_impl.h"
#include "sentry/netlink/testing/fake_backend.h"
#include "sentry/netlink/testing/kernel.h"

namespace sluice::netlink {
namespace {

using netlink::testing::FakeBackend;
using netlink::testing::MakeRequest;
using netlink::testing::Messages;
using netlink::testing::Split;
using ::testing::ElementsAre;

const Caller kRoot{.known = true, .net_admin = true, .tgid = 100, .call = 7};
const Caller kUser{.known = true, .net_admin = false, .tgid = 101};

class NetlinkServerTest : public ::testing::Test {
 protected:
  std::unique_ptr<NetlinkSocket> NewSocket(int protocol = NETLINK_ROUTE) {
    Errno error = Errno::kOk;
    auto socket = server.NewSocket(SOCK_RAW, protocol, &error);
    EXPECT_EQ(Errno::kOk, error);
    return socket;
  }
  static Messages Drain(NetlinkSocket& socket) {
    Messages out;
    Reply reply;
    while (socket.NextReply(&reply)) Split(reply.bytes, &out);
    return out;
  }
  static std::vector<uint16_t> Types(const Messages& messages) {
    std::vector<uint16_t> out;
    for (const Buffer& m : messages) out.push_back(LoadPrefix<nlmsghdr>(m).nlmsg_type);
    return out;
  }
  static int ErrorOf(const Buffer& message) { return LoadPrefix<nlmsgerr>(Bytes(message).subspan(sizeof(nlmsghdr))).error; }
  static Buffer AddAddress(const char* text, uint16_t flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL) {
    const ifaddrmsg header{.ifa_family = AF_INET, .ifa_prefixlen = 32, .ifa_index = 1};
    return MakeRequest(RTM_NEWADDR, flags, AsBytes(header), [text](MessageWriter& w) {
      w.Address(IFA_LOCAL, *IpAddress::Parse(text));
      w.Address(IFA_ADDRESS, *IpAddress::Parse(text));
    });
  }
  static Buffer DumpAddresses() { return MakeRequest(RTM_GETADDR, NLM_F_DUMP, AsBytes(ifaddrmsg{.ifa_family = AF_INET})); }
  void PutAddress(const char* text) {
    backend.Change([text](NetConfig& c) {
      AddressConfig a;
      a.ifindex = 1;
      a.local = a.peer = *IpAddress::Parse(text);
      a.prefix_len = 32;
      a.label = "lo";
      c.addresses.push_back(a);
    });
    server.OnConfig();
  }

  FakeBackend backend;
  NetlinkServer server{backend};
};

TEST_F(NetlinkServerTest, RefusesOtherTypesAndProtocols) {
  Errno error = Errno::kOk;
  EXPECT_EQ(nullptr, server.NewSocket(SOCK_STREAM, NETLINK_ROUTE, &error));
  EXPECT_EQ(Errno::kESOCKTNOSUPPORT, error);
  for (const int protocol : {NETLINK_GENERIC, NETLINK_NETFILTER, NETLINK_AUDIT, NETLINK_XFRM, NETLINK_KOBJECT_UEVENT, 77, -1}) {
    EXPECT_EQ(nullptr, server.NewSocket(SOCK_RAW, protocol, &error));
    EXPECT_EQ(Errno::kEPROTONOSUPPORT, error);
  }
  EXPECT_NE(nullptr, server.NewSocket(SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE, &error));
}

TEST_F(NetlinkServerTest, PortIdsAreUnique) {
  const auto a = NewSocket(), b = NewSocket(), c = NewSocket();
  const sockaddr_nl any{.nl_family = AF_NETLINK};
  EXPECT_EQ(Errno::kOk, a->Bind(AsBytes(any), kRoot));
  EXPECT_EQ(100u, a->LocalName().nl_pid);
  EXPECT_EQ(Errno::kOk, b->Bind(AsBytes(any), kRoot));
  EXPECT_NE(100u, b->LocalName().nl_pid);
  EXPECT_NE(0u, b->LocalName().nl_pid);
  const sockaddr_nl taken{.nl_family = AF_NETLINK, .nl_pid = 100};
  EXPECT_EQ(Errno::kEADDRINUSE, c->Bind(AsBytes(taken), kRoot));
  EXPECT_EQ(Errno::kEINVAL, b->Bind(AsBytes(taken), kRoot));  // bound to another already
  EXPECT_EQ(Errno::kEINVAL, c->Bind(Bytes(AsBytes(any)).first(4), kRoot));
}

TEST_F(NetlinkServerTest, OptionsAndMemberships) {
  const auto s = NewSocket();
  const int on = 1, group = RTNLGRP_IPV4_ROUTE, high = 36, none = 0, bad = 9999;
  EXPECT_EQ(Errno::kOk, s->SetOption(NETLINK_EXT_ACK, AsBytes(on), kUser));
  EXPECT_EQ(Errno::kENOPROTOOPT, s->SetOption(NETLINK_RX_RING, AsBytes(on), kRoot));
  EXPECT_EQ(Errno::kEINVAL, s->SetOption(NETLINK_EXT_ACK, Bytes(AsBytes(on)).first(2), kRoot));
  EXPECT_EQ(Errno::kOk, s->SetOption(NETLINK_ADD_MEMBERSHIP, AsBytes(group), kUser));
  EXPECT_EQ(Errno::kOk, s->SetOption(NETLINK_ADD_MEMBERSHIP, AsBytes(high), kUser));
  EXPECT_EQ(Errno::kEINVAL, s->SetOption(NETLINK_ADD_MEMBERSHIP, AsBytes(none), kUser));
  EXPECT_EQ(Errno::kEINVAL, s->SetOption(NETLINK_ADD_MEMBERSHIP, AsBytes(bad), kUser));
  EXPECT_EQ(1u << (group - 1), s->LocalName().nl_groups);
  Buffer value;
  size_t length = 0;
  EXPECT_EQ(Errno::kOk, s->GetOption(NETLINK_LIST_MEMBERSHIPS, 4, &value, &length));
  EXPECT_EQ(4u, value.size());
  EXPECT_GT(length, 4u);
  EXPECT_EQ(Errno::kOk, s->GetOption(NETLINK_LIST_MEMBERSHIPS, 64, &value, &length));
  EXPECT_EQ(1 << ((high - 1) % 8), value[(high - 1) / 8]);
  EXPECT_EQ(Errno::kOk, s->GetOption(NETLINK_EXT_ACK, 4, &value, &length));
  EXPECT_EQ(1, LoadPrefix<int>(value));
}

TEST_F(NetlinkServerTest, ChangesNeedTheRight) {
  const auto s = NewSocket();
  EXPECT_EQ(Errno::kOk, s->Send(AddAddress("10.0.0.5"), {}, kUser));
  EXPECT_TRUE(backend.pending.empty());
  const Messages answer = Drain(*s);
  ASSERT_EQ(1u, answer.size());
  EXPECT_EQ(-ToInt(Errno::kEPERM), ErrorOf(answer[0]));
  // A call that was not notified has no rights, whoever made it.
  EXPECT_EQ(Errno::kOk, s->Send(AddAddress("10.0.0.5"), {}, Caller{}));
  EXPECT_TRUE(backend.pending.empty());
}

TEST_F(NetlinkServerTest, AChangeIsAcknowledgedWhenItShows) {
  const auto s = NewSocket();
  int woken = 0;
  s->set_observer([&] { ++woken; });
  // Two messages in one datagram: the dump behind the change waits and shows it.
  Buffer both = AddAddress("10.0.0.5");
  const Buffer dump = DumpAddresses();
  both.insert(both.end(), dump.begin(), dump.end());
  ASSERT_EQ(Errno::kOk, s->Send(both, {}, kRoot));
  EXPECT_TRUE(s->busy());
  EXPECT_FALSE(s->HasReply());
  ASSERT_EQ(1u, backend.pending.size());
  const auto& pending = backend.pending.front();
  EXPECT_EQ(NetChangeKind::kNewAddress, pending.change.kind);
  EXPECT_EQ(7u, pending.caller.call);
  EXPECT_EQ(NLM_F_CREATE | NLM_F_EXCL, pending.change.nl_flags);
  EXPECT_THAT(Bytes(pending.change.address.local.bytes).first(4), ElementsAre(10, 0, 0, 5));

  PutAddress("10.0.0.5");
  pending.done({});
  EXPECT_FALSE(s->busy());
  EXPECT_GT(woken, 0);
  const Messages answer = Drain(*s);
  EXPECT_THAT(Types(answer), ElementsAre(NLMSG_ERROR, RTM_NEWADDR, RTM_NEWADDR, NLMSG_DONE));
  EXPECT_EQ(0, ErrorOf(answer[0]));
}

TEST_F(NetlinkServerTest, AnswersAtOnceKeepTheOrder) {
  backend.answer_at_once = true;
  const auto s = NewSocket();
  Buffer both = AddAddress("10.0.0.5");
  const Buffer dump = DumpAddresses();
  both.insert(both.end(), dump.begin(), dump.end());
  ASSERT_EQ(Errno::kOk, s->Send(both, {}, kRoot));
  EXPECT_FALSE(s->busy());
  EXPECT_THAT(Types(Drain(*s)), ElementsAre(NLMSG_ERROR, RTM_NEWADDR, NLMSG_DONE));
}

TEST_F(NetlinkServerTest, TheKernelsReasonIsHandedOn) {
  const auto s = NewSocket();
  const int on = 1;
  ASSERT_EQ(Errno::kOk, s->SetOption(NETLINK_EXT_ACK, AsBytes(on), kRoot));
  ASSERT_EQ(Errno::kOk, s->SetOption(NETLINK_CAP_ACK, AsBytes(on), kRoot));
  ASSERT_EQ(Errno::kOk, s->Send(AddAddress("10.0.0.5", 0), {}, kRoot));  // an error comes without NLM_F_ACK too
  NetChangeResult result{.error = ToInt(Errno::kEEXIST)};
  std::copy_n("because", 7, result.message.begin());
  backend.pending.front().done(result);
  const Messages answer = Drain(*s);
  ASSERT_EQ(1u, answer.size());
  EXPECT_EQ(-ToInt(Errno::kEEXIST), ErrorOf(answer[0]));
  const Bytes text = FindAttribute(answer[0], sizeof(nlmsgerr), NLMSGERR_ATTR_MSG);
  EXPECT_STREQ("because", reinterpret_cast<const char*>(text.data()));
}

TEST_F(NetlinkServerTest, SendsBehindAChangeAreBounded) {
  const auto s = NewSocket();
  ASSERT_EQ(Errno::kOk, s->Send(AddAddress("10.0.0.5"), {}, kRoot));
  int taken = 0;
  while (taken < 1000 && s->Send(DumpAddresses(), {}, kRoot) == Errno::kOk) ++taken;
  EXPECT_GT(taken, 0);
  EXPECT_LT(taken, 100);
  EXPECT_EQ(Errno::kEAGAIN, s->Send(DumpAddresses(), {}, kRoot));
  // The socket's end under a change is nobody's harm.
  auto done = backend.pending.front().done;
  s->set_observer([] { FAIL(); });
  const_cast<std::unique_ptr<NetlinkSocket>&>(s).reset();
  done({});
}

TEST_F(NetlinkServerTest, LargeDumpsComeInDatagramsOfAPage) {
  backend.Change([](NetConfig& c) {
    for (int i = 0; i < 1000; ++i) {
      AddressConfig a;
      a.ifindex = 1;
      a.local = a.peer = IpAddress::V4(0x0a000000 + static_cast<uint32_t>(i));
      a.prefix_len = 32;
      c.addresses.push_back(a);
    }
  });
  server.OnConfig();
  const auto s = NewSocket();
  ASSERT_EQ(Errno::kOk, s->Send(DumpAddresses(), {}, kUser));
  ASSERT_EQ(Errno::kOk, s->Send(DumpAddresses(), {}, kUser));  // one is running: EBUSY
  size_t addresses = 0, datagrams = 0;
  bool busy = false, done = false;
  Reply reply;
  while (s->NextReply(&reply)) {
    ++datagrams;
    EXPECT_LE(reply.bytes.size(), 4096u);
    Messages messages;
    Split(reply.bytes, &messages);
    for (const Buffer& m : messages) {
      const auto type = LoadPrefix<nlmsghdr>(m).nlmsg_type;
      addresses += type == RTM_NEWADDR ? 1 : 0;
      done |= type == NLMSG_DONE;
      busy |= type == NLMSG_ERROR && ErrorOf(m) == -ToInt(Errno::kEBUSY);
    }
  }
  EXPECT_EQ(1001u, addresses);
  EXPECT_GT(datagrams, 15u);
  EXPECT_TRUE(done);
  EXPECT_TRUE(busy);
}

TEST_F(NetlinkServerTest, DumpsDoNotKeepAnyNumberOfOldConfigurations) {
  std::vector<std::unique_ptr<NetlinkSocket>> sockets;
  std::vector<std::weak_ptr<const NetConfig>> configs;
  backend.Change([](NetConfig& c) {
    for (int i = 0; i < 500; ++i) c.addresses.push_back(c.addresses[0]);
  });
  server.OnConfig();
  for (int i = 0; i < 40; ++i) {
    configs.push_back(backend.config());
    sockets.push_back(NewSocket());
    ASSERT_EQ(Errno::kOk, sockets.back()->Send(DumpAddresses(), {}, kUser));
    PutAddress(("10.0.1." + std::to_string(i)).c_str());
  }
  const auto alive = std::count_if(configs.begin(), configs.end(), [](const auto& c) { return !c.expired(); });
  EXPECT_LE(alive, 10);
  // One that was begun on a configuration that went says so.
  const Messages all = Drain(*sockets[0]);
  EXPECT_EQ(NLMSG_DONE, LoadPrefix<nlmsghdr>(all.back()).nlmsg_type);
  EXPECT_NE(0, LoadPrefix<nlmsghdr>(all.back()).nlmsg_flags & NLM_F_DUMP_INTR);
}

TEST_F(NetlinkServerTest, MembersHearOfChanges) {
  const auto s = NewSocket(), other = NewSocket();
  const sockaddr_nl name{.nl_family = AF_NETLINK, .nl_groups = RTMGRP_IPV4_IFADDR | RTMGRP_LINK};
  ASSERT_EQ(Errno::kOk, s->Bind(AsBytes(name), kUser));
  PutAddress("10.0.0.5");
  Reply reply;
  ASSERT_TRUE(s->NextReply(&reply));
  EXPECT_EQ(RTM_NEWADDR, LoadPrefix<nlmsghdr>(reply.bytes).nlmsg_type);
  EXPECT_EQ(uint32_t{RTNLGRP_IPV4_IFADDR}, reply.group);
  EXPECT_EQ(uint32_t{RTMGRP_IPV4_IFADDR}, reply.source.nl_groups);
  EXPECT_FALSE(s->NextReply(&reply));
  EXPECT_FALSE(other->HasReply());

  backend.Change([](NetConfig& c) { c.links[0].mtu = 1000; });
  server.OnConfig();
  ASSERT_TRUE(s->NextReply(&reply));
  EXPECT_EQ(RTM_NEWLINK, LoadPrefix<nlmsghdr>(reply.bytes).nlmsg_type);
  EXPECT_FALSE(s->NextReply(&reply));

  backend.Change([](NetConfig& c) { c.addresses.pop_back(); });
  server.OnConfig();
  ASSERT_TRUE(s->NextReply(&reply));
  EXPECT_EQ(RTM_DELADDR, LoadPrefix<nlmsghdr>(reply.bytes).nlmsg_type);
}

TEST_F(NetlinkServerTest, LostNotificationsAreTold) {
  const auto s = NewSocket();
  const sockaddr_nl name{.nl_family = AF_NETLINK, .nl_groups = RTMGRP_IPV4_IFADDR};
  ASSERT_EQ(Errno::kOk, s->Bind(AsBytes(name), kUser));
  s->set_receive_buffer(2048);
  for (int i = 0; i < 10; ++i) PutAddress(("10.0.0." + std::to_string(i)).c_str());
  EXPECT_EQ(Errno::kENOBUFS, s->TakeError());
  EXPECT_EQ(Errno::kOk, s->TakeError());
  EXPECT_LT(Drain(*s).size(), 10u);
}

TEST_F(NetlinkServerTest, WhatAllSocketsHaveQueuedIsBounded) {
  constexpr size_t kLimit = 64 << 10, kSockets = 20;
  NetlinkServer bounded(backend, kLimit);
  const sockaddr_nl name{.nl_family = AF_NETLINK, .nl_groups = RTMGRP_IPV4_IFADDR};
  std::vector<std::unique_ptr<NetlinkSocket>> sockets;
  for (size_t i = 0; i < kSockets; ++i) {
    Errno error = Errno::kOk;
    sockets.push_back(bounded.NewSocket(SOCK_RAW, NETLINK_ROUTE, &error));
    ASSERT_EQ(Errno::kOk, sockets.back()->Bind(AsBytes(name), kUser));
  }
  for (int i = 0; i < 200; ++i) {
    PutAddress(("10.0.1." + std::to_string(i)).c_str());
    bounded.OnConfig();
  }
  size_t bytes = 0;
  for (const auto& s : sockets) {
    EXPECT_EQ(Errno::kENOBUFS, s->TakeError());
    const auto replies = Drain(*s);
    EXPECT_GE(replies.size(), 1u);
    for (const auto& reply : replies) bytes += reply.size();
  }
  EXPECT_GT(bytes, 0u);
  EXPECT_LE(bytes, kLimit);
  // There is room again.
  PutAddress("10.0.2.1");
  bounded.OnConfig();
  for (const auto& s : sockets) EXPECT_EQ(1u, Drain(*s).size());
  sockets.clear();
}

TEST_F(NetlinkServerTest, ProgramsSendToEachOtherOnlyWithTheRight) {
  const auto a = NewSocket(), b = NewSocket();
  const sockaddr_nl any{.nl_family = AF_NETLINK};
  ASSERT_EQ(Errno::kOk, b->Bind(AsBytes(any), kRoot));
  const sockaddr_nl to = b->LocalName();
  const Buffer text{1, 2, 3};
  EXPECT_EQ(Errno::kEPERM, a->Send(text, AsBytes(to), kUser));
  EXPECT_EQ(Errno::kOk, a->Send(text, AsBytes(to), kRoot));
  Reply reply;
  ASSERT_TRUE(b->NextReply(&reply));
  EXPECT_EQ(text, reply.bytes);
  EXPECT_EQ(a->LocalName().nl_pid, reply.source.nl_pid);
  const sockaddr_nl nobody{.nl_family = AF_NETLINK, .nl_pid = 4711};
  EXPECT_EQ(Errno::kECONNREFUSED, a->Send(text, AsBytes(nobody), kRoot));
}

TEST_F(NetlinkServerTest, RefusesWhatIsNotChangedFromInside) {
  const auto s = NewSocket();
  auto error = [&](const Buffer& request) {
    EXPECT_EQ(Errno::kOk, s->Send(request, {}, kRoot));
    EXPECT_TRUE(backend.pending.empty());
    const Messages answer = Drain(*s);
    return answer.empty() ? 0 : -ErrorOf(answer[0]);
  };
  const auto unsupported = ToInt(Errno::kEOPNOTSUPP);
  EXPECT_EQ(unsupported, error(MakeRequest(RTM_NEWLINK, NLM_F_CREATE, AsBytes(ifinfomsg{}),
                                           [](MessageWriter& w) { w.Text(IFLA_IFNAME, "new0"); })));
  EXPECT_EQ(unsupported, error(MakeRequest(RTM_DELLINK, 0, AsBytes(ifinfomsg{.ifi_index = 1}))));
  EXPECT_EQ(unsupported, error(MakeRequest(RTM_NEWNEXTHOP, NLM_F_CREATE, AsBytes(rtmsg{}))));
  EXPECT_EQ(unsupported, error(MakeRequest(RTM_NEWQDISC, NLM_F_CREATE, AsBytes(tcmsg{}))));
  for (const int attribute : {IFLA_MASTER, IFLA_NET_NS_PID, IFLA_NET_NS_FD}) {
    EXPECT_EQ(unsupported, error(MakeRequest(RTM_SETLINK, 0, AsBytes(ifinfomsg{.ifi_index = 1}),
                                             [=](MessageWriter& w) { w.U32(static_cast<uint16_t>(attribute), 1); })));
  }
  const rtmsg route{.rtm_family = AF_INET, .rtm_type = RTN_UNICAST};
  for (const int attribute : {RTA_NH_ID, RTA_FLOW, RTA_MARK}) {
    EXPECT_EQ(unsupported, error(MakeRequest(RTM_NEWROUTE, NLM_F_CREATE, AsBytes(route),
                                             [=](MessageWriter& w) { w.U32(static_cast<uint16_t>(attribute), 1); })));
  }
  EXPECT_EQ(ToInt(Errno::kENODEV), error(MakeRequest(RTM_SETLINK, 0, AsBytes(ifinfomsg{.ifi_index = 99}))));
}

TEST(ConfigShows, TellsWhenTheMirrorHasCaughtUp) {
  NetConfig config = LoopbackOnlyConfig();
  const auto address = [](const char* text) {
    const auto parsed = IpAddress::Parse(text);
    NetAddress out{.family = AF_INET};
    std::copy(parsed->bytes().begin(), parsed->bytes().end(), out.bytes.begin());
    return out;
  };
  NetChange c{.kind = NetChangeKind::kNewAddress};
  c.address = {.ifindex = 1, .family = AF_INET, .prefix_len = 8, .local = address("127.0.0.2")};
  EXPECT_FALSE(ConfigShows(config, c));
  c.address.local = address("127.0.0.1");
  EXPECT_TRUE(ConfigShows(config, c));
  c.kind = NetChangeKind::kDeleteAddress;
  EXPECT_FALSE(ConfigShows(config, c));

  NetChange route{.kind = NetChangeKind::kNewRoute};
  route.route = {.family = AF_INET, .dst_len = 0, .type = RTN_UNICAST, .gateway = address("10.0.0.1")};
  EXPECT_FALSE(ConfigShows(config, route));
  RouteConfig have;
  have.dst = IpAddress::Any(Family::kIpv4);
  have.next_hops.push_back({.gateway = *IpAddress::Parse("10.0.0.2"), .ifindex = 2});
  config.routes.push_back(have);
  EXPECT_FALSE(ConfigShows(config, route));  // replaced, but the old one still shows
  config.routes.back().next_hops[0].gateway = *IpAddress::Parse("10.0.0.1");
  EXPECT_TRUE(ConfigShows(config, route));
  route.kind = NetChangeKind::kDeleteRoute;
  EXPECT_FALSE(ConfigShows(config, route));
  config.routes.pop_back();
  EXPECT_TRUE(ConfigShows(config, route));

  NetChange link{.kind = NetChangeKind::kSetLink};
  link.link = {.ifindex = 1, .has_up = true, .up = true, .has_mtu = true, .mtu = 1400};
  EXPECT_FALSE(ConfigShows(config, link));
  config.links[0].mtu = 1400;
  EXPECT_TRUE(ConfigShows(config, link));
}

class SockDiagTest : public NetlinkServerTest {
 protected:
  SockDiagTest() {
    backend.sockets.push_back({.family = Family::kIpv4,
                               .protocol = IPPROTO_TCP,
                               .state = 10,
                               .local = {IpAddress::Any(Family::kIpv4), 80},
                               .remote = {},
                               .ifindex = 0,
                               .receive_queue = 1,
                               .send_queue = 0,
                               .backlog = 511,
                               .timer = 0,
                               .timer_ms = 0,
                               .retransmits = 0,
                               .owner = 0,
                               .tcp = {}});
    SocketInfo connected = backend.sockets[0];
    connected.state = 1;
    connected.local = {IpAddress::V4(10, 0, 0, 1), 80};
    connected.remote = {IpAddress::V4(10, 0, 0, 9), 40000};
    connected.tcp = TcpInfo{.state = 1, .rtt = 1234};
    backend.sockets.push_back(connected);
    SocketInfo six = backend.sockets[0];
    six.family = Family::kIpv6;
    six.local = {IpAddress::Any(Family::kIpv6), 8080};
    backend.sockets.push_back(six);
  }
  Messages Ask(uint8_t family, uint32_t states, Bytes bytecode = {}, uint8_t ext = 0) {
    const auto s = NewSocket(NETLINK_SOCK_DIAG);
    const inet_diag_req_v2 request{
        .sdiag_family = family, .sdiag_protocol = IPPROTO_TCP, .idiag_ext = ext, .idiag_states = states};
    const Buffer message = MakeRequest(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, AsBytes(request), [&](MessageWriter& w) {
      if (!bytecode.empty()) w.Attr(INET_DIAG_REQ_BYTECODE, bytecode);
    });
    EXPECT_EQ(Errno::kOk, s->Send(message, {}, kUser));
    return Drain(*s);
  }
};

TEST_F(SockDiagTest, ListsByFamilyAndState) {
  EXPECT_THAT(Types(Ask(AF_INET, ~0u)), ElementsAre(SOCK_DIAG_BY_FAMILY, SOCK_DIAG_BY_FAMILY, NLMSG_DONE));
  const Messages listening = Ask(AF_INET, 1u << 10);
  ASSERT_THAT(Types(listening), ElementsAre(SOCK_DIAG_BY_FAMILY, NLMSG_DONE));
  const auto m = LoadPrefix<inet_diag_msg>(Bytes(listening[0]).subspan(sizeof(nlmsghdr)));
  EXPECT_EQ(htons(80), m.id.idiag_sport);
  EXPECT_EQ(1u, m.idiag_rqueue);
  EXPECT_EQ(511u, m.idiag_wqueue);
  EXPECT_THAT(Types(Ask(AF_INET6, ~0u)), ElementsAre(SOCK_DIAG_BY_FAMILY, NLMSG_DONE));
  EXPECT_THAT(Types(Ask(AF_UNIX, ~0u)), ElementsAre(NLMSG_DONE));
}

TEST_F(SockDiagTest, GivesTcpInfo) {
  const Messages answer = Ask(AF_INET, 1u << 1, {}, 1u << (INET_DIAG_INFO - 1));
  ASSERT_EQ(2u, answer.size());
  const Bytes info = FindAttribute(answer[0], sizeof(inet_diag_msg), INET_DIAG_INFO);
  ASSERT_GE(info.size(), 72u);
  EXPECT_EQ(1234u, LoadPrefix<uint32_t>(info.subspan(68)));  // tcpi_rtt
}

TEST_F(SockDiagTest, FiltersByBytecode) {
  // "sport >= 8000": the test passes over itself and its operand, or past the end.
  const auto filter = [](uint8_t code, uint16_t port, uint8_t yes, uint16_t no) {
    Buffer out;
    for (const inet_diag_bc_op& op : {inet_diag_bc_op{code, yes, no}, inet_diag_bc_op{INET_DIAG_BC_NOP, 4, port}}) {
      out.insert(out.end(), AsBytes(op).begin(), AsBytes(op).end());
    }
    return out;
  };
  EXPECT_EQ(1u, Ask(AF_INET, ~0u, filter(INET_DIAG_BC_S_GE, 8000, 8, 12)).size());
  EXPECT_EQ(3u, Ask(AF_INET, ~0u, filter(INET_DIAG_BC_S_GE, 80, 8, 12)).size());
  EXPECT_EQ(2u, Ask(AF_INET, ~0u, filter(INET_DIAG_BC_D_EQ, 40000, 8, 12)).size());
  // A jump to itself or far away is refused, not run.
  for (const auto& [yes, no] : {std::pair<uint8_t, uint16_t>{0, 12}, {8, 0}, {8, 4096}, {6, 12}}) {
    const Messages answer = Ask(AF_INET, ~0u, filter(INET_DIAG_BC_S_GE, 80, yes, no));
    ASSERT_EQ(1u, answer.size());
    EXPECT_EQ(-ToInt(Errno::kEINVAL), ErrorOf(answer[0])) << int{yes} << " " << no;
  }
}

}  // namespace
}  // namespace sluice::netlink
