// What every Port does, checked over a veth (a tap: over the tap) against a packet socket with virtio-net header on the other end
// (whose own part is done by the kernel). Ports are made by the factories at the end.
#include <gtest/gtest.h>
#include <net/if.h>
#include <poll.h>

#include <algorithm>
#include <chrono>
#include <functional>

#include "dataplane/dpdk_link.h"
#include "dataplane/frame.h"
#include "dataplane/packet_port.h"
#include "dataplane/tap_port.h"
#include "dataplane/testing/test_frames.h"
#include "dataplane/testing/test_netns.h"
#include "dataplane/testing/test_ports.h"
#include "dataplane/xdp_port.h"

namespace sluice {
namespace {

using testing::CheckedPayload;
using testing::MakeFrame;
using testing::OpenPacket;
using testing::Pattern;

struct PortKind {
  const char* name;
  // In the namespace of the device; gets the index of the veth's end there.
  std::function<std::unique_ptr<Port>(IfIndex, BlockPool&)> open;
  bool device_frames_whole;  // GSO frames pass in both directions without being cut
  // Named where `open` makes a device of its own, whose other end is the port: in the peer's namespace, where the peer's packet
  // socket uses it.
  const char* tap = nullptr;
};

std::unique_ptr<Port> OpenTap(BlockPool& pool, bool vnet) {
  TapQueues queues;
  std::string error;
  EXPECT_EQ(OpenTap({.name = "tp0", .vnet_header = vnet}, &queues, &error), Errno::kOk) << error;
  return queues.fds.empty() ? nullptr : std::make_unique<TapPort>(std::move(queues.fds[0]), queues.facts, TapPortOptions{}, pool);
}

// The queues of a device that the test's flow does not come to; they live as long as the test.
std::vector<UniqueFd> other_queues;
constexpr uint32_t kQueues = 2;

// A key that brings the test's flow to this queue.
wire::SteeringKey KeyFor(uint32_t queue) {
  const IpAddress a = IpAddress::V4(10, 99, 0, 1), b = IpAddress::V4(10, 99, 0, 2);
  for (wire::SteeringKey key{};; ++key.k0) {
    if (wire::SteeringHash(key, a, 1000, b, 2000) % kQueues == queue) return key;
  }
}

std::unique_ptr<Port> OpenPacketQueue(IfIndex ifindex, BlockPool& pool, uint32_t queue, bool vnet) {
  std::vector<PacketSocket> sockets;
  std::string error;
  EXPECT_EQ(OpenPacketQueues(ifindex, {.vnet_header = vnet}, kQueues, KeyFor(queue), &sockets, &error), Errno::kOk) << error;
  if (sockets.size() != kQueues) return nullptr;
  other_queues.push_back(std::move(sockets[1 - queue].fd));
  return std::make_unique<PacketPort>(std::move(sockets[queue].fd), sockets[queue].facts, PacketPortOptions{}, pool);
}

std::unique_ptr<Port> OpenTapQueue(BlockPool& pool, uint32_t queue) {
  TapQueues queues;
  std::string error;
  EXPECT_EQ(OpenTap({.name = "tp0", .queues = kQueues, .steering = KeyFor(queue)}, &queues, &error), Errno::kOk) << error;
  if (queues.fds.size() != kQueues) return nullptr;
  other_queues.push_back(std::move(queues.fds[1 - queue]));
  return std::make_unique<TapPort>(std::move(queues.fds[queue]), queues.facts, TapPortOptions{}, pool);
}

#ifdef SLUICE_DPDK_MODULE
std::unique_ptr<Port> OpenDpdkPort(const std::string& device, IfIndex ifindex, BlockPool& pool) {
  DpdkLink link;
  std::string error;
  EXPECT_EQ(OpenDpdk({.device = device, .ifindex = ifindex, .module = SLUICE_DPDK_MODULE}, pool, &link, &error), Errno::kOk)
      << error;
  return link.queues.empty() ? nullptr : std::move(link.queues[0]);
}
#endif

// Holds the program on the device as long as the test.
std::vector<XdpAttachment> attachments;

std::unique_ptr<Port> OpenXdp(IfIndex ifindex, BlockPool& pool, XdpMode mode, bool scatter) {
  XdpAttachment attachment;
  std::vector<Xsk> sockets;
  std::string error;
  EXPECT_EQ(OpenXdpDevice(ifindex, 1, {.veth = true}, {.mode = mode, .scatter = scatter}, &attachment, &sockets, &error),
            Errno::kOk)
      << error;
  if (sockets.empty()) return nullptr;
  EXPECT_EQ(sockets[0].facts.native, mode == XdpMode::kNative);
  attachments.push_back(std::move(attachment));
  auto port = XdpPort::Create(std::move(sockets[0].fd), std::move(sockets[0].umem), sockets[0].facts, {}, pool, &error);
  EXPECT_NE(port, nullptr) << error;
  return port;
}

class PortConformance : public ::testing::TestWithParam<PortKind> {
 protected:
  void SetUp() override {
    if (const std::string why = testing::WhyNoNetns(); !why.empty()) GTEST_SKIP() << why;
    veth_ = std::make_unique<testing::VethPair>();
    {
      testing::InNetns in(device_netns());
      port_ = GetParam().open(veth_->our_index(), pool_);
    }
    ASSERT_NE(port_, nullptr);
    if (GetParam().tap != nullptr) ASSERT_EQ(veth_->Run(device_netns(), "ip link set " + device() + " up"), 0);
    testing::InNetns in(veth_->peer());
    peer_ = OpenPacket(GetParam().tap != nullptr ? static_cast<IfIndex>(if_nametoindex(GetParam().tap)) : veth_->peer_index(),
                       pool_, true);
  }
  int device_netns() const { return GetParam().tap != nullptr ? veth_->peer() : veth_->ours(); }
  std::string device() const { return GetParam().tap != nullptr ? GetParam().tap : "sl0"; }

