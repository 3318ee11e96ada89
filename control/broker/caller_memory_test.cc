#include "control/broker/caller_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <vector>

namespace sluice {
namespace {

uint64_t Address(const void* p) { return reinterpret_cast<uintptr_t>(p); }

TEST(ThreadMemory, WritesAllPiecesInOrder) {
  std::vector<uint32_t> from(200), to(200);
  std::vector<RemoteWrite> writes;
  for (uint32_t i = 0; i < from.size(); ++i) {
    from[i] = i * 7 + 1;
    writes.push_back({Address(&to[i]), {reinterpret_cast<const uint8_t*>(&from[i]), sizeof from[i]}});
  }
  writes.insert(writes.begin() + 3, RemoteWrite{0, {}});  // nothing, nowhere
  EXPECT_TRUE(ThreadMemory(getpid()).WriteAll(writes));
  EXPECT_EQ(to, from);
}

TEST(ThreadMemory, StopsAtTheFirstFault) {
  const std::array<uint8_t, 4> from{1, 2, 3, 4};
  std::array<uint8_t, 4> first{}, last{};
  const std::array<RemoteWrite, 3> writes{{{Address(first.data()), from}, {8, from}, {Address(last.data()), from}}};
  EXPECT_FALSE(ThreadMemory(getpid()).WriteAll(writes));
  EXPECT_EQ(first, from);
  EXPECT_EQ(last, (std::array<uint8_t, 4>{}));
}

}  // namespace
}  // namespace sluice
