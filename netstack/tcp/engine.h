// What the connections of one shard share: demultiplexing, ports, secrets, limits, the list of connections with work at the end
// of the turn, and the replies that need no connection.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "netstack/stack.h"
#include "netstack/sysctls.h"
#include "netstack/tcp/bind_table.h"
#include "netstack/tcp/fast_open.h"
#include "netstack/tcp/flow_table.h"
#include "netstack/tcp/object_pool.h"
#include "netstack/tcp/segment.h"
#include "netstack/tcp/syn_cookie.h"
#include "netstack/tcp/types.h"

namespace sluice::tcp {

class Connection;
struct Handshake;
struct Request;
struct TimeWait;

// A segment without payload, sent outside of a connection's own path.
struct ControlSegment {
  FlowKey flow;
  HeaderSpec header;
  IfIndex ifindex = 0;
  uint8_t tos = 0;
  uint8_t ttl = 0;  // 0: the default
};

class Engine {
 public:
  explicit Engine(StackContext& context);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  StackContext& ctx;
  FlowTable flows;
  BindTable binds;
  SynCookies cookies;
  FastOpenClient fast_open;

  Instant now() const { return ctx.now; }
  const Sysctls& sysctls() const { return *ctx.sysctls; }
  void Count(Counter c, uint64_t n = 1) { ctx.counters.Add(c, n); }

  void Input(Packet packet, const IpInfo& info);
  bool IcmpError(const IcmpErrorInfo& error);
  void EndTurn();
  void OnConfig();
  void AppendSockets(std::vector<SocketInfo>* out, bool with_tcp_info) const;
  size_t EstablishedConnections() const;

  // --- life of connections
  Connection* NewConnection(Family family);
  // Puts the connection on the list of this turn.
  void Schedule(Connection* c);
  // Frees it at the end of the turn; nothing may find it any more.
  void Bury(Connection* c);
  // An open connection whose owner has gone. False where there are too many: the caller resets it.
  bool AddOrphan();
  void RemoveOrphan() { --orphans_; }
  // How many connections have been read from lately (tens of milliseconds), the caller included. `mark` is the caller's own and
  // begins with 0.
  size_t CountReader(uint32_t* mark);

  // --- ports
  // RFC 6056: a port for bind() with port 0. 0 where none is free.
  uint16_t ChooseBindPort(const PortHolder& holder, uint16_t low, uint16_t high);
  // A port so that the 4-tuple is free, for connect(); `key` has everything but the local port. 0 where none is free.
  uint16_t ChooseConnectPort(FlowKey key, const PortHolder& holder, uint16_t low, uint16_t high, bool* reused_time_wait,
                             SeqNum* iss);
  // Whether the 4-tuple may be used for an active open: free, or a TIME_WAIT entry that may be reused (RFC 6191), which is then
  // taken over.
  bool ClaimFlow(const FlowKey& key, SeqNum* iss, bool* reused);
  bool FlowUsable(const FlowKey& key) const;

  // --- identities
  SeqNum InitialSequence(const FlowKey& key) const;  // RFC 6528
  uint32_t TimestampOffset(const FlowKey& key) const;
  uint32_t TimestampNow(const FlowKey& key) const { return TimestampOffset(key) + TimestampClock(now()); }

  // --- replies
  // RFC 9293 3.10.7.1: RST for a segment that belongs to nothing.
  void SendReset(const Segment& seg, const IpInfo& info);
  bool SendControl(const ControlSegment& segment);
  // RFC 5961 7: the shard's limit of challenge ACKs.
  bool AllowChallengeAck();
  // As linux tcp_oow_rate_limited: whether a segment that is not acceptable goes without the answer, as one was given just now.
  bool OutOfWindowLimit(const Segment& seg, Instant* last);

  // --- requests and TIME_WAIT (engine_passive.cc, time_wait.cc)
  Connection* FindListener(const FlowKey& key, IfIndex ifindex, uint32_t hash) const;
  void AddTimeWait(const Connection& c, State substate, Duration length);
  void DropTimeWait(TimeWait* tw);
  const FastOpenKeys& fast_open_keys();
  Request* NewRequest();
  void FreeRequest(Request* r);
  TimeWait* NewTimeWait();

 private:
  void InputListen(Connection* listener, const Segment& seg, Packet packet, const IpInfo& info, const FlowKey& key,
                   SeqNum* forced_iss);
  void InputRequest(Request* r, const Segment& seg, Packet packet, const IpInfo& info);
  void InputTimeWait(TimeWait* tw, const Segment& seg, Packet packet, const IpInfo& info);
  void InputFinWait2(TimeWait* tw, const Segment& seg, bool paws, const IpInfo& info);
  void InputUnknown(const Segment& seg, Packet packet, const IpInfo& info, const FlowKey& key);
  bool InputCookieAck(Connection* listener, const Segment& seg, Packet& packet, const IpInfo& info, const FlowKey& key);
  bool TryFastOpen(Connection* listener, const Segment& seg, Packet& packet, const IpInfo& info, const FlowKey& key,
                   const Handshake& shake, FastOpenCookie* answer);
  // True where another stack of this host may have the flow, and the packet went there.
  bool PassOn(PortSpace space, const FlowKey& key, Packet& packet, const IpInfo& info);
  bool Acceptable(const Segment& seg, const Packet& packet, const IpInfo& info);
  bool TimeWaitReusable(const TimeWait& tw) const;

  ObjectPool<Connection> connection_pool_;
  ObjectPool<Request> request_pool_;
  ObjectPool<TimeWait> time_wait_pool_;
  std::vector<Connection*> turn_;
  std::vector<Connection*> buried_;
  Connection* all_ = nullptr;  // every connection, for listings
  size_t orphans_ = 0;
  size_t time_waits_ = 0;
  SipKey isn_key_, timestamp_key_, port_key_;
  FastOpenKeys configured_keys_, random_keys_;
  uint32_t port_counter_ = 0;
  Instant challenge_window_;
  int challenge_budget_ = 0;
  Instant readers_since_;
  uint32_t readers_mark_ = 0;
  size_t readers_ = 0, readers_before_ = 0;  // of this interval, of the one before
  friend class Connection;
};

}  // namespace sluice::tcp
