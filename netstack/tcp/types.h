// Names shared by the files of the TCP folder.
#pragma once

#include <cstdint>

#include "base/seq_num.h"
#include "base/time.h"
#include "netstack/ip/address.h"

namespace sluice::tcp {

// RFC 9293 3.3.2, numbered as linux/tcp_states.h.
enum class State : uint8_t {
  kEstablished = 1,
  kSynSent = 2,
  kSynReceived = 3,
  kFinWait1 = 4,
  kFinWait2 = 5,
  kTimeWait = 6,
  kClosed = 7,
  kCloseWait = 8,
  kLastAck = 9,
  kListen = 10,
  kClosing = 11,
};

enum Flag : uint8_t { kFin = 1, kSyn = 2, kRst = 4, kPsh = 8, kAck = 16, kUrg = 32, kEce = 64, kCwr = 128 };

inline constexpr uint32_t kHeaderSize = 20;
inline constexpr uint32_t kMaxHeaderSize = 60;
inline constexpr uint32_t kTimestampOptionSize = 12;  // with two NOPs
inline constexpr uint8_t kMaxWindowScale = 14;
inline constexpr uint32_t kMinMss = 88;  // as Linux TCP_MIN_MSS
inline constexpr uint32_t kMaxSynQueue = 65536;

inline constexpr Duration kTimeWaitLength = Duration::Seconds(60);
inline constexpr Duration kMaxRto = Duration::Seconds(120);
inline constexpr Duration kInitialRto = Duration::Seconds(1);
inline constexpr Duration kMinDelayedAck = Duration::Milliseconds(40);
inline constexpr Duration kMaxDelayedAck = Duration::Milliseconds(200);
// A timestamp that is older by no more is taken (as linux TCP_PAWS_WINDOW); ticks.
inline constexpr int32_t kPawsSlack = 1;
// RFC 7323 5.5: a timestamp older than this proves nothing.
inline constexpr Duration kPawsExpiry = Duration::Seconds(24 * 24 * 3600);

// The clock of the timestamp option: milliseconds (RFC 7323 5.4).
inline uint32_t TimestampClock(Instant t) { return static_cast<uint32_t>(t.ns() / 1000000); }

struct FlowKey {
  IpAddress local, remote;
  uint16_t local_port = 0, remote_port = 0;
  bool operator==(const FlowKey&) const = default;
};

enum class FlowKind : uint8_t { kConnection, kRequest, kTimeWait };

// What the demultiplexer finds by the 4-tuple.
struct FlowEntry {
  explicit FlowEntry(FlowKind k) : kind(k) {}
  FlowKey key;
  uint32_t hash = 0;
  FlowKind kind;
  bool in_table = false;
  bool away = false;  // in the table, and not of this stack by its hash (shard.h)
};

}  // namespace sluice::tcp