  // As a worker that has nothing else to do; true once the port is dead.
  bool Dies() {
    for (int i = 0; i < 100; ++i) {
      Packet burst[4];
      port_->Receive(burst);
      port_->ArmWakeup();
      if (port_->dead()) return true;
      std::vector<pollfd> fds;
      for (int fd : port_->wait_fds()) fds.push_back({fd, POLLIN, 0});
      poll(fds.data(), fds.size(), 100);
    }
    return false;
  }

  void TearDown() override {
    port_.reset();
    peer_.reset();
    attachments.clear();
    other_queues.clear();
    EXPECT_EQ(pool_.bytes_in_use(), 0u) << "a port kept memory of frames";
  }

  void SendAll(Port& port, std::vector<Packet> frames) {
    size_t sent = 0;
    for (int tries = 0; tries < 10000 && (sent < frames.size() || port.tx_pending()); ++tries) {
      const size_t n = port.Transmit(std::span(frames).subspan(sent));
      for (size_t i = 0; i < n; ++i) EXPECT_FALSE(frames[sent + i]) << "a taken frame still has its memory";
      sent += n;
      if (n != 0) continue;
      pollfd p{port.tx_wait_fd(), POLLOUT, 0};
      poll(&p, p.fd >= 0 ? 1 : 0, 1);
    }
    EXPECT_EQ(sent, frames.size());
  }
  // Our frames that arrive until `bytes` of payload are there or nothing comes for two seconds.
  std::vector<Packet> Collect(Port& port, size_t bytes) {
    std::vector<Packet> all;
    size_t have = 0;
    // A port without descriptors is polled.
    for (auto quiet_since = std::chrono::steady_clock::now();
         have < bytes && std::chrono::steady_clock::now() - quiet_since < std::chrono::seconds(2);) {
      Packet burst[16];
      const size_t n = port.Receive(burst);
      for (size_t i = 0; i < n; ++i) {
        if (!testing::IsTestFrame(burst[i])) continue;
        have += burst[i].size() - testing::HeaderSize(burst[i]);
        all.push_back(std::move(burst[i]));
      }
      if (n != 0) quiet_since = std::chrono::steady_clock::now();
      if (n != 0 || !port.ArmWakeup()) continue;
      std::vector<pollfd> fds;
      for (int fd : port.wait_fds()) fds.push_back({fd, POLLIN, 0});
      if (poll(fds.data(), fds.size(), 2000) == 0) break;
    }
    return all;
  }
  static std::vector<uint8_t> Join(std::vector<Packet>& frames) {
    std::vector<uint8_t> joined;
    for (Packet& frame : frames) {
      const auto payload = CheckedPayload(frame);
      joined.insert(joined.end(), payload.begin(), payload.end());
    }
    return joined;
  }

