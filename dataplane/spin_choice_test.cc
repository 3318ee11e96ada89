#include "dataplane/spin_choice.h"

#include <gtest/gtest.h>

namespace sluice {
namespace {

// Runs epochs whose work depends on what is chosen; returns how many of them were spent spinning.
int RunEpochs(SpinChoice& choice, int epochs, uint64_t sleeping, uint64_t spinning, Instant* now, uint64_t* progress) {
  int spins = 0;
  for (int i = 0; i < epochs; ++i) {
    const bool spin = choice.spin();
    spins += spin;
    *now = *now + SpinChoice::kEpoch;
    *progress += spin ? spinning : sleeping;
    EXPECT_TRUE(choice.Due(*now));
    choice.EndEpoch(*now, *progress);
    EXPECT_FALSE(choice.Due(*now));
  }
  return spins;
}

TEST(SpinChoice, StaysWithWhatGetsMoreDone) {
  Instant now(1'000'000'000);
  uint64_t progress = 0;
  SpinChoice choice;
  EXPECT_GT(RunEpochs(choice, 200, 1000, 2000, &now, &progress), 180);
  EXPECT_LT(RunEpochs(choice, 200, 2000, 1000, &now, &progress), 80);
  EXPECT_LT(RunEpochs(choice, 200, 2000, 1000, &now, &progress), 10);
}

TEST(SpinChoice, CountsOnWhereProgressWraps) {
  Instant now(1'000'000'000);
  uint64_t progress = uint64_t{0} - 1000 * (SpinChoice::kBeforeFirst + 1) - 500;  // the first only begins
  SpinChoice choice;
  EXPECT_EQ(RunEpochs(choice, SpinChoice::kBeforeFirst + 1, 1000, 2000, &now, &progress), 0);
  EXPECT_EQ(RunEpochs(choice, 1, 1000, 2000, &now, &progress), 1);
  EXPECT_EQ(progress, 1500u);
  EXPECT_TRUE(choice.spin());
}

// Each time the worse one is tried costs an epoch of its slowness.
TEST(SpinChoice, DoesNotSoonDoubtWhatIsClear) {
  Instant now(1'000'000'000);
  uint64_t progress = 0;
  SpinChoice choice;
  EXPECT_GE(RunEpochs(choice, 50, 1000, 2000, &now, &progress), 46);
}

TEST(SpinChoice, SleepsWhereItMakesNoDifference) {
  Instant now(1'000'000'000);
  uint64_t progress = 0;
  SpinChoice choice;
  EXPECT_LT(RunEpochs(choice, 500, 1000, 1050, &now, &progress), 15);
}

TEST(SpinChoice, LearnsNothingFromIdleTime) {
  Instant now(1'000'000'000);
  uint64_t progress = 0;
  SpinChoice choice;
  for (int i = 0; i < 100; ++i) {
    now = now + Duration::Milliseconds(500);
    progress += 100;
    choice.EndEpoch(now, progress);
    EXPECT_FALSE(choice.spin());
  }
}

}  // namespace
}  // namespace sluice
