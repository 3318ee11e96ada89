#include "base/timer_wheel.h"

#include <bit>

#include "base/check.h"

namespace sluice {

void Timer::Cancel() {
  if (wheel_ != nullptr) wheel_->Unlink(*this);
}

TimerWheel::TimerWheel(Instant start) : tick_(static_cast<uint64_t>(start.ns()) >> kTickShift) {}

TimerWheel::~TimerWheel() {
  // Timers may outlive the wheel: they are told that they are not pending any more.
  auto drop = [this](Timer** head) {
    while (*head != nullptr) Unlink(**head);
  };
  for (auto& level : slots_) {
    for (Timer*& head : level) drop(&head);
  }
  drop(&due_);
  drop(&far_);
}

void TimerWheel::Push(Timer& timer, Timer** head, uint16_t slot) {
  timer.slot_ = slot;
  timer.next_ = *head;
  timer.pprev_ = head;
  if (*head != nullptr) (*head)->pprev_ = &timer.next_;
  *head = &timer;
}

void TimerWheel::Link(Timer& timer, Timer** due) {
  timer.wheel_ = this;
  const int64_t ns = timer.deadline_.ns();
  // Rounded up, so that a timer never fires early.
  uint64_t tick = ns <= 0 ? 0 : static_cast<uint64_t>(ns - 1) / (uint64_t{1} << kTickShift) + 1;
  if (tick <= tick_) return Push(timer, due, kUnslotted);
  const int level = (63 - std::countl_zero(tick ^ tick_)) / kSlotBits;
  if (level >= kLevels) return Push(timer, &far_, kUnslotted);
  const int slot = static_cast<int>(tick >> (level * kSlotBits)) & (kSlots - 1);
  Push(timer, &slots_[level][slot], static_cast<uint16_t>(level * kSlots + slot));
  occupied_[level] |= uint64_t{1} << slot;
}

void TimerWheel::Unlink(Timer& timer) {
  SLUICE_DCHECK(timer.pprev_ != nullptr);
  *timer.pprev_ = timer.next_;
  if (timer.next_ != nullptr) timer.next_->pprev_ = timer.pprev_;
  if (timer.slot_ != kUnslotted) {
    const int level = timer.slot_ / kSlots, slot = timer.slot_ % kSlots;
    if (slots_[level][slot] == nullptr) occupied_[level] &= ~(uint64_t{1} << slot);
  }
  timer.wheel_ = nullptr;
  timer.next_ = nullptr;
  timer.pprev_ = nullptr;
}

void TimerWheel::Schedule(Timer& timer, Instant deadline) {
  if (timer.wheel_ != nullptr) timer.wheel_->Unlink(timer);
  timer.deadline_ = deadline;
  Link(timer, &due_);
}

void TimerWheel::Fire(Timer** list) {
  while (*list != nullptr) {
    Timer& timer = **list;
    Unlink(timer);
    timer.fn_(timer.context_);  // may destroy the timer, and any other on the list
  }
}

bool TimerWheel::NextSlot(int* level, int* slot, uint64_t* tick) const {
  for (int l = 0; l < kLevels; ++l) {
    if (occupied_[l] == 0) continue;
    const int shift = l * kSlotBits;
    *level = l;
    *slot = std::countr_zero(occupied_[l]);
    *tick = ((tick_ >> (shift + kSlotBits)) << (shift + kSlotBits)) | (static_cast<uint64_t>(*slot) << shift);
    return true;
  }
  return false;
}

void TimerWheel::Advance(Instant now) {
  const uint64_t target = static_cast<uint64_t>(now.ns()) >> kTickShift;
  // Lists are moved to a local head before they fire, so that what callbacks schedule in the past waits for the next Advance.
  auto take = [](Timer** from, Timer** to) {
    while (*from != nullptr) {
      Timer& t = **from;
      *from = t.next_;
      if (t.next_ != nullptr) t.next_->pprev_ = from;
      Push(t, to, kUnslotted);
    }
  };
  Timer* ready = nullptr;
  take(&due_, &ready);
  Fire(&ready);
  constexpr uint64_t kTop = uint64_t{1} << (kLevels * kSlotBits);
  for (;;) {
    int level, slot;
    uint64_t tick;
    const uint64_t wrap = (tick_ | (kTop - 1)) + 1;
    if (NextSlot(&level, &slot, &tick)) {
      if (tick > target) break;
      tick_ = tick;
      Timer* moved = nullptr;
      take(&slots_[level][slot], &moved);
      occupied_[level] &= ~(uint64_t{1} << slot);
      while (moved != nullptr) {
        Timer& t = *moved;
        Unlink(t);
        Link(t, &ready);
      }
      Fire(&ready);
    } else if (far_ != nullptr && wrap <= target) {
      tick_ = wrap;
      Timer* moved = nullptr;
      take(&far_, &moved);
      while (moved != nullptr) {
        Timer& t = *moved;
        Unlink(t);
        Link(t, &ready);
      }
      Fire(&ready);
    } else {
      break;
    }
  }
  if (target > tick_) tick_ = target;
}

std::optional<Instant> TimerWheel::NextDeadline() const {
  if (due_ != nullptr) return due_->deadline_;
  int level, slot;
  uint64_t tick;
  if (NextSlot(&level, &slot, &tick)) return Instant(static_cast<int64_t>(tick << kTickShift));
  if (far_ != nullptr) {
    const uint64_t wrap = (tick_ | ((uint64_t{1} << (kLevels * kSlotBits)) - 1)) + 1;
    const uint64_t last = uint64_t{1} << (63 - kTickShift);  // Instant::Max() in ticks
    return wrap >= last ? Instant::Max() : Instant(static_cast<int64_t>(wrap << kTickShift));
  }
  return std::nullopt;
}

}  // namespace sluice
