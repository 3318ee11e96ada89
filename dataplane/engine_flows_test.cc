// Engine flows on a veth between fresh namespaces: sockets of the kernel in ours, a server at port 53 in the peer's.
#include "xdp/engine_flows.h"

#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <gtest/gtest.h>
#include <linux/if_ether.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "dataplane/packet_socket.h"
#include "dataplane/testing/test_netns.h"
#include "dataplane/xdp_port.h"
#include "netstack/packet.h"
#include "xdp/silence.h"

namespace sluice {
namespace {

constexpr uint32_t kMark = 0x51ce;
constexpr uint16_t kNames = 53;
// What is expected comes within this; what must not come is waited for a little.
constexpr int kSoonMs = 5000, kNeverMs = 200;

enum class Link { kTcx, kClsact, kGenericXdp, kNativeXdp };

sockaddr_in At(const char* address, uint16_t port) {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_port = htons(port);
  inet_pton(AF_INET, address, &a.sin_addr);
  return a;
}

bool Readable(int fd, int ms) {
  pollfd p{fd, POLLIN, 0};
  return poll(&p, 1, ms) == 1;
}

class EngineFlowTest : public ::testing::TestWithParam<Link> {
 protected:
  void SetUp() override {
    if (const std::string why = testing::WhyNoNetns(); !why.empty()) GTEST_SKIP() << why;
    veth_ = std::make_unique<testing::VethPair>();
    char directory[] = "/tmp/sluice-flows-XXXXXX";
    ASSERT_NE(mkdtemp(directory), nullptr);
    options_.directory = std::string(directory) + "/bpf";
    options_.mark = kMark;
    options_.name = "test";
    options_.tcx = GetParam() != Link::kClsact;
    ASSERT_EQ(CreateEngineFlowMaps(&maps_, &error_), Errno::kOk) << error_;
    ASSERT_EQ(LoadEngineFlowPrograms(maps_, kMark, &programs_, &error_), Errno::kOk) << error_;
    ASSERT_EQ(gate_.Open(maps_.gate.get()), Errno::kOk);
    options_.flows = &programs_;
    {
      testing::InNetns in(veth_->ours());
      ASSERT_EQ(SilenceDevice(veth_->our_index(), options_, &silence_, &error_), Errno::kOk) << error_;
      OpenStacksPort();
    }
    server_ = Socket(veth_->peer(), SOCK_DGRAM, At("10.77.0.2", kNames));
    listener_ = Socket(veth_->peer(), SOCK_STREAM, At("10.77.0.2", kNames));
    ASSERT_EQ(listen(listener_.get(), 8), 0);
    testing::InNetns in(veth_->peer());
    ASSERT_EQ(OpenPacketSocket(veth_->peer_index(), {.vnet_header = false}, &tap_, &error_), Errno::kOk) << error_;
  }
  void TearDown() override {
    if (!veth_) return;
    testing::InNetns in(veth_->ours());
    EXPECT_EQ(LiftSilence(veth_->our_index(), options_, &error_), Errno::kOk) << error_;
    unlink((options_.directory + ".lock").c_str());
    rmdir(options_.directory.c_str());
    EXPECT_EQ(rmdir(options_.directory.substr(0, options_.directory.rfind('/')).c_str()), 0) << strerror(errno);
  }

