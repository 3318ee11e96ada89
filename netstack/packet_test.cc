#include "netstack/packet.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace sluice {
namespace {

Slice SliceOf(HeapBlockPool& pool, std::string_view text) {
  BlockRef b(pool.Allocate(text.size()));
  std::memcpy(b->data, text.data(), text.size());
  return Slice{std::move(b), 0, static_cast<uint32_t>(text.size())};
}

std::string Text(const Packet& p) {
  std::string s(p.size(), 0);
  p.CopyOut(0, {reinterpret_cast<uint8_t*>(s.data()), s.size()});
  return s;
}

Packet PacketOf(HeapBlockPool& pool, std::string_view linear) {
  Packet p = Packet::Allocate(pool, linear.size());
  std::memcpy(p.Append(linear.size()), linear.data(), linear.size());
  return p;
}

TEST(HeapBlockPool, ReusesTheLastFreedBlockOfTheClass) {
  HeapBlockPool pool(1 << 20);
  Block* a = pool.Allocate(100);
  Block* b = pool.Allocate(256);
  EXPECT_EQ(a->capacity, 256u);
  BlockRef{a}.Reset();
  BlockRef{b}.Reset();
  EXPECT_EQ(pool.bytes_in_use(), 0u);
  EXPECT_GT(pool.bytes_held(), 0u);
  EXPECT_EQ(pool.Allocate(1), b);
  EXPECT_EQ(pool.Allocate(1), a);
  BlockRef{a}.Reset();
  BlockRef{b}.Reset();
  pool.ReleaseCached();
  EXPECT_EQ(pool.bytes_held(), 0u);
}

TEST(HeapBlockPool, KeepsItsBoundAndGivesCachedBlocksOfOtherClassesBack) {
  HeapBlockPool pool(20000);
  std::vector<BlockRef> small;
  for (;;) {
    BlockRef b(pool.Allocate(256));
    if (!b) break;
    small.push_back(std::move(b));
  }
  EXPECT_GT(small.size(), 60u);
  EXPECT_LE(pool.bytes_held(), 20000u);
  EXPECT_EQ(pool.Allocate(16000), nullptr);
  small.clear();
  BlockRef big(pool.Allocate(16000));
  EXPECT_TRUE(big);
  EXPECT_LE(pool.bytes_held(), 20000u);
  EXPECT_EQ(pool.Allocate(100000), nullptr);
}

TEST(HeapBlockPool, ServesSizesAboveAllClasses) {
  HeapBlockPool pool(1 << 20);
  BlockRef b(pool.Allocate(100000));
  ASSERT_TRUE(b);
  EXPECT_GE(b->capacity, 100000u);
  std::memset(b->data, 1, b->capacity);
  b.Reset();
  EXPECT_EQ(pool.bytes_held(), 0u);
}

TEST(Packet, PushPullAppendKeepTheBytes) {
  HeapBlockPool pool(1 << 20);
  Packet p = PacketOf(pool, "payload");
  std::memcpy(p.Push(4), "head", 4);
  EXPECT_EQ(Text(p), "headpayload");
  p.Pull(6);
  p.TrimLinear(3);
  EXPECT_EQ(Text(p), "ylo");
  EXPECT_EQ(p.headroom(), Packet::kHeadroom + 2);
}

TEST(Packet, SlicesFollowTheLinearRegion) {
  HeapBlockPool pool(1 << 20);
  Packet p = PacketOf(pool, "head-");
  ASSERT_TRUE(p.AddSlice(SliceOf(pool, "one-")));
  ASSERT_TRUE(p.AddSlice(SliceOf(pool, "two")));
  EXPECT_EQ(p.size(), 12u);
  uint8_t part[5];
  p.CopyOut(3, part);
  EXPECT_EQ(std::string(reinterpret_cast<char*>(part), 5), "d-one");
  Packet moved = std::move(p);
  EXPECT_FALSE(p);  // NOLINT(bugprone-use-after-move): the moved-from state is the contract
  EXPECT_EQ(p.slice_count(), 0u);
  Packet copy = moved.Clone(pool);
  moved.Truncate(7);
  EXPECT_EQ(Text(moved), "head-on");
  moved.Truncate(2);
  EXPECT_EQ(Text(moved), "he");
  EXPECT_EQ(Text(copy), "head-one-two");
  ASSERT_TRUE(copy.Linearize(pool));
  EXPECT_EQ(copy.slice_count(), 0u);
  EXPECT_EQ(copy.linear_size(), 12u);
  EXPECT_EQ(Text(copy), "head-one-two");
}

TEST(Packet, LinearizeDoesNotWriteIntoASharedBlock) {
  HeapBlockPool pool(1 << 20);
  Packet p = PacketOf(pool, "ab");
  const Slice kept = p.LinearSlice(0, 2);
  ASSERT_TRUE(p.AddSlice(SliceOf(pool, "cd")));
  ASSERT_TRUE(p.Linearize(pool));
  p.data()[0] = 'X';
  EXPECT_EQ(kept.bytes()[0], 'a');
}

TEST(Packet, RefusesMoreSlicesThanItHolds) {
  HeapBlockPool pool(1 << 20);
  Packet p = PacketOf(pool, "");
  const Slice s = SliceOf(pool, "x");
  for (size_t i = 0; i < Packet::kMaxSlices; ++i) ASSERT_TRUE(p.AddSlice(s));
  EXPECT_FALSE(p.AddSlice(s));
  EXPECT_EQ(s.block->refs, 1 + Packet::kMaxSlices);
  p = Packet();
  EXPECT_EQ(s.block->refs, 1u);
}

TEST(Packet, EmptyWhereThePoolIsExhausted) {
  HeapBlockPool pool(1000);
  EXPECT_FALSE(Packet::Allocate(pool, 2000));
}

}  // namespace
}  // namespace sluice
