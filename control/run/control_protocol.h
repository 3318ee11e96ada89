// Records between guard, broker and sentry (SOCK_SEQPACKET). Small, rare, one at a time; the broker believes nothing that the
// sentry says.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "control/flags.h"

namespace sluice::control {

enum class Type : uint32_t {
  // guard -> broker
  kSandbox =
      1,      // descriptors: the sentry's and the keeper's pidfd, by which the broker ends them where the guard dies, and the map
              // of native options' marks where there are any; data: the cookie of the stand-ins' network namespace (uint64_t)
  kProgram,   // descriptor: the pidfd of a program's init
  kListener,  // descriptor: a seccomp listener, to be served; text: the id of its container (empty: `sluice do`)
  // guard -> broker -> sentry
  kSynchronize,  // read the namespace anew and attach what is there; kReady follows
  kDrain,        // the programs ended: let connections finish what they owe
  // sentry -> broker -> guard
  kReady,  // the stack stands, every device is attached
  kFatal,  // text: the sandbox cannot go on
  kDrained,
  kListening,  // data: LoopbackListener[]; the next only after kListeningHeard. For pods
  // sentry -> broker
  kOpenPort,   // number: the device's index
  kClosePort,  // number: the device is gone from the mirror
  // broker -> sentry
  kPort,        // number: the index; data: PortBlob[], one for each queue; descriptors as the kind needs them
  kPortFailed,  // number: the index; text: why
  kSysctls,     // text: key=value lines; all of them
  kListeningHeard,
  kPortFaults,  // number: the index; data: PortFaultCounts, all of them so far
};

struct Header {
  Type type{};
  int32_t number = 0;
};

// A TCP port at which the stack listens for connections to 127.0.0.1, to ::1.
struct LoopbackListener {
  uint16_t port = 0;
  uint8_t v4 = 0, v6 = 0;
};
inline constexpr size_t kMaxLoopbackListeners = 256;

// What the broker sees of a device (DeviceFaults).
struct PortFaultCounts {
  uint64_t queue_changes = 0, xdp_programs_restored = 0;
};

inline constexpr size_t kMaxRecord = 64 << 10;
inline constexpr size_t kMaxFds = 3 * kMaxNetworkChannels;  // of a device: a queue of AF_XDP has three

inline std::vector<uint8_t> Encode(Type type, int32_t number = 0, std::string_view body = {}) {
  const Header header{type, number};
  std::vector<uint8_t> out(sizeof header + body.size());
  std::memcpy(out.data(), &header, sizeof header);
  if (!body.empty()) std::memcpy(out.data() + sizeof header, body.data(), body.size());
  return out;
}

// False where the record is too short to be one.
inline bool Decode(Bytes record, Header* header, std::string_view* body) {
  if (record.size() < sizeof *header) return false;
  std::memcpy(header, record.data(), sizeof *header);
  *body = {reinterpret_cast<const char*>(record.data()) + sizeof *header, record.size() - sizeof *header};
  return true;
}

}  // namespace sluice::control
