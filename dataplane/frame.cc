#include "dataplane/frame.h"

#include <cstring>

#include "netstack/wire/checksum.h"

namespace sluice {
namespace {

constexpr uint16_t kEtherIpv4 = 0x0800, kEtherIpv6 = 0x86dd, kEtherVlan = 0x8100, kEtherQinq = 0x88a8;

bool LocateIpv4(Bytes headers, size_t frame_size, FrameHeaders* out) {
  const size_t at = out->network;
  if (headers.size() < at + 20) return false;
  const uint8_t* ip = headers.data() + at;
  const size_t header_len = (ip[0] & 15) * size_t{4};
  const size_t total = LoadBe16(ip + 2);
  if ((ip[0] >> 4) != 4 || header_len < 20 || total < header_len || at + total > frame_size) return false;
  out->transport = static_cast<uint16_t>(at + header_len);
  out->end = static_cast<uint32_t>(at + total);
  out->protocol = ip[9];
  out->v6 = false;
  out->fragment = (LoadBe16(ip + 6) & 0x3fff) != 0;
  return true;
}

bool LocateIpv6(Bytes headers, size_t frame_size, FrameHeaders* out) {
  const size_t at = out->network;
  if (headers.size() < at + 40) return false;
  const uint8_t* ip = headers.data() + at;
  const size_t total = size_t{40} + LoadBe16(ip + 4);
  if ((ip[0] >> 4) != 6 || at + total > frame_size) return false;
  out->transport = static_cast<uint16_t>(at + 40);
  out->end = static_cast<uint32_t>(at + total);
  out->protocol = ip[6];
  out->v6 = true;
  out->fragment = false;
  return true;
}

}  // namespace

bool LocateHeaders(Bytes headers, size_t frame_size, FrameHeaders* out) {
  size_t at = 12;
  if (headers.size() < kEthernetHeader) return false;
  uint16_t type = LoadBe16(headers.data() + at);
  for (int tags = 0; tags < 2 && (type == kEtherVlan || type == kEtherQinq); ++tags) {
    at += 4;
    if (headers.size() < at + 2) return false;
    type = LoadBe16(headers.data() + at);
  }
  out->network = static_cast<uint16_t>(at + 2);
  const bool ok =
      type == kEtherIpv4 ? LocateIpv4(headers, frame_size, out) : type == kEtherIpv6 && LocateIpv6(headers, frame_size, out);
  if (!ok || (out->protocol != kProtocolTcp && out->protocol != kProtocolUdp)) return false;
  const size_t least = out->protocol == kProtocolTcp ? 20 : 8;
  return out->transport + least <= headers.size() && (out->fragment || out->transport + least <= out->end);
}

uint16_t PseudoHeaderSum(Bytes frame, const FrameHeaders& headers, uint32_t length) {
  const uint8_t* ip = frame.data() + headers.network;
  const Bytes addresses = headers.v6 ? Bytes{ip + 8, 32} : Bytes{ip + 12, 8};
  uint8_t tail[8];
  StoreBe32(tail, length);
  StoreBe32(tail + 4, headers.protocol);
  return wire::OnesSum(addresses, wire::OnesSum(Bytes{tail, sizeof tail}));
}

bool InsertVlanTag(Packet& frame) {
  if (!frame.has_vlan) return true;
  if (frame.headroom() < 4 || frame.linear_size() < kEthernetHeader) return false;
  uint8_t* front = frame.Push(4);
  std::memmove(front, front + 4, 12);
  StoreBe16(front + 12, kEtherVlan);
  StoreBe16(front + 14, frame.vlan_tci);
  frame.has_vlan = false;
  if (frame.offload.csum_start != 0) frame.offload.csum_start = static_cast<uint16_t>(frame.offload.csum_start + 4);
  if (frame.offload.hdr_len != 0) frame.offload.hdr_len = static_cast<uint16_t>(frame.offload.hdr_len + 4);
  return true;
}

}  // namespace sluice
