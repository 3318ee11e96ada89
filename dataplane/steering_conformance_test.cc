// What every device of several queues does: a frame of a flow comes to the queue that wire::SteeringHash names, once; the
// fragments of a datagram come to one queue. Checked for the ports whose queues can be steered; the devices' makers are at the
// end.
#include <gtest/gtest.h>
#include <net/if.h>
#include <poll.h>

#include <chrono>
#include <functional>
#include <map>

#include "dataplane/packet_port.h"
#include "dataplane/pipe_queues.h"
#include "dataplane/tap_port.h"
#include "dataplane/testing/test_netns.h"
#include "dataplane/xdp_port.h"

namespace sluice {
namespace {

constexpr uint32_t kQueues = 3;
constexpr uint32_t kMagic = 0x5111ce;
constexpr wire::SteeringKey kKey{77, 88};

// Ethernet, IPv4, eight bytes of transport header, magic and number.
Packet MakeFrame(BlockPool& pool, Rng& rng, uint32_t number) {
  constexpr size_t kSize = 14 + 20 + 8 + 8;
  const size_t size = kSize + rng.Uniform(900);
  Packet p = Packet::Allocate(pool, size);
  uint8_t* f = p.Append(size);
  std::memset(f, 0, size);
  f[0] = f[6] = 2;
  f[11] = 1;
  StoreBe16(f + 12, 0x0800);
  f[14] = 0x45;
  StoreBe16(f + 16, static_cast<uint16_t>(size - 14));
  StoreBe16(f + 18, static_cast<uint16_t>(number / 2));  // two fragments each have an id
  f[22] = 64;
  constexpr uint8_t kProtocols[] = {17, 17, 47, 1};
  f[23] = kProtocols[rng.Uniform(4)];
  StoreBe32(f + 26, 0x0a630001);
  StoreBe32(f + 30, 0x0a630100 + (number / 2) % 256);
  StoreBe32(f + 34, static_cast<uint32_t>(rng.Next()));
  if (f[23] == 1) f[34] = 8;
  if (rng.Uniform(5) == 0) f[20] = 0x20;  // more fragments
  StoreBe32(f + 42, kMagic);
  StoreBe32(f + 46, number);
  return p;
}

struct DeviceKind {
  const char* name;
  // Fills `queues`, and `sender`, whose frames they get.
  std::function<void(testing::VethPair&, BlockPool&, std::vector<std::unique_ptr<Port>>*, std::unique_ptr<Port>*)> open;
  const char* down_up = nullptr;  // the device that may go down and up, in our namespace
  bool tap = false;               // it is in the peer's namespace
};

XdpAttachment attachment;  // holds the program on the device as long as the test

class SteeringConformance : public ::testing::TestWithParam<DeviceKind> {
 protected:
  void SetUp() override {
    if (const std::string why = testing::WhyNoNetns(); !why.empty()) GTEST_SKIP() << why;
    veth_ = std::make_unique<testing::VethPair>();
    GetParam().open(*veth_, pool_, &queues_, &sender_);
    ASSERT_EQ(queues_.size(), kQueues);
  }

  void TearDown() override {
    queues_.clear();
    attachment = XdpAttachment();
  }

  void Send(uint32_t count) {
    std::vector<Packet> frames;
    for (uint32_t i = 0; i < count; ++i) {
      frames.push_back(MakeFrame(pool_, rng_, next_));
      expected_[next_++] = wire::SteeringHash(kKey, frames.back().linear()) % kQueues;
    }
    size_t sent = 0;
    for (int tries = 0; tries < 1000 && sent < count; ++tries) {
      const size_t n = sender_->Transmit(std::span(frames).subspan(sent));
      sent += n;
      if (n == 0) Collect();
    }
    ASSERT_EQ(sent, count);
  }

