#include "base/rng.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace sluice {
namespace {

TEST(SipHash24, MatchesReferenceVectors) {
  // Key 00..0f, message 00..(n-1): from the paper's appendix and the reference implementation.
  const SipKey key{0x0706050403020100, 0x0f0e0d0c0b0a0908};
  std::vector<uint8_t> data(64);
  std::iota(data.begin(), data.end(), 0);
  EXPECT_EQ(SipHash24(key, Bytes(data).first(0)), 0x726fdb47dd0e0e31u);
  EXPECT_EQ(SipHash24(key, Bytes(data).first(1)), 0x74f839c593dc67fdu);
  EXPECT_EQ(SipHash24(key, Bytes(data).first(8)), 0x93f5f5799a932462u);
  EXPECT_EQ(SipHash24(key, Bytes(data).first(15)), 0xa129ca6149be45e5u);
}

TEST(Rng, SameSeedGivesSameSequence) {
  Rng a(7), b(7), c(8);
  bool differs = false;
  for (int i = 0; i < 100; ++i) {
    const uint64_t v = a.Next();
    EXPECT_EQ(v, b.Next());
    differs |= v != c.Next();
  }
  EXPECT_TRUE(differs);
}

TEST(Rng, UniformStaysBelowItsBoundAndReachesAllValues) {
  Rng rng(1);
  std::vector<int> seen(10);
  for (int i = 0; i < 10000; ++i) {
    const uint32_t v = rng.Uniform(10);
    ASSERT_LT(v, 10u);
    ++seen[v];
  }
  for (int count : seen) EXPECT_GT(count, 800);
}

}  // namespace
}  // namespace sluice
