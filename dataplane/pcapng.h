// Blocks of a pcapng file (draft-ietf-opsawg-pcapng) in memory: one section, Ethernet devices, times in nanoseconds.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "netstack/link/frame_tap.h"

namespace sluice {

class PcapngEncoder {
 public:
  struct Frame {
    uint32_t interface = 0;
    FrameTap::Direction direction = FrameTap::Direction::kIn;
    uint64_t time_ns = 0;  // since 1970
    size_t captured = 0, original = 0;
  };

  PcapngEncoder();  // the section header is the first block

  // Bytes of a frame above `snaplen` are left out (0: none are).
  uint32_t AddInterface(std::string_view name, uint32_t snaplen);
  // Where the caller puts the `captured` bytes; valid until the next call.
  MutableBytes AddFrame(const Frame& frame);
  void AddStatistics(uint32_t interface, uint64_t time_ns, uint64_t received, uint64_t dropped);

  // What was added and not taken yet; the caller writes and clears it.
  std::vector<uint8_t>& bytes() { return bytes_; }

 private:
  void Append(const void* data, size_t size);
  void Append32(uint32_t v) { Append(&v, sizeof v); }
  void AppendTime(uint64_t time_ns);
  void AppendOption(uint16_t code, const void* data, size_t size);
  void AppendCount(uint16_t code, uint64_t count) { AppendOption(code, &count, sizeof count); }

  std::vector<uint8_t> bytes_;
  uint32_t interfaces_ = 0;
};

}  // namespace sluice