  // What waits now. Marks what came in expected_.
  bool Collect() {
    bool any = false;
    for (uint32_t q = 0; q < kQueues; ++q) {
      Packet burst[32];
      const size_t n = queues_[q]->Receive(burst);
      for (size_t i = 0; i < n; ++i) Note(q, burst[i]);
      any |= n != 0;
    }
    return any;
  }
  void Note(uint32_t queue, const Packet& frame) {
    const uint8_t* f = frame.data();
    if (frame.size() < 50 || LoadBe32(f + 42) != kMagic) return;  // the kernel's own
    const uint32_t number = LoadBe32(f + 46);
    const auto it = expected_.find(number);
    ASSERT_NE(it, expected_.end()) << "frame " << number << " came twice, or never was";
    EXPECT_EQ(queue, it->second) << "frame " << number;
    expected_.erase(it);
    ++came_[queue];
  }
  void CollectAll() {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!expected_.empty() && std::chrono::steady_clock::now() < until) {
      if (Collect()) continue;
      std::vector<pollfd> fds;
      for (const auto& queue : queues_) {
        queue->ArmWakeup();
        for (const int fd : queue->wait_fds()) fds.push_back({fd, POLLIN, 0});
      }
      poll(fds.data(), fds.size(), 20);
    }
    EXPECT_TRUE(expected_.empty()) << expected_.size() << " frames are lost";
  }

