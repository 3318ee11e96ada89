#include "netstack/tcp/segment.h"

#include <algorithm>

#include "netstack/ip/ip.h"
#include "netstack/wire/checksum.h"

namespace sluice::tcp {
namespace {

enum Option : uint8_t {
  kEnd = 0,
  kNop = 1,
  kMss = 2,
  kWindowScale = 3,
  kSackPermitted = 4,
  kSack = 5,
  kTimestamps = 8,
  kFastOpen = 34
};

void ParseSackOption(const uint8_t* body, uint32_t size, Segment* out) {
  if (size % 8 != 0) return;
  for (uint32_t i = 0; i < size && out->sack_count < out->sack.size(); i += 8) {
    out->sack[out->sack_count++] = {SeqNum(LoadBe32(body + i)), SeqNum(LoadBe32(body + i + 4))};
  }
}

// A length that cannot be is as no option (as linux tcp_parse_fastopen_option).
void ParseFastOpenOption(const uint8_t* body, uint32_t size, Segment* out) {
  if (!out->Has(kSyn) || size % 2 != 0) return;
  const bool cookie = size >= FastOpenCookie::kMinLength && size <= FastOpenCookie::kMaxLength;
  out->fast_open.length = cookie || size == 0 ? static_cast<int8_t>(size) : int8_t{-1};
  if (cookie) std::copy_n(body, size, out->fast_open.bytes.begin());
}

// With kind and length, padded.
uint32_t FastOpenOptionSize(const FastOpenCookie& cookie) {
  return cookie.present() ? (2u + static_cast<uint32_t>(cookie.length) + 3) & ~3u : 0;
}

uint8_t* WriteFastOpenOption(const FastOpenCookie& cookie, uint8_t* p) {
  const uint32_t size = 2u + static_cast<uint32_t>(cookie.length);
  p[0] = kFastOpen, p[1] = static_cast<uint8_t>(size);
  std::copy_n(cookie.bytes.begin(), cookie.length, p + 2);
  std::fill(p + size, p + FastOpenOptionSize(cookie), uint8_t{kNop});
  return p + FastOpenOptionSize(cookie);
}

void ParseOption(uint8_t kind, const uint8_t* body, uint32_t size, Segment* out) {
  switch (kind) {
    case kMss:
      if (size == 2 && out->Has(kSyn)) out->mss = LoadBe16(body);
      return;
    case kWindowScale:
      if (size == 1 && out->Has(kSyn)) {
        out->has_window_scale = true;
        out->window_scale = std::min(body[0], kMaxWindowScale);
      }
      return;
    case kSackPermitted:
      if (size == 0 && out->Has(kSyn)) out->sack_permitted = true;
      return;
    case kTimestamps:
      if (size == 8) {
        out->has_timestamps = true;
        out->ts_val = LoadBe32(body);
        out->ts_ecr = LoadBe32(body + 4);
      }
      return;
    case kSack:
      ParseSackOption(body, size, out);
      return;
    case kFastOpen:
      ParseFastOpenOption(body, size, out);
      return;
    default:
      return;
  }
}

void ParseOptions(const uint8_t* p, uint32_t size, Segment* out) {
  if (size == kTimestampOptionSize && LoadBe32(p) == 0x0101080a) {  // what nearly every segment carries
    ParseOption(kTimestamps, p + 4, 8, out);
    return;
  }
  for (uint32_t i = 0; i < size;) {
    const uint8_t kind = p[i];
    if (kind == kEnd) return;
    if (kind == kNop) {
      ++i;
      continue;
    }
    if (i + 1 >= size) return;
    const uint32_t length = p[i + 1];
    if (length < 2 || i + length > size) return;
    ParseOption(kind, p + i + 2, length - 2, out);
    i += length;
  }
}

}  // namespace

bool ParseSegment(const Packet& packet, Segment* out) {
  if (packet.linear_size() < kHeaderSize) return false;
  const uint8_t* p = packet.data();
  const uint32_t header_len = (p[12] >> 4) * 4u;
  if (header_len < kHeaderSize || header_len > packet.linear_size()) return false;
  out->source_port = LoadBe16(p);
  out->destination_port = LoadBe16(p + 2);
  out->seq = SeqNum(LoadBe32(p + 4));
  out->ack = SeqNum(LoadBe32(p + 8));
  out->flags = p[13];
  out->window = LoadBe16(p + 14);
  out->urgent = LoadBe16(p + 18);
  out->header_len = static_cast<uint8_t>(header_len);
  out->payload_len = static_cast<uint32_t>(packet.size() - header_len);
  const uint32_t gso = packet.offload.gso == GsoType::kNone ? 0 : packet.offload.gso_size;
  if (gso != 0 && gso < out->payload_len) {
    out->segment_size = static_cast<uint16_t>(gso);
    out->segments = (out->payload_len + gso - 1) / gso;
  } else {
    out->segment_size = static_cast<uint16_t>(std::min<uint32_t>(out->payload_len, 65535));
  }
  if (header_len > kHeaderSize) ParseOptions(p + kHeaderSize, header_len - kHeaderSize, out);
  return true;
}

uint32_t HeaderLength(const HeaderSpec& spec) {
  uint32_t n = kHeaderSize;
  if (spec.mss != 0) n += 4;
  if (spec.has_timestamps)
    n += kTimestampOptionSize;
  else if (spec.sack_permitted)
    n += 4;
  if (spec.has_window_scale) n += 4;
  if (spec.sack_count != 0) n += 4 + 8u * spec.sack_count;
  return n + FastOpenOptionSize(spec.fast_open);
}

void WriteHeader(const HeaderSpec& spec, uint8_t* out) {
  StoreBe16(out, spec.source_port);
  StoreBe16(out + 2, spec.destination_port);
  StoreBe32(out + 4, spec.seq.value());
  StoreBe32(out + 8, spec.ack.value());
  out[12] = static_cast<uint8_t>(HeaderLength(spec) / 4 << 4);
  out[13] = spec.flags;
  StoreBe16(out + 14, spec.window);
  StoreBe16(out + 16, 0);
  StoreBe16(out + 18, spec.urgent);
  uint8_t* p = out + kHeaderSize;
  if (spec.mss != 0) {
    p[0] = kMss, p[1] = 4;
    StoreBe16(p + 2, spec.mss);
    p += 4;
  }
  if (spec.has_timestamps) {
    p[0] = spec.sack_permitted ? kSackPermitted : kNop;
    p[1] = spec.sack_permitted ? 2 : kNop;
    p[2] = kTimestamps, p[3] = 10;
    StoreBe32(p + 4, spec.ts_val);
    StoreBe32(p + 8, spec.ts_ecr);
    p += kTimestampOptionSize;
  } else if (spec.sack_permitted) {
    p[0] = kNop, p[1] = kNop, p[2] = kSackPermitted, p[3] = 2;
    p += 4;
  }
  if (spec.has_window_scale) {
    p[0] = kNop, p[1] = kWindowScale, p[2] = 3, p[3] = spec.window_scale;
    p += 4;
  }
  if (spec.fast_open.present()) p = WriteFastOpenOption(spec.fast_open, p);
  if (spec.sack_count != 0) {
    p[0] = kNop, p[1] = kNop, p[2] = kSack, p[3] = static_cast<uint8_t>(2 + 8 * spec.sack_count);
    p += 4;
    for (uint32_t i = 0; i < spec.sack_count; ++i, p += 8) {
      StoreBe32(p, spec.sack[i].start.value());
      StoreBe32(p + 4, spec.sack[i].end.value());
    }
  }
}

bool ChecksumOk(const Packet& packet, const IpAddress& source, const IpAddress& destination) {
  if (packet.offload.checksum != ChecksumState::kNone) return true;
  const uint16_t pseudo = wire::PseudoHeaderSum(source, destination, kIpProtoTcp, static_cast<uint32_t>(packet.size()));
  return wire::OnesSum(packet, 0, pseudo) == 0xffff;
}

}  // namespace sluice::tcp
