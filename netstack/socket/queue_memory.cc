#include "netstack/socket/queue_memory.h"

#include <algorithm>

namespace sluice {

size_t QueueMemory::Room(size_t own) const {
  const size_t minimum = own < limits_.minimum ? limits_.minimum - own : 0;
  if (held_ >= limits_.high) return minimum;
  size_t room = limits_.high - held_;
  if (pressure_) {
    const size_t share = limits_.high / std::max<size_t>(sockets_, 1);
    room = std::min(room, share > own ? share - own : 0);
  }
  return std::max(room, minimum);
}

QueueMemory::Limits StreamLimits(size_t bytes) {
  if (bytes == SIZE_MAX) return {};
  // The least is a segment.
  return {.low = bytes / 16 * 5, .pressure = bytes / 16 * 7, .high = bytes / 8 * 5, .minimum = 2048};
}

QueueMemory::Limits DatagramLimits(size_t bytes) {
  if (bytes == SIZE_MAX) return {};
  return {.low = bytes / 32 * 2, .pressure = bytes / 32 * 3, .high = bytes / 8, .minimum = 4096};
}

}  // namespace sluice
