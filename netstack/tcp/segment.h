// The TCP header and its options on the wire: RFC 9293 3.1, 7323 (window scale, timestamps), 2018 (SACK), 7413 (Fast Open).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "base/seq_num.h"
#include "netstack/ip/address.h"
#include "netstack/packet.h"
#include "netstack/tcp/types.h"

namespace sluice::tcp {

struct SackBlock {
  SeqNum start, end;
};

// RFC 7413 2: the option of a SYN or SYN,ACK.
struct FastOpenCookie {
  static constexpr int kMinLength = 4, kMaxLength = 16;
  int8_t length = -1;                     // -1: no option; 0: a request for a cookie
  std::array<uint8_t, kMaxLength> bytes;  // of which the first `length` are the cookie

  bool present() const { return length >= 0; }
  bool has_cookie() const { return length > 0; }
  bool operator==(const FastOpenCookie& o) const {
    return length == o.length && std::equal(bytes.begin(), bytes.begin() + std::max<int>(length, 0), o.bytes.begin());
  }
};

// A received segment, parsed. The payload stays in its packet behind `header_len` bytes.
struct Segment {
  uint16_t source_port = 0, destination_port = 0;
  SeqNum seq, ack;
  uint16_t window = 0;  // as on the wire, not scaled
  uint16_t urgent = 0;
  uint8_t flags = 0;
  uint8_t header_len = 0;
  uint32_t payload_len = 0;
  uint16_t segment_size = 0;  // of a coalesced frame: payload bytes per segment; otherwise payload_len
  uint32_t segments = 1;      // how many segments of the wire this stands for
  uint8_t ecn = 0;            // of the IP header, which ParseSegment does not see

  bool has_timestamps = false;
  bool sack_permitted = false;
  bool has_window_scale = false;
  uint8_t window_scale = 0;
  uint8_t sack_count = 0;
  uint16_t mss = 0;  // 0: no option
  uint32_t ts_val = 0, ts_ecr = 0;
  std::array<SackBlock, 4> sack;
  FastOpenCookie fast_open;

  bool Has(uint8_t f) const { return (flags & f) != 0; }
  // SEG.LEN of RFC 9293: SYN and FIN count.
  uint32_t length() const { return payload_len + (Has(kSyn) ? 1 : 0) + (Has(kFin) ? 1 : 0); }
  SeqNum end() const { return seq + length(); }
};

// False where the header is malformed. Broken options are ignored from the first bad one on, as RFC 9293 MUST-7 leaves it.
bool ParseSegment(const Packet& packet, Segment* out);

// A header to send, without payload.
struct HeaderSpec {
  uint16_t source_port = 0, destination_port = 0;
  SeqNum seq, ack;
  uint8_t flags = 0;
  uint16_t window = 0;
  uint16_t urgent = 0;
  uint16_t mss = 0;  // option present where not 0
  bool has_window_scale = false, sack_permitted = false, has_timestamps = false;
  uint8_t window_scale = 0;
  uint8_t sack_count = 0;
  uint32_t ts_val = 0, ts_ecr = 0;
  std::array<SackBlock, 4> sack;
  FastOpenCookie fast_open;
};

// Size of the header with its options (a multiple of four).
uint32_t HeaderLength(const HeaderSpec& spec);
// Writes HeaderLength(spec) bytes; the checksum field is zero.
void WriteHeader(const HeaderSpec& spec, uint8_t* out);

// Over header and payload; true where the segment is right or somebody trusted has checked it.
bool ChecksumOk(const Packet& packet, const IpAddress& source, const IpAddress& destination);

}  // namespace sluice::tcp
