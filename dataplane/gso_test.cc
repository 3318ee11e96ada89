#include "dataplane/gso.h"

#include <gtest/gtest.h>

#include <tuple>

#include "dataplane/testing/test_frames.h"

namespace sluice {
namespace {

using testing::CheckedPayload;
using testing::FrameSpec;
using testing::MakeFrame;
using testing::Pattern;

std::vector<Packet> Cut(BlockPool& pool, const Packet& frame) {
  std::vector<Packet> out;
  GsoCutter cutter(frame);
  EXPECT_TRUE(cutter.valid());
  while (!cutter.done()) {
    const size_t size = cutter.next_size();
    EXPECT_LE(size, cutter.max_size());
    Packet p = Packet::Allocate(pool, size);
    p.Append(size);
    EXPECT_EQ(cutter.Next(p.linear()), size);
    out.push_back(std::move(p));
  }
  EXPECT_EQ(out.size(), cutter.segments());
  return out;
}

class GsoRoundTrip : public ::testing::TestWithParam<std::tuple<bool, bool, bool, size_t>> {};

TEST_P(GsoRoundTrip, SegmentsHaveRightChecksumsAndGiveThePayloadBack) {
  const auto [udp, v6, sliced, size] = GetParam();
  HeapBlockPool pool(16 << 20);
  for (uint16_t mss : {1, 7, 536, 1397, 1448, 8948}) {
    if (size / mss > 2000) continue;
    const auto payload = Pattern(size, mss);
    const Packet frame = MakeFrame(pool, {.payload = payload, .udp = udp, .v6 = v6, .sliced = sliced, .gso_size = mss});
    std::vector<uint8_t> joined;
    const auto segments = Cut(pool, frame);
    EXPECT_EQ(segments.size(), (size + mss - 1) / mss);
    for (const Packet& segment : segments) {
      const auto part = CheckedPayload(segment);  // a wrong length or checksum fails here
      joined.insert(joined.end(), part.begin(), part.end());
      EXPECT_LE(part.size(), mss);
    }
    EXPECT_EQ(joined, payload);
  }
}

INSTANTIATE_TEST_SUITE_P(Frames, GsoRoundTrip,
                         ::testing::Combine(::testing::Bool(), ::testing::Bool(), ::testing::Bool(),
                                            ::testing::Values(size_t{1}, size_t{1448}, size_t{1449}, size_t{33333},
                                                              size_t{65160})));

TEST(GsoCutter, NumbersSegmentsAndPlacesFlagsAsLinuxDoes) {
  HeapBlockPool pool(1 << 20);
  FrameSpec spec{.payload = Pattern(4000, 1), .sliced = true, .gso_size = 1000, .seq = 0xfffffc00, .ip_id = 0xfffe};
  spec.flags = 0x80 | 0x10 | 0x08 | 0x01;  // CWR ACK PSH FIN
  spec.tcp_options = {1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2};
  const auto segments = Cut(pool, MakeFrame(pool, spec));
  ASSERT_EQ(segments.size(), 4u);
  const uint8_t flags[] = {0x90, 0x10, 0x10, 0x19};
  for (size_t i = 0; i < 4; ++i) {
    const uint8_t* f = segments[i].data();
    EXPECT_EQ(LoadBe16(f + 18), static_cast<uint16_t>(0xfffe + i)) << "IP identification";
    EXPECT_EQ(LoadBe32(f + 38), static_cast<uint32_t>(0xfffffc00 + i * 1000)) << "sequence number";
    EXPECT_EQ(f[47], flags[i]) << i;
    EXPECT_TRUE(std::equal(spec.tcp_options.begin(), spec.tcp_options.end(), f + 54));
  }
}

TEST(GsoCutter, FinishesAPlainFrame) {
  HeapBlockPool pool(1 << 20);
  for (bool udp : {false, true}) {
    const Packet frame = MakeFrame(pool, {.payload = Pattern(999, 5), .udp = udp, .sliced = true, .partial = true});
    const auto one = Cut(pool, frame);
    ASSERT_EQ(one.size(), 1u);
    EXPECT_EQ(CheckedPayload(one[0]), Pattern(999, 5));
  }
}

TEST(GsoCutter, RefusesMetadataThatDoesNotFit) {
  HeapBlockPool pool(1 << 20);
  auto invalid = [&](auto change) {
    Packet p = MakeFrame(pool, {.payload = Pattern(4000, 1), .gso_size = 1000});
    change(p);
    return !GsoCutter(p).valid();
  };
  EXPECT_FALSE(invalid([](Packet&) {}));
  EXPECT_TRUE(invalid([](Packet& p) { p.offload.gso_size = 0; }));
  EXPECT_TRUE(invalid([](Packet& p) { p.offload.hdr_len = 0; }));
  EXPECT_TRUE(invalid([](Packet& p) { p.offload.hdr_len = 4054; }));
  EXPECT_TRUE(invalid([](Packet& p) { p.offload.hdr_len = 58; }));
  EXPECT_TRUE(invalid([](Packet& p) { p.offload.gso = GsoType::kTcpV6; }));
  EXPECT_TRUE(invalid([](Packet& p) { p.offload.gso = GsoType::kUdp; }));
  EXPECT_TRUE(invalid([](Packet& p) { p.data()[46] = 0x10; }));               // TCP data offset below the header
  EXPECT_TRUE(invalid([](Packet& p) { StoreBe16(p.data() + 16, 65535); }));   // longer than the frame
  EXPECT_TRUE(invalid([](Packet& p) { StoreBe16(p.data() + 20, 0x2000); }));  // a fragment
}

}  // namespace
}  // namespace sluice
