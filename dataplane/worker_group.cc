#include "dataplane/worker_group.h"

#include <thread>

#include "base/check.h"
#include "dataplane/gro_port.h"
#include "dataplane/qdisc_port.h"
#include "dataplane/steered_port.h"

namespace sluice {

WorkerGroup::WorkerGroup(const WorkerGroupOptions& options) : gro_(options.gro), qdisc_(options.qdisc.Share(options.workers)) {
  SLUICE_CHECK(options.workers >= 1 && options.workers <= ShardPeers::kMax);
  SystemRng rng;
  key_ = options.key ? *options.key : wire::NewSteeringKey(rng);
  hub_ = std::make_unique<ShardHub>(options.workers, key_);
  for (uint32_t i = 0; i < options.workers; ++i) {
    shards_.push_back(std::make_unique<Shard>(options));
    Shard& shard = *shards_.back();
    if (options.workers > 1) shard.mail = std::make_unique<ShardMailbox>(*hub_, i, shard.worker, shard.pool);
  }
}

WorkerGroup::~WorkerGroup() { SLUICE_CHECK(!running_); }

void WorkerGroup::AddQueues(std::vector<std::unique_ptr<Port>> queues) {
  SLUICE_CHECK(queues.size() == shards_.size() && !running_);
  for (uint32_t i = 0; i < size(); ++i) {
    std::unique_ptr<Port> port = std::move(queues[i]);
    if (shards_[i]->mail != nullptr) port = std::make_unique<SteeredPort>(std::move(port), *shards_[i]->mail);
    if (gro_) port = std::make_unique<GroPort>(std::move(port));
    shards_[i]->worker.AddPort(WithQdisc(std::move(port), qdisc_, shards_[i]->pool));
  }
}

void WorkerGroup::ApplyConfig(std::shared_ptr<const NetConfig> config) {
  for (const auto& shard : shards_) {
    Stack& stack = shard->stack;
    if (running_) {
      shard->worker.Post([&stack, config] { stack.ApplyConfig(config); });
    } else {
      stack.ApplyConfig(config);
    }
  }
}

void WorkerGroup::Run() {
  running_ = true;
  std::vector<std::thread> threads;
  for (uint32_t i = 1; i < size(); ++i) threads.emplace_back([worker = &shards_[i]->worker] { worker->Run(); });
  shards_[0]->worker.Run();
  for (std::thread& thread : threads) thread.join();
  running_ = false;
}

void WorkerGroup::Stop() {
  for (const auto& shard : shards_) shard->worker.Stop();
}

}  // namespace sluice
