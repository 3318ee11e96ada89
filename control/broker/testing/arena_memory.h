// The memory of a program that does not exist: one mapped stretch, whose bytes the test chooses, and a record of what may be
// written.
#pragma once

#include <vector>

#include "control/broker/call_reader.h"

namespace sluice {

class ArenaMemory final : public CallerMemory {
 public:
  static constexpr uint64_t kBase = 0x10000;
  static constexpr size_t kSize = 0x8000;

  ArenaMemory() : bytes_(kSize) {}
  void Fill(Bytes image);                         // from the start
  void PutAddress(size_t offset, size_t target);  // an address within the arena, at an offset of it (both modulo the size)
  // From now on writes may go where the call wants its results; any other aborts the test.
  void Allow(const PendingCall& pending);
  uint8_t* at(uint64_t address) { return &bytes_[address - kBase]; }

  size_t Gather(std::span<const RemoteRange> ranges, MutableBytes out) override;
  size_t Scatter(std::span<const RemoteRange> ranges, Bytes data) override;

 private:
  static size_t Mapped(const RemoteRange& range, size_t wanted);
  bool Allowed(uint64_t address, size_t length) const;

  std::vector<uint8_t> bytes_;
  std::vector<RemoteRange> allowed_;
};

}  // namespace sluice
