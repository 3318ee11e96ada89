// Queueing disciplines (`--qdisc`): what happens between the stack's output and a device's queue. One thread: the worker's.
//
//   none  nothing waits: what the device does not take at once is dropped
//   fifo  waits in the stack's queue of the device (its txqueuelen), in order; there is no Qdisc for it, nor for none
//   fq    flows take turns, and each frame leaves at its departure (Packet::departure), which TCP paces by
//   tbf   a token bucket: never more than rate * t + burst bytes in any time t
//
// Bytes are those on the wire, Ethernet header included: a super-segment counts with the headers of all of its segments.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "base/time.h"
#include "netstack/packet.h"

namespace sluice {

enum class QdiscKind : uint8_t { kNone, kFifo, kFq, kTbf };

struct QdiscOptions {
  QdiscKind kind = QdiscKind::kFifo;
  uint64_t rate = 0;   // tbf: bytes per second, not 0
  uint32_t burst = 0;  // tbf: bytes of the bucket, not 0
  bool operator==(const QdiscOptions&) const = default;
  // Of one of `workers`: together they keep to rate and burst.
  QdiscOptions Share(uint32_t workers) const;
};

// As `tc -s qdisc` counts: frames in segments.
struct QdiscStats {
  std::string_view kind;
  uint64_t sent_frames = 0, sent_bytes = 0;
  uint64_t backlog_frames = 0, backlog_bytes = 0;  // super-segments are one frame here
  uint64_t overlimits = 0;                         // times that the next frame had to wait for its time
  uint64_t requeues = 0;                           // times that the device did not take all
  uint64_t dropped_limit = 0;                      // the queue was full
  uint64_t dropped_flow_limit = 0;                 // the queue of the frame's flow was full
  uint64_t dropped_too_long = 0;                   // the frame is longer than the bucket
  uint64_t dropped_memory = 0;                     // there was none to cut a super-segment
  uint64_t dropped() const { return dropped_limit + dropped_flow_limit + dropped_too_long + dropped_memory; }
};

// Its drops by the names of stats and metrics.
struct QdiscDrop {
  std::string_view name;
  uint64_t QdiscStats::* count;
};
inline constexpr QdiscDrop kQdiscDrops[] = {
    {"DropQdiscLimit", &QdiscStats::dropped_limit},
    {"DropQdiscFlowLimit", &QdiscStats::dropped_flow_limit},
    {"DropQdiscTooLong", &QdiscStats::dropped_too_long},
    {"DropQdiscNoMemory", &QdiscStats::dropped_memory},
};

class Qdisc {
 public:
  virtual ~Qdisc() = default;
  // Takes the frame, or drops and counts it.
  virtual void Enqueue(Packet frame, Instant now) = 0;
  // False where none may leave now.
  virtual bool Dequeue(Instant now, Packet* out) = 0;
  // After Dequeue said no: when to ask again; Instant::Max() where nothing waits.
  virtual Instant next() const = 0;
  virtual bool paces() const { return false; }
  const QdiscStats& stats() const { return stats_; }

 protected:
  void NoteQueued(const Packet& frame);
  void NoteSent(const Packet& frame);
  QdiscStats stats_;
};

// Null for none and fifo. `pool` is where cut segments are made.
std::unique_ptr<Qdisc> MakeQdisc(const QdiscOptions& options, BlockPool& pool);

uint64_t WireBytes(const Packet& frame);
uint64_t WireFrames(const Packet& frame);

}  // namespace sluice