  HeapBlockPool pool_{256 << 20};
  std::unique_ptr<testing::VethPair> veth_;
  std::vector<std::unique_ptr<Port>> queues_;
  std::unique_ptr<Port> sender_;
  Rng rng_{5};
  uint32_t next_ = 0;
  std::map<uint32_t, uint32_t> expected_;  // queue by number of the frame
  uint32_t came_[kQueues] = {};
};

TEST_P(SteeringConformance, EveryFlowComesToItsQueueOnce) {
  for (int round = 0; round < 50; ++round) {
    Send(60);
    Collect();
  }
  CollectAll();
  Collect();  // nothing twice
  for (const uint32_t n : came_) EXPECT_GT(n, 500u);
}

// More frames than the sockets of a queue have chunks, from all in turn: what one has sent, another may find completed.
TEST_P(SteeringConformance, EveryQueueSends) {
  uint32_t sent = 0, came = 0;
  const auto collect = [&] {
    Packet burst[32];
    const size_t n = sender_->Receive(burst);
    for (size_t i = 0; i < n; ++i) came += burst[i].size() >= 50 && LoadBe32(burst[i].data() + 42) == kMagic ? 1 : 0;
    return n != 0;
  };
  for (uint32_t round = 0; round < 600; ++round) {
    std::vector<Packet> frames;
    for (uint32_t i = 0; i < 8; ++i) frames.push_back(MakeFrame(pool_, rng_, round * 8 + i));
    sent += static_cast<uint32_t>(queues_[round % kQueues]->Transmit(frames));
    while (collect()) {
    }
  }
  EXPECT_EQ(sent, 600u * 8);
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (came < sent && std::chrono::steady_clock::now() < until) {
    for (const auto& queue : queues_) queue->Transmit({});
    sender_->ArmWakeup();
    if (!collect()) poll(nullptr, 0, 1);
  }
  EXPECT_EQ(came, sent);
}

TEST_P(SteeringConformance, FlowsKeepTheirQueuesWhenTheDeviceGoesDownAndUp) {
  if (GetParam().down_up == nullptr) GTEST_SKIP() << "has no device";
  const int netns = GetParam().tap ? veth_->peer() : veth_->ours();
  const std::string device = GetParam().down_up;
  ASSERT_EQ(veth_->Run(netns, "ip link set " + device + " down"), 0);
  Collect();
  ASSERT_EQ(veth_->Run(netns, "ip link set " + device + " up"), 0);
  for (const auto& queue : queues_) {
    queue->ArmWakeup();
    EXPECT_FALSE(queue->dead());
  }
  Packet burst[4];
  sender_->Receive(burst);  // on the same device it has to hear of it, or its next frame is answered by the old error
  Send(600);
  CollectAll();
}

TEST_P(SteeringConformance, FlowsKeepTheirQueuesWhenTheDevicesOwnChange) {
  if (GetParam().down_up == nullptr || GetParam().tap) GTEST_SKIP() << "has no queues but ours";
  for (const char* queues : {"rx 2 tx 2", "rx 1 tx 1"}) {
    ASSERT_EQ(veth_->Run(veth_->ours(), std::string("ethtool -L sl0 ") + queues), 0);
    Send(300);
    CollectAll();
  }
}

std::unique_ptr<Port> OpenSender(testing::VethPair& veth, IfIndex ifindex, BlockPool& pool) {
  testing::InNetns in(veth.peer());
  PacketSocket socket;
  std::string error;
  EXPECT_EQ(OpenPacketSocket(ifindex != 0 ? ifindex : static_cast<IfIndex>(if_nametoindex("tp0")), {}, &socket, &error),
            Errno::kOk)
      << error;
  return std::make_unique<PacketPort>(std::move(socket.fd), socket.facts, PacketPortOptions{}, pool);
}

void OpenPacket(testing::VethPair& veth, BlockPool& pool, std::vector<std::unique_ptr<Port>>* queues,
                std::unique_ptr<Port>* sender, bool vnet) {
  std::vector<PacketSocket> sockets;
  std::string error;
  {
    testing::InNetns in(veth.ours());
    EXPECT_EQ(OpenPacketQueues(veth.our_index(), {.vnet_header = vnet}, kQueues, kKey, &sockets, &error), Errno::kOk) << error;
  }
  for (PacketSocket& s : sockets)
    queues->push_back(std::make_unique<PacketPort>(std::move(s.fd), s.facts, PacketPortOptions{}, pool));
  *sender = OpenSender(veth, veth.peer_index(), pool);
}

void OpenTapDevice(testing::VethPair& veth, BlockPool& pool, std::vector<std::unique_ptr<Port>>* queues,
                   std::unique_ptr<Port>* sender) {
  TapQueues tap;
  std::string error;
  {
    testing::InNetns in(veth.peer());
    EXPECT_EQ(OpenTap({.name = "tp0", .queues = kQueues, .steering = kKey}, &tap, &error), Errno::kOk) << error;
  }
  EXPECT_EQ(veth.Run(veth.peer(), "ip link set tp0 up"), 0);
  for (UniqueFd& fd : tap.fds) queues->push_back(std::make_unique<TapPort>(std::move(fd), tap.facts, TapPortOptions{}, pool));
  *sender = OpenSender(veth, 0, pool);
}

void OpenPipe(testing::VethPair&, BlockPool& pool, std::vector<std::unique_ptr<Port>>* queues, std::unique_ptr<Port>* sender) {
  PipeQueues pipe = MakePipeQueues({.ifindex = 2, .pools = {&pool, &pool, &pool}, .key = kKey}, {.ifindex = 3, .pools = {&pool}});
  *queues = std::move(pipe.first);
  *sender = std::move(pipe.second[0]);
}

void OpenXdp(testing::VethPair& veth, BlockPool& pool, std::vector<std::unique_ptr<Port>>* queues, std::unique_ptr<Port>* sender,
             XdpMode mode) {
  std::vector<Xsk> sockets;
  std::string error;
  {
    testing::InNetns in(veth.ours());
    ASSERT_EQ(OpenXdpDevice(veth.our_index(), kQueues, {.veth = true}, {.mode = mode, .steering = &kKey}, &attachment, &sockets,
                            &error),
              Errno::kOk)
        << error;
  }
  BlockPool* const pools[kQueues] = {&pool, &pool, &pool};
  ASSERT_EQ(XdpPort::CreateQueues(std::move(sockets), {}, pools, queues, &error), Errno::kOk) << error;
  *sender = OpenSender(veth, veth.peer_index(), pool);
}

INSTANTIATE_TEST_SUITE_P(
    Devices, SteeringConformance,
    ::testing::Values(
        DeviceKind{"Packet", [](auto& veth, auto& pool, auto* q, auto* s) { OpenPacket(veth, pool, q, s, true); }, "sl0"},
        DeviceKind{"PacketWithoutHeader", [](auto& veth, auto& pool, auto* q, auto* s) { OpenPacket(veth, pool, q, s, false); },
                   "sl0"},
        DeviceKind{"Tap", OpenTapDevice, "tp0", true}, DeviceKind{"Pipe", OpenPipe},
        DeviceKind{"XdpGeneric", [](auto& veth, auto& pool, auto* q, auto* s) { OpenXdp(veth, pool, q, s, XdpMode::kGeneric); },
                   "sl0"},
        DeviceKind{"XdpNative", [](auto& veth, auto& pool, auto* q, auto* s) { OpenXdp(veth, pool, q, s, XdpMode::kNative); },
                   "sl0"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace sluice
