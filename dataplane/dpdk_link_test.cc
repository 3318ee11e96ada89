// The dpdk port over virtual devices that need no kernel device; those that have one are in port_conformance_test.cc.
#include "dataplane/dpdk_link.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>

#include "dataplane/packet_port.h"
#include "dataplane/testing/test_frames.h"
#include "dataplane/testing/test_netns.h"

namespace sluice {
namespace {

using testing::CheckedPayload;
using testing::MakeFrame;
using testing::Pattern;

TEST(DpdkLink, SaysWhereTheModuleIsMissing) {
  HeapBlockPool pool(1 << 20);
  DpdkLink link;
  std::string error;
  EXPECT_EQ(OpenDpdk({.device = "net_null0", .module = "/nonexistent/libsluice_dpdk.so"}, pool, &link, &error), Errno::kENOENT);
  EXPECT_NE(error.find("/nonexistent/libsluice_dpdk.so"), std::string::npos) << error;
  EXPECT_NE(error.find("libdpdk-dev"), std::string::npos) << error;
}

#ifdef SLUICE_DPDK_MODULE

class Dpdk : public ::testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root: sets EAL up";
  }
  void TearDown() override { EXPECT_EQ(pool_.bytes_in_use(), 0u) << "a port kept memory of frames"; }

  std::unique_ptr<Port> Open(const std::string& device) {
    DpdkLink link;
    std::string error;
    EXPECT_EQ(OpenDpdk({.device = device, .ifindex = 5, .module = SLUICE_DPDK_MODULE}, pool_, &link, &error), Errno::kOk)
        << error;
    return link.queues.empty() ? nullptr : std::move(link.queues[0]);
  }
  static void Send(Port& port, std::vector<Packet> frames) {
    size_t sent = 0;
    for (int tries = 0; tries < 100000 && (sent < frames.size() || port.tx_pending()); ++tries) {
      sent += port.Transmit(std::span(frames).subspan(sent));
    }
    EXPECT_EQ(sent, frames.size());
  }
  // `from`: sends meanwhile what it could not before.
  static std::vector<Packet> Collect(Port& port, size_t count, Port* from = nullptr) {
    std::vector<Packet> all;
    const auto begin = std::chrono::steady_clock::now();
    while (all.size() < count && std::chrono::steady_clock::now() - begin < std::chrono::seconds(10)) {
      Packet burst[16];
      const size_t n = port.Receive(burst);
      for (size_t i = 0; i < n; ++i) all.push_back(std::move(burst[i]));
      if (from != nullptr && from->tx_pending()) from->Transmit({});
    }
    EXPECT_EQ(all.size(), count);
    return all;
  }
  std::vector<Packet> Numbered(uint32_t first, uint32_t count) {
    std::vector<Packet> frames;
    for (uint32_t i = first; i < first + count; ++i)
      frames.push_back(MakeFrame(pool_, {.payload = Pattern(4 + i % 1400, i), .partial = i % 2 != 0}));
    return frames;
  }
  static void ExpectNumbered(std::vector<Packet> frames, uint32_t first) {
    for (uint32_t i = 0; i < frames.size(); ++i) {
      EXPECT_EQ(frames[i].ifindex, 5);
      EXPECT_EQ(CheckedPayload(frames[i]), Pattern(4 + (first + i) % 1400, first + i));
    }
  }

  void OpenByArguments();

  HeapBlockPool pool_{64 << 20};
};

TEST_F(Dpdk, RefusesWhatIsNoDevice) {
  DpdkLink link;
  std::string error;
  EXPECT_NE(OpenDpdk({.device = "net_nonsense0", .module = SLUICE_DPDK_MODULE}, pool_, &link, &error), Errno::kOk);
  EXPECT_NE(error.find("net_nonsense0"), std::string::npos) << error;
  EXPECT_NE(OpenDpdk({.device = "net_ring0", .queues = 100000, .module = SLUICE_DPDK_MODULE}, pool_, &link, &error), Errno::kOk);
  EXPECT_NE(error.find("100000 queues"), std::string::npos) << error;
  EXPECT_NE(OpenDpdk({.device = "--vdev=net_null1", .module = SLUICE_DPDK_MODULE}, pool_, &link, &error), Errno::kOk);
  EXPECT_NE(error.find("once per process"), std::string::npos) << error;
}

