// Device ioctls beside the kernel's in the same namespace, and what the setting ones become.
#include "sentry/netlink/if_ioctl.h"

#include <gtest/gtest.h>
#include <linux/ethtool.h>
#include <linux/if.h>
#include <linux/if_arp.h>
#include <linux/route.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "sentry/netlink/server_impl.h"
#include "sentry/netlink/testing/fake_backend.h"
#include "sentry/netlink/testing/kernel.h"

namespace sluice::netlink {
namespace {

using netlink::testing::FakeBackend;

const Caller kRoot{.known = true, .net_admin = true};
const Caller kUser{.known = true};

ifreq Named(const char* name) {
  ifreq req{};
  std::copy_n(name, std::min<size_t>(strlen(name), IFNAMSIZ - 1), req.ifr_name);
  return req;
}

IoctlResult Ours(const Backend& backend, uint32_t request, const ifreq& req, const Caller& caller = kRoot, int family = AF_INET) {
  return DeviceIoctl(backend, family, request, AsBytes(req), {}, caller);
}

sockaddr Inet(const char* text) {
  sockaddr_in in{.sin_family = AF_INET};
  const auto address = IpAddress::Parse(text);
  std::copy(address->bytes().begin(), address->bytes().end(), reinterpret_cast<uint8_t*>(&in.sin_addr));
  return LoadPrefix<sockaddr>(AsBytes(in));
}

void CompareIoctl(const Backend& backend, int fd, int family, uint32_t request, ifreq req) {
  SCOPED_TRACE(std::string(req.ifr_name) + " request " + std::to_string(request) + " family " + std::to_string(family));
  const IoctlResult ours = Ours(backend, request, req, kRoot, family);
  const int error = ioctl(fd, request, &req) == 0 ? 0 : errno;
  EXPECT_EQ(error, ToInt(ours.error));
  if (error != 0) return;
  ASSERT_EQ(sizeof req, ours.argument.size());
  auto got = LoadPrefix<ifreq>(ours.argument);
  // Behind the value lies what the caller had there, in both.
  EXPECT_STREQ(req.ifr_name, got.ifr_name);
  EXPECT_EQ(0, std::memcmp(&req.ifr_ifru, &got.ifr_ifru, 14));
}

TEST(IfIoctl, ReadsAsTheKernel) {
  const bool entered = netlink::testing::InNewNetns([] {
    ASSERT_EQ(0,
              netlink::testing::Shell("ip link set lo up; ip link add v0 type veth peer name v1; ip link set v1 mtu 1400;"
                                      "ip link set v0 up; ip link set v1 up; ip addr add 10.1.0.2/24 brd + dev v0;"
                                      "ip addr add 10.1.0.3/24 dev v0 label v0:1; ip addr add 10.2.0.1 peer 10.2.0.9/32 dev v1"));
    FakeBackend backend;
    backend.Change([](NetConfig& c) { c = netlink::testing::RecordConfig(); });
    for (const int family : {AF_INET, AF_INET6, AF_NETLINK}) {
      const int fd = socket(family, family == AF_NETLINK ? SOCK_RAW : SOCK_DGRAM, 0);
      for (const char* name : {"lo", "v0", "v1", "v0:1", "v0:7", "nope", ""}) {
        for (const int request : {SIOCGIFFLAGS, SIOCGIFADDR, SIOCGIFNETMASK, SIOCGIFBRDADDR, SIOCGIFDSTADDR, SIOCGIFHWADDR,
                                  SIOCGIFMTU, SIOCGIFINDEX, SIOCGIFTXQLEN, SIOCGIFMETRIC, SIOCGIFMAP}) {
          CompareIoctl(backend, fd, family, static_cast<uint32_t>(request), Named(name));
        }
      }
      for (const int index : {0, 1, 2, 3, 99, -1}) {
        ifreq req{};
        req.ifr_ifindex = index;
        CompareIoctl(backend, fd, family, SIOCGIFNAME, req);
      }
      close(fd);
    }
  });
  if (!entered) GTEST_SKIP() << "no right to make a network namespace";
}

TEST(IfIoctl, ListsAddressesAsTheKernel) {
  const bool entered = netlink::testing::InNewNetns([] {
    ASSERT_EQ(0, netlink::testing::Shell("ip link set lo up; ip link add v0 type veth peer name v1; ip link set v0 up;"
                                         "ip addr add 10.1.0.2/24 dev v0; ip addr add 10.1.0.3/24 dev v0 label v0:1"));
    FakeBackend backend;
    backend.Change([](NetConfig& c) { c = netlink::testing::RecordConfig(); });
    const int fd = socket(AF_INET, SOCK_DGRAM, 0);
    for (const int room : {0, 39, 40, 100, 4096}) {
      std::vector<uint8_t> memory(4096);
      ifconf conf{.ifc_len = room, .ifc_ifcu = {.ifcu_buf = reinterpret_cast<char*>(memory.data())}};
      const IoctlResult ours = DeviceIoctl(backend, AF_INET, SIOCGIFCONF, AsBytes(conf), {}, kUser);
      ASSERT_EQ(0, ioctl(fd, SIOCGIFCONF, &conf));
      EXPECT_EQ(conf.ifc_len, LoadPrefix<ifconf>(ours.argument).ifc_len) << room;
      ASSERT_EQ(static_cast<size_t>(conf.ifc_len), ours.extra.size());
      EXPECT_TRUE(std::equal(ours.extra.begin(), ours.extra.end(), memory.begin())) << room;
    }
    ifconf measure{};
    const IoctlResult ours = DeviceIoctl(backend, AF_INET, SIOCGIFCONF, AsBytes(measure), {}, kUser);
    ASSERT_EQ(0, ioctl(fd, SIOCGIFCONF, &measure));
    EXPECT_EQ(measure.ifc_len, LoadPrefix<ifconf>(ours.argument).ifc_len);
    EXPECT_TRUE(ours.extra.empty());
    close(fd);
  });
  if (!entered) GTEST_SKIP() << "no right to make a network namespace";
}

class SetIoctl : public ::testing::Test {
 protected:
  SetIoctl() {
    backend.Change([](NetConfig& c) {
      LinkConfig link = c.links[0];
      link.index = 2;
      link.name = "eth0";
      link.flags = 0x1003;  // UP, BROADCAST, MULTICAST
      link.type = 1;
      c.links.push_back(link);
    });
  }
  void PutAddress() {
    backend.Change([](NetConfig& c) {
      AddressConfig a;
      a.ifindex = 2;
      a.local = a.peer = IpAddress::V4(10, 1, 0, 2);
      a.broadcast = IpAddress::V4(10, 1, 0, 255);
      a.prefix_len = 24;
      a.label = "eth0";
      c.addresses.push_back(a);
    });
  }
  FakeBackend backend;
};

TEST_F(SetIoctl, NeedsTheRight) {
  for (const int request : {SIOCSIFFLAGS, SIOCSIFMTU, SIOCSIFADDR, SIOCSIFHWADDR, SIOCSIFNAME, SIOCSIFNETMASK}) {
    EXPECT_EQ(Errno::kEPERM, Ours(backend, static_cast<uint32_t>(request), Named("eth0"), kUser).error) << request;
  }
  const rtentry entry{};
  EXPECT_EQ(Errno::kEPERM, DeviceIoctl(backend, AF_INET, SIOCADDRT, AsBytes(entry), {}, kUser).error);
}

TEST_F(SetIoctl, Device) {
  ifreq req = Named("eth0");
  req.ifr_flags = 0x1002;
  const auto down = Ours(backend, SIOCSIFFLAGS, req);
  ASSERT_EQ(1u, down.changes.size());
  EXPECT_TRUE(down.changes[0].link.has_up);
  EXPECT_FALSE(down.changes[0].link.up);
  req.ifr_flags = 0x1003 | IFF_PROMISC;
  EXPECT_EQ(Errno::kEOPNOTSUPP, Ours(backend, SIOCSIFFLAGS, req).error);
  req.ifr_mtu = 1400;
  const auto mtu = Ours(backend, SIOCSIFMTU, req);
  ASSERT_EQ(1u, mtu.changes.size());
  EXPECT_EQ(1400u, mtu.changes[0].link.mtu);
  EXPECT_EQ(Errno::kEOPNOTSUPP, Ours(backend, SIOCSIFNAME, Named("eth0")).error);
}

TEST_F(SetIoctl, Address) {
  ifreq req = Named("eth0");
  req.ifr_addr = Inet("10.1.0.2");
  const auto first = Ours(backend, SIOCSIFADDR, req);
  ASSERT_EQ(1u, first.changes.size());
  EXPECT_EQ(NetChangeKind::kNewAddress, first.changes[0].kind);
  EXPECT_EQ(8, first.changes[0].address.prefix_len);  // the class of 10/8
  EXPECT_EQ(Errno::kEADDRNOTAVAIL, Ours(backend, SIOCSIFNETMASK, req).error);
  PutAddress();
  EXPECT_TRUE(Ours(backend, SIOCSIFADDR, req).changes.empty());  // has it already
  req.ifr_netmask = Inet("255.255.0.0");
  const auto mask = Ours(backend, SIOCSIFNETMASK, req);
  ASSERT_EQ(2u, mask.changes.size());
  EXPECT_EQ(NetChangeKind::kDeleteAddress, mask.changes[0].kind);
  EXPECT_EQ(24, mask.changes[0].address.prefix_len);
  EXPECT_EQ(16, mask.changes[1].address.prefix_len);
  EXPECT_EQ(255, mask.changes[1].address.broadcast.bytes[2]);
  req.ifr_netmask = Inet("255.0.255.0");
  EXPECT_EQ(Errno::kEINVAL, Ours(backend, SIOCSIFNETMASK, req).error);
}

TEST_F(SetIoctl, Route) {
  rtentry entry{};
  entry.rt_dst = Inet("0.0.0.0");
  entry.rt_genmask = Inet("0.0.0.0");
  entry.rt_gateway = Inet("10.1.0.1");
  entry.rt_flags = RTF_UP | RTF_GATEWAY;
  const Buffer device{'e', 't', 'h', '0', 0};
  const auto added = DeviceIoctl(backend, AF_INET, SIOCADDRT, AsBytes(entry), device, kRoot);
  ASSERT_EQ(1u, added.changes.size());
  EXPECT_EQ(NetChangeKind::kNewRoute, added.changes[0].kind);
  EXPECT_EQ(0, added.changes[0].route.dst_len);
  EXPECT_EQ(2, added.changes[0].route.oif);
  EXPECT_EQ(10, added.changes[0].route.gateway.bytes[0]);
  entry.rt_genmask = Inet("255.0.255.0");
  EXPECT_EQ(Errno::kEINVAL, DeviceIoctl(backend, AF_INET, SIOCADDRT, AsBytes(entry), {}, kRoot).error);
  EXPECT_EQ(Errno::kENOTTY, DeviceIoctl(backend, AF_INET6, SIOCADDRT, AsBytes(entry), {}, kRoot).error);
}

TEST_F(SetIoctl, EthtoolTellsOfTheLink) {
  const ifreq req = Named("eth0");
  const uint32_t link = ETHTOOL_GLINK;
  const auto up = DeviceIoctl(backend, AF_INET, SIOCETHTOOL, AsBytes(req), AsBytes(link), kUser);
  ASSERT_EQ(sizeof(ethtool_value), up.extra.size());
  EXPECT_EQ(1u, LoadPrefix<ethtool_value>(up.extra).data);
  const uint32_t set = ETHTOOL_STSO;
  EXPECT_EQ(Errno::kEPERM, DeviceIoctl(backend, AF_INET, SIOCETHTOOL, AsBytes(req), AsBytes(set), kUser).error);
  EXPECT_EQ(Errno::kEOPNOTSUPP, DeviceIoctl(backend, AF_INET, SIOCETHTOOL, AsBytes(req), AsBytes(set), kRoot).error);
}

TEST(IfIoctl, UnknownRequestsHaveNoShape) {
  EXPECT_FALSE(ShapeOfIoctl(SIOCGIFENCAP).has_value());
  EXPECT_FALSE(ShapeOfIoctl(0x5401).has_value());
  EXPECT_TRUE(ShapeOfIoctl(SIOCGIFCONF)->pointer_offset == 8);
}

}  // namespace
}  // namespace sluice::netlink
