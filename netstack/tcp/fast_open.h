// TCP Fast Open (RFC 7413), as linux/net/ipv4/tcp_fastopen.c has it: data in the SYN, for those who show that they are where they
// say they are by a cookie of an earlier connection. What a connection does with it is in fast_open.cc; here are the cookies of a
// server, and what a client remembers.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/rng.h"
#include "base/time.h"
#include "netstack/tcp/segment.h"
#include "netstack/tcp/types.h"

namespace sluice::tcp {

// Of net.ipv4.tcp_fastopen.
enum FastOpenBit : int {
  kFastOpenClient = 1,
  kFastOpenServer = 2,
  kFastOpenClientNoCookie = 4,
  kFastOpenServerNoCookie = 0x200,
  kFastOpenAllListeners = 0x400,
};

// tcpi_fastopen_client_fail.
enum class FastOpenFailure : uint8_t { kNone, kNoCookie, kDataNotAcked, kSynRetransmitted };

// --- server

// The first key makes cookies; those of the second are taken, too, and replaced (RFC 7413 4.1.2, keys change).
struct FastOpenKeys {
  static constexpr size_t kKeySize = 16;
  std::array<SipKey, 2> keys;
  size_t count = 0;

  // One key or two of 16 bytes, as TCP_FASTOPEN_KEY has them; none where the size is another.
  static std::optional<FastOpenKeys> FromBytes(Bytes bytes);
  std::vector<uint8_t> ToBytes() const;
  // As net.ipv4.tcp_fastopen_key is written: 00112233-44556677-8899aabb-ccddeeff, with a comma before a second one. All zeros:
  // no key (count 0), which the kernel shows before it has made one.
  static std::optional<FastOpenKeys> FromText(std::string_view text);
  std::string ToText() const;
};

// The cookie of the client at the far end of `flow`: the kernel's own for the same key.
FastOpenCookie MakeFastOpenCookie(const SipKey& key, const FlowKey& flow);

// The connections of a listener whose handshake is not complete although they are there (TCP_FASTOPEN's queue). Those that were
// reset then count for a minute more: a SYN whose source was forged is answered so.
class FastOpenQueue {
 public:
  bool HasRoom(uint32_t most, Instant now);
  void Add() { ++pending_; }
  void Remove(bool reset, Instant now);

 private:
  uint32_t pending_ = 0;
  std::deque<Instant> resets_;  // when each ceases to count
};

// --- client

// The cookies that servers gave, and whether Fast Open is paused as something on the way seems to drop it. Of one stack.
class FastOpenClient {
 public:
  struct Server {
    FastOpenCookie cookie;
    uint16_t mss = 0;  // as it announced it; 0: not known
  };

  explicit FastOpenClient(SecureRng& secure);
  const Server* Find(const IpAddress& local, const IpAddress& remote) const;
  // Of a SYN,ACK: a cookie that it does not have leaves the old one.
  void Remember(const IpAddress& local, const IpAddress& remote, uint16_t mss, const FastOpenCookie& cookie, Instant now);

  // RFC 7413 4.2.2's blackholes: for `timeout`, and twice as long each time that it happens again, up to 64 times that.
  bool Paused(Duration timeout, Instant now) const;
  bool was_paused() const { return pauses_ > 0; }
  void Pause(Instant now);
  void Resume() { pauses_ = 0; }

 private:
  static constexpr size_t kSets = 256, kWays = 4;  // bounded; the oldest of a set makes room
  struct Entry {
    IpAddress local, remote;
    Server server;
    Instant since;
    bool used = false;
  };
  using Set = std::array<Entry, kWays>;
  Set& SetOf(const IpAddress& local, const IpAddress& remote) const;

  SipKey salt_;
  std::unique_ptr<std::array<Set, kSets>> sets_;  // made with the first cookie
  uint32_t pauses_ = 0;
  Instant paused_at_;
};

// --- one connection

struct FastOpen {
  // Client.
  bool deferred = false;     // TCP_FASTOPEN_CONNECT: the SYN waits for the first data
  bool option_sent = false;  // the SYN had a cookie, or asked for one
  bool after_pause = false;  // the first that tries again
  uint32_t syn_data = 0;     // bytes that the first SYN carried
  FastOpenFailure failure = FastOpenFailure::kNone;
  // Both.
  FastOpenCookie option;    // of the next SYN or SYN,ACK, which is the first: repetitions go without
  uint32_t next_data = 0;   // likewise
  bool data_acked = false;  // data in the SYN was taken
  // Server, until the handshake is complete.
  std::shared_ptr<FastOpenQueue> queue;
  Instant syn_ack_sent;

  // The next SYN is a plain one, and data comes behind the handshake.
  void ForgetSyn() {
    deferred = false;
    option = FastOpenCookie{};
    next_data = 0;
  }
};

}  // namespace sluice::tcp