  HeapBlockPool pool_{256 << 20};
  std::unique_ptr<testing::VethPair> veth_;
  std::unique_ptr<Port> port_, peer_;
};

TEST_P(PortConformance, FramesOfEverySizePassBothWays) {
  for (auto [from, to] : {std::pair{port_.get(), peer_.get()}, std::pair{peer_.get(), port_.get()}}) {
    size_t total = 0;
    std::vector<uint8_t> expected;
    std::vector<Packet> frames;
    for (size_t size : {1, 5, 64, 100, 777, 1000, 1459, 1460}) {
      frames.push_back(MakeFrame(pool_, {.payload = Pattern(size, static_cast<uint32_t>(size))}));
      const auto bytes = Pattern(size, static_cast<uint32_t>(size));
      expected.insert(expected.end(), bytes.begin(), bytes.end());
      total += size;
    }
    SendAll(*from, std::move(frames));
    auto got = Collect(*to, total);
    ASSERT_EQ(got.size(), 8u);
    EXPECT_EQ(Join(got), expected);
    for (const Packet& p : got) EXPECT_EQ(p.ifindex, to->ifindex());
  }
}

TEST_P(PortConformance, PartialChecksumsAreSaidOrFinished) {
  for (auto [from, to] : {std::pair{port_.get(), peer_.get()}, std::pair{peer_.get(), port_.get()}}) {
    for (bool udp : {false, true}) {
      for (bool sliced : {false, true}) {
        const auto payload = Pattern(1201, 7);
        std::vector<Packet> frames;
        frames.push_back(MakeFrame(pool_, {.payload = payload, .udp = udp, .sliced = sliced, .partial = true}));
        SendAll(*from, std::move(frames));
        auto got = Collect(*to, payload.size());
        ASSERT_EQ(got.size(), 1u);
        EXPECT_EQ(CheckedPayload(got[0]), payload);
      }
    }
  }
}

TEST_P(PortConformance, SuperSegmentsArriveByteExact) {
  for (auto [from, to] : {std::pair{port_.get(), peer_.get()}, std::pair{peer_.get(), port_.get()}}) {
    for (size_t size : {1449u, 2900u, 5000u, 16384u, 40001u, 65160u}) {
      const auto payload = Pattern(size, static_cast<uint32_t>(size));
      std::vector<Packet> frames;
      frames.push_back(MakeFrame(pool_, {.payload = payload, .sliced = true, .partial = true, .gso_size = 1448}));
      SendAll(*from, std::move(frames));
      auto got = Collect(*to, payload.size());
      ASSERT_EQ(Join(got), payload) << size;
      if (GetParam().device_frames_whole) {
        ASSERT_EQ(got.size(), 1u);
        if (to == peer_.get() || to->kind() != "xdp") EXPECT_EQ(got[0].offload.gso_size, 1448);
        EXPECT_NE(got[0].offload.checksum, ChecksumState::kNone);
      }
    }
  }
}

TEST_P(PortConformance, ManyFramesKeepTheirOrder) {
  constexpr size_t kFrames = 2000;
  for (auto [from, to] : {std::pair{port_.get(), peer_.get()}, std::pair{peer_.get(), port_.get()}}) {
    uint32_t next = 0, seen = 0;
    for (size_t round = 0; round < kFrames / 40; ++round) {
      std::vector<Packet> frames;
      size_t bytes = 0;
      for (int i = 0; i < 40; ++i, ++next) {
        const size_t size = 4 + next * 37 % 1400;
        auto payload = Pattern(size, next);
        StoreBe32(payload.data(), next);
        bytes += size;
        frames.push_back(MakeFrame(pool_, {.payload = payload, .partial = (i & 1) != 0}));
      }
      SendAll(*from, std::move(frames));
      for (Packet& p : Collect(*to, bytes)) {
        const auto payload = CheckedPayload(p);
        ASSERT_GE(payload.size(), 4u);
        ASSERT_EQ(LoadBe32(payload.data()), seen);
        ++seen;
      }
    }
    EXPECT_EQ(seen, kFrames);
  }
}

TEST_P(PortConformance, CountsWhatPassed) {
  std::vector<Packet> frames;
  frames.push_back(MakeFrame(pool_, {.payload = Pattern(100, 1)}));
  frames.push_back(MakeFrame(pool_, {.payload = Pattern(200, 2)}));
  SendAll(*port_, std::move(frames));
  EXPECT_EQ(Collect(*peer_, 300).size(), 2u);
  EXPECT_EQ(port_->stats().tx_frames, 2u);
  EXPECT_EQ(port_->stats().tx_bytes, 300u + 2 * 54);
  EXPECT_GE(peer_->stats().rx_frames, 2u);
  EXPECT_EQ(port_->stats().tx_dropped, 0u);
  EXPECT_FALSE(port_->describe().empty());
}

TEST_P(PortConformance, NoticesThatTheDeviceIsGone) {
  EXPECT_FALSE(port_->dead());
  ASSERT_EQ(veth_->Run(device_netns(), "ip link del " + device()), 0);
  EXPECT_TRUE(Dies());
  std::vector<Packet> frames;
  frames.push_back(MakeFrame(pool_, {.payload = Pattern(100, 1)}));
  SendAll(*port_, std::move(frames));
  EXPECT_EQ(port_->stats().tx_dropped, 1u);
}

// A frame that waited all the while says nothing about the device.
TEST_P(PortConformance, NoticesThatADeviceThatWentDownIsGone) {
  std::vector<Packet> frames;
  frames.push_back(MakeFrame(pool_, {.payload = Pattern(100, 1)}));
  SendAll(*peer_, std::move(frames));
  ASSERT_EQ(veth_->Run(device_netns(), "ip link set " + device() + " down"), 0);
  Packet burst[4];
  for (int i = 0; i < 4; ++i) port_->Receive(burst);
  EXPECT_FALSE(port_->dead());
  ASSERT_EQ(veth_->Run(device_netns(), "ip link del " + device()), 0);
  EXPECT_TRUE(Dies());
}

TEST_P(PortConformance, SurvivesTheDeviceGoingDownAndUp) {
  ASSERT_EQ(veth_->Run(device_netns(), "ip link set " + device() + " down"), 0);
  std::vector<Packet> frames;
  frames.push_back(MakeFrame(pool_, {.payload = Pattern(100, 1)}));
  SendAll(*port_, std::move(frames));
  Packet burst[4];
  port_->Receive(burst);
  EXPECT_FALSE(port_->dead());
  ASSERT_EQ(veth_->Run(device_netns(), "ip link set " + device() + " up"), 0);
  std::vector<Packet> again;
  again.push_back(MakeFrame(pool_, {.payload = Pattern(321, 1)}));
  SendAll(*port_, std::move(again));
  // A frame that reached a ring while the device was down comes first.
  std::vector<uint8_t> last;
  for (int i = 0; i < 2 && last.size() != 321; ++i) {
    for (Packet& p : Collect(*peer_, 321)) last = CheckedPayload(p);
  }
  EXPECT_EQ(last, Pattern(321, 1));
}

TEST_P(PortConformance, CountsWhatItLosesWhileNobodyReceivesAndGoesOn) {
  // More than any ring or socket buffer of ours holds: as where the worker gets no core for a while.
  for (int round = 0; round < 200; ++round) {
    std::vector<Packet> frames;
    for (uint32_t i = 0; i < 40; ++i) frames.push_back(MakeFrame(pool_, {.payload = Pattern(1400, i)}));
    SendAll(*peer_, std::move(frames));
  }
  const size_t kept = Collect(*port_, SIZE_MAX).size();
  EXPECT_GT(kept, 0u);
  EXPECT_LT(kept, 8000u);
  // What is lost before the port's descriptor, in the queue of a TAP device or a ring of DPDK's, is not the port's to count.
  if (port_->kind() == "packet" || port_->kind() == "xdp") {
    EXPECT_GE(port_->stats().rx_dropped + kept, 8000u);
    EXPECT_GT(port_->faults().rx_ring_full + port_->faults().rx_no_buffer, 0u);
  }
  std::vector<Packet> frames;
  frames.push_back(MakeFrame(pool_, {.payload = Pattern(321, 1)}));
  SendAll(*peer_, std::move(frames));
  auto got = Collect(*port_, 321);
  ASSERT_EQ(got.size(), 1u);
  EXPECT_EQ(CheckedPayload(got[0]), Pattern(321, 1));
}

TEST_P(PortConformance, GoesOnWhenTheMtuChanges) {
  const std::string far = GetParam().tap != nullptr ? "" : "pe0";
  for (const char* mtu : {"1280", "3000", "1500"}) {
    ASSERT_EQ(veth_->Run(device_netns(), "ip link set " + device() + " mtu " + mtu), 0);
    if (!far.empty()) ASSERT_EQ(veth_->Run(veth_->peer(), "ip link set " + far + " mtu " + mtu), 0);
    Packet burst[4];
    for (Port* p : {port_.get(), peer_.get()}) p->Receive(burst);
    for (auto [from, to] : {std::pair{port_.get(), peer_.get()}, std::pair{peer_.get(), port_.get()}}) {
      // The first is too long for the least MTU: lost, and nothing behind it.
      for (const uint32_t size : {1400u, 1000u}) {
        std::vector<Packet> frames;
        frames.push_back(MakeFrame(pool_, {.payload = Pattern(size, size), .partial = true}));
        SendAll(*from, std::move(frames));
      }
      std::vector<uint8_t> last;
      for (int i = 0; i < 2 && last.size() != 1000; ++i) {
        for (Packet& p : Collect(*to, 1000)) last = CheckedPayload(p);
      }
      EXPECT_EQ(last, Pattern(1000, 1000)) << mtu;
    }
  }
}

TEST_P(PortConformance, GoesOnWhenTheDevicesQueuesChange) {
  if (GetParam().tap != nullptr) GTEST_SKIP() << "its queues are the port's own";
  if (port_->kind() == "dpdk") GTEST_SKIP() << "DPDK's driver decides on the queues";
  for (const char* queues : {"rx 2 tx 2", "rx 1 tx 1"}) {
    ASSERT_EQ(veth_->Run(veth_->ours(), std::string("ethtool -L sl0 ") + queues), 0);
    for (auto [from, to] : {std::pair{port_.get(), peer_.get()}, std::pair{peer_.get(), port_.get()}}) {
      std::vector<Packet> frames;
      for (uint32_t i = 0; i < 10; ++i) frames.push_back(MakeFrame(pool_, {.payload = Pattern(700, i)}));
      SendAll(*from, std::move(frames));
      EXPECT_EQ(Collect(*to, 7000).size(), 10u) << queues;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Ports, PortConformance,
    ::testing::Values(
        PortKind{"Packet", [](IfIndex i, BlockPool& pool) { return OpenPacket(i, pool, true); }, true},
        PortKind{"PacketWithoutHeader", [](IfIndex i, BlockPool& pool) { return OpenPacket(i, pool, false); }, false},
        PortKind{"Tap", [](IfIndex, BlockPool& pool) { return OpenTap(pool, true); }, true, "tp0"},
        PortKind{"TapWithoutHeader", [](IfIndex, BlockPool& pool) { return OpenTap(pool, false); }, false, "tp0"},
        PortKind{"PacketFirstQueue", [](IfIndex i, BlockPool& pool) { return OpenPacketQueue(i, pool, 0, true); }, true},
        PortKind{"PacketSecondQueue", [](IfIndex i, BlockPool& pool) { return OpenPacketQueue(i, pool, 1, true); }, true},
        PortKind{"PacketQueueWithoutHeader", [](IfIndex i, BlockPool& pool) { return OpenPacketQueue(i, pool, 1, false); },
                 false},
        PortKind{"TapFirstQueue", [](IfIndex, BlockPool& pool) { return OpenTapQueue(pool, 0); }, true, "tp0"},
        PortKind{"TapSecondQueue", [](IfIndex, BlockPool& pool) { return OpenTapQueue(pool, 1); }, true, "tp0"},
        PortKind{"XdpGeneric", [](IfIndex i, BlockPool& pool) { return OpenXdp(i, pool, XdpMode::kGeneric, true); }, false},
        PortKind{"XdpNativeUnscattered", [](IfIndex i, BlockPool& pool) { return OpenXdp(i, pool, XdpMode::kNative, false); },
                 false},
        PortKind{"XdpNative", [](IfIndex i, BlockPool& pool) { return OpenXdp(i, pool, XdpMode::kNative, true); }, false}),
    [](const auto& info) { return info.param.name; });

#ifdef SLUICE_DPDK_MODULE
INSTANTIATE_TEST_SUITE_P(
    Dpdk, PortConformance,
    ::testing::Values(
        PortKind{"Tap", [](IfIndex, BlockPool& pool) { return OpenDpdkPort("net_tap0,iface=dt0", 7, pool); }, false, "dt0"},
        PortKind{"AfXdp", [](IfIndex i, BlockPool& pool) { return OpenDpdkPort("net_af_xdp0,iface=sl0", i, pool); }, false}),
    [](const auto& info) { return info.param.name; });
#endif

}  // namespace
}  // namespace sluice
