// The server beside the kernel: in a fresh namespace the same requests go to the kernel and to a server whose configuration was
// recorded there; the answers must be the same, message by message and attribute by attribute.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/fib_rules.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/netconf.h>
#include <linux/nexthop.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include "netstack/stack.h"
#include "netstack/testing/sim.h"
#include "sentry/netlink/server_impl.h"
#include "sentry/netlink/testing/kernel.h"

namespace sluice::netlink {
namespace {

using netlink::testing::AskKernel;
using netlink::testing::AskServer;
using netlink::testing::Describe;
using netlink::testing::MakeRequest;
using netlink::testing::Messages;
using netlink::testing::SocketOptions;
using ::testing::ElementsAreArray;

class RecordingBackend final : public StackBackend {
 public:
  using StackBackend::StackBackend;
  void RequestChange(const NetChange&, const Caller&, ChangeDone done) override { done({.error = ToInt(Errno::kEPERM)}); }
};

class NullLink final : public Link {
 public:
  LinkFeatures features() const override { return {}; }
  size_t Transmit(std::span<Packet> burst) override { return burst.size(); }
};

// A namespace with two connected veths, of which v0 has addresses and routes of many kinds.
class Sandbox {
 public:
  Sandbox() : pool_(1 << 24), secure_(1), stack_(Instant(0), secure_, pool_), backend_(stack_), server_(nullptr) {
    EXPECT_EQ(0, netlink::testing::Shell(
                     "set -e; echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6 2>/dev/null || true;"
                     "ip link set lo up; ip link add v0 type veth peer name v1; ip link set v1 mtu 1400;"
                     "ip link set v0 up; ip link set v1 up; ip link property add dev v0 altname longer-name-of-v0;"
                     "ip addr add 10.1.0.2/24 brd + dev v0; ip addr add 10.1.0.3/24 dev v0 label v0:1;"
                     "ip addr add 10.2.0.1 peer 10.2.0.9/32 dev v0;"
                     "ip route add default via 10.1.0.1; ip route add default via 10.1.0.7 metric 100;"
                     "ip route add 192.168.0.0/16 via 10.1.0.1 mtu 1300 src 10.1.0.3 proto static;"
                     "ip route add 172.16.0.0/12 dev v0 scope link table 1000; ip route add blackhole 198.18.0.0/15;"
                     "ip route add prohibit 198.51.100.0/24; ip route add unreachable 203.0.113.0/24;"
                     "ip rule add from 10.1.0.3 to 172.16.0.0/12 lookup 1000 priority 100;"
                     "ip rule add fwmark 7/0xff lookup 1000 priority 200;"
                     "ip neigh add 10.1.0.1 lladdr 02:00:00:00:00:01 dev v0"));
    auto config = std::make_shared<NetConfig>(netlink::testing::RecordConfig());
    config_ = config;
    stack_.ApplyConfig(config);
    for (const LinkConfig& link : config->links) {
      if (!link.loopback()) stack_.AttachLink(link.index, &link_);
    }
    server_ = std::make_unique<NetlinkServer>(backend_);
  }
  NetlinkServer& server() { return *server_; }
  const NetConfig& config() const { return *config_; }
  int32_t IndexOf(std::string_view name) const {
    const LinkConfig* link = FindLink(*config_, name);
    return link != nullptr ? link->index : 0;
  }

