// Software segmentation at the edge: cuts a GSO frame into frames of one segment each with complete checksums, for ports that
// cannot hand the frame on whole. What Linux's tcp_gso_segment and __udp_gso_segment put on the wire.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "dataplane/frame.h"
#include "netstack/packet.h"

namespace sluice {

// Writes the segments of one frame one after the other into memory of the caller (a pooled block, a UMEM chunk): the payload is
// copied once, because the caller's memory is where it has to go anyway. A frame that is not GSO is one segment. The frame must
// outlive the cutter and is not changed.
class GsoCutter {
 public:
  explicit GsoCutter(const Packet& frame);

  // False where the metadata does not fit the frame: nothing can be cut.
  bool valid() const { return valid_; }
  size_t segments() const { return segments_; }
  bool done() const { return next_ >= segments_; }
  size_t next_size() const;  // bytes of the next segment, headers included
  size_t max_size() const;   // of the largest segment
  // Writes the next segment to the front of `out` (next_size() bytes at least); returns its size.
  size_t Next(MutableBytes out);

 private:
  static constexpr size_t kMaxHeaders = 256;

  bool Prepare();
  size_t NextWhole(MutableBytes out);
  void PatchTransport(uint8_t* segment, size_t index, uint32_t transport_bytes) const;
  void PatchNetwork(uint8_t* segment, size_t index, size_t segment_bytes) const;

  const Packet& frame_;
  FrameHeaders headers_;
  uint8_t header_bytes_[kMaxHeaders];
  size_t header_len_ = 0;
  size_t payload_ = 0;  // bytes of payload of the whole frame
  size_t mss_ = 0;
  size_t segments_ = 0;
  size_t next_ = 0;
  bool valid_ = false;
};

// Appends the finished segments of a frame to `out`, in blocks of `pool`: all or none. One of several segments is counted in
// `cut_frames`.
bool CutFrame(const Packet& frame, BlockPool& pool, std::vector<Packet>* out, uint64_t* cut_frames);

}  // namespace sluice
