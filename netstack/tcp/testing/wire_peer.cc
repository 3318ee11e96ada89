#include "netstack/tcp/testing/wire_peer.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "netstack/wire/checksum.h"
#include "netstack/wire/headers.h"

namespace sluice::testing {
namespace {

const IpAddress kHostAddress = IpAddress::V4(10, 0, 0, 1);
const IpAddress kPeerAddress = IpAddress::V4(10, 0, 0, 2);

}  // namespace

std::string Seen::Flags() const {
  static constexpr char kNames[] = "FSRPAUEC";
  std::string s;
  for (int i = 0; i < 8; ++i) {
    if ((raw.flags & 1 << i) != 0) s += kNames[i];
  }
  return s;
}

NetConfig WirePeer::WithNeighbor(NetConfig config) {
  NeighborConfig n;
  n.ifindex = kSimIfIndex;
  n.address = kPeerAddress;
  n.mac = kPeerMac;
  config.neighbors.push_back(n);
  return config;
}

tcp::HeaderSpec SegmentPeer::Header(uint8_t flags, uint32_t seq, uint32_t ack) const {
  tcp::HeaderSpec h;
  h.source_port = port;
  h.destination_port = host_port;
  h.seq = iss + seq;
  if ((flags & tcp::kAck) != 0) h.ack = host_iss + ack;
  h.flags = flags;
  h.window = window;
  h.has_timestamps = timestamps;
  h.ts_val = ts_val;
  h.ts_ecr = (flags & tcp::kAck) != 0 ? ts_ecr : 0;
  if ((flags & tcp::kSyn) != 0) {
    h.mss = mss;
    h.sack_permitted = sack;
    h.has_window_scale = wscale.has_value();
    h.window_scale = wscale.value_or(0);
  }
  return h;
}

std::vector<uint8_t> SegmentPeer::Encode(const tcp::HeaderSpec& h, std::string_view payload, uint8_t tos) {
  const uint32_t header_len = tcp::HeaderLength(h);
  const size_t length = header_len + payload.size();
  wire::Ipv4Fields ip;
  ip.source = kPeerAddress;
  ip.destination = kHostAddress;
  ip.protocol = kIpProtoTcp;
  ip.tos = tos;
  ip.total_length = static_cast<uint16_t>(ip.header_length() + length);
  std::vector<uint8_t> packet(ip.total_length);
  ip.Write(packet.data());
  uint8_t* tcp = packet.data() + ip.header_length();
  tcp::WriteHeader(h, tcp);
  std::copy(payload.begin(), payload.end(), tcp + header_len);
  const uint16_t pseudo = wire::PseudoHeaderSum(kPeerAddress, kHostAddress, kIpProtoTcp, static_cast<uint32_t>(length));
  wire::StoreSum(tcp + 16, static_cast<uint16_t>(~wire::OnesSum(Bytes(tcp, length), pseudo)));
  return packet;
}

std::optional<Seen> SegmentPeer::Decode(BlockPool& pool, Bytes packet) {
  if (packet.size() < 20 || packet[0] >> 4 != 4 || packet[9] != kIpProtoTcp) return std::nullopt;
  const size_t ip_len = (packet[0] & 15) * 4u, total = LoadBe16(packet.data() + 2);
  Packet p = Packet::Allocate(pool, total - ip_len);
  std::copy(packet.begin() + static_cast<ptrdiff_t>(ip_len), packet.begin() + static_cast<ptrdiff_t>(total),
            p.Append(total - ip_len));
  Seen s;
  s.tos = packet[1];
  EXPECT_TRUE(tcp::ParseSegment(p, &s.raw));
  if (s.raw.Has(tcp::kSyn)) {
    host_iss = s.raw.seq;
    host_wscale = s.raw.has_window_scale ? s.raw.window_scale : 0;
  }
  s.seq = s.raw.seq - host_iss;
  s.ack = s.raw.Has(tcp::kAck) ? s.raw.ack - iss : 0;
  s.window = uint32_t{s.raw.window} << (s.raw.Has(tcp::kSyn) ? 0 : host_wscale);
  s.payload.assign(reinterpret_cast<const char*>(p.data()) + s.raw.header_len, s.raw.payload_len);
  if (s.raw.has_timestamps) ts_ecr = s.raw.ts_val;
  return s;
}

void WirePeer::Send(uint8_t flags, uint32_t seq, uint32_t ack, std::string_view payload) {
  Send(Header(flags, seq, ack), payload);
}

Packet WirePeer::Arriving(const tcp::HeaderSpec& h, std::string_view payload) {
  const std::vector<uint8_t> packet = SegmentPeer::Encode(h, payload, tos);
  const size_t size = wire::kEthernetHeader + packet.size();
  Packet p = Packet::Allocate(host.pool(), size);
  uint8_t* frame = p.Append(size);
  wire::WriteEthernet(frame, host.mac(), kPeerMac, wire::kEtherIpv4);
  std::copy(packet.begin(), packet.end(), frame + wire::kEthernetHeader);
  return p;
}

void WirePeer::Send(const tcp::HeaderSpec& h, std::string_view payload, uint16_t gso_size) {
  Packet p = Arriving(h, payload);
  if (gso_size == 0) return host.In(p.linear());
  p.offload.gso = GsoType::kTcpV4;
  p.offload.gso_size = gso_size;
  p.offload.checksum = ChecksumState::kVerified;
  host.In(std::move(p));
}

std::vector<BlockRef> WirePeer::AllMemory() {
  std::vector<BlockRef> all;
  for (size_t size = 65536; size >= 64; size /= 2) {
    while (Block* more = host.pool().Allocate(size)) all.emplace_back(more);
  }
  return all;
}

std::vector<Seen> WirePeer::Take() {
  const std::vector<Offload> offloads(host.offloads.begin(), host.offloads.end());
  std::vector<Seen> all;
  size_t index = 0;
  for (const Frame& f : host.AllOut()) {
    const Offload offload = offloads[index++];
    if (f.size() < wire::kEthernetHeader || LoadBe16(f.data() + 12) != wire::kEtherIpv4) continue;
    std::optional<Seen> s = SegmentPeer::Decode(host.pool(), Bytes(f).subspan(wire::kEthernetHeader));
    if (!s) continue;
    s->gso_size = offload.gso_size;
    s->gso_ecn = offload.ecn;
    all.push_back(std::move(*s));
  }
  return all;
}

Seen WirePeer::One() {
  std::vector<Seen> all = Take();
  EXPECT_EQ(all.size(), 1u);
  return all.empty() ? Seen{} : std::move(all[0]);
}

void WirePeer::ExpectSilence() {
  for (const Seen& s : Take()) ADD_FAILURE() << "unexpected " << s.Flags() << " seq " << s.seq << " len " << s.payload.size();
}

void WirePeer::Icmp(uint8_t type, uint8_t code, uint32_t rest, const tcp::Segment& about, uint32_t seq) {
  std::vector<uint8_t> inner(28);
  wire::Ipv4Fields ip;
  ip.source = kHostAddress;
  ip.destination = kPeerAddress;
  ip.protocol = kIpProtoTcp;
  ip.total_length = 1500;
  ip.Write(inner.data());
  StoreBe16(inner.data() + 20, about.source_port);
  StoreBe16(inner.data() + 22, about.destination_port);
  StoreBe32(inner.data() + 24, (host_iss + seq).value());
  wire::Ipv4Fields outer;
  outer.source = kPeerAddress;
  outer.destination = kHostAddress;
  outer.protocol = kIpProtoIcmp;
  host.In(Ipv4Frame(host.mac(), outer, IcmpMessage(type, code, rest, inner)));
}

StreamSocket* WirePeer::Listener(int backlog) {
  listener = Socket();
  EXPECT_EQ(listener->Bind({IpAddress::Any(Family::kIpv4), host_port}), Errno::kOk);
  EXPECT_EQ(listener->Listen(backlog), Errno::kOk);
  return listener;
}

void WirePeer::Handshake() {
  Send(tcp::kSyn, 0, 0);
  const Seen s = One();
  EXPECT_EQ(s.Flags(), "SA");
  Send(tcp::kAck, 1, 1);
}

StreamSocket* WirePeer::Accepted() {
  Listener();
  Handshake();
  StreamSocket* s = listener->Accept();
  EXPECT_NE(s, nullptr);
  ExpectSilence();
  return s;
}

StreamSocket* WirePeer::Connected() {
  StreamSocket* s = Socket();
  EXPECT_EQ(s->Connect({kPeerAddress, port}), Errno::kEINPROGRESS);
  host.Turn();
  const Seen syn = One();
  EXPECT_EQ(syn.Flags(), "S");
  host_port = syn.raw.source_port;
  Send(tcp::kSyn | tcp::kAck, 0, 1);
  const Seen ack = One();
  EXPECT_EQ(ack.Flags(), "A");
  return s;
}

void WirePeer::Write(StreamSocket* s, std::string_view data, bool more) {
  Block* b = host.pool().Allocate(data.size());
  std::copy(data.begin(), data.end(), b->data);
  EXPECT_EQ(s->Send(Slice{BlockRef(b), 0, static_cast<uint32_t>(data.size())}, more), Errno::kOk);
  host.Turn();
}

std::string WirePeer::Read(StreamSocket* s, size_t most) {
  std::string out;
  Bytes spans[4];
  while (out.size() < most && s->Peek(std::span(spans, 1)) > 0) {
    const size_t n = std::min(spans[0].size(), most - out.size());
    out.append(reinterpret_cast<const char*>(spans[0].data()), n);
    s->Consume(n);
  }
  host.Turn();
  return out;
}

}  // namespace sluice::testing