 private:
  HeapBlockPool pool_;
  sluice::testing::TestSecureRng secure_;
  NullLink link_;
  Stack stack_;
  RecordingBackend backend_;
  std::unique_ptr<NetlinkServer> server_;
  std::shared_ptr<const NetConfig> config_;
};

const Caller kRoot{.known = true, .net_admin = true, .tgid = 4242};

std::vector<std::string> DescribeAll(const Messages& messages, bool sorted) {
  std::vector<std::string> out;
  for (const Buffer& m : messages) out.push_back(Describe(m, sorted));
  return out;
}

void Compare(Sandbox& box, const std::string& what, const Buffer& request, bool sorted = false) {
  for (const bool strict : {false, true}) {
    const SocketOptions options{.strict = strict};
    const Messages kernel = AskKernel(NETLINK_ROUTE, request, options);
    const Messages ours = AskServer(box.server(), NETLINK_ROUTE, request, options, kRoot);
    EXPECT_THAT(DescribeAll(ours, sorted), ElementsAreArray(DescribeAll(kernel, sorted))) << what << (strict ? " (strict)" : "");
  }
}

template <typename Body>
void InSandbox(Body body) {
  const bool entered = netlink::testing::InNewNetns([&] {
    Sandbox box;
    body(box);
  });
  if (!entered) GTEST_SKIP() << "no right to make a network namespace";
}

TEST(NetlinkDifferential, LinkDumps) {
  InSandbox([](Sandbox& box) {
    const ifinfomsg any{};
    const ifinfomsg one{.ifi_index = box.IndexOf("v0")};
    const ifinfomsg packet{.ifi_family = AF_PACKET};
    const ifinfomsg bad{.ifi_change = 1};
    const rtgenmsg small{.rtgen_family = AF_UNSPEC};
    auto ext = [](uint32_t mask) { return [mask](MessageWriter& w) { w.U32(IFLA_EXT_MASK, mask); }; };
    Compare(box, "all", MakeRequest(RTM_GETLINK, NLM_F_DUMP, AsBytes(any)));
    Compare(box, "ip's", MakeRequest(RTM_GETLINK, NLM_F_DUMP, AsBytes(packet), ext(RTEXT_FILTER_VF | RTEXT_FILTER_SKIP_STATS)));
    Compare(box, "short header", MakeRequest(RTM_GETLINK, NLM_F_DUMP, AsBytes(small)));
    Compare(box, "with index", MakeRequest(RTM_GETLINK, NLM_F_DUMP, AsBytes(one)));
    Compare(box, "with change", MakeRequest(RTM_GETLINK, NLM_F_DUMP, AsBytes(bad)));
    Compare(box, "no master",
            MakeRequest(RTM_GETLINK, NLM_F_DUMP, AsBytes(any), [](MessageWriter& w) { w.U32(IFLA_MASTER, 77); }));
    Compare(box, "kind veth", MakeRequest(RTM_GETLINK, NLM_F_DUMP, AsBytes(any), [](MessageWriter& w) {
              const size_t nest = w.BeginNest(IFLA_LINKINFO | NLA_F_NESTED);
              w.Text(IFLA_INFO_KIND, "veth");
              w.EndNest(nest);
            }));
    Compare(box, "attribute",
            MakeRequest(RTM_GETLINK, NLM_F_DUMP, AsBytes(any), [](MessageWriter& w) { w.Text(IFLA_IFNAME, "v0"); }));
    Compare(box, "bridges", MakeRequest(RTM_GETLINK, NLM_F_DUMP, AsBytes(ifinfomsg{.ifi_family = AF_BRIDGE})));
  });
}

TEST(NetlinkDifferential, SingleLinks) {
  InSandbox([](Sandbox& box) {
    auto name = [](uint16_t type, std::string text) { return [type, text](MessageWriter& w) { w.Text(type, text); }; };
    const ifinfomsg none{};
    auto index = [](int i) { return ifinfomsg{.ifi_index = i}; };
    Compare(box, "by index", MakeRequest(RTM_GETLINK, 0, AsBytes(index(box.IndexOf("v0")))));
    Compare(box, "by index with ack", MakeRequest(RTM_GETLINK, NLM_F_ACK, AsBytes(index(box.IndexOf("v0")))));
    Compare(box, "by name", MakeRequest(RTM_GETLINK, 0, AsBytes(none), name(IFLA_IFNAME, "v1")));
    Compare(box, "by alternative name", MakeRequest(RTM_GETLINK, 0, AsBytes(none), name(IFLA_ALT_IFNAME, "longer-name-of-v0")));
    Compare(box, "unknown index", MakeRequest(RTM_GETLINK, 0, AsBytes(index(4711))));
    Compare(box, "negative index", MakeRequest(RTM_GETLINK, 0, AsBytes(index(-1))));
    Compare(box, "unknown name", MakeRequest(RTM_GETLINK, 0, AsBytes(none), name(IFLA_IFNAME, "nope")));
    Compare(box, "no name", MakeRequest(RTM_GETLINK, 0, AsBytes(none)));
    Compare(box, "long name",
            MakeRequest(RTM_GETLINK, 0, AsBytes(none), name(IFLA_IFNAME, "a-name-that-is-too-long-for-a-device")));
    Compare(box, "short mask", MakeRequest(RTM_GETLINK, 0, AsBytes(index(1)), [](MessageWriter& w) { w.U8(IFLA_EXT_MASK, 1); }));
    Compare(box, "short header", MakeRequest(RTM_GETLINK, 0, AsBytes(rtgenmsg{})));
  });
}

TEST(NetlinkDifferential, Addresses) {
  InSandbox([](Sandbox& box) {
    for (const int family : {AF_UNSPEC, AF_INET, AF_INET6, AF_PACKET}) {
      const ifaddrmsg header{.ifa_family = static_cast<uint8_t>(family)};
      Compare(box, "family " + std::to_string(family), MakeRequest(RTM_GETADDR, NLM_F_DUMP, AsBytes(header)));
    }
    Compare(box, "one device",
            MakeRequest(RTM_GETADDR, NLM_F_DUMP,
                        AsBytes(ifaddrmsg{.ifa_family = AF_INET, .ifa_index = static_cast<uint32_t>(box.IndexOf("v0"))})));
    Compare(box, "no device", MakeRequest(RTM_GETADDR, NLM_F_DUMP, AsBytes(ifaddrmsg{.ifa_family = AF_INET, .ifa_index = 4711})));
    Compare(box, "with scope", MakeRequest(RTM_GETADDR, NLM_F_DUMP, AsBytes(ifaddrmsg{.ifa_family = AF_INET, .ifa_scope = 5})));
    Compare(box, "libc's", MakeRequest(RTM_GETADDR, NLM_F_DUMP, AsBytes(rtgenmsg{})));
    Compare(box, "single IPv4", MakeRequest(RTM_GETADDR, 0, AsBytes(ifaddrmsg{.ifa_family = AF_INET})));
    Compare(box, "single IPv6", MakeRequest(RTM_GETADDR, 0, AsBytes(ifaddrmsg{.ifa_family = AF_INET6}), [](MessageWriter& w) {
              w.Address(IFA_ADDRESS, IpAddress::Loopback(Family::kIpv6));
            }));
  });
}

TEST(NetlinkDifferential, RouteDumps) {
  InSandbox([](Sandbox& box) {
    for (const int family : {AF_UNSPEC, AF_INET, AF_INET6, RTNL_FAMILY_IPMR}) {
      const rtmsg header{.rtm_family = static_cast<uint8_t>(family)};
      Compare(box, "family " + std::to_string(family), MakeRequest(RTM_GETROUTE, NLM_F_DUMP, AsBytes(header)));
    }
    auto table = [](uint32_t id) { return [id](MessageWriter& w) { w.U32(RTA_TABLE, id); }; };
    const rtmsg v4{.rtm_family = AF_INET};
    Compare(box, "table main", MakeRequest(RTM_GETROUTE, NLM_F_DUMP, AsBytes(v4), table(254)));
    Compare(box, "table 1000", MakeRequest(RTM_GETROUTE, NLM_F_DUMP, AsBytes(v4), table(1000)));
    Compare(box, "no such table", MakeRequest(RTM_GETROUTE, NLM_F_DUMP, AsBytes(v4), table(4711)));
    Compare(box, "by device", MakeRequest(RTM_GETROUTE, NLM_F_DUMP, AsBytes(v4), [&](MessageWriter& w) {
              w.U32(RTA_OIF, static_cast<uint32_t>(box.IndexOf("v0")));
            }));
    Compare(box, "static ones",
            MakeRequest(RTM_GETROUTE, NLM_F_DUMP, AsBytes(rtmsg{.rtm_family = AF_INET, .rtm_protocol = RTPROT_STATIC})));
    Compare(box, "with a prefix", MakeRequest(RTM_GETROUTE, NLM_F_DUMP, AsBytes(rtmsg{.rtm_family = AF_INET, .rtm_dst_len = 8})));
    Compare(box, "cached",
            MakeRequest(RTM_GETROUTE, NLM_F_DUMP, AsBytes(rtmsg{.rtm_family = AF_INET, .rtm_flags = RTM_F_CLONED})));
  });
}

TEST(NetlinkDifferential, RouteLookups) {
  InSandbox([](Sandbox& box) {
    auto get = [&](const std::string& destination, uint32_t flags, const std::string& source = "", uint32_t mark = 0) {
      const auto dst = IpAddress::Parse(destination);
      const auto src = IpAddress::Parse(source);
      const auto bits = static_cast<uint8_t>(dst->is_v4() ? 32 : 128);
      const rtmsg header{.rtm_family = static_cast<uint8_t>(ToAf(dst->family())),
                         .rtm_dst_len = bits,
                         .rtm_src_len = static_cast<uint8_t>(src ? bits : 0),
                         .rtm_flags = flags};
      const Buffer request = MakeRequest(RTM_GETROUTE, 0, AsBytes(header), [&](MessageWriter& w) {
        w.Address(RTA_DST, *dst);
        if (src) w.Address(RTA_SRC, *src);
        if (mark != 0) w.U32(RTA_MARK, mark);
      });
      Compare(box, destination + " from " + source, request, true);
    };
    for (const uint32_t flags : {0u, uint32_t{RTM_F_LOOKUP_TABLE}, uint32_t{RTM_F_LOOKUP_TABLE | RTM_F_FIB_MATCH}}) {
      get("10.1.0.77", flags);    // on the link
      get("8.8.8.8", flags);      // by the default route
      get("192.168.5.5", flags);  // with source and mtu of the route
      get("10.1.0.2", flags);     // ours
      get("127.0.0.1", flags);
      get("10.1.0.255", flags);              // broadcast
      get("10.2.0.9", flags);                // the peer of an address
      get("172.16.5.5", flags, "10.1.0.3");  // by a rule
      get("172.16.5.5", flags, "", 7);       // by mark
    }
    for (const char* destination : {"198.18.0.1", "198.51.100.7", "203.0.113.5"}) get(destination, RTM_F_LOOKUP_TABLE);
    get("8.8.8.8", RTM_F_LOOKUP_TABLE, "9.9.9.9");  // not our address
    get("::1", RTM_F_LOOKUP_TABLE);
    get("2001:db8::1", RTM_F_LOOKUP_TABLE);
    Compare(box, "short", MakeRequest(RTM_GETROUTE, 0, AsBytes(rtgenmsg{.rtgen_family = AF_INET})));
    Compare(box, "no family", MakeRequest(RTM_GETROUTE, 0, AsBytes(rtmsg{})));
  });
}

TEST(NetlinkDifferential, Rules) {
  InSandbox([](Sandbox& box) {
    for (const int family : {AF_INET, AF_INET6, AF_PACKET}) {
      const fib_rule_hdr header{.family = static_cast<uint8_t>(family)};
      Compare(box, "family " + std::to_string(family), MakeRequest(RTM_GETRULE, NLM_F_DUMP, AsBytes(header)));
    }
    Compare(box, "with table", MakeRequest(RTM_GETRULE, NLM_F_DUMP, AsBytes(fib_rule_hdr{.family = AF_INET, .table = 7})));
    Compare(box, "single", MakeRequest(RTM_GETRULE, 0, AsBytes(fib_rule_hdr{.family = AF_INET})));
  });
}

TEST(NetlinkDifferential, Neighbors) {
  InSandbox([](Sandbox& box) {
    const ndmsg v4{.ndm_family = AF_INET};
    Compare(box, "IPv4", MakeRequest(RTM_GETNEIGH, NLM_F_DUMP, AsBytes(v4)), true);
    Compare(box, "proxies", MakeRequest(RTM_GETNEIGH, NLM_F_DUMP, AsBytes(ndmsg{.ndm_family = AF_INET, .ndm_flags = NTF_PROXY})));
    Compare(box, "by device", MakeRequest(RTM_GETNEIGH, NLM_F_DUMP, AsBytes(v4), [&](MessageWriter& w) {
              w.U32(NDA_IFINDEX, static_cast<uint32_t>(box.IndexOf("v1")));
            }));
    Compare(box, "index in the header",
            MakeRequest(RTM_GETNEIGH, NLM_F_DUMP, AsBytes(ndmsg{.ndm_family = AF_INET, .ndm_state = 4})), true);
    const ndmsg single{.ndm_family = AF_INET, .ndm_ifindex = box.IndexOf("v0")};
    auto dst = [](const char* text) { return [text](MessageWriter& w) { w.Address(NDA_DST, *IpAddress::Parse(text)); }; };
    Compare(box, "one", MakeRequest(RTM_GETNEIGH, 0, AsBytes(single), dst("10.1.0.1")), true);
    Compare(box, "none", MakeRequest(RTM_GETNEIGH, 0, AsBytes(single), dst("10.1.0.99")));
    Compare(box, "no address", MakeRequest(RTM_GETNEIGH, 0, AsBytes(single)));
    Compare(box, "no device", MakeRequest(RTM_GETNEIGH, 0, AsBytes(v4), dst("10.1.0.1")));
  });
}

TEST(NetlinkDifferential, TheRest) {
  InSandbox([](Sandbox& box) {
    Compare(box, "netconf", MakeRequest(RTM_GETNETCONF, NLM_F_DUMP, AsBytes(netconfmsg{.ncm_family = AF_INET})));
    Compare(box, "netconf all", MakeRequest(RTM_GETNETCONF, 0, AsBytes(netconfmsg{.ncm_family = AF_INET}), [](MessageWriter& w) {
              w.U32(NETCONFA_IFINDEX, static_cast<uint32_t>(NETCONFA_IFINDEX_ALL));
            }));
    Compare(box, "next hops", MakeRequest(RTM_GETNEXTHOP, NLM_F_DUMP, AsBytes(nhmsg{})));
    Compare(box, "unknown type", MakeRequest(RTM_MAX + 1, 0, AsBytes(rtmsg{})));
    Compare(box, "no-op", MakeRequest(NLMSG_NOOP, NLM_F_ACK, AsBytes(rtmsg{})));
    Compare(box, "empty with ack", MakeRequest(RTM_GETLINK, NLM_F_ACK, {}));
  });
}

}  // namespace
}  // namespace sluice::netlink
