// Wire formats of Ethernet, ARP, IPv4, IPv6, ICMP, UDP and TCP headers.
//
// A View is parsed once: Parse() checks every length that the format promises, so that the accessors need no check. Accessors
// give host byte order. Views point into the frame and live as long as it.
#pragma once

#include <cstdint>
#include <optional>

#include "base/bytes.h"
#include "netstack/ip/address.h"

namespace sluice::wire {

// --- Ethernet (IEEE 802.3)
inline constexpr size_t kEthernetHeader = 14;
enum EtherType : uint16_t {
  kEtherIpv4 = 0x0800,
  kEtherArp = 0x0806,
  kEtherVlan = 0x8100,
  kEtherQinQ = 0x88a8,
  kEtherIpv6 = 0x86dd,
};

class EthernetView {
 public:
  static std::optional<EthernetView> Parse(Bytes frame) {
    if (frame.size() < kEthernetHeader) return std::nullopt;
    return EthernetView(frame.data());
  }
  MacAddress destination() const { return Mac(p_); }
  MacAddress source() const { return Mac(p_ + 6); }
  uint16_t type() const { return LoadBe16(p_ + 12); }

 private:
  explicit EthernetView(const uint8_t* p) : p_(p) {}
  static MacAddress Mac(const uint8_t* p) {
    MacAddress m;
    std::memcpy(m.bytes.data(), p, 6);
    return m;
  }
  const uint8_t* p_;
};

void WriteEthernet(uint8_t* out, const MacAddress& destination, const MacAddress& source, uint16_t type);

// --- ARP for IPv4 over Ethernet (RFC 826)
inline constexpr size_t kArpSize = 28;
inline constexpr uint16_t kArpRequest = 1, kArpReply = 2;

struct ArpMessage {
  uint16_t operation = 0;
  MacAddress sender_mac, target_mac;
  IpAddress sender, target;
  // nullopt where it is not Ethernet and IPv4, too short, or neither a request nor a reply.
  static std::optional<ArpMessage> Parse(Bytes payload);
  void Write(uint8_t* out) const;  // kArpSize bytes
};

// --- IPv4 (RFC 791)
inline constexpr size_t kIpv4Header = 20, kIpv4MaxHeader = 60;
inline constexpr uint16_t kIpv4DontFragment = 0x4000, kIpv4MoreFragments = 0x2000, kIpv4OffsetMask = 0x1fff;

class Ipv4View {
 public:
  // The header lies whole in `linear`; total_length lies between the header's and `packet_size` (the rest is link padding).
  static std::optional<Ipv4View> Parse(Bytes linear, size_t packet_size);
  // Of a packet quoted in an ICMP error: its total length may exceed what was quoted.
  static std::optional<Ipv4View> ParseQuoted(Bytes quoted);

  size_t header_length() const { return size_t{4} * (p_[0] & 15); }
  Bytes header() const { return {p_, header_length()}; }
  Bytes options() const { return {p_ + kIpv4Header, header_length() - kIpv4Header}; }
  uint8_t tos() const { return p_[1]; }
  uint16_t total_length() const { return LoadBe16(p_ + 2); }
  uint16_t id() const { return LoadBe16(p_ + 4); }
  bool dont_fragment() const { return (LoadBe16(p_ + 6) & kIpv4DontFragment) != 0; }
  bool more_fragments() const { return (LoadBe16(p_ + 6) & kIpv4MoreFragments) != 0; }
  uint32_t fragment_offset() const { return 8u * (LoadBe16(p_ + 6) & kIpv4OffsetMask); }  // bytes
  bool is_fragment() const { return (LoadBe16(p_ + 6) & (kIpv4MoreFragments | kIpv4OffsetMask)) != 0; }
  uint8_t ttl() const { return p_[8]; }
  uint8_t protocol() const { return p_[9]; }
  IpAddress source() const { return IpAddress::FromBytes({p_ + 12, 4}); }
  IpAddress destination() const { return IpAddress::FromBytes({p_ + 16, 4}); }
  bool ChecksumOk() const;

