// Memory of a process that made a notified call. Thread ids as the broker's pid namespace names them. The bytes may change at any
// moment (other threads of the program): everything is copied once and judged on the copy. The caller checks with ID_VALID
// afterwards that the thread was still the one that was meant.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/bytes.h"

namespace sluice {

// Where a process keeps a buffer.
struct RemoteRange {
  uint64_t address = 0;
  uint64_t length = 0;
};

// All or nothing; false: a fault.
bool ReadMemory(pid_t tid, uint64_t address, MutableBytes out);
bool WriteMemory(pid_t tid, uint64_t address, Bytes data);

// Gathers the front of `ranges` until `out` is full; returns the bytes copied, less than possible where a fault came.
size_t GatherMemory(pid_t tid, std::span<const RemoteRange> ranges, MutableBytes out);
// Scatters `data` over the front of `ranges`; true where all of it was written.
bool ScatterMemory(pid_t tid, std::span<const RemoteRange> ranges, Bytes data);

template <typename T>
bool ReadObject(pid_t tid, uint64_t address, T* out) {
  return ReadMemory(tid, address, {reinterpret_cast<uint8_t*>(out), sizeof *out});
}
template <typename T>
bool WriteObject(pid_t tid, uint64_t address, const T& value) {
  return WriteMemory(tid, address, {reinterpret_cast<const uint8_t*>(&value), sizeof value});
}

}  // namespace sluice
