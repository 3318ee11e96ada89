#include "netstack/wire/headers.h"

#include "base/check.h"
#include "netstack/wire/checksum.h"

namespace sluice::wire {

void WriteEthernet(uint8_t* out, const MacAddress& destination, const MacAddress& source, uint16_t type) {
  std::memcpy(out, destination.bytes.data(), 6);
  std::memcpy(out + 6, source.bytes.data(), 6);
  StoreBe16(out + 12, type);
}

std::optional<ArpMessage> ArpMessage::Parse(Bytes payload) {
  if (payload.size() < kArpSize) return std::nullopt;
  const uint8_t* p = payload.data();
  if (LoadBe16(p) != 1 || LoadBe16(p + 2) != kEtherIpv4 || p[4] != 6 || p[5] != 4) return std::nullopt;
  ArpMessage m;
  m.operation = LoadBe16(p + 6);
  if (m.operation != kArpRequest && m.operation != kArpReply) return std::nullopt;
  std::memcpy(m.sender_mac.bytes.data(), p + 8, 6);
  m.sender = IpAddress::FromBytes({p + 14, 4});
  std::memcpy(m.target_mac.bytes.data(), p + 18, 6);
  m.target = IpAddress::FromBytes({p + 24, 4});
  return m;
}

void ArpMessage::Write(uint8_t* p) const {
  StoreBe16(p, 1);
  StoreBe16(p + 2, kEtherIpv4);
  p[4] = 6, p[5] = 4;
  StoreBe16(p + 6, operation);
  std::memcpy(p + 8, sender_mac.bytes.data(), 6);
  std::memcpy(p + 14, sender.bytes().data(), 4);
  std::memcpy(p + 18, target_mac.bytes.data(), 6);
  std::memcpy(p + 24, target.bytes().data(), 4);
}

std::optional<Ipv4View> Ipv4View::ParseQuoted(Bytes quoted) {
  if (quoted.size() < kIpv4Header || (quoted[0] >> 4) != 4) return std::nullopt;
  const Ipv4View v(quoted.data());
  if (v.header_length() < kIpv4Header || v.header_length() > quoted.size() || v.total_length() < v.header_length())
    return std::nullopt;
  return v;
}

std::optional<Ipv4View> Ipv4View::Parse(Bytes linear, size_t packet_size) {
  auto v = ParseQuoted(linear);
  if (!v || v->total_length() > packet_size) return std::nullopt;
  return v;
}

bool Ipv4View::ChecksumOk() const { return OnesSumScalar(header()) == 0xffff; }

void Ipv4Fields::Write(uint8_t* p) const {
  SLUICE_DCHECK(options.size() % 4 == 0 && options.size() <= kIpv4MaxHeader - kIpv4Header);
  p[0] = static_cast<uint8_t>(0x40 | (header_length() / 4));
  p[1] = tos;
  StoreBe16(p + 2, total_length);
  StoreBe16(p + 4, id);
  StoreBe16(p + 6, fragment);
  p[8] = ttl;
  p[9] = protocol;
  StoreBe16(p + 10, 0);
  std::memcpy(p + 12, source.bytes().data(), 4);
  std::memcpy(p + 16, destination.bytes().data(), 4);
  if (!options.empty()) std::memcpy(p + kIpv4Header, options.data(), options.size());
  StoreSum(p + 10, static_cast<uint16_t>(~OnesSumScalar({p, header_length()})));
}

std::optional<Ipv4Options> Ipv4Options::Parse(Bytes options) {
  constexpr uint8_t kEnd = 0, kNop = 1, kLsrr = 131, kSsrr = 137;
  Ipv4Options result;
  for (size_t i = 0; i < options.size();) {
    const uint8_t type = options[i];
    if (type == kEnd) break;
    if (type == kNop) {
      ++i;
      continue;
    }
    if (i + 1 >= options.size() || options[i + 1] < 2 || i + options[i + 1] > options.size()) return std::nullopt;
    if (type == kLsrr || type == kSsrr) result.source_route = true;
    i += options[i + 1];
  }
  return result;
}

std::optional<Ipv6View> Ipv6View::Parse(Bytes linear, size_t packet_size) {
  if (linear.size() < kIpv6Header || (linear[0] >> 4) != 6) return std::nullopt;
  const Ipv6View v(linear.data());
  if (kIpv6Header + v.payload_length() > packet_size) return std::nullopt;
  return v;
}

void Ipv6Fields::Write(uint8_t* p) const {
  StoreBe32(p, 0x60000000u | (uint32_t{traffic_class} << 20) | (flow_label & 0xfffff));
  StoreBe16(p + 4, payload_length);
  p[6] = next_header;
  p[7] = hop_limit;
  std::memcpy(p + 8, source.bytes().data(), 16);
  std::memcpy(p + 24, destination.bytes().data(), 16);
}

std::optional<UdpView> UdpView::Parse(Bytes linear, size_t size) {
  if (linear.size() < kUdpHeader) return std::nullopt;
  const UdpView v(linear.data());
  if (v.length() < kUdpHeader || v.length() > size) return std::nullopt;
  return v;
}

}  // namespace sluice::wire
