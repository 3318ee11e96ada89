// A hierarchical timer wheel. Timers are intrusive and owned by what they serve; scheduling and cancelling cost O(1); nothing is
// allocated. A timer fires at or up to one tick (about 131 us) after its deadline, from TimerWheel::Advance only.
#pragma once

#include <cstdint>
#include <optional>

#include "base/time.h"

namespace sluice {

class TimerWheel;

class Timer {
 public:
  using Callback = void (*)(void* context);
  Timer(Callback fn, void* context) : fn_(fn), context_(context) {}
  ~Timer() { Cancel(); }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  bool pending() const { return wheel_ != nullptr; }
  Instant deadline() const { return deadline_; }
  void Cancel();

 private:
  friend class TimerWheel;
  Callback fn_;
  void* context_;
  Instant deadline_;
  TimerWheel* wheel_ = nullptr;
  Timer* next_ = nullptr;
  Timer** pprev_ = nullptr;
  uint16_t slot_ = 0;
};

class TimerWheel {
 public:
  explicit TimerWheel(Instant start);
  ~TimerWheel();
  TimerWheel(const TimerWheel&) = delete;
  TimerWheel& operator=(const TimerWheel&) = delete;

  // Moves the timer where it is pending already. A deadline in the past fires at the next Advance.
  void Schedule(Timer& timer, Instant deadline);
  // Fires all timers due by `now`. A callback may schedule, cancel and destroy any timer, its own included.
  void Advance(Instant now);
  // When Advance has something to do next: an instant at which it makes progress (fires a timer or moves one closer), at most one
  // tick after the earliest deadline, so that a sleeper neither oversleeps nor spins; in the past where a timer is overdue.
  // nullopt where nothing is pending.
  std::optional<Instant> NextDeadline() const;

 private:
  friend class Timer;
  static constexpr int kTickShift = 17;
  static constexpr int kLevels = 6;
  static constexpr int kSlotBits = 6;
  static constexpr int kSlots = 1 << kSlotBits;
  static constexpr uint16_t kUnslotted = 0xffff;  // on due_, far_ or the list that Advance is firing
  static void Push(Timer& timer, Timer** head, uint16_t slot);
  void Link(Timer& timer, Timer** due);
  void Unlink(Timer& timer);
  void Fire(Timer** list);
  // The lowest occupied slot, as the tick at which it begins; false where all levels are empty.
  bool NextSlot(int* level, int* slot, uint64_t* tick) const;

  // All ticks up to this one are done. A timer at level L differs from tick_ first in the L-th group of kSlotBits bits, so a
  // lower level is always due before a higher one, and slots of a level come in order.
  uint64_t tick_;
  uint64_t occupied_[kLevels] = {};
  Timer* slots_[kLevels][kSlots] = {};
  Timer* due_ = nullptr;  // scheduled in the past: fire at the next Advance
  Timer* far_ = nullptr;  // beyond the top level (104 days)
};

}  // namespace sluice
