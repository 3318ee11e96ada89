// Memory of a process that made a notified call. The bytes may change at any moment (other threads of the program): everything is
// copied once and judged on the copy. The caller checks with ID_VALID afterwards that the thread was still the one that was
// meant.
#pragma once

#include <sys/types.h>

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

// Bytes that go to one place.
struct RemoteWrite {
  uint64_t address = 0;
  Bytes data;
};

class CallerMemory {
 public:
  virtual ~CallerMemory() = default;
  // Gathers the front of `ranges` until `out` is full; returns the bytes copied, less than possible where a fault came.
  virtual size_t Gather(std::span<const RemoteRange> ranges, MutableBytes out) = 0;
  // Scatters `data` over the front of `ranges`; returns the bytes written, less than possible where a fault came.
  virtual size_t Scatter(std::span<const RemoteRange> ranges, Bytes data) = 0;
  // Writes one after the other up to the first fault: false where there was one.
  virtual bool WriteAll(std::span<const RemoteWrite> writes);

  // False: a fault.
  bool Read(uint64_t address, MutableBytes out);
  bool Write(uint64_t address, Bytes data);
};

// A thread as the broker's pid namespace names it. Needs CAP_SYS_PTRACE over it.
class ThreadMemory final : public CallerMemory {
 public:
  explicit ThreadMemory(pid_t tid) : tid_(tid) {}
  size_t Gather(std::span<const RemoteRange> ranges, MutableBytes out) override;
  size_t Scatter(std::span<const RemoteRange> ranges, Bytes data) override;
  bool WriteAll(std::span<const RemoteWrite> writes) override;

 private:
  pid_t tid_;
};

template <typename T>
bool ReadObject(CallerMemory& memory, uint64_t address, T* out) {
  return memory.Read(address, {reinterpret_cast<uint8_t*>(out), sizeof *out});
}
template <typename T>
bool WriteObject(CallerMemory& memory, uint64_t address, const T& value) {
  return memory.Write(address, {reinterpret_cast<const uint8_t*>(&value), sizeof value});
}

}  // namespace sluice
