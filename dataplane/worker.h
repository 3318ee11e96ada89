// A worker: one stack shard, its ports and descriptors, run to completion by one thread at a time:
// receive burst -> stack input -> timers -> descriptor events -> tasks -> flush; then spin a little, then sleep in epoll.
// A thread can run several (Carry): all their turns, one after the other, and one sleep.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/errno.h"
#include "dataplane/port.h"
#include "netstack/stack.h"

namespace sluice {

enum class PollMode : uint8_t { kAdaptive, kBusy, kInterrupt };

struct WorkerOptions {
  PollMode poll = PollMode::kAdaptive;
  // How long to spin after the last event before sleeping, where events were coming that often; zero or less: three times what a
  // wake-up costs, measured at start.
  Duration spin{0};
  int cpu = -1;                // pin to this core, or -1
  bool force_timerfd = false;  // sleep as on kernels without epoll_pwait2 (before 5.11)
  // A port was found dead and removed. Worker's thread.
  std::function<void(IfIndex ifindex, std::string_view kind)> on_port_dead;
};

// What waking a sleeping thread on another core costs here: the median of a few eventfd round trips between two cores, halved.
// Takes a millisecond or two. Makes a thread: call it before a filter forbids that. 20 us where it cannot be measured.
Duration MeasureWakeCost();

class FdHandler {
 public:
  virtual ~FdHandler() = default;
  // epoll events of the descriptor. May add and remove descriptors, its own included.
  virtual void OnFdEvents(uint32_t epoll_events) = 0;
};

// Work that is due once per turn after input and descriptor events, e.g. sockets marked dirty by their observers.
class TurnTask {
 public:
  virtual ~TurnTask() = default;
  // Returns true where it did something (the turn counts as busy).
  virtual bool OnTurn() = 0;
  // Work came up since OnTurn (Stack::Flush delivered looped-back packets to sockets, say): the worker must not sleep, but turn
  // again.
  virtual bool HasWork() const { return false; }
};

struct WorkerStats {
  uint64_t turns = 0, busy_turns = 0, sleeps = 0, wakeups = 0;
  uint64_t spin_ns = 0, sleep_ns = 0;  // spin_ns: turns that found nothing to do
  bool own_thread = true;              // not that of another worker
  uint64_t preempted_spins = 0;        // spins that ended because somebody else ran on the core
  Duration wake_cost{0};               // measured where the spin follows from it
  Duration spin_limit{0};              // how long an adaptive worker spins, where it does
  bool spins = false;                  // what the last trial found (adaptive); always (busy), never (interrupt)
  PollMode poll = PollMode::kAdaptive;
};

class Worker {
 public:
  Worker(const WorkerOptions& options, Stack& stack);
  ~Worker();

  // Worker's own thread (or before Run) only:
  void AddPort(std::unique_ptr<Port> port);  // attaches it to the stack
  void RemovePort(IfIndex ifindex);
  Errno AddFd(int fd, uint32_t epoll_events, FdHandler* handler);  // level-triggered unless EPOLLET is given
  Errno ModifyFd(int fd, uint32_t epoll_events);
  void RemoveFd(int fd);
  // As RemoveFd, of one that is closed next: the kernel takes that out by itself.
  void ForgetFd(int fd);
  void AddTask(TurnTask* task);
  void RemoveTask(TurnTask* task);
  const std::vector<std::unique_ptr<Port>>& ports() const { return ports_; }
  WorkerStats stats() const;
  Stack& stack() { return stack_; }

  // Any thread: runs `work` on the worker's thread at its next turn. Control plane only (allocates, takes a lock).
  void Post(std::function<void()> work);
  // Worker's thread, not within such work: runs what was posted by now.
  void RunPosted();
  // Any thread, after it put something where one of the worker's tasks looks: there will be a turn. Costs no system call while
  // the thread that runs the worker does not sleep.
  void Wake();
  // Any thread or signal handler.
  void Stop();

  // Returns after Stop or Leave. Reads CLOCK_MONOTONIC.
  void Run();
  // What Run does first, once in the thread that will call it, where that may not be done later (a seccomp filter).
  void PrepareThread();
  // Worker's thread: Run returns at the end of this turn.
  void Leave();
  // Before Run: this worker's thread will be able to run `other`, too. False where the kernel has no room for that.
  [[nodiscard]] bool Adopt(Worker& other);
  // Worker's thread, within a turn: its thread runs `other`, too, which nobody else runs now, until Release. Its turns follow
  // those of this worker; its descriptors wake the thread where it was adopted. The spinning and sleeping of the thread are this
  // worker's.
  void Carry(Worker& other);
  void Release(Worker& other);
  // Worker's thread: when the turn began that it is in.
  Instant turn_began() const;
  // Any thread: time spent in turns that had work, whichever thread had them.
  Duration busy_time() const;
  // The same, in turns that Run of this worker had: its own, and those of whom it carried then.
  Duration thread_busy_time() const;
  // One turn without sleeping (tests, library use).
  bool RunOnce();

 private:
  class Impl;
  Stack& stack_;
  std::vector<std::unique_ptr<Port>> ports_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice
