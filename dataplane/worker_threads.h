// The threads of a group's workers. The first worker has the thread that calls Run. Each other one has a thread that waits while
// the first worker's thread runs that worker, and is handed over between two turns, by whoever runs it: the first one's thread
// gives it away (SplitChoice), its own gives it back (ReturnChoice). What a worker owns changes its thread with it.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <functional>
#include <latch>
#include <memory>
#include <span>
#include <vector>

#include "dataplane/thread_choice.h"
#include "dataplane/worker.h"
#include "netstack/shard.h"
#include "xdp/unique_fd.h"

namespace sluice {

// Which threads run the workers of a group.
enum class Threads : uint8_t {
  kAuto,      // as it pays; each its own where they poll busily, one where all are pinned to the same core
  kTogether,  // one
  kApart,     // one each
  kRestless,  // for tests: workers change between both all the time
};

class WorkerThreads {
 public:
  WorkerThreads(std::vector<Worker*> workers, Threads threads);
  ~WorkerThreads();

  void Run();
  // As of WorkerGroup.
  void Ask(ShardSet whom, const std::function<void(uint32_t)>& work);
  void RunPosted(uint32_t i);
  uint64_t handovers(uint32_t i) const;

 private:
  enum State : uint32_t { kCarried, kApart, kOver };
  class Watch;
  struct Seat;
  uint32_t size() const { return static_cast<uint32_t>(seats_.size()); }

  void Begin(Seat& seat);
  void Live(uint32_t i);
  ThreadTimes Read(uint32_t i, Instant now) const;
  bool Look(uint32_t i, Instant now, std::span<ThreadShare> shares);
  void LookAtFirst(Instant now);
  void LookAtOwn(uint32_t i, Instant now);
  void GiveAway(uint32_t i, Instant now);
  void TakeBack(Instant now);

  const Threads threads_;
  std::vector<std::unique_ptr<Seat>> seats_;
  std::latch begun_;
  std::atomic<ShardSet> back_{0};     // given back, and not yet taken
  std::atomic<bool> leaving_{false};  // one has decided to go back
  std::atomic<uint32_t> changes_{0};  // hand-overs
  std::atomic<uint32_t> signal_{0};   // of what the first worker's thread waits for in Ask
  bool running_ = false;              // the first worker's thread
  SplitChoice split_;                 // the first worker's thread
};

}  // namespace sluice
