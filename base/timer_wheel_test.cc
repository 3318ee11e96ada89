#include "base/timer_wheel.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "base/rng.h"

namespace sluice {
namespace {

constexpr int64_t kTick = 1 << 17;

struct Probe {
  explicit Probe(TimerWheel* w) : wheel(w), timer(&Probe::Fired, this) {}
  static void Fired(void* self) { ++static_cast<Probe*>(self)->fired; }
  TimerWheel* wheel;
  int fired = 0;
  Timer timer;
};

TEST(TimerWheel, FiresNeverEarlyAndWithinOneTick) {
  Rng rng(3);
  TimerWheel wheel(Instant(12345));
  int64_t now = 12345;
  std::vector<std::unique_ptr<Probe>> probes;
  for (int i = 0; i < 2000; ++i) {
    probes.push_back(std::make_unique<Probe>(&wheel));
    // From below a tick to hours, so that every level is used.
    const int64_t in = static_cast<int64_t>(rng.Next() % (uint64_t{1} << (10 + i % 36)));
    wheel.Schedule(probes.back()->timer, Instant(now + in));
  }
  int fired = 0;
  while (auto next = wheel.NextDeadline()) {
    std::vector<std::pair<Probe*, Instant>> before;
    now = std::max(now, next->ns());
    for (auto& p : probes) {
      if (p->timer.pending()) {
        // The sleeper that trusts NextDeadline is never late by more than a tick.
        EXPECT_LT(next->ns(), p->timer.deadline().ns() + kTick);
        before.emplace_back(p.get(), p->timer.deadline());
      }
    }
    wheel.Advance(Instant(now));
    for (auto& [p, deadline] : before) {
      if (p->fired != 0) {
        EXPECT_LE(deadline.ns(), now);
      }
      if (p->fired != 0) ++fired;
      if (deadline.ns() + kTick <= now) {
        EXPECT_EQ(p->fired, 1);
      }
    }
  }
  EXPECT_EQ(fired, 2000);
}

TEST(TimerWheel, BigStepsFireEverythingThatIsDue) {
  TimerWheel wheel(Instant(0));
  Probe a(&wheel), b(&wheel), c(&wheel);
  wheel.Schedule(a.timer, Instant(5 * kTick));
  wheel.Schedule(b.timer, Instant(70 * kTick));
  wheel.Schedule(c.timer, Instant(5000 * kTick));
  wheel.Advance(Instant(4999 * kTick));
  EXPECT_EQ(a.fired, 1);
  EXPECT_EQ(b.fired, 1);
  EXPECT_EQ(c.fired, 0);
  wheel.Advance(Instant(5000 * kTick));
  EXPECT_EQ(c.fired, 1);
}

TEST(TimerWheel, RescheduleMovesAndCancelRemoves) {
  TimerWheel wheel(Instant(0));
  Probe a(&wheel), b(&wheel);
  wheel.Schedule(a.timer, Instant(kTick));
  wheel.Schedule(a.timer, Instant(10 * kTick));
  wheel.Schedule(b.timer, Instant(kTick));
  b.timer.Cancel();
  EXPECT_FALSE(b.timer.pending());
  wheel.Advance(Instant(9 * kTick));
  EXPECT_EQ(a.fired, 0);
  wheel.Advance(Instant(10 * kTick));
  EXPECT_EQ(a.fired, 1);
  EXPECT_EQ(b.fired, 0);
  EXPECT_FALSE(wheel.NextDeadline());
}

TEST(TimerWheel, DeadlineInThePastFiresAtTheNextAdvanceOnly) {
  struct Again {
    static void Fired(void* p) {
      auto* self = static_cast<Again*>(p);
      ++self->fired;
      self->wheel->Schedule(self->timer, Instant(0));
    }
    TimerWheel* wheel;
    int fired = 0;
    Timer timer{&Again::Fired, this};
  };
  TimerWheel wheel(Instant(100 * kTick));
  Again again{&wheel};
  wheel.Schedule(again.timer, Instant(0));
  ASSERT_TRUE(wheel.NextDeadline());
  EXPECT_LE(wheel.NextDeadline()->ns(), 100 * kTick);
  wheel.Advance(Instant(100 * kTick));
  EXPECT_EQ(again.fired, 1);
  wheel.Advance(Instant(100 * kTick));
  EXPECT_EQ(again.fired, 2);
}

TEST(TimerWheel, CallbackMayDestroyTimersOfTheSameSlot) {
  TimerWheel wheel(Instant(0));
  struct Killer {
    static void Fired(void* p) {
      auto* self = static_cast<Killer*>(p);
      ++self->fired;
      self->victims.clear();
    }
    std::vector<std::unique_ptr<Probe>> victims;
    int fired = 0;
    std::unique_ptr<Timer> timer = std::make_unique<Timer>(&Killer::Fired, this);
  } killer;
  for (int i = 0; i < 3; ++i) killer.victims.push_back(std::make_unique<Probe>(&wheel));
  // The wheel fires the newest of a slot first or last; victims lie on both sides of the killer.
  wheel.Schedule(killer.victims[0]->timer, Instant(kTick * 3));
  wheel.Schedule(*killer.timer, Instant(kTick * 3));
  wheel.Schedule(killer.victims[1]->timer, Instant(kTick * 3));
  wheel.Schedule(killer.victims[2]->timer, Instant(kTick * 90));
  wheel.Advance(Instant(kTick * 3));
  EXPECT_EQ(killer.fired, 1);
  EXPECT_FALSE(wheel.NextDeadline());
}

TEST(TimerWheel, FarDeadlinesSurviveTheTopLevel) {
  TimerWheel wheel(Instant(0));
  Probe a(&wheel), never(&wheel);
  const int64_t far = int64_t{1} << 55;  // over a year
  wheel.Schedule(a.timer, Instant(far));
  wheel.Schedule(never.timer, Instant::Max());
  int64_t now = 0;
  while (a.fired == 0) {
    const auto next = wheel.NextDeadline();
    ASSERT_TRUE(next);
    ASSERT_GT(next->ns(), now);
    now = next->ns();
    wheel.Advance(*next);
  }
  EXPECT_GE(now, far);
  EXPECT_LT(now, far + kTick);
  EXPECT_EQ(never.fired, 0);
}

TEST(TimerWheel, TimersOutliveTheWheel) {
  auto wheel = std::make_unique<TimerWheel>(Instant(0));
  Probe a(wheel.get());
  wheel->Schedule(a.timer, Instant(kTick));
  wheel.reset();
  EXPECT_FALSE(a.timer.pending());
  a.timer.Cancel();
}

}  // namespace
}  // namespace sluice
