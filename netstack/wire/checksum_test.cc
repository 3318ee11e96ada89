#include "netstack/wire/checksum.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/rng.h"

namespace sluice::wire {
namespace {

std::vector<uint8_t> RandomBytes(Rng& rng, size_t n) {
  std::vector<uint8_t> v(n);
  for (auto& b : v) b = static_cast<uint8_t>(rng.Next());
  return v;
}

// RFC 1071 4.1 written down naively, big-endian.
uint16_t Naive(Bytes data) {
  uint64_t sum = 0;
  for (size_t i = 0; i < data.size(); i += 2) sum += (data[i] << 8) | (i + 1 < data.size() ? data[i + 1] : 0);
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<uint16_t>(sum);
}

TEST(Checksum, MatchesTheExampleOfRfc1071) {
  const uint8_t data[] = {0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7};
  EXPECT_EQ(__builtin_bswap16(OnesSum(data)), 0xddf2);
}

TEST(Checksum, VectorAndScalarAndNaiveAgreeForAllSizesAndOffsets) {
  Rng rng(11);
  const auto data = RandomBytes(rng, 70000);
  for (size_t n = 0; n < 1200; ++n) {
    const Bytes piece = Bytes(data).subspan(n % 37, n);
    const uint16_t scalar = OnesSumScalar(piece);
    ASSERT_EQ(OnesSum(piece), scalar) << n;
    ASSERT_EQ(__builtin_bswap16(scalar), Naive(piece)) << n;
  }
  const std::vector<uint8_t> ones(2100001, 0xff);  // lanes would overflow without the chunk limit
  EXPECT_EQ(OnesSum(ones), OnesSumScalar(ones));
  EXPECT_EQ(__builtin_bswap16(OnesSum(data)), Naive(data));
}

TEST(Checksum, PacketsWithOddSlicesSumAsIfLinear) {
  Rng rng(5);
  HeapBlockPool pool(1 << 20);
  for (int round = 0; round < 50; ++round) {
    Packet p = Packet::Allocate(pool, 100, 0);
    std::vector<uint8_t> whole;
    auto head = RandomBytes(rng, 1 + rng.Uniform(59));
    std::memcpy(p.Append(head.size()), head.data(), head.size());
    whole = head;
    for (int i = 0; i < 5; ++i) {
      auto piece = RandomBytes(rng, 1 + rng.Uniform(700));
      BlockRef block(pool.Allocate(piece.size()));
      std::memcpy(block->data, piece.data(), piece.size());
      ASSERT_TRUE(p.AddSlice(Slice{block, 0, static_cast<uint32_t>(piece.size())}));
      whole.insert(whole.end(), piece.begin(), piece.end());
    }
    const size_t from = rng.Uniform(static_cast<uint32_t>(whole.size()));
    EXPECT_EQ(OnesSum(p, from), OnesSumScalar(Bytes(whole).subspan(from)));
  }
}

TEST(Checksum, IncrementalUpdateEqualsRecomputation) {
  Rng rng(9);
  for (int i = 0; i < 1000; ++i) {
    auto data = RandomBytes(rng, 20);
    const uint16_t before = static_cast<uint16_t>(~OnesSum(data));
    const uint16_t old_word = LoadSum(&data[8]);
    StoreBe16(&data[8], static_cast<uint16_t>(rng.Next()));
    const uint16_t after = UpdateChecksum(before, old_word, LoadSum(&data[8]));
    // Both representations of zero are right.
    EXPECT_EQ(AddSums(OnesSum(data), after), 0xffff);
  }
}

TEST(Checksum, CompletesPartialChecksums) {
  HeapBlockPool pool(1 << 20);
  Packet p = Packet::Allocate(pool, 64);
  uint8_t* udp = p.Append(12);
  const IpAddress a = IpAddress::V4(10, 0, 0, 1), b = IpAddress::V4(10, 0, 0, 2);
  StoreBe16(udp, 53), StoreBe16(udp + 2, 99), StoreBe16(udp + 4, 12);
  StoreBe32(udp + 8, 0x61626364);
  StoreSum(udp + 6, PseudoHeaderSum(a, b, 17, 12));
  p.offload.checksum = ChecksumState::kPartial;
  p.offload.csum_start = 0;
  p.offload.csum_offset = 6;
  ASSERT_TRUE(CompleteChecksum(p, true));
  EXPECT_EQ(OnesSum(p.linear(), PseudoHeaderSum(a, b, 17, 12)), 0xffff);
  EXPECT_EQ(p.offload.checksum, ChecksumState::kNone);
  p.offload.csum_start = 11;
  EXPECT_FALSE(CompleteChecksum(p, true));
}

}  // namespace
}  // namespace sluice::wire