  // As the sandbox's port receives.
  void OpenStacksPort() {
    if (GetParam() == Link::kTcx || GetParam() == Link::kClsact) {
      const PacketSocketOptions options{.vnet_header = false, .mark = kMark, .filter = programs_.tap.get()};
      ASSERT_EQ(OpenPacketSocket(veth_->our_index(), options, &port_, &error_), Errno::kOk) << error_;
      return;
    }
    std::vector<Xsk> sockets;
    const XskOptions options{.mode = GetParam() == Link::kNativeXdp ? XdpMode::kNative : XdpMode::kGeneric, .flows = &maps_};
    ASSERT_EQ(OpenXdpDevice(veth_->our_index(), 1, {.veth = true}, options, &attachment_, &sockets, &error_), Errno::kOk)
        << error_;
    xdp_ = XdpPort::Create(std::move(sockets[0].fd), std::move(sockets[0].umem), sockets[0].facts, {}, pool_, &error_);
    ASSERT_NE(xdp_, nullptr) << error_;
  }
  // The frames that the sandbox's stack got since the last call.
  std::vector<std::vector<uint8_t>> StackGot() {
    std::vector<std::vector<uint8_t>> frames;
    if (xdp_ != nullptr) {
      Packet burst[64];
      for (size_t n; (n = xdp_->Receive(burst)) > 0;) {
        for (size_t i = 0; i < n; ++i) frames.emplace_back(burst[i].data(), burst[i].data() + burst[i].size());
      }
      return frames;
    }
    return Drain(port_.fd.get());
  }
  static std::vector<std::vector<uint8_t>> Drain(int fd) {
    std::vector<std::vector<uint8_t>> frames;
    uint8_t got[9000];
    for (ssize_t n; (n = recv(fd, got, sizeof got, MSG_DONTWAIT)) > 0;) frames.emplace_back(got, got + n);
    return frames;
  }
  // What left our side, but for ARP where that is no matter.
  size_t PeerGot(bool with_arp = true) {
    usleep(kNeverMs * 1000);
    size_t count = 0;
    for (const auto& frame : Drain(tap_.fd.get())) count += with_arp || frame[12] != 8 || frame[13] != 6;
    return count;
  }

  UniqueFd Socket(int netns, int type, const sockaddr_in& local, int protocol = 0) {
    testing::InNetns in(netns);
    UniqueFd fd(socket(AF_INET, type | SOCK_CLOEXEC, protocol));
    const int on = 1;
    setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    EXPECT_EQ(bind(fd.get(), reinterpret_cast<const sockaddr*>(&local), sizeof local), 0) << strerror(errno);
    return fd;
  }
  // A socket of the kernel in our namespace.
  UniqueFd Client(uint16_t to_port, int type = SOCK_DGRAM, uint16_t local_port = 0) {
    UniqueFd fd = Socket(veth_->ours(), type, At("10.77.0.1", local_port));
    const sockaddr_in to = At("10.77.0.2", to_port);
    if (type == SOCK_DGRAM) {
      EXPECT_EQ(connect(fd.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to), 0);
    }
    return fd;
  }
  // Asks and answers by UDP; false where the question or the answer does not come.
  bool Resolves(int client, size_t answer_size = 100, int ms = kSoonMs) {
    if (send(client, "question", 8, 0) != 8 && errno != ENOBUFS) return false;
    if (!Readable(server_.get(), ms)) return false;
    char question[64];
    sockaddr_in from{};
    socklen_t size = sizeof from;
    EXPECT_EQ(recvfrom(server_.get(), question, sizeof question, 0, reinterpret_cast<sockaddr*>(&from), &size), 8);
    const std::string answer(answer_size, 'a');
    EXPECT_EQ(sendto(server_.get(), answer.data(), answer.size(), 0, reinterpret_cast<sockaddr*>(&from), size),
              static_cast<ssize_t>(answer.size()));
    if (!Readable(client, ms)) return false;
    std::vector<char> got(65536);
    return recv(client, got.data(), got.size(), 0) == static_cast<ssize_t>(answer.size());
  }
  static uint64_t SecondsAgo(uint64_t seconds) {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (static_cast<uint64_t>(now.tv_sec) - seconds) * 1000000000;
  }
  void SetGate(uint64_t asked, int64_t arp_requests) {
    const uint32_t first = 0;
    const sluice_gate gate{asked, arp_requests};
    ASSERT_EQ(bpf_map_update_elem(maps_.gate.get(), &first, &gate, BPF_ANY), 0);
  }
  void Hold(uint8_t protocol, uint16_t port, bool held) {
    const uint32_t bit = port | (protocol == IPPROTO_TCP ? 0x10000u : 0), word = bit / 64;
    const uint64_t bits = held ? uint64_t{1} << bit % 64 : 0;
    ASSERT_EQ(bpf_map_update_elem(maps_.held.get(), &word, &bits, BPF_ANY), 0);
  }
  size_t Flows() {
    size_t count = 0;
    sluice_flow key, next;
    for (void* at = nullptr; bpf_map_get_next_key(maps_.table.get(), at, &next) == 0; key = next, at = &key) ++count;
    return count;
  }
  bool PeerCan(const std::string& command) { return veth_->Run(veth_->peer(), command, &output_) == 0; }

