// Frames in, frames out: a Stack on one device whose other end is the test.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "netstack/stack.h"
#include "netstack/testing/sim.h"
#include "netstack/wire/headers.h"

namespace sluice::testing {

using Frame = std::vector<uint8_t>;

inline const MacAddress kPeerMac{{2, 9, 9, 9, 9, 9}};
inline const MacAddress kBroadcastMac{{255, 255, 255, 255, 255, 255}};

// Builders. All checksums are right; tests damage them afterwards.
Frame ArpFrame(uint16_t operation, const MacAddress& eth_to, const MacAddress& sender_mac, std::string_view sender,
               const MacAddress& target_mac, std::string_view target);
Frame Ipv4Frame(const MacAddress& to, const wire::Ipv4Fields& fields, Bytes payload);
std::vector<uint8_t> IcmpMessage(uint8_t type, uint8_t code, uint32_t rest, Bytes payload);
std::vector<uint8_t> UdpMessage(const IpAddress& source, const IpAddress& destination, uint16_t source_port,
                                uint16_t destination_port, Bytes payload);

// 10.0.0.1/24 with a gateway 10.0.0.254, and the peer 10.0.0.2 known as kPeerMac unless `resolve` is false.
class FrameHost : public Link {
 public:
  explicit FrameHost(bool resolve = true, NetConfig config = HostConfig("10.0.0.1/24", "10.0.0.254"));
  LinkFeatures features() const override { return features_; }
  size_t Transmit(std::span<Packet> burst) override;

  Stack& stack() { return *stack_; }
  HeapBlockPool& pool() { return pool_; }
  MacAddress mac() const { return config_.links[1].mac; }
  NetConfig& config() { return config_; }
  void ApplyConfig();
  void SetFeatures(const LinkFeatures& f);
  void In(Bytes frame);  // then a whole turn
  void In(Packet frame);
  void Turn();
  void Advance(Duration d);  // turns at every deadline on the way
  // The oldest frame that came out, empty where there is none.
  Frame Out();
  std::vector<Frame> AllOut();
  uint64_t counter(Counter c) const { return stack_->counters().Get(c); }
  uint64_t drops() const;           // sum of all Drop* counters
  size_t accept_frames = SIZE_MAX;  // what Transmit takes per call
  Instant now() const { return now_; }

  std::deque<Offload> offloads;  // of the frames in Out, in step

 private:
  Instant now_{5'000'000'000};
  NetConfig config_;
  HeapBlockPool pool_{32 << 20};
  TestSecureRng secure_{42};
  LinkFeatures features_{.tx_checksum = true, .gso = true, .udp_gso = true, .rx_checksum = true};
  std::unique_ptr<Stack> stack_;
  std::deque<Frame> out_;
};

}  // namespace sluice::testing
