#include "base/spsc_byte_ring.h"

#include <gtest/gtest.h>

#include <thread>

#include "base/rng.h"

namespace sluice {
namespace {

bool Write(SpscByteRing& ring, Bytes record) {
  const MutableBytes room = ring.Reserve(record.size());
  if (room.data() == nullptr) return false;
  std::memcpy(room.data(), record.data(), record.size());
  ring.Commit();
  return true;
}

TEST(SpscByteRing, GivesBackRecordsInOrderAndRefusesWhatDoesNotFit) {
  SpscByteRing ring(128);
  EXPECT_TRUE(ring.empty());
  EXPECT_EQ(ring.Front().data(), nullptr);
  const uint8_t bytes[64] = {1, 2, 3};
  EXPECT_TRUE(Write(ring, Bytes{bytes, 40}));
  EXPECT_TRUE(Write(ring, Bytes{bytes, 64}));  // 48 and 72 with their headers
  EXPECT_FALSE(Write(ring, Bytes{bytes, 8}));
  EXPECT_FALSE(ring.empty());
  EXPECT_EQ(ring.Front().size(), 40u);
  ring.Pop();
  EXPECT_EQ(ring.Front().size(), 64u);
  EXPECT_TRUE(Write(ring, Bytes{bytes, 32}));  // behind the wrap
  EXPECT_FALSE(Write(ring, Bytes{bytes, 8}));
  ring.Pop();
  EXPECT_EQ(ring.Front().size(), 32u);
  EXPECT_EQ(ring.Front()[2], 3);
  ring.Pop();
  EXPECT_TRUE(ring.empty());
}

TEST(SpscByteRing, PassesRecordsOfAllSizesBetweenThreads) {
  SpscByteRing ring(4096);
  constexpr uint32_t kRecords = 200000;
  std::thread writer([&] {
    Rng rng(3);
    std::vector<uint8_t> record(1500);
    for (uint32_t i = 0; i < kRecords; ++i) {
      const size_t size = 4 + rng.Uniform(1000);
      std::fill_n(record.begin(), size, static_cast<uint8_t>(i));
      StoreBe32(record.data(), i);
      while (!Write(ring, Bytes{record}.first(size))) std::this_thread::yield();
    }
  });
  Rng rng(3);
  for (uint32_t i = 0; i < kRecords; ++i) {
    const size_t size = 4 + rng.Uniform(1000);
    while (ring.empty()) std::this_thread::yield();
    const Bytes record = ring.Front();
    ASSERT_EQ(record.size(), size);
    ASSERT_EQ(LoadBe32(record.data()), i);
    if (size > 4) ASSERT_EQ(record.back(), static_cast<uint8_t>(i));
    ring.Pop();
  }
  writer.join();
  EXPECT_TRUE(ring.empty());
}

}  // namespace
}  // namespace sluice
