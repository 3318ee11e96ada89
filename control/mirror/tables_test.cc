#include "control/mirror/tables.h"

#include <gtest/gtest.h>
#include <linux/if.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <algorithm>

#include "control/rtnl.h"

namespace sluice {
namespace {

const nlmsghdr* Header(NetlinkMessage& message) { return message.header(); }

NetlinkMessage LinkMessage(int index, std::string_view name, unsigned flags) {
  NetlinkMessage m(RTM_NEWLINK, NLM_F_MULTI);
  ifinfomsg header{};
  header.ifi_type = 1;
  header.ifi_index = index;
  header.ifi_flags = flags;
  const uint8_t mac[6] = {2, 0, 0, 0, 0, 7};
  m.Header(header).Attr(IFLA_IFNAME, name).Attr(IFLA_MTU, uint32_t{9000}).Attr(IFLA_ADDRESS, Bytes(mac)).Attr8(IFLA_OPERSTATE, 6);
  return m;
}

NetlinkMessage RouteMessage(uint8_t prefix_len, int first_device, int second_device) {
  NetlinkMessage m(RTM_NEWROUTE, 0);
  rtmsg header{};
  header.rtm_family = AF_INET;
  header.rtm_dst_len = prefix_len;
  header.rtm_table = 254;
  header.rtm_type = RTN_UNICAST;
  m.Header(header).Attr(RTA_DST, uint32_t{0x0000000a}).Attr(RTA_PRIORITY, uint32_t{5});
  nlattr* metrics = m.Begin(RTA_METRICS);
  m.Attr(RTAX_MTU, uint32_t{1400}).Attr(RTAX_ADVMSS, uint32_t{1200});
  m.End(metrics);
  nlattr* hops = m.Begin(RTA_MULTIPATH);
  for (const int device : {first_device, second_device}) {
    const rtnexthop hop{static_cast<unsigned short>(sizeof(rtnexthop) + 8), 0, static_cast<unsigned char>(device), device};
    const rtattr gateway{8, RTA_GATEWAY};
    const uint8_t address[4] = {10, 0, 0, static_cast<uint8_t>(device)};
    m.Raw(&hop, sizeof hop).Raw(&gateway, sizeof gateway).Raw(address, sizeof address);
  }
  m.End(hops);
  return m;
}

TEST(MirrorTables, ParsesALink) {
  NetlinkMessage m = LinkMessage(4, "eth0", IFF_UP | IFF_RUNNING);
  LinkConfig link;
  ASSERT_TRUE(ParseLink(Header(m), &link));
  EXPECT_EQ(link.index, 4);
  EXPECT_EQ(link.name, "eth0");
  EXPECT_EQ(link.mtu, 9000u);
  EXPECT_EQ(ToString(link.mac), "02:00:00:00:00:07");
  EXPECT_TRUE(link.up());
  // The message is kept for dumps inside, without the marks of the dump it came in.
  EXPECT_EQ(reinterpret_cast<const nlmsghdr*>(link.netlink.data())->nlmsg_flags & NLM_F_MULTI, 0);
}

TEST(MirrorTables, ParsesMultipathAndMetrics) {
  NetlinkMessage m = RouteMessage(8, 3, 4);
  RouteConfig route;
  ASSERT_TRUE(ParseRoute(Header(m), &route));
  EXPECT_EQ(ToString(route.dst), "10.0.0.0");
  EXPECT_EQ(route.prefix_len, 8);
  EXPECT_EQ(route.priority, 5u);
  EXPECT_EQ(route.mtu, 1400u);
  EXPECT_EQ(route.advmss, 1200u);
  ASSERT_EQ(route.next_hops.size(), 2u);
  EXPECT_EQ(route.next_hops[1].ifindex, 4);
  EXPECT_EQ(route.next_hops[1].weight, 5u);
  EXPECT_EQ(ToString(route.next_hops[1].gateway), "10.0.0.4");
}

// Whatever length a message or an attribute claims, nothing beyond the message is read (the sanitizers watch).
TEST(MirrorTables, CutMessagesAreHarmless) {
  NetlinkMessage m = RouteMessage(8, 3, 4);
  const auto* bytes = reinterpret_cast<const uint8_t*>(m.header());
  const std::vector<uint8_t> whole(bytes, bytes + m.header()->nlmsg_len);
  for (size_t size = sizeof(nlmsghdr); size <= whole.size(); ++size) {
    std::vector<uint8_t> cut(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(size));
    cut.shrink_to_fit();
    reinterpret_cast<nlmsghdr*>(cut.data())->nlmsg_len = static_cast<uint32_t>(size);
    RouteConfig route;
    const bool parsed = ParseRoute(reinterpret_cast<const nlmsghdr*>(cut.data()), &route);
    EXPECT_TRUE(size >= NLMSG_LENGTH(sizeof(rtmsg)) || !parsed);
    EXPECT_LE(route.next_hops.size(), 2u);
  }
}

KernelTables TwoDevices() {
  KernelTables tables;
  for (auto& [index, name] : std::vector<std::pair<int, std::string>>{{1, "lo"}, {3, "eth0"}, {4, "eth1"}}) {
    NetlinkMessage m = LinkMessage(index, name, index == 1 ? IFF_LOOPBACK : IFF_UP);
    LinkConfig link;
    EXPECT_TRUE(ParseLink(Header(m), &link));
    tables.links.push_back(link);
    tables.addresses.push_back(
        {.ifindex = index, .local = IpAddress::V4(10, 0, 0, static_cast<uint8_t>(index)), .prefix_len = 24});
  }
  NetlinkMessage both = RouteMessage(8, 3, 4), second = RouteMessage(16, 4, 4);
  for (NetlinkMessage* m : {&both, &second}) {
    RouteConfig route;
    EXPECT_TRUE(ParseRoute(Header(*m), &route));
    tables.routes.push_back(route);
  }
  return tables;
}

TEST(MirrorTables, DevicesNotNamedAreNotThere) {
  const NetConfig config = MakeConfig(TwoDevices(), [](const LinkConfig& link) { return link.name == "eth0"; }, {3});
  ASSERT_EQ(config.links.size(), 2u);
  EXPECT_EQ(config.links[1].name, "eth0");
  EXPECT_TRUE(config.links[1].attached);
  EXPECT_TRUE(
      std::none_of(config.addresses.begin(), config.addresses.end(), [](const AddressConfig& a) { return a.ifindex == 4; }));
  for (const RouteConfig& route : config.routes) {
    EXPECT_NE(route.prefix_len, 16) << "a route whose only device is not there";
    for (const NextHop& hop : route.next_hops) EXPECT_NE(hop.ifindex, 4);
  }
}

TEST(MirrorTables, LoopbackIsUpWhateverTheKernelsIs) {
  for (const bool with_kernel : {true, false}) {
    const NetConfig config = MakeConfig(with_kernel ? TwoDevices() : KernelTables(), [](const LinkConfig&) { return false; }, {});
    ASSERT_EQ(config.links.size(), 1u);
    EXPECT_TRUE(config.links[0].up());
    EXPECT_TRUE(config.links[0].loopback());
    EXPECT_EQ(config.links[0].name, "lo");
    const auto has = [&](const char* address) {
      return std::count_if(config.addresses.begin(), config.addresses.end(),
                           [&](const AddressConfig& a) { return ToString(a.local) == address; });
    };
    EXPECT_EQ(has("127.0.0.1"), 1);
    EXPECT_EQ(has("::1"), 1);
    const auto local = std::find_if(config.routes.begin(), config.routes.end(),
                                    [](const RouteConfig& r) { return ToString(r.dst) == "127.0.0.0" && r.prefix_len == 8; });
    ASSERT_NE(local, config.routes.end());
    EXPECT_EQ(local->type, RTN_LOCAL);
    EXPECT_EQ(local->table, 255u);
    EXPECT_FALSE(local->netlink.empty());
  }
}

}  // namespace
}  // namespace sluice
