// What the engines of one sandbox share (call_engine.h): the first worker's, which hears the broker, and one for each other
// worker. docs/architecture.md, "Several workers".
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "dataplane/worker_group.h"
#include "sentry/call_server.h"
#include "sentry/container_use.h"
#include "xdp/native_options.h"

namespace sluice {

class CallEngine;

class CallHub {
 public:
  CallHub(WorkerGroup& group, const CallServer::Options& options);
  ~CallHub();

  uint32_t size() const { return group_.size(); }
  ShardMailbox* mail(uint32_t i) const { return group_.mail(i); }
  CallEngine& engine(uint32_t i) { return *engines_[i]; }
  const CallServer::Options& options() const { return options_; }
  SandboxUse& use() { return use_; }

  // Any worker: `work` in the thread of engine `to`, behind all that was posted to it before.
  void Post(uint32_t to, std::function<void(CallEngine&)> work);
  // The first worker: as Post, and where its own thread runs that of `to`, it is done when this returns. Nothing waits for a turn
  // then that could be had in this one.
  void Hand(uint32_t to, std::function<void(CallEngine&)> work);
  // The first worker: `work` in the thread of every other one.
  void PostToOthers(const std::function<void(CallEngine&)>& work);
  // As PostToOthers, and returns when all have done it. For what is rare: the first worker, which is `asker`, waits meanwhile.
  // Only it ever waits.
  void AskOthers(const CallEngine& asker, const std::function<void(CallEngine&)>& work);

  // As AskOthers, of one that is not the first.
  void Ask(uint32_t to, const std::function<void(CallEngine&)>& work);

  // The front: which worker the next active open goes to.
  uint32_t NextWorker() { return next_worker_++ % size(); }
  // The same of datagram sockets, by a count of their own: programs make one and the other by turns.
  uint32_t NextDatagramWorker() { return next_datagram_worker_++ % size(); }
  uint32_t PortHome(uint16_t port) const { return ShardPeers::PortHome(port, size()); }

  // The engine `waiter` is to hear (OnRoom) when a socket has gone. Look once more after this.
  void WaitForRoom(uint32_t waiter) { waiting_.fetch_or(ShardSet{1} << waiter); }
  void TellOfRoom();

  // Slots of native options: marked by any worker, each of its own sockets; what was posted is heard by the first one.
  uint32_t AddOptionSlot(uint32_t owner, int socket, NativeOptions::Kind kind);
  // For a socket that the broker marks.
  sluice_mark ReserveOptionSlot(uint32_t owner, NativeOptions::Kind kind);
  void RemoveOptionSlot(uint32_t slot);
  void SetSlotOwner(uint32_t slot, uint32_t owner) { slot_owners_[slot].store(static_cast<uint8_t>(owner)); }
  uint32_t SlotOwner(uint32_t slot) const { return slot_owners_[slot].load(); }

 private:
  std::unique_lock<std::mutex> LockOptions();

  WorkerGroup& group_;
  const CallServer::Options options_;
  SandboxUse use_;
  std::atomic<ShardSet> waiting_{0};
  uint32_t next_worker_ = 0, next_datagram_worker_ = 0;
  std::mutex options_mutex_;  // unused where there is one worker
  std::unique_ptr<std::atomic<uint8_t>[]> slot_owners_;
  std::vector<std::unique_ptr<CallEngine>> engines_;
};

}  // namespace sluice
