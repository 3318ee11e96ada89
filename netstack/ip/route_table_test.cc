#include "netstack/ip/route_table.h"

#include <gtest/gtest.h>

#include "netstack/testing/sim.h"

namespace sluice {
namespace {

using testing::AddAddress;
using testing::AddDevice;
using testing::AddRoute;
using testing::HostConfig;

IpAddress Ip(std::string_view text) { return *IpAddress::Parse(text); }

struct Tables {
  explicit Tables(NetConfig c) : config(std::make_shared<const NetConfig>(std::move(c))), table(config) {}
  RouteTable::Match Find(std::string_view to, RouteQuery q = {}) {
    q.destination = Ip(to);
    return table.Find(q);
  }
  std::string Via(std::string_view to, RouteQuery q = {}) {
    const auto m = Find(to, q);
    if (m.error != Errno::kOk) return "error " + std::to_string(ToInt(m.error));
    return (m.hop->gateway ? ToString(m.hop->gateway) : "link") + " dev " + std::to_string(m.hop->ifindex);
  }
  std::shared_ptr<const NetConfig> config;
  RouteTable table;
};

RouteConfig* Special(NetConfig* c, std::string_view dst, uint8_t len, uint8_t type) {
  RouteConfig r;
  r.dst = Ip(dst);
  r.prefix_len = len;
  r.type = type;
  c->routes.push_back(r);
  return &c->routes.back();
}

TEST(RouteTable, LongestPrefixWinsThenTheMetric) {
  NetConfig c = HostConfig("10.0.0.1/24", "10.0.0.254");
  AddRoute(&c, "192.168.0.0/16", "10.0.0.10", 2);
  AddRoute(&c, "192.168.1.0/24", "10.0.0.12", 2, 200);
  AddRoute(&c, "192.168.1.0/24", "10.0.0.11", 2, 100);
  AddRoute(&c, "192.168.1.7/32", "", 2);
  Tables t(c);
  EXPECT_EQ(t.Via("8.8.8.8"), "10.0.0.254 dev 2");
  EXPECT_EQ(t.Via("192.168.9.9"), "10.0.0.10 dev 2");
  EXPECT_EQ(t.Via("192.168.1.1"), "10.0.0.11 dev 2");
  EXPECT_EQ(t.Via("192.168.1.7"), "link dev 2");
  EXPECT_EQ(t.Via("10.0.0.9"), "link dev 2");
  EXPECT_EQ(t.Find("10.0.0.1").route->type, kRtnLocal);
  EXPECT_EQ(t.Find("10.0.0.255").route->type, kRtnBroadcast);
  EXPECT_EQ(t.Find("127.1.2.3").route->type, kRtnLocal);
}

TEST(RouteTable, TypesThatRefuse) {
  NetConfig c = HostConfig("10.0.0.1/24", "10.0.0.254");
  Special(&c, "1.0.0.0", 8, kRtnBlackhole);
  Special(&c, "2.0.0.0", 8, kRtnUnreachable);
  Special(&c, "3.0.0.0", 8, kRtnProhibit);
  Special(&c, "4.0.0.0", 8, kRtnThrow);
  Tables t(c);
  EXPECT_EQ(t.Find("1.1.1.1").error, Errno::kEINVAL);
  EXPECT_EQ(t.Find("2.1.1.1").error, Errno::kEHOSTUNREACH);
  EXPECT_EQ(t.Find("3.1.1.1").error, Errno::kEACCES);
  EXPECT_EQ(t.Find("4.1.1.1").error, Errno::kENETUNREACH);  // no further table has it
}

TEST(RouteTable, ThrowGoesOnWithTheNextRule) {
  NetConfig c = HostConfig("10.0.0.1/24");
  Special(&c, "4.0.0.0", 8, kRtnThrow);
  AddRoute(&c, "0.0.0.0/0", "10.0.0.7", 2);
  c.routes.back().table = 253;
  Tables t(c);
  EXPECT_EQ(t.Via("4.1.1.1"), "10.0.0.7 dev 2");
}

TEST(RouteTable, RulesBySourceMarkAndDevice) {
  NetConfig c = HostConfig("10.0.0.1/24", "10.0.0.254");
  const IfIndex second = AddDevice(&c, "eth1", "10.1.0.1/24");
  AddRoute(&c, "0.0.0.0/0", "10.1.0.254", second);
  c.routes.back().table = 100;
  RuleConfig rule;
  rule.priority = 1000;
  rule.table = 100;
  rule.src = Ip("10.1.0.0");
  rule.src_len = 24;
  c.rules.push_back(rule);
  rule.src_len = 0;
  rule.priority = 1001;
  rule.fwmark = 5;
  rule.fwmask = 0xff;
  c.rules.push_back(rule);
  rule.fwmask = rule.fwmark = 0;
  rule.oif = "eth1";
  rule.priority = 1002;
  c.rules.push_back(rule);
  rule.oif.clear();
  rule.iif = "eth0";  // forwarding only
  rule.priority = 1003;
  c.rules.push_back(rule);
  Tables t(c);
  EXPECT_EQ(t.Via("8.8.8.8"), "10.0.0.254 dev 2");
  EXPECT_EQ(t.Via("8.8.8.8", {.source = Ip("10.1.0.1")}), "10.1.0.254 dev 3");
  EXPECT_EQ(t.Via("8.8.8.8", {.mark = 0x105}), "10.1.0.254 dev 3");
  EXPECT_EQ(t.Via("8.8.8.8", {.ifindex = second}), "10.1.0.254 dev 3");
}

TEST(RouteTable, RuleActionsAndGoto) {
  NetConfig c = HostConfig("10.0.0.1/24", "10.0.0.254");
  auto add = [&c](uint32_t priority, std::string_view dst, uint8_t action, uint32_t target) {
    RuleConfig r;
    r.priority = priority;
    r.dst = Ip(dst);
    r.dst_len = 32;
    r.action = action;
    r.goto_target = target;
    c.rules.push_back(r);
  };
  add(10, "1.1.1.1", 8, 0);
  add(11, "2.2.2.2", 7, 0);
  add(12, "3.3.3.3", 2, 20);
  add(13, "3.3.3.3", 8, 0);
  Tables t(c);
  EXPECT_EQ(t.Find("1.1.1.1").error, Errno::kEACCES);
  EXPECT_EQ(t.Find("2.2.2.2").error, Errno::kENETUNREACH);
  EXPECT_EQ(t.Via("3.3.3.3"), "10.0.0.254 dev 2");
}

TEST(RouteTable, MultipathSpreadsByWeightAndAvoidsDeadHops) {
  NetConfig c = HostConfig("10.0.0.1/24");
  AddRoute(&c, "0.0.0.0/0", "10.0.0.2", 2);
  c.routes.back().next_hops.push_back(NextHop{.gateway = Ip("10.0.0.3"), .ifindex = 2, .weight = 3});
  c.routes.back().next_hops.push_back(NextHop{.gateway = Ip("10.0.0.4"), .ifindex = 2, .weight = 9, .flags = 1});
  Tables t(c);
  std::map<std::string, int> seen;
  for (uint32_t i = 0; i < 1000; ++i) ++seen[t.Via("8.8.8.8", {.flow_hash = i * 4294967u})];
  EXPECT_EQ(seen.size(), 2u);
  EXPECT_NEAR(seen["10.0.0.2 dev 2"], 250, 30);
  EXPECT_TRUE(t.Find("8.8.8.8").multipath);
}

TEST(RouteTable, DownDevicesAndOnLinkOnlyQueries) {
  NetConfig c = HostConfig("10.0.0.1/24", "10.0.0.254");
  Tables up(c);
  EXPECT_EQ(up.Find("8.8.8.8", {.dont_route = true}).error, Errno::kENETUNREACH);
  EXPECT_EQ(up.Via("10.0.0.9", {.dont_route = true}), "link dev 2");
  c.links[1].flags &= ~1u;
  Tables down(c);
  EXPECT_EQ(down.Find("10.0.0.9").error, Errno::kENETUNREACH);
}

TEST(RouteTable, SourceSelection) {
  NetConfig c = HostConfig("10.0.0.1/24");
  AddAddress(&c, 2, "192.168.0.1/24");
  const IfIndex bare = 9;
  Tables t(c);
  EXPECT_EQ(t.table.SelectSource(2, Ip("192.168.0.77"), kScopeLink), Ip("192.168.0.1"));
  EXPECT_EQ(t.table.SelectSource(2, Ip("8.8.8.8"), kScopeUniverse), Ip("10.0.0.1"));
  EXPECT_EQ(t.table.SelectSource(bare, Ip("8.8.8.8"), kScopeUniverse), Ip("10.0.0.1"));  // never the loopback's
  EXPECT_TRUE(t.table.IsLocal(Ip("127.8.8.8")));
  EXPECT_TRUE(t.table.IsBroadcast(Ip("10.0.0.255"), 2));
  EXPECT_FALSE(t.table.IsBroadcast(Ip("10.0.0.255"), 3));
}

}  // namespace
}  // namespace sluice
