// Receive coalescing (`--gro`): a Port around a Port that delivers MTU-sized frames. Joins the TCP segments of one received burst
// that follow each other in a flow into super-segments, by the rules of the kernel's GRO: same headers but for sequence number,
// length, identification and checksum; no flag but ACK and PSH; payload of equal size but for the last; checksum right.
//
// A super-segment is the first frame followed by the payload of the others as slices: nothing is copied, and the stack's receive
// queue takes slices as they are. Nothing is held back beyond the burst, so coalescing adds no delay. A frame that does not fit
// ends its flow's super-segment, so the order within a flow is kept.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "dataplane/frame.h"
#include "dataplane/wrapped_port.h"

namespace sluice {

class GroPort final : public WrappedPort {
 public:
  explicit GroPort(std::unique_ptr<Port> inner) : WrappedPort(std::move(inner)) {}

  size_t Receive(std::span<Packet> out) override;
  std::vector<std::string> describe() const override;

 private:
  static constexpr size_t kFlows = 8;  // of one burst; the oldest makes room
  static constexpr uint32_t kMaxPacket = 65535 - 140;

  struct Segment {
    FrameHeaders headers;
    uint32_t payload_at = 0, payload = 0;
    uint32_t seq = 0;
    bool push = false;
  };
  struct Flow {
    Packet* head = nullptr;
    Segment first;
    uint32_t next_seq = 0;
    uint32_t size = 0;  // bytes of the IP packet so far
    uint16_t segments = 0;
  };

  static bool Parse(const Packet& frame, Segment* out);
  static bool SameFlow(const Packet& a, const Segment& sa, const Packet& b, const Segment& sb);
  static bool SameHeaders(const Packet& a, const Segment& sa, const Packet& b, const Segment& sb);
  static bool ChecksumRight(const Packet& frame, const Segment& segment);
  bool Join(Packet& frame, const Segment& segment);
  static void Finish(Flow& flow);
  size_t Coalesce(std::span<Packet> burst);

  std::array<Flow, kFlows> flows_;
  size_t next_flow_ = 0;
  uint64_t super_segments_ = 0, joined_ = 0;
};

}  // namespace sluice
