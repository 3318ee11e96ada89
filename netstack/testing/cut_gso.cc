#include <algorithm>

#include "netstack/testing/sim.h"
#include "netstack/wire/checksum.h"
#include "netstack/wire/headers.h"

namespace sluice::testing {
namespace {

void FixIp(Packet& p, size_t l4, size_t index) {
  uint8_t* ip = p.data() + wire::kEthernetHeader;
  const size_t ip_size = p.linear_size() - wire::kEthernetHeader;
  if ((ip[0] >> 4) == 4) {
    StoreBe16(ip + 2, static_cast<uint16_t>(ip_size));
    StoreBe16(ip + 4, static_cast<uint16_t>(LoadBe16(ip + 4) + index));
    StoreBe16(ip + 10, 0);
    wire::StoreSum(ip + 10, static_cast<uint16_t>(~wire::OnesSum({ip, l4 - wire::kEthernetHeader})));
  } else {
    StoreBe16(ip + 4, static_cast<uint16_t>(ip_size - wire::kIpv6Header));
  }
}

void FixTransport(Packet& p, size_t l4, bool udp) {
  const uint8_t* ip = p.data() + wire::kEthernetHeader;
  uint8_t* t = p.data() + l4;
  const size_t size = p.linear_size() - l4;
  const bool v4 = (ip[0] >> 4) == 4;
  const IpAddress source = IpAddress::FromBytes(v4 ? Bytes{ip + 12, 4} : Bytes{ip + 8, 16});
  const IpAddress destination = IpAddress::FromBytes(v4 ? Bytes{ip + 16, 4} : Bytes{ip + 24, 16});
  const size_t field = udp ? wire::kUdpChecksumOffset : wire::kTcpChecksumOffset;
  if (udp) StoreBe16(t + 4, static_cast<uint16_t>(size));
  wire::StoreSum(t + field, 0);
  const uint16_t pseudo =
      wire::PseudoHeaderSum(source, destination, udp ? kIpProtoUdp : kIpProtoTcp, static_cast<uint32_t>(size));
  uint16_t sum = static_cast<uint16_t>(~wire::OnesSum({t, size}, pseudo));
  if (udp && sum == 0) sum = 0xffff;
  wire::StoreSum(t + field, sum);
}

}  // namespace

std::vector<Packet> CutGso(Packet frame, BlockPool& pool) {
  std::vector<Packet> out;
  SLUICE_CHECK(frame.Linearize(pool));
  if (frame.offload.gso == GsoType::kNone) {
    if (frame.offload.checksum == ChecksumState::kPartial) {
      SLUICE_CHECK(wire::CompleteChecksum(frame, frame.offload.csum_offset == wire::kUdpChecksumOffset));
    }
    out.push_back(std::move(frame));
    return out;
  }
  const Offload& o = frame.offload;
  const bool udp = o.gso == GsoType::kUdp;
  const size_t l4 = o.csum_start, header = o.hdr_len, payload = frame.linear_size() - header;
  SLUICE_CHECK(o.checksum == ChecksumState::kPartial && o.gso_size > 0 && header > l4 && header <= frame.linear_size());
  const uint32_t seq = LoadBe32(frame.data() + l4 + 4);
  for (size_t at = 0, index = 0; at < payload; at += o.gso_size, ++index) {
    const size_t n = std::min<size_t>(o.gso_size, payload - at);
    Packet p = Packet::Allocate(pool, header + n);
    SLUICE_CHECK(static_cast<bool>(p));
    std::memcpy(p.Append(header), frame.data(), header);
    std::memcpy(p.Append(n), frame.data() + header + at, n);
    p.ifindex = frame.ifindex;
    FixIp(p, l4, index);
    if (!udp) {
      uint8_t* t = p.data() + l4;
      StoreBe32(t + 4, seq + static_cast<uint32_t>(at));
      if (at + n < payload) t[13] &= static_cast<uint8_t>(~(wire::kTcpFin | wire::kTcpPsh));
      if (at > 0 && o.ecn) t[13] &= static_cast<uint8_t>(~wire::kTcpCwr);
    }
    FixTransport(p, l4, udp);
    out.push_back(std::move(p));
  }
  return out;
}

}  // namespace sluice::testing
