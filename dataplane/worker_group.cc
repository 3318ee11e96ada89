#include "dataplane/worker_group.h"

#include "base/check.h"
#include "dataplane/gro_port.h"
#include "dataplane/qdisc_port.h"
#include "dataplane/steered_port.h"

namespace sluice {

namespace {

Threads HowToRun(const WorkerGroupOptions& options) {
  if (options.threads != Threads::kAuto) return options.threads;
  if (options.worker.cpu >= 0) return Threads::kTogether;
  return options.worker.poll == PollMode::kBusy ? Threads::kApart : Threads::kAuto;
}

}  // namespace

WorkerGroup::WorkerGroup(const WorkerGroupOptions& options) : gro_(options.gro), qdisc_(options.qdisc.Share(options.workers)) {
  SLUICE_CHECK(options.workers >= 1 && options.workers <= ShardPeers::kMax);
  SystemRng rng;
  key_ = options.key ? *options.key : wire::NewSteeringKey(rng);
  if (options.workers > 1) hub_ = std::make_unique<ShardHub>(options.workers, key_, options.ports_have_homes);
  for (uint32_t i = 0; i < options.workers; ++i) {
    shards_.push_back(std::make_unique<Shard>(options));
    Shard& shard = *shards_.back();
    if (options.workers > 1) shard.mail = std::make_unique<ShardMailbox>(*hub_, i, shard.worker, shard.pool);
  }
  std::vector<Worker*> workers;
  for (const auto& shard : shards_) workers.push_back(&shard->worker);
  threads_ = std::make_unique<WorkerThreads>(std::move(workers), HowToRun(options));
}

WorkerGroup::~WorkerGroup() { SLUICE_CHECK(!running_); }

// Before Run there is one thread.
void WorkerGroup::Do(uint32_t i, std::function<void()> work) {
  if (!running_) return work();
  shards_[i]->worker.Post(std::move(work));
}

void WorkerGroup::AddQueues(std::vector<std::unique_ptr<Port>> queues) {
  SLUICE_CHECK(queues.size() == shards_.size());
  for (uint32_t i = 0; i < size(); ++i) {
    std::unique_ptr<Port> port = std::move(queues[i]);
    if (shards_[i]->mail != nullptr) port = std::make_unique<SteeredPort>(std::move(port), *shards_[i]->mail);
    if (gro_) port = std::make_unique<GroPort>(std::move(port));
    port = WithQdisc(std::move(port), qdisc_, shards_[i]->pool);
    // A shared_ptr, because std::function has to be copyable.
    Do(i, [this, i, holder = std::make_shared<std::unique_ptr<Port>>(std::move(port))] {
      shards_[i]->worker.AddPort(std::move(*holder));
    });
  }
}

void WorkerGroup::RemoveQueues(IfIndex ifindex) {
  for (uint32_t i = 0; i < size(); ++i) Do(i, [this, i, ifindex] { shards_[i]->worker.RemovePort(ifindex); });
}

void WorkerGroup::ApplyConfig(std::shared_ptr<const NetConfig> config) {
  PostToAll([this, config](uint32_t i) { shards_[i]->stack.ApplyConfig(config); });
}

void WorkerGroup::PostToAll(std::function<void(uint32_t)> work, std::function<void()> done) {
  auto left = std::make_shared<std::atomic<uint32_t>>(size());
  // The first one last: what it asks of the others over this is behind it there.
  for (uint32_t i = size(); i-- > 0;) {
    Do(i, [i, work, done, left] {
      work(i);
      if (left->fetch_sub(1) == 1 && done) done();
    });
  }
}

void WorkerGroup::Ask(ShardSet whom, const std::function<void(uint32_t)>& work) { threads_->Ask(whom, work); }

void WorkerGroup::Run() {
  running_ = true;
  threads_->Run();
  running_ = false;
}

void WorkerGroup::Stop() {
  for (const auto& shard : shards_) shard->worker.Stop();
}

}  // namespace sluice
