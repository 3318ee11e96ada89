#include "sentry/most_traffic.h"

#include <gtest/gtest.h>

namespace sluice {
namespace {

constexpr uint64_t kWindow = MostTraffic::kWindow;

TEST(MostTraffic, IsAStreamThatIsAlone) {
  MostTraffic most;
  EXPECT_FALSE(most.Is(kWindow - 1, kWindow - 1));  // too few to tell
  EXPECT_TRUE(most.Is(kWindow, kWindow));
}

TEST(MostTraffic, IsNoneAmongMany) {
  MostTraffic most;
  for (uint64_t i = 1; i < 10; ++i) EXPECT_FALSE(most.Is(i * kWindow, 16 * i * kWindow));
}

TEST(MostTraffic, ForgetsWhatWasBefore) {
  MostTraffic most;
  EXPECT_FALSE(most.Is(kWindow, 100 * kWindow));
  EXPECT_FALSE(most.Is(kWindow + 1, 100 * kWindow + 1));
  EXPECT_TRUE(most.Is(2 * kWindow, 102 * kWindow));
}

}  // namespace
}  // namespace sluice
