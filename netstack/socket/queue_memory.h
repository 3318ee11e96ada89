// What the queues of all sockets of one kind hold together, and what follows from it, as Linux's tcp_mem and udp_mem have it
// (__sk_mem_raise_allocated): below `low` queues grow as they like; once `pressure` is passed, and until it is `low` again,
// windows and buffers do not grow and nobody gets more than its share; `high` is the end for all but the little that each may
// have.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/check.h"

namespace sluice {

class QueueMemory {
 public:
  struct Limits {  // bytes
    size_t low = SIZE_MAX, pressure = SIZE_MAX, high = SIZE_MAX;
    size_t minimum = 0;  // what a queue may hold whatever the others do, so that every socket makes progress
  };

  explicit QueueMemory(const Limits& limits) : limits_(limits) {}
  QueueMemory(const QueueMemory&) = delete;
  QueueMemory& operator=(const QueueMemory&) = delete;

  void Add(size_t bytes) {
    held_ += bytes;
    if (held_ > limits_.pressure) pressure_ = true;
  }
  void Remove(size_t bytes) {
    SLUICE_DCHECK(bytes <= held_);
    held_ -= bytes;
    if (held_ <= limits_.low) pressure_ = false;
  }
  void AddSocket() { ++sockets_; }
  void RemoveSocket() { --sockets_; }

  size_t held() const { return held_; }
  const Limits& limits() const { return limits_; }
  bool pressure() const { return pressure_; }
  // Even the little that each may have is too much: nothing new begins.
  bool exhausted() const { return held_ > limits_.high && held_ - limits_.high > limits_.high / 8; }
  bool MayGrow() const { return !pressure_ && held_ <= limits_.low; }
  // How much a socket whose queues hold `own` may add.
  size_t Room(size_t own) const;

 private:
  const Limits limits_;
  size_t held_ = 0;
  size_t sockets_ = 0;
  bool pressure_ = false;
};

// The limits of a stack whose packets come from a pool of `bytes`: TCP, and the others. What is left is for frames on their way
// and for fragments.
QueueMemory::Limits StreamLimits(size_t bytes);
QueueMemory::Limits DatagramLimits(size_t bytes);

}  // namespace sluice