// In a process of its own: EAL is set up once.
TEST_F(Dpdk, EalArgumentsGiveTheirDevicesInOrder) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        OpenByArguments();
        _exit(HasFailure() ? 1 : 0);
      },
      ::testing::ExitedWithCode(0), "");
}

void Dpdk::OpenByArguments() {
  const std::string arguments =
      "--no-huge -m 64 --no-pci --no-shconf --no-telemetry --log-level=*:error --file-prefix=sluice-test-" +
      std::to_string(getpid()) + " -l 0 --vdev=net_null0 --vdev=net_ring0";
  auto null = Open(arguments), ring = Open(arguments);
  ASSERT_TRUE(null && ring);
  std::error_code ignored;
  std::filesystem::remove_all("/var/run/dpdk/sluice-test-" + std::to_string(getpid()), ignored);
  EXPECT_NE(null->describe()[1].find("net_null"), std::string::npos);
  EXPECT_NE(ring->describe()[1].find("net_ring"), std::string::npos);
  DpdkLink link;
  std::string error;
  EXPECT_EQ(OpenDpdk({.device = arguments, .module = SLUICE_DPDK_MODULE}, pool_, &link, &error), Errno::kENODEV);
  EXPECT_NE(error.find("no further"), std::string::npos) << error;
}

// net_ring gives back what it is sent.
TEST_F(Dpdk, RingKeepsOrderAndBytes) {
  auto port = Open("net_ring0");
  ASSERT_NE(port, nullptr);
  for (uint32_t round = 0; round < 40; ++round) {
    Send(*port, Numbered(round * 100, 100));
    ExpectNumbered(Collect(*port, 100), round * 100);
  }
  EXPECT_EQ(port->stats().tx_frames, 4000u);
  EXPECT_EQ(port->stats().rx_frames, 4000u);
  EXPECT_EQ(port->stats().rx_dropped, 0u);
  EXPECT_FALSE(port->ArmWakeup()) << "nothing would wake the worker";
}

TEST_F(Dpdk, RingCutsSuperSegments) {
  auto port = Open("net_ring0");
  ASSERT_NE(port, nullptr);
  std::vector<Packet> frames;
  frames.push_back(MakeFrame(pool_, {.payload = Pattern(40001, 3), .sliced = true, .partial = true, .gso_size = 1448}));
  Send(*port, std::move(frames));
  std::vector<uint8_t> joined;
  for (const Packet& p : Collect(*port, 28)) {
    const auto payload = CheckedPayload(p);
    joined.insert(joined.end(), payload.begin(), payload.end());
  }
  EXPECT_EQ(joined, Pattern(40001, 3));
  EXPECT_EQ(port->stats().software_gso_frames, 1u);
}

// Frames that a slow reader keeps are lent without a copy up to a bound, then copied, and the device goes on.
TEST_F(Dpdk, FramesThatAreKeptDoNotStarveTheDevice) {
  char folder[] = "/tmp/sluice-pcap-XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  const std::string file = std::string(folder) + "/frames.pcap", empty = std::string(folder) + "/none.pcap";
  {
    auto writer = Open("net_pcap0,tx_pcap=" + file);
    ASSERT_NE(writer, nullptr);
    for (uint32_t round = 0; round < 60; ++round) Send(*writer, Numbered(round * 100, 100));
  }
  std::vector<Packet> kept;
  {
    auto port = Open("net_pcap1,rx_pcap=" + file + ",tx_pcap=" + empty);
    ASSERT_NE(port, nullptr);
    kept = Collect(*port, 6000);
    const auto lines = port->describe();
    EXPECT_NE(std::find(lines.begin(), lines.end(), "mbufs_lent=2048"), lines.end());
    EXPECT_NE(std::find(lines.begin(), lines.end(), "frames_copied=3952"), lines.end());
  }
  std::filesystem::remove_all(folder);
  // They outlive the port.
  EXPECT_EQ(kept.size(), 6000u);
  ExpectNumbered(std::move(kept), 0);
}

