#include "dataplane/pcap_port.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <tuple>

#include "dataplane/pipe_port.h"
#include "dataplane/testing/test_frames.h"

namespace sluice {
namespace {

using testing::MakeFrame;
using testing::Pattern;

uint32_t At(const std::vector<uint8_t>& bytes, size_t at) {
  uint32_t v = 0;
  if (at + 4 <= bytes.size()) std::memcpy(&v, bytes.data() + at, 4);
  return v;
}

std::vector<uint8_t> Contents(int fd) {
  std::vector<uint8_t> bytes(static_cast<size_t>(lseek(fd, 0, SEEK_END)));
  EXPECT_EQ(pread(fd, bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  return bytes;
}

TEST(PcapPort, WritesBothDirectionsAndWholeSuperSegments) {
  HeapBlockPool pool(8 << 20);
  auto [ours, theirs] = MakePipePorts(2, 3, pool);
  UniqueFd file(memfd_create("pcap", 0));
  auto writer = std::make_shared<PcapWriter>(UniqueFd(dup(file.get())));
  PcapPort port(std::move(ours), writer, "eth0");
  Packet out = MakeFrame(pool, {.payload = Pattern(60000, 1), .sliced = true, .gso_size = 1448});
  ASSERT_EQ(port.Transmit(std::span(&out, 1)), 1u);
  Packet in = MakeFrame(pool, {.payload = Pattern(99, 2)});
  ASSERT_EQ(theirs->Transmit(std::span(&in, 1)), 1u);
  Packet got[4];
  ASSERT_EQ(port.Receive(got), 1u);
  EXPECT_TRUE(port.ArmWakeup());
  // Blocks: section, interface, two packets. Every block's length stands at both ends.
  const auto bytes = Contents(file.get());
  std::vector<std::pair<uint32_t, size_t>> blocks;
  for (size_t at = 0; at + 12 <= bytes.size();) {
    const uint32_t length = At(bytes, at + 4);
    ASSERT_EQ(At(bytes, at + length - 4), length);
    blocks.emplace_back(At(bytes, at), at);
    at += length;
  }
  ASSERT_EQ(blocks.size(), 4u);
  EXPECT_EQ(blocks[0].first, 0x0a0d0d0au);
  EXPECT_EQ(blocks[1].first, 1u);
  for (auto [index, size, direction] : {std::tuple{2, 60054u, 2u}, std::tuple{3, 153u, 1u}}) {
    EXPECT_EQ(blocks[static_cast<size_t>(index)].first, 6u);
    const size_t at = blocks[static_cast<size_t>(index)].second;
    EXPECT_EQ(At(bytes, at + 20), size);
    EXPECT_EQ(At(bytes, at + 24), size);
    EXPECT_EQ(At(bytes, at + 28 + (size + 3) / 4 * 4 + 4), direction);
  }
}

TEST(PcapPort, CutsAtTheSnapLengthAndGoesOnWhenTheFileFails) {
  HeapBlockPool pool(8 << 20);
  auto [ours, theirs] = MakePipePorts(2, 3, pool);
  UniqueFd full(open("/dev/full", O_WRONLY));
  auto writer = std::make_shared<PcapWriter>(std::move(full), 64);
  PcapPort port(std::move(ours), writer, "eth0");
  for (int i = 0; i < 2; ++i) {
    Packet out = MakeFrame(pool, {.payload = Pattern(1000, 1)});
    ASSERT_EQ(port.Transmit(std::span(&out, 1)), 1u);
    port.ArmWakeup();
  }
  EXPECT_EQ(writer->error(), ENOSPC);
  Packet got[4];
  EXPECT_EQ(theirs->Receive(got), 2u);
}

TEST(PipePort, HandsBackWhatDoesNotFitAndWakes) {
  HeapBlockPool pool(8 << 20);
  auto [a, b] = MakePipePorts(2, 3, pool, 4);
  std::vector<Packet> frames;
  for (uint32_t i = 0; i < 6; ++i) frames.push_back(MakeFrame(pool, {.payload = Pattern(10, i)}));
  EXPECT_EQ(a->Transmit(frames), 4u);
  EXPECT_FALSE(frames[3]);
  EXPECT_TRUE(frames[4]);
  EXPECT_FALSE(b->ArmWakeup());
  Packet got[3];
  EXPECT_EQ(b->Receive(got), 3u);
  EXPECT_EQ(got[0].ifindex, 3);
  EXPECT_EQ(a->Transmit(std::span(frames).subspan(4)), 2u);
  EXPECT_EQ(b->Receive(got), 3u);
  EXPECT_TRUE(b->ArmWakeup());
  b.reset();
  EXPECT_TRUE(a->dead());
}

}  // namespace
}  // namespace sluice
