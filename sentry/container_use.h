// What the programs of one container use of a sandbox that several containers may share, and the bounds that keep one of them
// from using up what all need.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

namespace sluice {

// Written by the workers, each for its own sockets; read at any time.
struct ContainerUse {
  std::string id;  // empty: `sluice do`
  std::atomic<size_t> sockets = 0;
  std::atomic<size_t> held_bytes = 0;         // of calls that wait
  std::atomic<uint64_t> refused_sockets = 0;  // socket() that failed, and the times that a connection had to wait for room
  std::atomic<uint64_t> refused_calls = 0;
};

// Three times as many as are free: a container that is alone gets three quarters, and however many take all they can, there is
// something left for the next one.
constexpr size_t FairShare(size_t most, size_t used_by_all) { return 3 * (most - std::min(most, used_by_all)); }

class SandboxUse;

// A socket's count in what its container and the sandbox use. False: nothing is counted.
class SocketCount {
 public:
  SocketCount() = default;
  ~SocketCount();
  SocketCount(SocketCount&& other) noexcept : all_(other.all_), use_(std::move(other.use_)) {}
  SocketCount& operator=(SocketCount&& other) noexcept {
    std::swap(all_, other.all_);
    std::swap(use_, other.use_);
    return *this;
  }
  explicit operator bool() const { return use_ != nullptr; }
  const std::shared_ptr<ContainerUse>& use() const { return use_; }

 private:
  friend class SandboxUse;
  SocketCount(SandboxUse* all, std::shared_ptr<ContainerUse> use) : all_(all), use_(std::move(use)) {}

  SandboxUse* all_ = nullptr;
  std::shared_ptr<ContainerUse> use_;
};

// The sockets of a sandbox, whichever worker has them.
class SandboxUse {
 public:
  // `most`: of all. `container_most`: of one container; 0: FairShare, which holds in any case. `shared`: several threads ask.
  SandboxUse(size_t most, size_t container_most, bool shared) : most_(most), container_most_(container_most), shared_(shared) {}

  // Counts one more socket; false where the container has as many as it may.
  SocketCount Take(const std::shared_ptr<ContainerUse>& use) {
    const auto lock = Lock();
    const size_t share = FairShare(most_, used_);
    if (use->sockets >= (container_most_ == 0 ? share : std::min(share, container_most_))) return {};
    ++used_;
    ++use->sockets;
    return {this, use};
  }

 private:
  friend class SocketCount;
  std::unique_lock<std::mutex> Lock() { return shared_ ? std::unique_lock(mutex_) : std::unique_lock<std::mutex>(); }
  void Return(ContainerUse& use) {
    const auto lock = Lock();
    --used_;
    --use.sockets;
  }

  const size_t most_, container_most_;
  const bool shared_;
  std::mutex mutex_;
  size_t used_ = 0;
};

inline SocketCount::~SocketCount() {
  if (use_) all_->Return(*use_);
}

}  // namespace sluice
