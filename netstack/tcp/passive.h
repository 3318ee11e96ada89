// Half-open connections of a listening socket, and TIME_WAIT: both far smaller than a connection.
#pragma once

#include <cstdint>

#include "base/timer_wheel.h"
#include "netstack/tcp/bind_table.h"
#include "netstack/tcp/segment.h"
#include "netstack/tcp/types.h"

namespace sluice::tcp {

class Connection;
class Engine;

// What both sides said in their SYNs.
struct Handshake {
  SeqNum iss, irs;
  uint16_t peer_mss = 536;
  uint16_t window = 0;  // of the peer's last segment, not scaled in a SYN
  bool scaling = false, timestamps = false, sack = false, ecn = false;
  uint8_t snd_wscale = 0, rcv_wscale = 0;
  uint32_t ts_recent = 0;
  uint32_t ts_offset = 0;
  uint32_t rcv_wnd = 0;
};

// As linux tcp_in_window.
bool InWindow(const Segment& seg, SeqNum left, SeqNum right);

// SYN-RECEIVED reached from LISTEN (RFC 9293 3.10.7.4), until the ACK arrives.
struct Request : FlowEntry {
  explicit Request(Engine& e) : FlowEntry(FlowKind::kRequest), engine(e), timer(&Request::OnTimer, this) {}
  static void OnTimer(void* self);

  Engine& engine;
  Connection* listener = nullptr;
  Request* next = nullptr;  // of the listener
  Request** prev = nullptr;
  Handshake shake;
  Timer timer;
  Instant sent_at;
  Instant last_oow_ack;
  Duration timeout = kInitialRto;
  IfIndex ifindex = 0;
  uint8_t tos = 0;
  uint8_t retransmits = 0;
  bool acked = false;  // the handshake is complete, the accept queue was full or data is awaited (TCP_DEFER_ACCEPT)

  uint32_t first_stamp = 0, last_stamp = 0;  // sent so far: what the peer can echo
  bool stamped = false;

  void SendSynAck(const FastOpenCookie& fast_open = {});
  void SendAck();
  bool HasSent(uint32_t stamp) const;
  bool OutOfWindowLimit(const Segment& seg);
};

// TIME-WAIT, or FIN-WAIT-2 without an owner (`substate`).
struct TimeWait : FlowEntry, PortHolder {
  explicit TimeWait(Engine& e) : FlowEntry(FlowKind::kTimeWait), engine(e), timer(&TimeWait::OnTimer, this) {
    holder_is_socket = false;
  }
  static void OnTimer(void* self);

  Engine& engine;
  Timer timer;
  SeqNum snd_nxt, rcv_nxt;
  uint32_t rcv_wnd = 0;
  uint8_t rcv_wscale = 0;
  State substate = State::kTimeWait;
  bool timestamps = false;
  uint32_t ts_recent = 0;
  uint32_t ts_offset = 0;
  Instant ts_recent_at;
  Instant last_oow_ack;
  IfIndex ifindex = 0;
  uint8_t tos = 0;
  Duration length = kTimeWaitLength;

  void SendAck();
  void RememberTimestamp(uint32_t value);
};

}  // namespace sluice::tcp
