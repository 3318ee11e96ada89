// The admin socket of a sandbox. A request is one line: a word and, where it has options, a space and a JSON object. The answer
// is a line with one JSON object, which names the protocol (below) or has "error"; then the connection ends, but after "capture",
// where records follow until the front end has closed its half and the sentry has sent what it had.
//
// Sentries live on when the program is replaced, so a front end meets older and newer ones: what is added to an answer changes
// nothing; what is taken away or means something else takes a new number, and the front end refuses numbers it does not know.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sluice {

inline constexpr int kAdminProtocol = 1;
inline constexpr size_t kMaxAdminRequest = 4096;

enum class CaptureKind : uint32_t {
  kInterface = 1,  // data: its name; comes before its first frame
  kFrame,
  kDropped,  // value: frames of this interface so far that had no room
};

// Each with `captured` bytes behind it.
struct CaptureRecord {
  CaptureKind kind{};
  int32_t ifindex = 0;
  uint64_t value = 0;  // of a frame: nanoseconds since 1970
  uint32_t captured = 0, original = 0;
  uint32_t direction = 0;  // FrameTap::Direction
  uint32_t reserved = 0;
};
static_assert(sizeof(CaptureRecord) == 32);

// A frame and the name of an interface are no longer.
inline constexpr uint32_t kMaxCaptured = 256 << 10;

}  // namespace sluice
