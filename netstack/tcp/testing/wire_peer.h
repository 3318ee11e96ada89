// A peer made by hand: segments in, segments out, against one stack in virtual time.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "netstack/tcp/segment.h"
#include "netstack/testing/frames.h"

namespace sluice::testing {

// Socket::state() as Linux numbers it.
inline constexpr int kEstablished = 1, kFinWait2 = 5, kClosed = 7, kCloseWait = 8;

constexpr Duration Ms(int64_t n) { return Duration::Milliseconds(n); }

// n letters that differ from their neighbours.
inline std::string Text(size_t n) {
  std::string s(n, ' ');
  for (size_t i = 0; i < n; ++i) s[i] = static_cast<char>('a' + i % 26);
  return s;
}

// What came out, relative to the connection: `seq` counts from our ISS, `ack` from the peer's.
struct Seen {
  tcp::Segment raw;
  uint32_t seq = 0, ack = 0;
  std::string payload;
  uint16_t gso_size = 0;
  bool gso_ecn = false;
  uint8_t tos = 0;
  uint32_t window = 0;  // scaled as negotiated (our scale is `host_wscale`)
  std::string Flags() const;
};

// The peer is 10.0.0.2:5000, the host 10.0.0.1 with `host_port`. The peer's ISS is 1000; numbers given and read are relative to
// the two ISSs, so the first data byte of both sides is 1.
struct SegmentPeer {
  tcp::HeaderSpec Header(uint8_t flags, uint32_t seq, uint32_t ack) const;
  // The IP packet.
  static std::vector<uint8_t> Encode(const tcp::HeaderSpec& h, std::string_view payload, uint8_t tos = 0);
  // Of an IP packet from the host; none where it is no TCP.
  std::optional<Seen> Decode(BlockPool& pool, Bytes packet);

  SeqNum iss{1000}, host_iss;
  uint16_t port = 5000, host_port = 80;
  uint16_t mss = 1460;
  bool timestamps = false, sack = false;
  std::optional<uint8_t> wscale;
  uint16_t window = 65535;
  uint32_t ts_val = 100000, ts_ecr = 0;  // of the next segment
  uint8_t host_wscale = 0;
  uint8_t tos = 0;  // of the next segment
};

class WirePeer : public SegmentPeer {
 public:
  WirePeer() : host(false, WithNeighbor(HostConfig("10.0.0.1/24", "10.0.0.254"))) {}

  // Sends one segment and runs a turn.
  void Send(uint8_t flags, uint32_t seq, uint32_t ack, std::string_view payload = {});
  void Send(const tcp::HeaderSpec& h, std::string_view payload = {}, uint16_t gso_size = 0);
  // A segment that has yet to arrive, for host.In().
  Packet Arriving(const tcp::HeaderSpec& h, std::string_view payload = {});
  // All that the pool has left.
  std::vector<BlockRef> AllMemory();
  // All segments that came out since, in order; empty where none did.
  std::vector<Seen> Take();
  // The only segment that came out. Fails the test where there is none or more.
  Seen One();
  void ExpectSilence();
  void Icmp(uint8_t type, uint8_t code, uint32_t rest, const tcp::Segment& about, uint32_t seq);

  // A listening socket on port 80 and a completed handshake.
  StreamSocket* Accepted();
  // An active open from the host to the peer, completed.
  StreamSocket* Connected();
  StreamSocket* Listener(int backlog = 16);
  void Handshake();  // SYN, SYN,ACK, ACK with the options below
  StreamSocket* Socket() { return host.stack().NewTcpSocket(Family::kIpv4); }
  void Write(StreamSocket* s, std::string_view data, bool more = false);  // then a turn
  std::string Read(StreamSocket* s, size_t most = SIZE_MAX);              // then a turn

  static NetConfig WithNeighbor(NetConfig config);  // the peer's hardware address never goes stale

  FrameHost host;
  StreamSocket* listener = nullptr;
};

}  // namespace sluice::testing