TEST_F(Dpdk, MemifJoinsTwoPorts) {
  char folder[] = "/tmp/sluice-memif-XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  const std::string socket = std::string(",socket-abstract=no,socket=") + folder + "/s";
  {
    auto server = Open("net_memif0,role=server,id=0" + socket), client = Open("net_memif1,role=client,id=0" + socket);
    ASSERT_TRUE(server && client);
    // They meet in EAL's thread; until then frames go nowhere.
    bool met = false;
    const auto begin = std::chrono::steady_clock::now();
    while (!met && std::chrono::steady_clock::now() - begin < std::chrono::seconds(10)) {
      Packet probe = MakeFrame(pool_, {.payload = Pattern(1, 1)}), got;
      client->Transmit(std::span(&probe, 1));
      met = server->Receive(std::span(&got, 1)) == 1;
    }
    ASSERT_TRUE(met);
    Packet rest[16];
    while (client->tx_pending()) client->Transmit({});
    while (server->Receive(rest) != 0) {
    }
    for (auto* from : {client.get(), server.get()}) {
      Port* to = from == client.get() ? server.get() : client.get();
      // A ring has room once its receiver has looked into it.
      std::vector<Packet> frames = Numbered(0, 200);
      ASSERT_EQ(from->Transmit(frames), 200u);
      ExpectNumbered(Collect(*to, 200, from), 0);
    }
  }
  std::filesystem::remove_all(folder);
}

TEST_F(Dpdk, PcapFilesAreReadAndWritten) {
  char folder[] = "/tmp/sluice-pcap-XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  const std::string file = std::string(folder) + "/frames.pcap", empty = std::string(folder) + "/none.pcap";
  {
    auto writer = Open("net_pcap0,tx_pcap=" + file);
    ASSERT_NE(writer, nullptr);
    Send(*writer, Numbered(0, 50));
  }
  {
    auto reader = Open("net_pcap1,rx_pcap=" + file + ",tx_pcap=" + empty);
    ASSERT_NE(reader, nullptr);
    ExpectNumbered(Collect(*reader, 50), 0);
  }
  std::filesystem::remove_all(folder);
}

TEST_F(Dpdk, NullTakesAndGives) {
  auto port = Open("net_null0,size=100");
  ASSERT_NE(port, nullptr);
  Send(*port, Numbered(0, 100));
  EXPECT_EQ(port->stats().tx_frames, 100u);
  for (const Packet& p : Collect(*port, 64)) EXPECT_EQ(p.size(), 100u);
}

// The driver's own segmentation (net_tap does it in software; it takes no segment of a full MTU).
TEST_F(Dpdk, DeviceCutsSuperSegments) {
  if (const std::string why = testing::WhyNoNetns(); !why.empty()) GTEST_SKIP() << why;
  testing::VethPair veth;
  testing::InNetns in(veth.ours());
  auto port = Open("net_tap0,iface=dt0");
  ASSERT_NE(port, nullptr);
  const auto lines = port->describe();
  ASSERT_NE(std::find(lines.begin(), lines.end(), "gso=device"), lines.end());
  ASSERT_EQ(veth.Run(veth.ours(), "ip link set dt0 up"), 0);
  PacketSocket socket;
  std::string error;
  std::string index;
  veth.Run(veth.ours(), "ip -o link show dt0 | cut -d: -f1", &index);
  ASSERT_EQ(OpenPacketSocket(std::stoi(index), {}, &socket, &error), Errno::kOk) << error;
  PacketPort peer(std::move(socket.fd), socket.facts, {}, pool_);
  std::vector<Packet> frames;
  frames.push_back(MakeFrame(pool_, {.payload = Pattern(20000, 3), .sliced = true, .partial = true, .gso_size = 1400}));
  Send(*port, std::move(frames));
  EXPECT_EQ(port->stats().software_gso_frames, 0u);
  std::vector<uint8_t> joined;
  const auto begin = std::chrono::steady_clock::now();
  while (joined.size() < 20000 && std::chrono::steady_clock::now() - begin < std::chrono::seconds(10)) {
    Packet got;
    if (peer.Receive(std::span(&got, 1)) != 1 || !testing::IsTestFrame(got)) continue;
    const auto payload = CheckedPayload(got);
    joined.insert(joined.end(), payload.begin(), payload.end());
  }
  EXPECT_EQ(joined, Pattern(20000, 3));
}

#endif  // SLUICE_DPDK_MODULE

}  // namespace
}  // namespace sluice
