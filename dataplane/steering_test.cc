// The kernel's steering programs against the C++ function: the same value for every frame, whatever it holds.
#include "netstack/wire/steering.h"

#include <bpf/bpf.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "xdp/steering.h"

namespace sluice {
namespace {

using wire::SteeringHash;
constexpr wire::SteeringKey kKey{0x0123456789abcdef, 0xfedcba9876543210};

// A frame that is nearly always well formed in front, so that the parser gets far; then it is damaged or cut.
std::vector<uint8_t> RandomFrame(Rng& rng) {
  std::vector<uint8_t> frame(15 + rng.Uniform(120));
  for (uint8_t& b : frame) b = static_cast<uint8_t>(rng.Next());
  if (rng.Uniform(8) != 0) frame[0] &= 0xfe;
  StoreBe16(frame.data() + 12, rng.Uniform(16) == 0 ? uint16_t{0x0806} : uint16_t{0x0800});
  constexpr uint8_t kProtocols[] = {1, 6, 17, 17, 6, 1, 47};
  constexpr uint8_t kIcmpTypes[] = {0, 8, 3, 11, 5, 12, 13};
  auto fill = [&](size_t at) {
    if (frame.size() < at + 20) return frame.size();
    frame[at] = static_cast<uint8_t>(rng.Uniform(4) == 0 ? rng.Next() : 0x45 + rng.Uniform(3));
    if (rng.Uniform(4) != 0) frame[at + 6] = frame[at + 7] = 0;
    frame[at + 9] = kProtocols[rng.Uniform(7)];
    return at + (frame[at] & 15) * 4;
  };
  const size_t transport = fill(14);
  if (transport < frame.size() && frame.size() > 23 && frame[23] == 1) {
    frame[transport] = kIcmpTypes[rng.Uniform(7)];
    fill(transport + 8);
  }
  if (rng.Uniform(4) == 0) frame.resize(15 + rng.Uniform(static_cast<uint32_t>(frame.size() - 14)));
  return frame;
}

uint32_t RunInKernel(int program, std::vector<uint8_t> frame) {
  LIBBPF_OPTS(bpf_test_run_opts, options);
  options.data_in = frame.data();
  options.data_size_in = static_cast<uint32_t>(frame.size());
  EXPECT_EQ(bpf_prog_test_run_opts(program, &options), 0) << strerror(errno) << " size " << frame.size();
  return options.retval;
}

void Compare(SteeringHook hook, size_t in_front) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root: loads a BPF program";
  UniqueFd program;
  std::string error;
  ASSERT_EQ(LoadSteeringProgram(hook, kKey, &program, &error), Errno::kOk) << error;
  Rng rng(7);
  size_t flows = 0;
  for (int i = 0; i < 20000; ++i) {
    const std::vector<uint8_t> frame = RandomFrame(rng);
    std::vector<uint8_t> given(in_front);
    given.insert(given.end(), frame.begin(), frame.end());
    const uint32_t ours = SteeringHash(kKey, frame);
    flows += ours != 0;
    if (in_front == 0 && frame.size() < 34)
      continue;  // refused by the test run, as its header says that it is IPv4; not by TAP's
    ASSERT_EQ(RunInKernel(program.get(), given), ours) << "frame " << i << " of " << frame.size() << " bytes";
  }
  EXPECT_GT(flows, 8000u);
  EXPECT_LT(flows, 19000u);
}

TEST(SteeringProgram, OfPacketSocketsAgreesWithOurs) { Compare(SteeringHook::kFanout, 0); }
// The test run takes off what it believes to be the Ethernet header; a TAP device has it in front.
TEST(SteeringProgram, OfTapDevicesAgreesWithOurs) { Compare(SteeringHook::kTap, 14); }

std::vector<uint8_t> Frame(const IpAddress& from, const IpAddress& to, uint8_t protocol, std::vector<uint8_t> payload,
                           uint16_t fragment = 0, uint16_t id = 0) {
  std::vector<uint8_t> frame(34 + payload.size());
  std::copy(payload.begin(), payload.end(), frame.begin() + 34);
  StoreBe16(frame.data() + 12, 0x0800);
  frame[14] = 0x45;
  StoreBe16(frame.data() + 18, id);
  StoreBe16(frame.data() + 20, fragment);
  frame[23] = protocol;
  std::memcpy(frame.data() + 26, from.bytes().data(), 4);
  std::memcpy(frame.data() + 30, to.bytes().data(), 4);
  return frame;
}
std::vector<uint8_t> Ports(uint16_t from, uint16_t to) {
  std::vector<uint8_t> bytes(8);
  StoreBe16(bytes.data(), from);
  StoreBe16(bytes.data() + 2, to);
  return bytes;
}

const IpAddress kA = IpAddress::V4(10, 0, 0, 1), kB = IpAddress::V4(10, 0, 0, 2), kRouter = IpAddress::V4(10, 9, 9, 9);

TEST(Steering, BothDirectionsAndTheErrorsOfAFlowAreOne) {
  const auto forth = Frame(kA, kB, 6, Ports(40000, 80)), back = Frame(kB, kA, 6, Ports(80, 40000));
  const uint32_t hash = SteeringHash(kKey, forth);
  EXPECT_NE(hash, 0u);
  EXPECT_EQ(SteeringHash(kKey, back), hash);
  EXPECT_EQ(SteeringHash(kKey, kB, 80, kA, 40000), hash);
  std::vector<uint8_t> quote = {3, 4, 0, 0, 0, 0, 0, 0};
  quote.insert(quote.end(), forth.begin() + 14, forth.end());
  EXPECT_EQ(SteeringHash(kKey, Frame(kRouter, kA, 1, quote)), hash);
}

TEST(Steering, FragmentsOfADatagramStayTogether) {
  const uint32_t first = SteeringHash(kKey, Frame(kA, kB, 17, Ports(1, 2), 0x2000, 77));
  EXPECT_EQ(SteeringHash(kKey, Frame(kA, kB, 17, Ports(0x6161, 0x6161), 0x0007, 77)), first);
  EXPECT_NE(SteeringHash(kKey, Frame(kA, kB, 17, Ports(1, 2), 0x2000, 78)), first);
}

TEST(Steering, EchoesGoByTheirIdentifier) {
  const std::vector<uint8_t> request = {8, 0, 0, 0, 0x12, 0x34, 0, 1}, reply = {0, 0, 0, 0, 0x12, 0x34, 0, 1};
  EXPECT_EQ(SteeringHash(kKey, Frame(kA, kB, 1, request)), SteeringHash(kKey, Frame(kB, kA, 1, reply)));
  EXPECT_EQ(SteeringHash(kKey, Frame(kA, kB, 1, request)), SteeringHash(kKey, kA, 0x1234, kB, 0x1234));
}

TEST(Steering, SpreadsEvenlyAndAnotherKeySpreadsOtherwise) {
  constexpr uint32_t kShards = 4, kFlows = 40000;
  const wire::SteeringKey other{1, 2};
  uint32_t count[kShards] = {}, same = 0;
  for (uint32_t i = 0; i < kFlows; ++i) {
    const auto port = static_cast<uint16_t>(1024 + i);
    const uint32_t shard = SteeringHash(kKey, kA, port, kB, 80) % kShards;
    ++count[shard];
    same += shard == SteeringHash(other, kA, port, kB, 80) % kShards;
  }
  for (const uint32_t n : count) EXPECT_NEAR(n, kFlows / kShards, kFlows / 50);
  EXPECT_NEAR(same, kFlows / kShards, kFlows / 50);
}

TEST(Steering, GroupFramesAndArpConcernEveryShard) {
  std::vector<uint8_t> frame = Frame(kA, kB, 17, Ports(1, 2));
  EXPECT_FALSE(wire::ConcernsEveryShard(frame));
  frame[0] = 1;
  EXPECT_TRUE(wire::ConcernsEveryShard(frame));
  EXPECT_EQ(SteeringHash(kKey, frame), 0u);
  frame[0] = 0;
  StoreBe16(frame.data() + 12, 0x0806);
  EXPECT_TRUE(wire::ConcernsEveryShard(frame));
  EXPECT_FALSE(wire::ConcernsEveryShard(Bytes{frame}.first(13)));
}

}  // namespace
}  // namespace sluice
