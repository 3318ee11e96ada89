// Several workers that are one host (or one that is): a stack, a pool of memory and a queue of every device each, and as many
// threads as pay (thread_choice.h).
// docs/library.md shows how it goes together; netstack/shard.h says what belongs to which stack.
//
//   WorkerGroup group({.workers = 2});
//   ... open a device with group.size() queues, steered by group.key(), queue i with group.pool(i)
//   group.AddQueues(std::move(queues));
//   group.ApplyConfig(config);
//   for (uint32_t i = 0; i < group.size(); ++i) ... sockets and tasks on group.worker(i), each the same
//   group.Run();
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "dataplane/shard_mail.h"
#include "dataplane/system.h"
#include "dataplane/worker.h"
#include "dataplane/worker_threads.h"

namespace sluice {

struct WorkerGroupOptions {
  uint32_t workers = 1;  // at most ShardPeers::kMax
  Threads threads = Threads::kAuto;
  WorkerOptions worker;                   // of each; on_port_dead is called in the thread of the port's worker
  size_t pool_bytes = size_t{256} << 20;  // of each
  bool gro = true;
  QdiscOptions qdisc;             // of each device; each worker has its share of the rate and the burst of a tbf
  bool ports_have_homes = false;  // netstack/shard.h
  // By which flows belong to workers. Hosts that have the same number of workers and the same key, and joined by ports that keep
  // it, have both ends of a flow in workers of the same number. Unset: random, so that a peer cannot choose the worker.
  std::optional<wire::SteeringKey> key;
};

class WorkerGroup {
 public:
  explicit WorkerGroup(const WorkerGroupOptions& options);
  // Not while it runs. Sockets are closed before.
  ~WorkerGroup();

  uint32_t size() const { return static_cast<uint32_t>(shards_.size()); }
  const wire::SteeringKey& key() const { return key_; }
  // A worker and what is its own: before Run, or in the thread that runs it.
  Worker& worker(uint32_t i) { return shards_[i]->worker; }
  Stack& stack(uint32_t i) { return shards_[i]->stack; }
  BlockPool& pool(uint32_t i) { return shards_[i]->pool; }
  // nullptr where there is one worker.
  ShardMailbox* mail(uint32_t i) const { return shards_[i]->mail.get(); }

  // The queues of one device, one for each worker. Any thread; each worker takes its own at its next turn, before Run at once.
  void AddQueues(std::vector<std::unique_ptr<Port>> queues);
  void RemoveQueues(IfIndex ifindex);
  // Any thread; each worker takes it at its next turn. Before Run it acts at once.
  void ApplyConfig(std::shared_ptr<const NetConfig> config);

  // Any thread: `work` in the thread of each worker at its next turn, and then `done`, in the thread of the last. Before Run at
  // once.
  void PostToAll(std::function<void(uint32_t)> work, std::function<void()> done = {});

  // The first worker's thread, within a turn: `work` for each of `whom`, by whichever thread runs it, behind all that was posted
  // to it before; returns when it is done. The first one is not asked, and never are two at a time.
  void Ask(ShardSet whom, const std::function<void(uint32_t)>& work);

  // The same: where that thread runs worker `i` (not the first), what was posted to it by now is done when this returns.
  void RunPosted(uint32_t i) { threads_->RunPosted(i); }

  // Any thread: how often worker `i` went from the first worker's thread to one of its own or back.
  uint64_t handovers(uint32_t i) const { return threads_->handovers(i); }

  // The first worker runs in the calling thread. Returns after Stop; all threads that it made have ended then. No turn comes
  // before these have done what a thread does once, at its start.
  void Run();
  // Any thread or signal handler.
  void Stop();

 private:
  void Do(uint32_t i, std::function<void()> work);

  struct Shard {
    Shard(const WorkerGroupOptions& options)
        : pool(options.pool_bytes), stack(MonotonicNow(), rng, pool), worker(options.worker, stack) {}
    HeapBlockPool pool;
    SystemRng rng;
    Stack stack;
    Worker worker;
    std::unique_ptr<ShardMailbox> mail;
  };

  const bool gro_;
  const QdiscOptions qdisc_;
  wire::SteeringKey key_;
  std::unique_ptr<ShardHub> hub_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::unique_ptr<WorkerThreads> threads_;
  std::atomic<bool> running_{false};
};

}  // namespace sluice
