// Changes applied in a fresh network namespace: what `ip` shows afterwards, the kernel's errno, bounds, and who may.
#include "control/broker/net_change.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <functional>
#include <thread>

#include "netstack/ip/address.h"

namespace sluice {
namespace {

using netlink::NetChange;
using netlink::NetChangeKind;
using netlink::NetChangeResult;

int Shell(const std::string& command) { return std::system(command.c_str()); }

std::string Output(const std::string& command) {
  std::string out;
  FILE* pipe = popen(command.c_str(), "r");
  std::array<char, 4096> buffer;
  for (size_t n; (n = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) out.append(buffer.data(), n);
  pclose(pipe);
  return out;
}

netlink::NetAddress Net(const char* text) {
  const auto parsed = IpAddress::Parse(text);
  netlink::NetAddress out{.family = static_cast<uint8_t>(parsed->is_v4() ? AF_INET : AF_INET6)};
  std::copy(parsed->bytes().begin(), parsed->bytes().end(), out.bytes.begin());
  return out;
}

// A body in a thread of its own with a fresh namespace that holds a veth pair v0 - v1, both up.
void InNetns(const std::function<void()>& body) {
  bool entered = false;
  std::thread thread([&] {
    entered = unshare(CLONE_NEWNET) == 0;
    if (!entered) return;
    ASSERT_EQ(0, Shell("ip link set lo up && ip link add v0 type veth peer name v1 && ip link set v0 up && ip link set v1 up"));
    body();
  });
  thread.join();
  if (!entered) GTEST_SKIP() << "no right to make a network namespace";
}

class Changer {
 public:
  explicit Changer(const NetChangeLimits& limits = {}) : changer_(limits, &error_) { EXPECT_TRUE(changer_.ok()) << error_; }
  NetChangeResult operator()(const NetChange& change, bool allowed = true) { return changer_.Apply(change, allowed); }

 private:
  std::string error_;
  NetChanger changer_;
};

int32_t Index(const char* name) { return static_cast<int32_t>(if_nametoindex(name)); }

NetChange Address(NetChangeKind kind, const char* device, const char* address, uint8_t prefix_len) {
  NetChange c{.kind = kind, .nl_flags = NLM_F_CREATE | NLM_F_EXCL};
  c.address.ifindex = Index(device);
  c.address.prefix_len = prefix_len;
  c.address.local = c.address.address = Net(address);
  c.address.family = c.address.local.family;
  return c;
}

NetChange Route(NetChangeKind kind, const char* destination, uint8_t prefix_len, const char* gateway) {
  NetChange c{.kind = kind, .nl_flags = NLM_F_CREATE | NLM_F_EXCL};
  c.route.family = AF_INET;
  c.route.dst = Net(destination);
  c.route.dst_len = prefix_len;
  c.route.gateway = Net(gateway);
  c.route.table = RT_TABLE_MAIN;
  c.route.type = RTN_UNICAST;
  c.route.protocol = RTPROT_BOOT;
  return c;
}

TEST(NetChanger, AddsAndDeletesAddresses) {
  InNetns([] {
    Changer change;
    EXPECT_EQ(0, change(Address(NetChangeKind::kNewAddress, "v0", "10.9.0.1", 24)).error);
    NetChange loopback = Address(NetChangeKind::kNewAddress, "lo", "127.0.0.2", 8);
    loopback.address.scope = RT_SCOPE_HOST;
    EXPECT_EQ(0, change(loopback).error);
    EXPECT_NE(std::string::npos, Output("ip -o addr show dev v0").find("10.9.0.1/24"));
    EXPECT_NE(std::string::npos, Output("ip -o addr show dev lo").find("127.0.0.2/8"));
    const NetChangeResult again = change(Address(NetChangeKind::kNewAddress, "v0", "10.9.0.1", 24));
    EXPECT_EQ(EEXIST, again.error);
    EXPECT_EQ(0, change(Address(NetChangeKind::kDeleteAddress, "v0", "10.9.0.1", 24)).error);
    EXPECT_EQ(std::string::npos, Output("ip -o addr show dev v0").find("10.9.0.1/24"));
    EXPECT_EQ(EADDRNOTAVAIL, change(Address(NetChangeKind::kDeleteAddress, "v0", "10.9.0.1", 24)).error);
  });
}

TEST(NetChanger, RefusesWhoMayNot) {
  InNetns([] {
    Changer change;
    EXPECT_EQ(EPERM, change(Address(NetChangeKind::kNewAddress, "v0", "10.9.0.1", 24), false).error);
    EXPECT_EQ(std::string::npos, Output("ip -o addr show dev v0").find("10.9.0.1"));
  });
}

TEST(NetChanger, ChangesRoutes) {
  InNetns([] {
    Changer change;
    ASSERT_EQ(0, change(Address(NetChangeKind::kNewAddress, "v0", "10.9.0.1", 24)).error);
    NetChange route = Route(NetChangeKind::kNewRoute, "192.168.0.0", 16, "10.9.0.254");
    route.route.metric_mask = 1u << RTAX_MTU;
    route.route.metrics[RTAX_MTU] = 1300;
    route.route.table = 1000;
    route.route.has_priority = true;
    route.route.priority = 50;
    EXPECT_EQ(0, change(route).error);
    EXPECT_NE(std::string::npos,
              Output("ip route show table 1000").find("192.168.0.0/16 via 10.9.0.254 dev v0 metric 50 mtu 1300"));
    const NetChangeResult unreachable = change(Route(NetChangeKind::kNewRoute, "172.16.0.0", 12, "10.77.0.1"));
    EXPECT_EQ(ENETUNREACH, unreachable.error);
    EXPECT_STRNE("", unreachable.message.data());  // the kernel says why
    route.kind = NetChangeKind::kDeleteRoute;
    EXPECT_EQ(0, change(route).error);
    EXPECT_EQ(ESRCH, change(route).error);
  });
}

TEST(NetChanger, ChangesMultipathRoutes) {
  InNetns([] {
    Changer change;
    ASSERT_EQ(0, change(Address(NetChangeKind::kNewAddress, "v0", "10.9.0.1", 24)).error);
    NetChange route = Route(NetChangeKind::kNewRoute, "192.168.0.0", 16, "10.9.0.254");
    route.route.gateway = {};
    route.route.next_hop_count = 2;
    route.route.next_hops[0] = {.ifindex = Index("v0"), .hops = 0, .gateway = Net("10.9.0.7")};
    route.route.next_hops[1] = {.ifindex = Index("v0"), .hops = 4, .gateway = Net("10.9.0.8")};
    EXPECT_EQ(0, change(route).error);
    const std::string shown = Output("ip route show 192.168.0.0/16");
    EXPECT_NE(std::string::npos, shown.find("via 10.9.0.7 dev v0 weight 1"));
    EXPECT_NE(std::string::npos, shown.find("via 10.9.0.8 dev v0 weight 5"));
  });
}

TEST(NetChanger, ChangesRulesNeighborsAndDevices) {
  InNetns([] {
    Changer change;
    NetChange rule{.kind = NetChangeKind::kNewRule, .nl_flags = NLM_F_CREATE | NLM_F_EXCL};
    rule.rule = {.family = AF_INET,
                 .src_len = 24,
                 .action = 1,
                 .has_priority = true,
                 .table = 1000,
                 .priority = 77,
                 .src = Net("10.9.0.0")};
    EXPECT_EQ(0, change(rule).error);
    EXPECT_NE(std::string::npos, Output("ip rule").find("77:\tfrom 10.9.0.0/24 lookup 1000"));
    rule.kind = NetChangeKind::kDeleteRule;
    EXPECT_EQ(0, change(rule).error);
    EXPECT_EQ(std::string::npos, Output("ip rule").find("77:"));

    NetChange neighbor{.kind = NetChangeKind::kNewNeighbor, .nl_flags = NLM_F_CREATE};
    neighbor.neighbor = {.ifindex = Index("v0"),
                         .family = AF_INET,
                         .state = 0x80,
                         .has_lladdr = true,
                         .lladdr = {2, 0, 0, 0, 0, 9},
                         .dst = Net("10.9.0.9")};
    EXPECT_EQ(0, change(neighbor).error);
    EXPECT_NE(std::string::npos, Output("ip neigh show dev v0").find("10.9.0.9 lladdr 02:00:00:00:00:09 PERMANENT"));

    NetChange link{.kind = NetChangeKind::kSetLink};
    link.link = {.ifindex = Index("v0"),
                 .has_up = true,
                 .up = false,
                 .has_mtu = true,
                 .has_txqlen = true,
                 .has_address = true,
                 .mtu = 1400,
                 .txqlen = 77,
                 .address = {2, 0, 0, 0, 0, 7}};
    EXPECT_EQ(0, change(link).error);
    const std::string shown = Output("ip link show v0");
    EXPECT_NE(std::string::npos, shown.find("mtu 1400"));
    EXPECT_NE(std::string::npos, shown.find("qlen 77"));
    EXPECT_NE(std::string::npos, shown.find("state DOWN"));
    EXPECT_NE(std::string::npos, shown.find("02:00:00:00:00:07"));
    link.link.ifindex = 4711;
    EXPECT_EQ(ENODEV, change(link).error);
  });
}

TEST(NetChanger, ChecksEveryFieldOfTheSentry) {
  InNetns([] {
    Changer change;
    auto refused = [&](const NetChange& c) { return change(c).error == EINVAL; };
    EXPECT_TRUE(refused({.kind = NetChangeKind::kNone}));
    EXPECT_TRUE(refused({.kind = static_cast<NetChangeKind>(99)}));
    NetChange c = Address(NetChangeKind::kNewAddress, "v0", "10.9.0.1", 33);
    EXPECT_TRUE(refused(c));
    c = Address(NetChangeKind::kNewAddress, "v0", "10.9.0.1", 24);
    c.address.address = Net("::1");
    EXPECT_TRUE(refused(c));
    c = Address(NetChangeKind::kNewAddress, "v0", "10.9.0.1", 24);
    c.address.label.fill('x');  // no end
    EXPECT_TRUE(refused(c));
    c = Route(NetChangeKind::kNewRoute, "192.168.0.0", 16, "10.9.0.254");
    c.route.next_hop_count = 200;
    EXPECT_TRUE(refused(c));
    c = Route(NetChangeKind::kNewRoute, "192.168.0.0", 16, "10.9.0.254");
    c.route.metric_mask = 1u << RTAX_CC_ALGO;
    EXPECT_TRUE(refused(c));
    c = Route(NetChangeKind::kNewRoute, "192.168.0.0", 16, "10.9.0.254");
    c.route.gateway.family = 77;
    EXPECT_TRUE(refused(c));
    c = {.kind = NetChangeKind::kNewRule};
    c.rule = {.family = AF_INET, .src_len = 24};  // a prefix without its address
    EXPECT_TRUE(refused(c));
  });
}

TEST(NetChanger, BoundsTheNumberOfObjects) {
  InNetns([] {
    Changer change({.routes = 12});  // the namespace has some of its own
    ASSERT_EQ(0, change(Address(NetChangeKind::kNewAddress, "v0", "10.9.0.1", 24)).error);
    int added = 0;
    NetChangeResult last{};
    for (int i = 1; i < 40 && last.error == 0; ++i) {
      const std::string destination = "10.100." + std::to_string(i) + ".0";
      last = change(Route(NetChangeKind::kNewRoute, destination.c_str(), 24, "10.9.0.254"));
      if (last.error == 0) ++added;
    }
    EXPECT_EQ(ENOBUFS, last.error);
    EXPECT_GT(added, 0);
    // What is taken away makes room.
    EXPECT_EQ(0, change(Route(NetChangeKind::kDeleteRoute, "10.100.1.0", 24, "10.9.0.254")).error);
    EXPECT_EQ(0, change(Route(NetChangeKind::kNewRoute, "10.100.99.0", 24, "10.9.0.254")).error);
    EXPECT_EQ(ENOBUFS, change(Route(NetChangeKind::kNewRoute, "10.100.98.0", 24, "10.9.0.254")).error);
  });
}

// A child that has run `prepare` and waits; its thread is judged.
bool ChildMay(const std::function<bool()>& prepare, int netns) {
  int ready[2], go[2];
  EXPECT_EQ(0, pipe2(ready, O_CLOEXEC));
  EXPECT_EQ(0, pipe2(go, O_CLOEXEC));
  const pid_t child = fork();
  if (child == 0) {
    close(go[1]);
    const char ok = prepare() ? 'y' : 'n';
    if (write(ready[1], &ok, 1) != 1) _exit(1);
    char c;
    _exit(read(go[0], &c, 1) < 0 ? 1 : 0);
  }
  close(go[0]);
  close(ready[1]);
  char ok = 0;
  EXPECT_EQ(1, read(ready[0], &ok, 1));
  EXPECT_EQ('y', ok);
  const bool may = HasCapabilityOverNetns(child, netns, CAP_NET_ADMIN);
  close(go[1]);
  close(ready[0]);
  waitpid(child, nullptr, 0);
  return may;
}

bool DropAll() {
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  std::array<__user_cap_data_struct, 2> none{};
  return syscall(SYS_capset, &header, none.data()) == 0;
}

TEST(HasCapabilityOverNetns, JudgesAsTheKernelDoes) {
  InNetns([] {
    const int netns = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    ASSERT_GE(netns, 0);
    EXPECT_TRUE(ChildMay([] { return true; }, netns));
    EXPECT_FALSE(ChildMay(DropAll, netns));
    EXPECT_FALSE(ChildMay([] { return setresuid(65534, 65534, 65534) == 0; }, netns));
    // Root of a user namespace of its own: every capability there, none over ours.
    EXPECT_FALSE(ChildMay([] { return unshare(CLONE_NEWUSER) == 0; }, netns));
    EXPECT_FALSE(HasCapabilityOverNetns(0x7ffffff0, netns, CAP_NET_ADMIN));  // nobody
    close(netns);
  });
}

TEST(HasCapabilityOverNetns, OwnersOfANamespaceHaveAllInIt) {
  InNetns([] {
    // A child makes a user namespace and in it a network namespace: it may there, and so does who made it, without capabilities.
    int ready[2], go[2];
    ASSERT_EQ(0, pipe2(ready, O_CLOEXEC));
    ASSERT_EQ(0, pipe2(go, O_CLOEXEC));
    const pid_t child = fork();
    if (child == 0) {
      close(go[1]);
      const char ok = unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0 ? 'y' : 'n';
      if (write(ready[1], &ok, 1) != 1) _exit(1);
      char c;
      _exit(read(go[0], &c, 1) < 0 ? 1 : 0);
    }
    close(go[0]);
    char ok = 0;
    ASSERT_EQ(1, read(ready[0], &ok, 1));
    const int netns = open(("/proc/" + std::to_string(child) + "/ns/net").c_str(), O_RDONLY | O_CLOEXEC);
    EXPECT_EQ('y', ok);
    EXPECT_TRUE(HasCapabilityOverNetns(child, netns, CAP_NET_ADMIN));
    EXPECT_TRUE(ChildMay(DropAll, netns));  // same user id as who made it
    EXPECT_FALSE(ChildMay([] { return setresuid(65534, 65534, 65534) == 0; }, netns));
    close(netns);
    close(ready[0]);
    close(ready[1]);
    close(go[1]);
    waitpid(child, nullptr, 0);
  });
}

}  // namespace
}  // namespace sluice
