#include "dataplane/thread_choice.h"

#include <gtest/gtest.h>

#include <array>

namespace sluice {
namespace {

// Interrupts took the rest of its core.
constexpr ThreadShare kBusy{.busy = 0.98, .work = 0.8, .waited = 0.001};
constexpr std::array<double, 3> kEven{0.4, 0.3, 0.28};

// Epochs until one is to have a thread; -1 where none is within `most`.
template <size_t N>
int Until(SplitChoice& choice, Instant* now, const ThreadShare& thread, const std::array<double, N>& parts, int most = 1000) {
  for (int i = 1; i <= most; ++i) {
    *now = *now + SplitChoice::kEpoch;
    if (choice.EndEpoch(*now, thread, parts)) return i;
  }
  return -1;
}

TEST(SplitChoice, GivesTheBusiestOfTheOthersAThreadWithinTensOfMilliseconds) {
  SplitChoice choice;
  Instant now(1'000'000'000);
  for (int i = 0; i < SplitChoice::kEpochs - 1; ++i) EXPECT_EQ(choice.EndEpoch(now, kBusy, kEven), std::nullopt);
  EXPECT_EQ(choice.EndEpoch(now, kBusy, kEven), 1u);
  EXPECT_EQ(Until(choice, &now, kBusy, std::array{0.2, 0.1, 0.68}), SplitChoice::kEpochs);
}

TEST(SplitChoice, StaysWhereTheThreadIsNotFullOrWaitsForCores) {
  SplitChoice choice;
  Instant now(1'000'000'000);
  EXPECT_EQ(Until(choice, &now, {.busy = 0.85, .work = 0.85, .waited = 0.0}, kEven), -1);
  EXPECT_EQ(Until(choice, &now, {.busy = 0.99, .work = 0.92, .waited = 0.07}, kEven), -1);
  for (int i = 0; i < 100; ++i) {  // one epoch at a time is a burst
    EXPECT_EQ(choice.EndEpoch(now, i % 2 == 0 ? kBusy : ThreadShare{}, kEven), std::nullopt);
  }
}

TEST(SplitChoice, StaysWhereAThreadMoreTakesNothingOffTheFirst) {
  SplitChoice choice;
  Instant now(1'000'000'000);
  EXPECT_EQ(Until(choice, &now, kBusy, std::array{0.95, 0.03}), -1);
  EXPECT_EQ(Until(choice, &now, kBusy, std::array{0.03, 0.95}), -1);
  EXPECT_EQ(Until(choice, &now, kBusy, std::array{0.98}), -1);  // the first alone
}

TEST(SplitChoice, TriesWhatWasInVainLessAndLessOften) {
  SplitChoice choice;
  Instant now(1'000'000'000);
  ASSERT_NE(Until(choice, &now, kBusy, kEven), -1);
  for (Duration hold = SplitChoice::kFirstHold; hold < SplitChoice::kMaxHold; hold = hold * 4) {
    const Instant back = now;
    choice.OnReturn(now, Duration::Milliseconds(20), true);
    ASSERT_NE(Until(choice, &now, kBusy, kEven), -1);
    EXPECT_GE(now - back, hold);
    EXPECT_LE(now - back, hold + SplitChoice::kEpoch * 2);
  }
  // One that had its thread for long, or found that one is enough, was not in vain.
  choice.OnReturn(now, Duration::Seconds(60), true);
  const Instant back = now;
  ASSERT_NE(Until(choice, &now, kBusy, kEven), -1);
  EXPECT_LE(now - back, SplitChoice::kFirstHold + SplitChoice::kEpoch * 2);
  choice.OnReturn(now, Duration::Milliseconds(200), false);
  EXPECT_EQ(Until(choice, &now, kBusy, kEven), SplitChoice::kEpochs);
}

using Answer = ReturnChoice::Answer;

// The first answer that is not to stay, and when it came.
Answer Until(ReturnChoice& choice, Instant* now, const ThreadShare& own, const ThreadShare& first, Duration most,
             double others_waited = 0) {
  for (const Instant end = *now + most; *now < end;) {
    *now = *now + ReturnChoice::kEpoch;
    if (const Answer a = choice.EndEpoch(*now, own, first, others_waited); a != Answer::kStay) return a;
  }
  return Answer::kStay;
}

TEST(ReturnChoice, StaysWhereBothHaveACoreAndUseThem) {
  ReturnChoice choice;
  Instant now(1'000'000'000);
  choice.Begin(now);
  EXPECT_EQ(Until(choice, &now, {.busy = 0.95, .work = 0.95, .waited = 0.01}, {.busy = 0.9, .work = 0.9, .waited = 0.02},
                  Duration::Seconds(10)),
            Answer::kStay);
  EXPECT_EQ(Until(choice, &now, {.busy = 0.4, .work = 0.4, .waited = 0.01}, {.busy = 0.4, .work = 0.4, .waited = 0.02},
                  Duration::Seconds(10)),
            Answer::kStay);
  // They wait, but one thread could not do what they do.
  EXPECT_EQ(Until(choice, &now, {.busy = 0.9, .work = 0.8, .waited = 0.15}, {.busy = 0.9, .work = 0.8, .waited = 0.15},
                  Duration::Seconds(10)),
            Answer::kStay);
}

TEST(ReturnChoice, ReturnsAtOnceWhereCoresAreShort) {
  ReturnChoice choice;
  Instant now(1'000'000'000);
  choice.Begin(now);
  const Instant start = now;
  EXPECT_EQ(Until(choice, &now, {.busy = 0.8, .work = 0.5, .waited = 0.3}, {.busy = 0.8, .work = 0.5, .waited = 0.3},
                  Duration::Seconds(10)),
            Answer::kInVain);
  EXPECT_LE(now - start, Duration::Milliseconds(30));
  // So it does where the others have next to nothing to do.
  choice.Begin(now);
  EXPECT_EQ(Until(choice, &now, {.busy = 0.1, .work = 0.05, .waited = 0.1}, {.busy = 0.95, .work = 0.8, .waited = 0.15},
                  Duration::Milliseconds(50)),
            Answer::kInVain);
}

// Three of them on two cores: two would get the same.
TEST(ReturnChoice, ReturnsWhereOthersWaitForTheCoreThatItGives) {
  ReturnChoice choice;
  Instant now(1'000'000'000);
  const ThreadShare third{.busy = 1.0, .work = 0.67, .waited = 0.33};
  choice.Begin(now);
  EXPECT_EQ(Until(choice, &now, third, third, Duration::Milliseconds(50), third.waited), Answer::kInVain);
  // As two of them they would lose: the third one has what it needs.
  choice.Begin(now);
  EXPECT_EQ(Until(choice, &now, third, third, Duration::Seconds(10), 0.01), Answer::kStay);
  // Three on nearly three cores.
  const ThreadShare most{.busy = 1.0, .work = 0.87, .waited = 0.13};
  choice.Begin(now);
  EXPECT_EQ(Until(choice, &now, most, most, Duration::Seconds(10), most.waited), Answer::kStay);
}

TEST(ReturnChoice, ReturnsWhereAllFitsInOneThreadForAWhile) {
  ReturnChoice choice;
  Instant now(1'000'000'000);
  choice.Begin(now);
  const ThreadShare some{.busy = 0.25, .work = 0.25, .waited = 0.01}, more{.busy = 0.4, .work = 0.4, .waited = 0.01};
  for (int i = 0; i < 20; ++i) {  // not for a gap in the work
    EXPECT_EQ(Until(choice, &now, some, some, Duration::Milliseconds(80)), Answer::kStay);
    EXPECT_EQ(Until(choice, &now, more, more, Duration::Milliseconds(10)), Answer::kStay);
  }
  EXPECT_EQ(Until(choice, &now, some, some, Duration::Milliseconds(110)), Answer::kFits);
}

// A hypervisor or interrupts take 40 % of each core: one thread would be full.
TEST(ReturnChoice, StaysWhereTurnsTakeLongerThanTheirWork) {
  ReturnChoice choice;
  Instant now(1'000'000'000);
  choice.Begin(now);
  const ThreadShare half{.busy = 0.48, .work = 0.29, .waited = 0.01};
  EXPECT_EQ(Until(choice, &now, half, half, Duration::Seconds(10)), Answer::kStay);
}

TEST(ThreadShare, IsWhatWasDoneOfTheTimeThatPassed) {
  const auto ms = [](int64_t n) { return Duration::Milliseconds(n); };
  const ThreadTimes from{.at = Instant() + ms(100), .busy = ms(50), .cpu = ms(40), .waited = ms(7)};
  const auto share = [&](Duration busy, Duration cpu, Duration waited) {
    return ShareOf(from,
                   {.at = from.at + ms(10), .busy = from.busy + busy, .cpu = from.cpu + cpu, .waited = from.waited + waited});
  };
  const ThreadShare s = share(ms(8), ms(5), ms(1));
  EXPECT_DOUBLE_EQ(s.busy, 0.8);
  EXPECT_DOUBLE_EQ(s.work, 0.5);
  EXPECT_DOUBLE_EQ(s.waited, 0.1);
  EXPECT_DOUBLE_EQ(share(ms(8), ms(10), ms(0)).work, 0.8);     // turns that found nothing are no work
  EXPECT_DOUBLE_EQ(share(ms(8), ms(10), ms(-2)).waited, 0.0);  // where it is what busy turns took longer than a core's time
}

TEST(WaitedForCore, IsTheSecondOfThreeUnlessTheKernelDoesNotCount) {
  EXPECT_EQ(WaitedForCore("971260405 391961755 5684\n"), Duration(391961755 - 5684 * 2000));
  EXPECT_EQ(WaitedForCore("0 0 0\n"), std::nullopt);
  EXPECT_EQ(WaitedForCore("971260405 391961755\n"), std::nullopt);
  EXPECT_EQ(WaitedForCore(""), std::nullopt);
}

// Thousands of wake-ups a second: 1.5 us each on an idle machine, 100 us each on one that is full.
TEST(WaitedForCore, IsNotWhatAWakeUpTakes) {
  const Instant begin(1'000'000'000);
  const auto waited = [&](const char* from, const char* to) {
    return ShareOf({.at = begin, .busy = {}, .cpu = {}, .waited = *WaitedForCore(from)},
                   {.at = begin + Duration::Milliseconds(10), .busy = {}, .cpu = {}, .waited = *WaitedForCore(to)})
        .waited;
  };
  EXPECT_DOUBLE_EQ(waited("5000000 1000000 1000", "9000000 1150000 1100"), 0.0);
  EXPECT_DOUBLE_EQ(waited("5000000 1000000 1000", "9000000 6000000 1050"), 0.49);
}

}  // namespace
}  // namespace sluice
