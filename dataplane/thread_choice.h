// How many threads run the workers of a host. A second thread pays where the first has more to do than a core gives it and there
// is a core to spare; where there is none, it competes with the programs that it works for. What is known of cores is what
// threads see: a thread that works all the time has a core; one that is ready to run and does not run has none. So a worker gets
// a thread of its own where the first worker's thread is busy all of its time, and is taken back where all would fit in one
// thread, or where threads wait for cores and two of them get hardly more than one core would give. A thread may work all of its
// time while the programs wait for the other cores: then this is found out by trial, and what was in vain is tried less often.
// Threads come and go one at a time, and each change is judged by what is seen after the last one.
// Pure; each class is of one thread.
#pragma once

#include <stdio.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>

#include "base/time.h"

namespace sluice {

// What a thread did in an epoch, in shares of it.
struct ThreadShare {
  double busy = 0;    // in turns that had work
  double work = 0;    // the same, as far as the thread was on a core: without what it waited, or interrupts took
  double waited = 0;  // ready to run, without a core
};

// The same since the thread began, as far as it is known `at` that time.
struct ThreadTimes {
  Instant at;
  Duration busy, cpu, waited;
};

inline ThreadShare ShareOf(const ThreadTimes& from, const ThreadTimes& to) {
  const auto share = [wall = to.at - from.at](Duration part) {
    return std::max(0.0, static_cast<double>(part.ns()) / static_cast<double>(wall.ns()));
  };
  const Duration busy = to.busy - from.busy;
  return {.busy = share(busy), .work = share(std::min(busy, to.cpu - from.cpu)), .waited = share(to.waited - from.waited)};
}

// Of a line of schedstat in /proc: time on a core, time ready to run without one, how often it ran. A kernel that does not count
// says zeros. The time from a wake-up to a core that is idle is not waiting for one: it was 0.1 to 2 us, thousands of times a
// second.
inline std::optional<Duration> WaitedForCore(const char* schedstat) {
  constexpr int64_t kWakeUp = 2000;
  long long on_core = 0, waited = 0, runs = 0;
  if (sscanf(schedstat, "%lld %lld %lld", &on_core, &waited, &runs) != 3 || runs == 0) return std::nullopt;
  return Duration(waited - runs * kWakeUp);
}

// Of the first worker's thread, which runs others, too.
class SplitChoice {
 public:
  static constexpr Duration kEpoch = Duration::Milliseconds(10);
  static constexpr int kEpochs = 2;                    // of a full thread in a row
  static constexpr double kFull = 0.9, kAlone = 0.05;  // it was busy so much, and no thread waited more
  static constexpr double kPart = 0.1;                 // what is not worth a thread
  static constexpr Duration kFirstHold = Duration::Milliseconds(100), kMaxHold = Duration::Seconds(10);

  // `thread`: with what the thread that waited longest, whichever it is, waited. `parts`: time of each worker that it runs. Which
  // of them is to have a thread of its own: the one that has most to do, where that leaves something for the others.
  std::optional<size_t> EndEpoch(Instant now, const ThreadShare& thread, std::span<const double> parts) {
    full_ = thread.busy >= kFull && thread.waited <= kAlone ? full_ + 1 : 0;
    if (full_ < kEpochs || now < hold_until_ || parts.empty()) return std::nullopt;
    // The first stays, so that it is never the one.
    const auto most = std::max_element(parts.begin() + 1, parts.end());
    if (most == parts.end() || *most < kPart || thread.busy - *most < kPart) return std::nullopt;
    full_ = 0;
    return static_cast<size_t>(most - parts.begin());
  }

  // One that had a thread for so long is back.
  void OnReturn(Instant now, Duration apart, bool in_vain) {
    if (!in_vain || apart > hold_) hold_ = kFirstHold;
    if (!in_vain) return;
    hold_until_ = now + hold_;
    hold_ = std::min(hold_ * 4, kMaxHold);
  }

 private:
  int full_ = 0;
  Duration hold_ = kFirstHold;
  Instant hold_until_;
};

// Of a worker that has a thread of its own: whether the first worker's thread would do for both. What that takes from the two,
// other threads of the group get as far as they wait for cores.
class ReturnChoice {
 public:
  static constexpr Duration kEpoch = Duration::Milliseconds(10);
  static constexpr double kFits = 0.6;      // of a core, for both threads
  static constexpr double kWaits = 0.2;     // of both threads
  static constexpr double kWorthIt = 1.25;  // cores that both get, beyond what others wait for
  static constexpr Duration kLeast = Duration::Milliseconds(20), kCalm = Duration::Milliseconds(100);

  enum class Answer : uint8_t { kStay, kFits, kInVain };

  void Begin(Instant now) { fits_since_ = well_since_ = now; }
  Answer EndEpoch(Instant now, const ThreadShare& own, const ThreadShare& first, double others_waited) {
    const double work = own.work + first.work, waited = own.waited + first.waited;
    if (own.busy + first.busy > kFits) fits_since_ = now;  // as SplitChoice sees them, which would split again
    if (waited < kWaits || work > kWorthIt + others_waited) well_since_ = now;
    if (now - well_since_ >= kLeast) return Answer::kInVain;
    return now - fits_since_ >= kCalm ? Answer::kFits : Answer::kStay;
  }

 private:
  Instant fits_since_, well_since_;
};

}  // namespace sluice