 private:
  explicit Ipv4View(const uint8_t* p) : p_(p) {}
  const uint8_t* p_;
};

struct Ipv4Fields {
  IpAddress source, destination;
  uint16_t total_length = 0, id = 0;
  uint16_t fragment = 0;  // flags and offset as on the wire (host order)
  uint8_t tos = 0, ttl = 64, protocol = 0;
  Bytes options;  // a multiple of 4 bytes, at most 40
  size_t header_length() const { return kIpv4Header + options.size(); }
  void Write(uint8_t* out) const;  // header_length() bytes, checksum included
};

// What an option list holds that matters to a receiving host. Parse is false where a length is wrong (RFC 1122 3.2.1.8).
struct Ipv4Options {
  bool source_route = false;  // LSRR or SSRR
  static std::optional<Ipv4Options> Parse(Bytes options);
};

// --- IPv6 (RFC 8200): the fixed header
inline constexpr size_t kIpv6Header = 40;

class Ipv6View {
 public:
  static std::optional<Ipv6View> Parse(Bytes linear, size_t packet_size);
  uint8_t traffic_class() const { return static_cast<uint8_t>(LoadBe16(p_) >> 4); }
  uint32_t flow_label() const { return LoadBe32(p_) & 0xfffff; }
  uint16_t payload_length() const { return LoadBe16(p_ + 4); }
  uint8_t next_header() const { return p_[6]; }
  uint8_t hop_limit() const { return p_[7]; }
  IpAddress source() const { return IpAddress::FromBytes({p_ + 8, 16}); }
  IpAddress destination() const { return IpAddress::FromBytes({p_ + 24, 16}); }
  Bytes header() const { return {p_, kIpv6Header}; }

 private:
  explicit Ipv6View(const uint8_t* p) : p_(p) {}
  const uint8_t* p_;
};

struct Ipv6Fields {
  IpAddress source, destination;
  uint16_t payload_length = 0;
  uint32_t flow_label = 0;
  uint8_t traffic_class = 0, hop_limit = 64, next_header = 0;
  void Write(uint8_t* out) const;  // kIpv6Header bytes
};

// --- ICMP (RFC 792) and what of ICMPv6 (RFC 4443) has the same shape
inline constexpr size_t kIcmpHeader = 8;
enum IcmpType : uint8_t {
  kIcmpEchoReply = 0,
  kIcmpUnreachable = 3,
  kIcmpSourceQuench = 4,
  kIcmpRedirect = 5,
  kIcmpEcho = 8,
  kIcmpTimeExceeded = 11,
  kIcmpParameterProblem = 12,
  kIcmpTimestamp = 13,
  kIcmpTimestampReply = 14,
};
enum IcmpUnreachableCode : uint8_t {
  kIcmpNetUnreachable = 0,
  kIcmpHostUnreachable = 1,
  kIcmpProtocolUnreachable = 2,
  kIcmpPortUnreachable = 3,
  kIcmpFragNeeded = 4,
};
enum IcmpV6Type : uint8_t { kIcmpV6Unreachable = 1, kIcmpV6Echo = 128, kIcmpV6EchoReply = 129 };

class IcmpView {
 public:
  static std::optional<IcmpView> Parse(Bytes message) {
    if (message.size() < kIcmpHeader) return std::nullopt;
    return IcmpView(message.data());
  }
  uint8_t type() const { return p_[0]; }
  uint8_t code() const { return p_[1]; }
  uint16_t ident() const { return LoadBe16(p_ + 4); }
  uint16_t sequence() const { return LoadBe16(p_ + 6); }
  uint16_t mtu() const { return LoadBe16(p_ + 6); }

 private:
  explicit IcmpView(const uint8_t* p) : p_(p) {}
  const uint8_t* p_;
};

// --- UDP (RFC 768)
inline constexpr size_t kUdpHeader = 8;

class UdpView {
 public:
  // `size`: bytes of the whole IP payload. The length field must cover the header and lie within it.
  static std::optional<UdpView> Parse(Bytes linear, size_t size);
  uint16_t source_port() const { return LoadBe16(p_); }
  uint16_t destination_port() const { return LoadBe16(p_ + 2); }
  uint16_t length() const { return LoadBe16(p_ + 4); }
  bool has_checksum() const { return LoadBe16(p_ + 6) != 0; }

 private:
  explicit UdpView(const uint8_t* p) : p_(p) {}
  const uint8_t* p_;
};

// --- TCP (RFC 9293): offsets only, the rest is in netstack/tcp
inline constexpr size_t kTcpHeader = 20, kTcpMaxHeader = 60;
inline constexpr size_t kTcpChecksumOffset = 16, kUdpChecksumOffset = 6, kIcmpChecksumOffset = 2;
enum TcpFlag : uint8_t {
  kTcpFin = 0x01,
  kTcpSyn = 0x02,
  kTcpRst = 0x04,
  kTcpPsh = 0x08,
  kTcpAck = 0x10,
  kTcpUrg = 0x20,
  kTcpEce = 0x40,
  kTcpCwr = 0x80,
};

}  // namespace sluice::wire
