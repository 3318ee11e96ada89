// What the programs of one container use of a sandbox that several containers may share, and the bounds that keep one of them
// from using up what all need.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace sluice {

struct ContainerUse {
  std::string id;  // empty: `sluice do`
  size_t sockets = 0;
  size_t held_bytes = 0;         // of calls that wait
  uint64_t refused_sockets = 0;  // socket() that failed, and the times that a connection had to wait for room
  uint64_t refused_calls = 0;
};

// Three times as many as are free: a container that is alone gets three quarters, and however many take all they can, there is
// something left for the next one.
constexpr size_t FairShare(size_t most, size_t used_by_all) { return 3 * (most - std::min(most, used_by_all)); }

// A socket's count in its container's use.
class SocketCount {
 public:
  SocketCount() = default;
  explicit SocketCount(std::shared_ptr<ContainerUse> use) : use_(std::move(use)) {
    if (use_) ++use_->sockets;
  }
  ~SocketCount() {
    if (use_) --use_->sockets;
  }
  SocketCount(SocketCount&& other) noexcept : use_(std::move(other.use_)) {}
  SocketCount& operator=(SocketCount&& other) noexcept {
    std::swap(use_, other.use_);
    return *this;
  }
  const std::shared_ptr<ContainerUse>& use() const { return use_; }

 private:
  std::shared_ptr<ContainerUse> use_;
};

}  // namespace sluice
