#include "netstack/testing/frames.h"

#include "netstack/wire/checksum.h"

namespace sluice::testing {

Frame ArpFrame(uint16_t operation, const MacAddress& eth_to, const MacAddress& sender_mac, std::string_view sender,
               const MacAddress& target_mac, std::string_view target) {
  wire::ArpMessage m;
  m.operation = operation;
  m.sender_mac = sender_mac;
  m.sender = *IpAddress::Parse(sender);
  m.target_mac = target_mac;
  m.target = *IpAddress::Parse(target);
  Frame f(60);  // padded, as on a wire
  wire::WriteEthernet(f.data(), eth_to, sender_mac, wire::kEtherArp);
  m.Write(f.data() + wire::kEthernetHeader);
  return f;
}

Frame Ipv4Frame(const MacAddress& to, const wire::Ipv4Fields& fields, Bytes payload) {
  wire::Ipv4Fields f = fields;
  if (f.total_length == 0) f.total_length = static_cast<uint16_t>(f.header_length() + payload.size());
  Frame frame(wire::kEthernetHeader + f.header_length() + payload.size());
  wire::WriteEthernet(frame.data(), to, kPeerMac, wire::kEtherIpv4);
  f.Write(frame.data() + wire::kEthernetHeader);
  if (!payload.empty()) std::memcpy(frame.data() + wire::kEthernetHeader + f.header_length(), payload.data(), payload.size());
  return frame;
}

std::vector<uint8_t> IcmpMessage(uint8_t type, uint8_t code, uint32_t rest, Bytes payload) {
  std::vector<uint8_t> m(8);
  m[0] = type, m[1] = code;
  StoreBe32(m.data() + 4, rest);
  m.insert(m.end(), payload.begin(), payload.end());
  wire::StoreSum(m.data() + 2, static_cast<uint16_t>(~wire::OnesSum(Bytes(m))));
  return m;
}

std::vector<uint8_t> UdpMessage(const IpAddress& source, const IpAddress& destination, uint16_t source_port,
                                uint16_t destination_port, Bytes payload) {
  std::vector<uint8_t> m(8);
  StoreBe16(m.data(), source_port);
  StoreBe16(m.data() + 2, destination_port);
  StoreBe16(m.data() + 4, static_cast<uint16_t>(8 + payload.size()));
  m.insert(m.end(), payload.begin(), payload.end());
  uint16_t sum = static_cast<uint16_t>(
      ~wire::OnesSum(Bytes(m), wire::PseudoHeaderSum(source, destination, kIpProtoUdp, static_cast<uint32_t>(m.size()))));
  wire::StoreSum(m.data() + 6, sum == 0 ? 0xffff : sum);
  return m;
}

FrameHost::FrameHost(bool resolve, NetConfig config) : config_(std::move(config)) {
  stack_ = std::make_unique<Stack>(now_, secure_, pool_);
  stack_->AttachLink(kSimIfIndex, this);
  ApplyConfig();
  Turn();
  out_.clear();
  offloads.clear();
  if (resolve) {
    // A request for our address teaches the peer's.
    In(ArpFrame(wire::kArpRequest, kBroadcastMac, kPeerMac, "10.0.0.2", MacAddress{}, ToString(config_.addresses.back().local)));
    out_.clear();
    offloads.clear();
  }
}

void FrameHost::ApplyConfig() {
  ++config_.generation;
  stack_->ApplyConfig(std::make_shared<const NetConfig>(config_));
}

void FrameHost::SetFeatures(const LinkFeatures& f) {
  features_ = f;
  stack_->AttachLink(kSimIfIndex, this);
}

size_t FrameHost::Transmit(std::span<Packet> burst) {
  const size_t n = std::min(accept_frames, burst.size());
  for (Packet& p : burst.first(n)) {
    Frame f(p.size());
    p.CopyOut(0, f);
    out_.push_back(std::move(f));
    offloads.push_back(p.offload);
    p = Packet();
  }
  return n;
}

void FrameHost::In(Bytes frame) {
  Packet p = Packet::Allocate(pool_, frame.size());
  SLUICE_CHECK(static_cast<bool>(p));
  if (!frame.empty()) std::memcpy(p.Append(frame.size()), frame.data(), frame.size());
  In(std::move(p));
}

void FrameHost::In(Packet frame) {
  frame.ifindex = kSimIfIndex;
  frame.received = now_;
  stack_->SetNow(now_);
  stack_->Input({&frame, 1}, kSimIfIndex);
  Turn();
}

void FrameHost::Turn() {
  stack_->SetNow(now_);
  stack_->AdvanceTimers();
  stack_->Flush();
}

void FrameHost::Advance(Duration d) {
  const Instant end = now_ + d;
  for (;;) {
    const auto next = stack_->NextDeadline();
    if (!next || *next > end) break;
    if (*next > now_) now_ = *next;
    Turn();
  }
  now_ = end;
  Turn();
}

Frame FrameHost::Out() {
  if (out_.empty()) return {};
  Frame f = std::move(out_.front());
  out_.pop_front();
  offloads.pop_front();
  return f;
}

std::vector<Frame> FrameHost::AllOut() {
  std::vector<Frame> all(out_.begin(), out_.end());
  out_.clear();
  offloads.clear();
  return all;
}

uint64_t FrameHost::drops() const {
  uint64_t n = 0;
  for (size_t i = 0; i < kCounterInfo.size(); ++i) {
    if (kCounterInfo[i].name.starts_with("Drop")) n += stack_->counters().Get(static_cast<Counter>(i));
  }
  return n;
}

}  // namespace sluice::testing
