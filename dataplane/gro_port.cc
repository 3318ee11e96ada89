#include "dataplane/gro_port.h"

#include <algorithm>
#include <cstring>

#include "netstack/wire/checksum.h"

namespace sluice {
namespace {

constexpr uint8_t kAck = 0x10, kPsh = 0x08;

bool SameBytes(const uint8_t* a, const uint8_t* b, size_t n) { return std::memcmp(a, b, n) == 0; }

}  // namespace

// True for a segment that may join another: linear, unfragmented TCP with payload, only ACK and PSH set.
bool GroPort::Parse(const Packet& frame, Segment* out) {
  if (frame.offload.gso != GsoType::kNone || frame.slice_count() != 0) return false;
  FrameHeaders& h = out->headers;
  if (!LocateHeaders(frame.linear(), frame.size(), &h) || h.fragment || h.protocol != kProtocolTcp) return false;
  const uint8_t* tcp = frame.data() + h.transport;
  const size_t header = (tcp[12] >> 4) * size_t{4};
  if (header < 20 || h.transport + header >= h.end || (tcp[13] & ~kPsh) != kAck) return false;
  if (!h.v6 && h.transport - h.network != 20) return false;  // IPv4 options
  out->payload_at = static_cast<uint32_t>(h.transport + header);
  out->payload = h.end - out->payload_at;
  out->seq = LoadBe32(tcp + 4);
  out->push = (tcp[13] & kPsh) != 0;
  return true;
}

bool GroPort::SameFlow(const Packet& a, const Segment& sa, const Packet& b, const Segment& sb) {
  if (sa.headers.v6 != sb.headers.v6 || sa.headers.network != sb.headers.network) return false;
  const size_t addresses = sa.headers.network + (sa.headers.v6 ? 8u : 12u), size = sa.headers.v6 ? 32 : 8;
  return SameBytes(a.data() + addresses, b.data() + addresses, size) &&
         SameBytes(a.data() + sa.headers.transport, b.data() + sb.headers.transport, 4);
}

// All that one header must say for both: Ethernet, VLAN, TOS, TTL, DF, acknowledgement, window, options.
bool GroPort::SameHeaders(const Packet& a, const Segment& sa, const Packet& b, const Segment& sb) {
  const size_t ip = sa.headers.network, tcp = sa.headers.transport;
  if (sa.payload_at != sb.payload_at || a.has_vlan != b.has_vlan || (a.has_vlan && a.vlan_tci != b.vlan_tci)) return false;
  if (a.link_type != b.link_type || !SameBytes(a.data(), b.data(), ip)) return false;
  if (sa.headers.v6) {
    if (!SameBytes(a.data() + ip, b.data() + ip, 4) || !SameBytes(a.data() + ip + 6, b.data() + ip + 6, 2)) return false;
  } else if (a.data()[ip + 1] != b.data()[ip + 1] || !SameBytes(a.data() + ip + 6, b.data() + ip + 6, 3)) {
    return false;
  }
  return SameBytes(a.data() + tcp + 8, b.data() + tcp + 8, 4) && SameBytes(a.data() + tcp + 14, b.data() + tcp + 14, 2) &&
         SameBytes(a.data() + tcp + 18, b.data() + tcp + 18, sa.payload_at - tcp - 18);
}

bool GroPort::ChecksumRight(const Packet& frame, const Segment& segment) {
  if (!segment.headers.v6) {
    const Bytes ip{frame.data() + segment.headers.network, 20};
    if (wire::OnesSum(ip) != 0xffff) return false;
  }
  if (frame.offload.checksum != ChecksumState::kNone) return true;
  const uint32_t length = segment.headers.end - segment.headers.transport;
  const uint16_t pseudo = PseudoHeaderSum(frame.linear(), segment.headers, length);
  return wire::OnesSum(Bytes{frame.data() + segment.headers.transport, length}, pseudo) == 0xffff;
}

// The lengths and the checksum of what the joined frame is now; the TCP checksum was checked piece by piece.
void GroPort::Finish(Flow& flow) {
  if (flow.head == nullptr || flow.segments < 2) {
    flow = Flow{};
    return;
  }
  Packet& head = *flow.head;
  uint8_t* ip = head.data() + flow.first.headers.network;
  if (flow.first.headers.v6) {
    StoreBe16(ip + 4, static_cast<uint16_t>(flow.size - 40));
  } else {
    StoreBe16(ip + 2, static_cast<uint16_t>(flow.size));
    StoreBe16(ip + 10, 0);
    wire::StoreSum(ip + 10, static_cast<uint16_t>(~wire::OnesSum(Bytes{ip, 20})));
  }
  head.offload = Offload{};
  head.offload.checksum = ChecksumState::kVerified;
  head.offload.gso = flow.first.headers.v6 ? GsoType::kTcpV6 : GsoType::kTcpV4;
  head.offload.gso_size = static_cast<uint16_t>(flow.first.payload);
  head.offload.hdr_len = static_cast<uint16_t>(flow.first.payload_at);
  flow = Flow{};
}

// True where the frame became part of the one before it in its flow; otherwise it stays, perhaps as the first of a new one.
bool GroPort::Join(Packet& frame, const Segment& segment) {
  for (Flow& flow : flows_) {
    if (flow.head == nullptr || !SameFlow(*flow.head, flow.first, frame, segment)) continue;
    const bool fits = segment.seq == flow.next_seq && segment.payload <= flow.first.payload &&
                      flow.size + segment.payload <= kMaxPacket && SameHeaders(*flow.head, flow.first, frame, segment) &&
                      ChecksumRight(frame, segment) &&
                      flow.head->AddSlice(frame.LinearSlice(segment.payload_at, segment.payload));
    if (!fits) {
      Finish(flow);
      break;
    }
    flow.next_seq += segment.payload;
    flow.size += segment.payload;
    if (++flow.segments == 2) ++super_segments_;
    ++joined_;
    if (segment.push) flow.head->data()[flow.first.headers.transport + 13] |= kPsh;
    if (segment.push || segment.payload < flow.first.payload) Finish(flow);
    return true;
  }
  if (segment.push || !ChecksumRight(frame, segment)) return false;
  // Padding behind the packet would come between its payload and the next slice.
  frame.TrimLinear(segment.headers.end);
  Flow& flow = flows_[next_flow_++ % kFlows];
  Finish(flow);
  flow = Flow{&frame, segment, segment.seq + segment.payload, segment.headers.end - segment.headers.network, 1};
  return false;
}

size_t GroPort::Coalesce(std::span<Packet> burst) {
  std::array<bool, 256> gone{};
  const size_t count = std::min(burst.size(), gone.size());
  for (size_t i = 0; i < count; ++i) {
    Segment segment;
    if (Parse(burst[i], &segment)) {
      gone[i] = Join(burst[i], segment);
      continue;
    }
    // What cannot join (a FIN, a pure ACK) must not be overtaken by what is behind it in its flow.
    if (!LocateHeaders(burst[i].linear(), burst[i].size(), &segment.headers) || segment.headers.fragment) continue;
    for (Flow& flow : flows_) {
      if (flow.head != nullptr && SameFlow(*flow.head, flow.first, burst[i], segment)) Finish(flow);
    }
  }
  for (Flow& flow : flows_) Finish(flow);
  size_t kept = 0;
  for (size_t i = 0; i < burst.size(); ++i) {
    if (i < count && gone[i]) {
      burst[i] = Packet();
    } else if (kept++ != i) {
      burst[kept - 1] = std::move(burst[i]);
    }
  }
  return kept;
}

size_t GroPort::Receive(std::span<Packet> out) {
  const size_t n = inner_->Receive(out);
  return n < 2 ? n : Coalesce(out.first(n));
}

std::vector<std::string> GroPort::describe() const {
  std::vector<std::string> lines = inner_->describe();
  lines.push_back("gro_super_segments=" + std::to_string(super_segments_));
  lines.push_back("gro_joined=" + std::to_string(joined_));
  return lines;
}

}  // namespace sluice
