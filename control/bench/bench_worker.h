// One worker of `sluice bench`: a thread with a queue of each device.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <vector>

#include "control/flags.h"
#include "dataplane/port.h"

namespace sluice {

struct BenchCount {
  uint64_t rx_frames = 0, rx_bytes = 0, tx_frames = 0, tx_bytes = 0, dropped = 0, bursts = 0;
  BenchCount& operator+=(const BenchCount& o);
};

class BenchWorker {
 public:
  BenchWorker(const Flags& flags, const BenchOptions& options) : flags_(flags), options_(options) {}

  // Before Run.
  BlockPool& pool() { return pool_; }
  void AddQueue(std::unique_ptr<Port> queue) { ports_.push_back(std::move(queue)); }
  const Port& queue(size_t device) const { return *ports_[device]; }

  // Until `stop`, or a device is gone, which it says there.
  void Run(const std::atomic<bool>& stop);
  // Any thread: what was done so far, a few bursts old; exact after Run.
  BenchCount count() const;
  bool dead() const { return dead_.load(std::memory_order_relaxed); }

 private:
  static constexpr size_t kBurst = 32;
  static constexpr size_t kMemory = size_t{256} << 20;

  void Turn();
  bool SendBurst(Port& port);
  void WaitForRoom(Port& port);
  bool PassBurst(size_t i);
  void Forward(std::span<Packet> frames, size_t from);
  void Idle();
  void Publish();

  const Flags& flags_;
  const BenchOptions& options_;
  HeapBlockPool pool_{kMemory};
  std::vector<std::unique_ptr<Port>> ports_;
  std::vector<Packet> models_;
  size_t next_model_ = 0;
  std::array<Packet, kBurst> burst_;
  uint32_t idle_turns_ = 0;
  uint64_t dropped_ = 0, bursts_ = 0;
  const std::atomic<bool>* stop_ = nullptr;
  std::atomic<bool> dead_{false};
  // On a cache line of its own: the others read it.
  struct alignas(64) Shown {
    std::atomic<uint64_t> rx_frames{0}, rx_bytes{0}, tx_frames{0}, tx_bytes{0}, dropped{0}, bursts{0};
  } shown_;
};

}  // namespace sluice
