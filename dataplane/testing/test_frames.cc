#include "dataplane/testing/test_frames.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "dataplane/frame.h"
#include "netstack/wire/checksum.h"

namespace sluice::testing {
namespace {

void FillIp(uint8_t* ip, const FrameSpec& spec, size_t transport_bytes) {
  const uint8_t protocol = spec.udp ? kProtocolUdp : kProtocolTcp;
  if (spec.v6) {
    ip[0] = 0x60;
    StoreBe16(ip + 4, static_cast<uint16_t>(transport_bytes));
    ip[6] = protocol;
    ip[7] = 64;
    ip[8] = 0xfd, ip[23] = 1, ip[24] = 0xfd, ip[39] = 2;
    return;
  }
  ip[0] = 0x45;
  StoreBe16(ip + 2, static_cast<uint16_t>(20 + transport_bytes));
  StoreBe16(ip + 4, spec.ip_id);
  ip[6] = 0x40;
  ip[8] = 64;
  ip[9] = protocol;
  const uint8_t addresses[] = {10, 99, 0, 1, 10, 99, 0, 2};
  std::memcpy(ip + 12, addresses, sizeof addresses);
  wire::StoreSum(ip + 10, static_cast<uint16_t>(~wire::OnesSum(Bytes{ip, 20})));
}

}  // namespace

std::vector<uint8_t> Pattern(size_t size, uint32_t seed) {
  std::vector<uint8_t> bytes(size);
  uint32_t x = seed * 2654435761u + 1;
  for (uint8_t& b : bytes) {
    x = x * 1664525u + 1013904223u;
    b = static_cast<uint8_t>(x >> 24);
  }
  return bytes;
}

Packet MakeFrame(BlockPool& pool, const FrameSpec& spec) {
  const size_t ip_len = spec.v6 ? 40 : 20, transport_len = spec.udp ? 8 : 20 + spec.tcp_options.size();
  const size_t headers = 14 + ip_len + transport_len;
  Packet p = Packet::Allocate(pool, headers + (spec.sliced ? 0 : spec.payload.size()));
  SLUICE_CHECK(p);
  uint8_t* f = p.Append(headers);
  std::memset(f, 0, headers);
  const uint8_t macs[] = {2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1};
  std::memcpy(f, macs, sizeof macs);
  StoreBe16(f + 12, spec.v6 ? 0x86dd : 0x0800);
  FillIp(f + 14, spec, transport_len + spec.payload.size());
  uint8_t* t = f + 14 + ip_len;
  StoreBe16(t, spec.source_port);
  StoreBe16(t + 2, 2000);
  if (spec.udp) {
    const size_t length = spec.gso_size != 0 ? 8 + spec.payload.size() : transport_len + spec.payload.size();
    StoreBe16(t + 4, static_cast<uint16_t>(length));
  } else {
    StoreBe32(t + 4, spec.seq);
    StoreBe32(t + 8, spec.ack);
    t[12] = static_cast<uint8_t>(transport_len / 4 << 4);
    t[13] = spec.flags;
    StoreBe16(t + 14, 8000);
    std::copy(spec.tcp_options.begin(), spec.tcp_options.end(), t + 20);
  }
  if (!spec.sliced) {
    if (!spec.payload.empty()) std::memcpy(p.Append(spec.payload.size()), spec.payload.data(), spec.payload.size());
  } else {
    for (size_t at = 0, step = 1; at < spec.payload.size(); at += step, step = 16001) {
      step = std::min(step, spec.payload.size() - at);
      BlockRef block(pool.Allocate(step));
      SLUICE_CHECK(block);
      std::memcpy(block->data, spec.payload.data() + at, step);
      SLUICE_CHECK(p.AddSlice(Slice{std::move(block), 0, static_cast<uint32_t>(step)}));
    }
  }
  FrameHeaders h;
  SLUICE_CHECK(LocateHeaders(p.linear(), p.size(), &h));
  const uint16_t offset = spec.udp ? 6 : 16;
  wire::StoreSum(p.data() + h.transport + offset, PseudoHeaderSum(p.linear(), h, static_cast<uint32_t>(p.size() - h.transport)));
  p.offload.checksum = ChecksumState::kPartial;
  p.offload.csum_start = h.transport;
  p.offload.csum_offset = offset;
  if (spec.gso_size != 0) {
    p.offload.gso = spec.udp ? GsoType::kUdp : spec.v6 ? GsoType::kTcpV6 : GsoType::kTcpV4;
    p.offload.gso_size = spec.gso_size;
    p.offload.hdr_len = static_cast<uint16_t>(headers);
  } else if (!spec.partial) {
    SLUICE_CHECK(wire::CompleteChecksum(p, spec.udp));
  }
  return p;
}

bool IsTestFrame(const Packet& frame) {
  FrameHeaders h;
  if (!LocateHeaders(frame.linear(), frame.size(), &h)) return false;
  const uint8_t* t = frame.data() + h.transport;
  return LoadBe16(t + 2) == 2000;
}

size_t HeaderSize(const Packet& frame) {
  FrameHeaders h;
  if (!LocateHeaders(frame.linear(), frame.size(), &h)) return frame.size();
  return h.transport + (h.protocol == kProtocolUdp ? size_t{8} : (frame.data()[h.transport + 12] >> 4) * size_t{4});
}

std::vector<uint8_t> CheckedPayload(const Packet& frame) {
  FrameHeaders h;
  if (!LocateHeaders(frame.linear(), frame.size(), &h)) {
    ADD_FAILURE() << "no headers in a frame of " << frame.size();
    return {};
  }
  if (!h.v6)
    EXPECT_EQ(wire::OnesSum(Bytes{frame.data() + h.network, size_t{h.transport} - h.network}), 0xffff) << "IPv4 header checksum";
  const uint32_t transport_bytes = h.end - h.transport;
  const uint16_t pseudo = PseudoHeaderSum(frame.linear(), h, transport_bytes);
  const uint16_t offset = h.protocol == kProtocolUdp ? 6 : 16;
  switch (frame.offload.checksum) {
    case ChecksumState::kVerified:
      break;
    case ChecksumState::kPartial:
      EXPECT_EQ(frame.offload.csum_start, h.transport);
      EXPECT_EQ(frame.offload.csum_offset, offset);
      EXPECT_EQ(wire::LoadSum(frame.data() + h.transport + offset), pseudo) << "not the pseudo header's sum";
      break;
    case ChecksumState::kNone: {
      std::vector<uint8_t> transport(transport_bytes);
      frame.CopyOut(h.transport, transport);
      EXPECT_EQ(wire::OnesSum(transport, pseudo), 0xffff) << "wrong checksum";
      break;
    }
  }
  const size_t header = HeaderSize(frame);
  std::vector<uint8_t> payload(h.end - header);
  frame.CopyOut(header, payload);
  return payload;
}

}  // namespace sluice::testing
