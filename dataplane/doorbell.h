// Wakes a thread that sleeps in poll or epoll. Ringing costs no system call while the thread does not sleep.
//
// The sleeper: WillSleep(), then a last look at what is rung for, then the wait on fd(); Awake() before it looks again. The
// ringer first publishes what it has, then rings.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

#include "base/check.h"
#include "xdp/unique_fd.h"

namespace sluice {

class Doorbell {
 public:
  Doorbell() : fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) { SLUICE_CHECK(fd_); }

  // Any thread.
  void Ring() {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (!sleeping_.load(std::memory_order_relaxed) || !sleeping_.exchange(false)) return;
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(fd_.get(), &one, sizeof one);
  }

  // The sleeper's thread.
  int fd() const { return fd_.get(); }  // readable when rung
  void WillSleep() {
    armed_ = true;
    sleeping_.store(true, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }
  void Awake() {
    if (!armed_) return;
    armed_ = false;
    sleeping_.store(false, std::memory_order_relaxed);
    // A ringer's write that comes later makes one wait return at once.
    uint64_t value;
    [[maybe_unused]] const ssize_t n = read(fd_.get(), &value, sizeof value);
  }

 private:
  UniqueFd fd_;
  alignas(64) std::atomic<bool> sleeping_{false};
  alignas(64) bool armed_ = false;
};

}  // namespace sluice
