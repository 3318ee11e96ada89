// A simulated network with virtual time: Stacks joined by links with rate, delay, queue, loss, reordering, duplication and
// corruption. Deterministic: everything random follows from one seed, which is printed where a test fails.
//
//   SimNetwork net(1);
//   SimHost& a = net.AddHost("a", HostConfig("10.0.0.1/24"));
//   SimHost& b = net.AddHost("b", HostConfig("10.0.0.2/24"));
//   net.Join(a, b, {.rate_bps = 100'000'000, .delay = Duration::Milliseconds(5), .loss = 0.01});
//   b.on_turn = [&] { ... socket work of the program on b ... };
//   ASSERT_TRUE(net.RunUntil([&] { return done; }, Duration::Seconds(10)));
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <queue>
#include <string>
#include <string_view>
#include <vector>

#include "netstack/stack.h"
#include "netstack/sysctls.h"

namespace sluice::testing {

// Deterministic, and no secret at all.
class TestSecureRng final : public SecureRng {
 public:
  explicit TestSecureRng(uint64_t seed) : rng_(seed) {}
  void Fill(MutableBytes out) override;

 private:
  Rng rng_;
};

inline constexpr IfIndex kSimIfIndex = 2;  // of the first device of a HostConfig

// A loopback and one Ethernet device (index 2, "eth0", MAC 02:00 + the IPv4 address) with `address` ("10.0.0.1/24"), its local,
// broadcast and prefix routes as the kernel makes them, and a default route where `gateway` is given.
NetConfig HostConfig(std::string_view address, std::string_view gateway = "", uint32_t mtu = 1500);
// Adds a further device (its index is returned) or a further address to a configuration.
IfIndex AddDevice(NetConfig* config, std::string_view name, std::string_view address, uint32_t mtu = 1500);
void AddAddress(NetConfig* config, IfIndex ifindex, std::string_view address);
void AddRoute(NetConfig* config, std::string_view prefix, std::string_view gateway, IfIndex ifindex, uint32_t metric = 0);

// One direction of a link.
struct LinkProfile {
  uint64_t rate_bps = 0;  // 0: no serialisation time
  Duration delay;
  size_t queue_bytes = 1 << 20;                              // waiting for the wire; more is dropped (only where there is a rate)
  size_t mark_bytes = SIZE_MAX;                              // where more waits, what may be marked is (RFC 3168)
  size_t largest = SIZE_MAX;                                 // frames beyond are dropped, without a word (after the cut)
  double loss = 0, duplicate = 0, corrupt = 0, reorder = 0;  // probability per frame
  Duration reorder_delay = Duration::Milliseconds(10);       // how much later a reordered frame comes
  bool cut_gso = true;  // cut super-segments into MTU-sized frames with full checksums, as a real wire would
};

struct LinkStats {
  uint64_t frames = 0, bytes = 0, lost = 0, queue_drops = 0, marked = 0, too_large = 0, duplicated = 0, corrupted = 0,
           reordered = 0;
};

class SimNetwork;

class SimHost {
 public:
  SimHost(SimNetwork& net, std::string name, NetConfig config, uint64_t seed, size_t pool_bytes);
  Stack& stack() { return *stack_; }
  HeapBlockPool& pool() { return pool_; }
  const std::string& name() const { return name_; }
  NetConfig& config() { return config_; }  // change it, then ApplyConfig()
  void ApplyConfig();                      // hands a copy with a new generation to the stack
  void SetSysctl(std::string key, std::string value) { config_.sysctls[std::move(key)] = std::move(value); }
  uint64_t counter(Counter c) const { return stack_->counters().Get(c); }

  // Socket work of the program: called in every turn after input and timers, before output.
  std::function<void()> on_turn;

 private:
  friend class SimNetwork;
  std::string name_;
  NetConfig config_;
  HeapBlockPool pool_;
  TestSecureRng secure_;
  std::unique_ptr<Stack> stack_;
};

// Sees every frame that enters a link; return false to drop it. The frame may be changed.
using FrameHook = std::function<bool(SimHost& from, Packet& frame)>;

class SimNetwork {
 public:
  explicit SimNetwork(uint64_t seed);
  ~SimNetwork();

  SimHost& AddHost(std::string name, NetConfig config, size_t pool_bytes = size_t{64} << 20);
  // Joins devices (kSimIfIndex each) with the same profile both ways, or with one per direction.
  void Join(SimHost& a, SimHost& b, const LinkProfile& both) { Join(a, kSimIfIndex, b, kSimIfIndex, both, both); }
  void Join(SimHost& a, IfIndex a_ifindex, SimHost& b, IfIndex b_ifindex, const LinkProfile& a_to_b, const LinkProfile& b_to_a);
  // What the host's device takes and tells from now on (default: checksums and GSO, as a veth).
  void SetFeatures(SimHost& host, IfIndex ifindex, const LinkFeatures& features);
  void SetProfile(SimHost& from, IfIndex ifindex, const LinkProfile& profile);
  const LinkStats& stats(SimHost& from, IfIndex ifindex = kSimIfIndex) const;
  void set_frame_hook(FrameHook hook) { hook_ = std::move(hook); }
  // One line per frame to stderr ("1.002003 a > b 10.0.0.1:80 > ...").
  void set_trace(bool on) { trace_ = on; }

  Instant now() const { return now_; }
  Rng& rng() { return rng_; }
  // Runs until `done` (asked after every turn) or until `limit` of virtual time has passed; returns what `done` says at the end.
  bool RunUntil(const std::function<bool()>& done, Duration limit);
  void RunFor(Duration d);
  // Puts a frame on the host's device as if it came by the wire, now.
  void Inject(SimHost& host, Bytes frame, IfIndex ifindex = kSimIfIndex);

 private:
  class SimPort;
  struct Event;
  void Turn();
  void Send(SimPort& from, Packet frame);
  void Wire(SimPort& from, Packet frame);
  void Deliver(SimPort& to, const Packet& frame, Instant at);
  void Trace(SimPort& from, const Packet& frame) const;
  SimPort* Find(const SimHost& host, IfIndex ifindex) const;

  uint64_t seed_;
  Rng rng_;
  Instant now_{1'000'000'000};
  uint64_t sequence_ = 0;
  bool trace_ = false;
  FrameHook hook_;
  std::vector<std::unique_ptr<SimHost>> hosts_;
  std::vector<std::unique_ptr<SimPort>> ports_;
  std::vector<std::unique_ptr<Event>> events_;  // heap by time, then order
};

// Cuts a GSO frame (complete Ethernet frame, linear or not) into segments with complete checksums; a frame without GSO comes back
// alone, its partial checksum completed. Also used as the reference for the dataplane's own cut.
std::vector<Packet> CutGso(Packet frame, BlockPool& pool);

}  // namespace sluice::testing