  HeapBlockPool pool_{size_t{16} << 20};
  std::unique_ptr<testing::VethPair> veth_;
  SilenceOptions options_;
  EngineFlowMaps maps_;
  EngineFlowPrograms programs_;
  FlowGate gate_;
  Silence silence_;
  PacketSocket port_, tap_;
  XdpAttachment attachment_;
  std::unique_ptr<XdpPort> xdp_;
  UniqueFd server_, listener_;
  std::string error_, output_;
};

TEST_P(EngineFlowTest, QuestionsAndAnswersPassAndTheStackDoesNotSeeThem) {
  gate_.Ask();
  UniqueFd client = Client(kNames);
  ASSERT_TRUE(Resolves(client.get()));
  EXPECT_TRUE(Resolves(client.get(), 4000)) << "an answer in fragments";
  // By TCP, both ways and to its end.
  UniqueFd stream = Client(kNames, SOCK_STREAM);
  const sockaddr_in to = At("10.77.0.2", kNames);
  ASSERT_EQ(connect(stream.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to), 0) << strerror(errno);
  UniqueFd peer(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  const std::string much(200000, 'b');
  size_t got = 0;
  for (size_t sent = 0; got < much.size();) {
    if (sent < much.size())
      sent += static_cast<size_t>(std::max<ssize_t>(0, send(peer.get(), &much[sent], much.size() - sent, MSG_DONTWAIT)));
    ASSERT_TRUE(Readable(stream.get(), kSoonMs)) << got;
    char chunk[65536];
    got += static_cast<size_t>(recv(stream.get(), chunk, sizeof chunk, 0));
  }
  stream.Reset();
  ASSERT_TRUE(Readable(peer.get(), kSoonMs));
  char byte;
  EXPECT_EQ(recv(peer.get(), &byte, 1, 0), 0);
  EXPECT_EQ(Flows(), 2u);
  for (const auto& frame : StackGot()) EXPECT_FALSE(frame[12] == 8 && frame[13] == 0) << "the stack got a frame of a flow";
  // It gets all else.
  EXPECT_FALSE(PeerCan("ping -c1 -W0.3 10.77.0.1"));
  EXPECT_FALSE(StackGot().empty());
}

TEST_P(EngineFlowTest, ErrorsOfAFlowReachItsSocketOnly) {
  gate_.Ask();
  UniqueFd client = Client(kNames);
  ASSERT_TRUE(Resolves(client.get()));
  server_.Reset();
  ASSERT_EQ(send(client.get(), "question", 8, 0), 8);
  ASSERT_TRUE(Readable(client.get(), kSoonMs));
  char byte;
  EXPECT_EQ(recv(client.get(), &byte, 1, 0), -1);
  EXPECT_EQ(errno, ECONNREFUSED);
  for (const auto& frame : StackGot()) EXPECT_FALSE(frame[12] == 8 && frame[13] == 0);
}

TEST_P(EngineFlowTest, NothingLeavesWithoutAQuestion) {
  UniqueFd client = Client(kNames), stream = Client(kNames, SOCK_STREAM);
  EXPECT_FALSE(Resolves(client.get(), 100, kNeverMs));
  EXPECT_EQ(PeerGot(), 0u) << "not even ARP";
  SetGate(SecondsAgo(20), 16);
  EXPECT_FALSE(Resolves(client.get(), 100, kNeverMs)) << "a question that is over";
  EXPECT_EQ(PeerGot(), 0u);
  EXPECT_EQ(Flows(), 0u);
}

TEST_P(EngineFlowTest, NothingElseOfTheKernelLeaves) {
  gate_.Ask();
  UniqueFd client = Client(kNames);
  ASSERT_TRUE(Resolves(client.get()));
  usleep(kNeverMs * 1000);
  Drain(tap_.fd.get());
  // The next hop is known: what leaves is what the sockets send.
  UniqueFd other = Client(54), stream;
  send(other.get(), "question", 8, 0);
  veth_->Run(veth_->ours(), "ping -c1 -W0.3 10.77.0.2; timeout 0.3 bash -c 'exec 3<>/dev/tcp/10.77.0.2/80'", &output_);
  UniqueFd raw = Socket(veth_->ours(), SOCK_RAW, At("10.77.0.1", 0), IPPROTO_UDP);
  const uint8_t datagram[] = {0x30, 0x39, 0, 53, 0, 9, 0, 0, 'q'};
  const sockaddr_in to = At("10.77.0.2", 0);
  sendto(raw.get(), datagram, sizeof datagram, 0, reinterpret_cast<const sockaddr*>(&to), sizeof to);
  EXPECT_EQ(PeerGot(), 0u);
  EXPECT_EQ(Flows(), 1u);
  // Nor does ARP without an end: a question allows so many requests.
  SetGate(SecondsAgo(0), 3);
  for (uint16_t i = 10; i < 40; ++i) {
    const sockaddr_in many = At(("10.77.0." + std::to_string(i)).c_str(), kNames);
    UniqueFd one = Socket(veth_->ours(), SOCK_DGRAM, At("10.77.0.1", 0));
    sendto(one.get(), "q", 1, 0, reinterpret_cast<const sockaddr*>(&many), sizeof many);
  }
  EXPECT_EQ(PeerGot(), 3u);
}

TEST_P(EngineFlowTest, NobodyWakesTheKernel) {
  veth_->Run(veth_->ours(), "sysctl -qw net.ipv6.conf.sl0.disable_ipv6=0; ip -6 addr add fd77::1/64 dev sl0 nodad");
  veth_->Run(veth_->peer(), "sysctl -qw net.ipv6.conf.pe0.disable_ipv6=0; ip -6 addr add fd77::2/64 dev pe0 nodad");
  UniqueFd listener = Socket(veth_->ours(), SOCK_STREAM, At("10.77.0.1", 80)),
           bound = Socket(veth_->ours(), SOCK_DGRAM, At("10.77.0.1", 5000));
  ASSERT_EQ(listen(listener.get(), 1), 0);
  gate_.Ask();
  UniqueFd client = Client(kNames);
  ASSERT_TRUE(Resolves(client.get()));
  usleep(kNeverMs * 1000);
  Drain(tap_.fd.get());
  EXPECT_FALSE(PeerCan("ping -6 -c1 -W0.3 fd77::1")) << "neighbour solicitation";
  EXPECT_FALSE(PeerCan("ping -c1 -W0.3 10.77.0.1"));
  EXPECT_FALSE(PeerCan("timeout 0.3 bash -c 'exec 3<>/dev/tcp/10.77.0.1/80'"));
  EXPECT_FALSE(PeerCan("timeout 0.3 bash -c 'exec 3<>/dev/tcp/10.77.0.1/81'"));
  // From the server's own port, to ports that no flow has.
  for (const uint16_t port : {5000, 5001}) {
    const sockaddr_in to = At("10.77.0.1", port);
    sendto(server_.get(), "probe", 5, 0, reinterpret_cast<const sockaddr*>(&to), sizeof to);
  }
  EXPECT_FALSE(Readable(bound.get(), kNeverMs));
  veth_->Run(veth_->peer(), "ip neigh flush dev pe0");
  EXPECT_FALSE(PeerCan("ping -c1 -W0.3 10.77.0.1")) << "the kernel answered ARP";
  EXPECT_EQ(PeerGot(), 0u);
  // What comes too late for a socket that has gone.
  sockaddr_in local{};
  socklen_t size = sizeof local;
  getsockname(client.get(), reinterpret_cast<sockaddr*>(&local), &size);
  client.Reset();
  veth_->Run(veth_->peer(), "ip neigh replace 10.77.0.1 lladdr ff:ff:ff:ff:ff:ff dev pe0 nud permanent");
  sendto(server_.get(), "late", 4, 0, reinterpret_cast<const sockaddr*>(&local), sizeof local);
  EXPECT_EQ(PeerGot(), 0u);
}

TEST_P(EngineFlowTest, APortThatTheStackHoldsIsTheStacks) {
  gate_.Ask();
  UniqueFd client = Client(kNames, SOCK_DGRAM, 40000);
  Hold(IPPROTO_UDP, 40000, true);
  EXPECT_FALSE(Resolves(client.get(), 100, kNeverMs));
  EXPECT_EQ(PeerGot(false), 0u);
  Hold(IPPROTO_UDP, 40000, false);
  Hold(IPPROTO_TCP, 40000, true);
  ASSERT_TRUE(Resolves(client.get())) << "a port of TCP is none of UDP";
  // Taken by the stack later: the answer is the stack's.
  ASSERT_EQ(send(client.get(), "question", 8, 0), 8);
  char question[64];
  sockaddr_in from{};
  socklen_t size = sizeof from;
  ASSERT_TRUE(Readable(server_.get(), kSoonMs));
  recvfrom(server_.get(), question, sizeof question, 0, reinterpret_cast<sockaddr*>(&from), &size);
  Hold(IPPROTO_UDP, 40000, true);
  StackGot();
  sendto(server_.get(), "answer", 6, 0, reinterpret_cast<sockaddr*>(&from), size);
  EXPECT_FALSE(Readable(client.get(), kNeverMs));
  EXPECT_EQ(StackGot().size(), 1u);
}

TEST_P(EngineFlowTest, FlowsEnd) {
  gate_.Ask();
  UniqueFd client = Client(kNames);
  ASSERT_TRUE(Resolves(client.get()));
  SetGate(SecondsAgo(20), 0);
  EXPECT_TRUE(Resolves(client.get())) << "one that is under way goes on";
  SetGate(SecondsAgo(70), 0);
  EXPECT_FALSE(Resolves(client.get(), 100, kNeverMs)) << "nobody has asked for a minute";
  SetGate(SecondsAgo(20), 0);
  sluice_flow flow;
  ASSERT_EQ(bpf_map_get_next_key(maps_.table.get(), nullptr, &flow), 0);
  const uint64_t old = SecondsAgo(40);
  ASSERT_EQ(bpf_map_update_elem(maps_.table.get(), &flow, &old, BPF_ANY), 0);
  EXPECT_FALSE(Resolves(client.get(), 100, kNeverMs)) << "its socket has been silent for long";
}

std::string NameOf(const ::testing::TestParamInfo<Link>& link) {
  constexpr const char* kLinks[] = {"Tcx", "Clsact", "GenericXdp", "NativeXdp"};
  return kLinks[static_cast<int>(link.param)];
}
INSTANTIATE_TEST_SUITE_P(Links, EngineFlowTest, ::testing::Values(Link::kTcx, Link::kClsact, Link::kGenericXdp, Link::kNativeXdp),
                         NameOf);

}  // namespace
}  // namespace sluice
