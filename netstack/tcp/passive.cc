// LISTEN and SYN-RECEIVED (RFC 9293 3.10.7.2 and 3.10.7.4), SYN cookies (RFC 4987), and TIME-WAIT (RFC 9293 3.6, 6191, 1337).
#include "netstack/tcp/passive.h"

#include <algorithm>

#include "netstack/tcp/connection.h"
#include "netstack/tcp/engine.h"

namespace sluice::tcp {
namespace {

HeaderSpec SynAck(const Handshake& shake, uint16_t mss, uint32_t timestamp) {
  HeaderSpec h;
  h.seq = shake.iss;
  h.ack = shake.irs + 1;
  h.flags = static_cast<uint8_t>(kSyn | kAck | (shake.ecn ? kEce : 0));
  h.window = static_cast<uint16_t>(std::min(shake.rcv_wnd, 65535u));
  h.mss = mss;
  h.sack_permitted = shake.sack;
  h.has_window_scale = shake.scaling;
  h.window_scale = shake.rcv_wscale;
  h.has_timestamps = shake.timestamps;
  h.ts_val = timestamp;
  h.ts_ecr = shake.ts_recent;
  return h;
}

}  // namespace

bool InWindow(const Segment& seg, SeqNum left, SeqNum right) {
  if (seg.seq == left) return true;
  if (left < seg.end() && seg.seq < right) return true;
  return seg.seq == right && seg.length() == 0;
}

// --- LISTEN

void Engine::InputListen(Connection* listener, const Segment& seg, Packet packet, const IpInfo& info, const FlowKey& key,
                         SeqNum* forced_iss) {
  // Where this stack listens, only flows that another has away from their home are looked for there: strays cost no mail.
  if (seg.Has(kRst)) {  // first
    (void)PassOn(PortSpace::kTcpAway, key, packet, info);
    return;
  }
  if (seg.Has(kAck)) {  // second: nothing was sent from here, unless a cookie was
    if (!seg.Has(kSyn) && InputCookieAck(listener, seg, packet, info, key)) return;
    if (PassOn(PortSpace::kTcpAway, key, packet, info)) return;
    return SendReset(seg, info);
  }
  if (!seg.Has(kSyn)) {  // fourth
    Count(Counter::kDropTcpNoConnection);
    return;
  }
  // third: a SYN
  if (seg.Has(kFin)) {
    Count(Counter::kDropTcpMalformed);
    return;
  }
  if (ctx.stream_memory.exhausted()) {
    Count(Counter::kDropTcpMemory);
    return;
  }
  ListenState& l = listener->listen_state();
  bool want_cookie = false;
  if (sysctls().tcp_syncookies == 2 || l.request_count >= static_cast<size_t>(std::max(l.backlog, 1))) {
    if (sysctls().tcp_syncookies == 0) {
      Count(Counter::kTcpReqQFullDrop);
      return;
    }
    want_cookie = forced_iss == nullptr;
    if (want_cookie) Count(Counter::kTcpReqQFullDoCookies);
  }
  if (listener->AcceptQueueFull()) {
    Count(Counter::kTcpListenOverflows);
    return;
  }
  RouteQuery q;
  q.destination = key.remote;
  q.source = key.local;
  q.ifindex = key.remote.is_v6() && key.remote.IsLinkLocal() ? info.ifindex : listener->bound_ifindex;
  q.any_source = true;
  const Route route = ctx.ip->Lookup(q);
  if (!route.ok()) {
    Count(Counter::kDropIpNoRoute);
    return;
  }
  Handshake shake;
  shake.irs = seg.seq;
  shake.peer_mss = seg.mss != 0 ? seg.mss : (key.remote.is_v4() ? 536 : 1220);
  shake.window = seg.window;
  shake.timestamps = seg.has_timestamps && sysctls().tcp_timestamps;
  shake.scaling = seg.has_window_scale && sysctls().tcp_window_scaling && !(want_cookie && !shake.timestamps);
  shake.sack = seg.sack_permitted && sysctls().tcp_sack && !(want_cookie && !shake.timestamps);
  // RFC 3168 6.1.1; a SYN that may be marked itself comes from something else.
  shake.ecn =
      seg.Has(kEce) && seg.Has(kCwr) && seg.ecn == kEcnNotEct && sysctls().tcp_ecn != 0 && !(want_cookie && !shake.timestamps);
  shake.snd_wscale = seg.window_scale;
  shake.rcv_wscale = shake.scaling ? listener->ChooseWindowScale() : 0;
  shake.ts_recent = seg.ts_val;
  shake.ts_offset = TimestampOffset(key);
  const uint16_t mss = listener->AdvertisedMss(route, key.remote.family());
  shake.rcv_wnd = listener->InitialReceiveWindow(mss);
  if (want_cookie) {
    shake.iss = cookies.Make(key, seg.seq, shake.peer_mss, now());
    ControlSegment s;
    s.flow = key;
    s.ifindex = info.ifindex;
    const uint32_t stamp = shake.ts_offset + TimestampClock(now());
    s.header = SynAck(shake, mss, SynCookies::EncodeTimestamp(stamp, seg, shake.ecn));
    SendControl(s);
    Count(Counter::kTcpSyncookiesSent);
    return;
  }
  shake.iss = forced_iss != nullptr ? *forced_iss : InitialSequence(key);
  FastOpenCookie answer;
  if (TryFastOpen(listener, seg, packet, info, key, shake, &answer)) return;
  Request* r = NewRequest();
  r->key = key;
  r->shake = shake;
  r->ifindex = info.ifindex;
  r->listener = listener;
  r->next = l.requests;
  r->prev = &l.requests;
  if (l.requests != nullptr) l.requests->prev = &r->next;
  l.requests = r;
  ++l.request_count;
  flows.Insert(r);
  r->sent_at = now();
  r->SendSynAck(answer);
  ctx.timers.Schedule(r->timer, now() + r->timeout);
}

bool Engine::InputCookieAck(Connection* listener, const Segment& seg, Packet& packet, const IpInfo& info, const FlowKey& key) {
  if (sysctls().tcp_syncookies == 0) return false;
  const std::optional<uint16_t> mss = cookies.Check(key, seg.seq - 1, seg.ack - 1, now());
  if (!mss) {
    Count(Counter::kTcpSyncookiesFailed);
    return false;
  }
  if (listener->AcceptQueueFull()) {
    Count(Counter::kTcpListenOverflows);
    return true;
  }
  Count(Counter::kTcpSyncookiesRecv);
  Handshake shake;
  shake.iss = seg.ack - 1;
  shake.irs = seg.seq - 1;
  shake.peer_mss = *mss;
  shake.window = seg.window;
  shake.ts_offset = TimestampOffset(key);
  if (seg.has_timestamps && sysctls().tcp_timestamps) {
    CookieOptions options;
    SynCookies::DecodeTimestamp(seg.ts_ecr - 0, &options);
    shake.timestamps = true;
    shake.ts_recent = seg.ts_val;
    shake.sack = options.sack && sysctls().tcp_sack;
    shake.ecn = options.ecn && sysctls().tcp_ecn != 0;
    shake.scaling = options.has_window_scale && sysctls().tcp_window_scaling;
    shake.snd_wscale = options.window_scale;
    shake.rcv_wscale = shake.scaling ? listener->ChooseWindowScale() : 0;
  }
  shake.rcv_wnd = listener->InitialReceiveWindow(*mss);
  Connection* c = NewConnection(listener->family());
  c->InitPassive(*listener, key, shake, info.ifindex, Instant());
  Count(Counter::kTcpPassiveOpens);
  listener->PushAccepted(c);
  c->Input(seg, std::move(packet), info);
  return true;
}

// --- SYN-RECEIVED

Request* Engine::NewRequest() {
  ctx.stream_memory.Add(sizeof(Request));
  return request_pool_.New(*this);
}

void Engine::FreeRequest(Request* r) {
  flows.Remove(r);
  *r->prev = r->next;
  if (r->next != nullptr) r->next->prev = r->prev;
  --r->listener->listen_state().request_count;
  ctx.stream_memory.Remove(sizeof(Request));
  request_pool_.Delete(r);
}

void Request::SendSynAck(const FastOpenCookie& fast_open) {
  RouteQuery q;
  q.destination = key.remote;
  q.source = key.local;
  q.any_source = true;
  const Route route = engine.ctx.ip->Lookup(q);
  if (!route.ok()) return;
  ControlSegment s;
  s.flow = key;
  s.ifindex = ifindex;
  last_stamp = shake.ts_offset + TimestampClock(engine.now());
  if (!std::exchange(stamped, true)) first_stamp = last_stamp;
  s.header = SynAck(shake, listener->AdvertisedMss(route, key.remote.family()), last_stamp);
  s.header.fast_open = fast_open;
  engine.SendControl(s);
}

void Request::SendAck() {
  ControlSegment s;
  s.flow = key;
  s.ifindex = ifindex;
  s.header.seq = shake.iss + 1;
  s.header.ack = shake.irs + 1;
  s.header.flags = kAck;
  s.header.window = static_cast<uint16_t>(std::min(shake.rcv_wnd >> shake.rcv_wscale, 65535u));
  s.header.has_timestamps = shake.timestamps;
  s.header.ts_val = last_stamp = shake.ts_offset + TimestampClock(engine.now());
  s.header.ts_ecr = shake.ts_recent;
  engine.SendControl(s);
}

bool Request::HasSent(uint32_t stamp) const { return stamp - first_stamp <= last_stamp - first_stamp; }

bool Request::OutOfWindowLimit(const Segment& seg) { return engine.OutOfWindowLimit(seg, &last_oow_ack); }

void Request::OnTimer(void* self) {
  auto* r = static_cast<Request*>(self);
  Engine& e = r->engine;
  int limit = r->listener->syn_retries();
  const int defer = r->listener->defer_accept();
  if (r->acked) limit = std::max(limit, defer);
  // Data is awaited (TCP_DEFER_ACCEPT): silence until the last period, then one SYN,ACK that asks the peer for its ACK again.
  if (r->retransmits >= limit) {
    e.Count(Counter::kTcpAttemptFails);
    e.FreeRequest(r);
    return;
  }
  ++r->retransmits;
  if (!r->acked || defer == 0 || r->retransmits >= defer) {
    r->SendSynAck();
    e.Count(Counter::kTcpRetransSegs);
    e.Count(Counter::kTcpSynRetrans);
  }
  r->timeout = std::min(r->timeout * 2, kMaxRto);
  e.ctx.timers.Schedule(r->timer, e.now() + r->timeout);
}

// As linux tcp_check_req, but that a RST or SYN somewhere in the window does not end it (RFC 5961 3.2 and 4.2).
void Engine::InputRequest(Request* r, const Segment& seg, Packet packet, const IpInfo& info) {
  const Handshake& shake = r->shake;
  const SeqNum next = shake.irs + 1;
  const bool stamped = shake.timestamps && seg.has_timestamps;
  const bool old = stamped && static_cast<int32_t>(seg.ts_val - shake.ts_recent) < 0;
  // A SYN that came again: our SYN,ACK was lost.
  if (seg.Has(kSyn) && !seg.Has(kAck | kRst) && seg.seq == shake.irs && !old) {
    if (r->OutOfWindowLimit(seg)) return;
    r->SendSynAck();
    Count(Counter::kTcpRetransSegs);
    return;
  }
  if (seg.Has(kAck) && !seg.Has(kRst) && seg.ack != shake.iss + 1) return SendReset(seg, info);
  const bool odd_echo = stamped && seg.ts_ecr != 0 && !r->HasSent(seg.ts_ecr);
  if (old || odd_echo || !InWindow(seg, next, next + shake.rcv_wnd)) {  // first: sequence
    Count(old ? Counter::kDropTcpPaws : Counter::kDropTcpOutOfWindow);
    if (!seg.Has(kRst) && !r->OutOfWindowLimit(seg)) r->SendAck();
    return;
  }
  if (seg.Has(kRst) && seg.seq == next) {  // second
    Count(Counter::kTcpAttemptFails);
    FreeRequest(r);
    return;
  }
  if (seg.Has(kRst) || (seg.Has(kSyn) && seg.seq != shake.irs)) {  // and fourth
    if (seg.Has(kSyn)) Count(Counter::kTcpSynChallenge);
    if (!r->OutOfWindowLimit(seg) && AllowChallengeAck()) r->SendAck();
    return;
  }
  if (!seg.Has(kAck)) return;  // fifth
  Connection* listener = r->listener;
  if (listener->defer_accept() > r->retransmits && seg.payload_len == 0 && !seg.Has(kFin)) {
    r->acked = true;
    return;
  }
  if (listener->AcceptQueueFull()) {
    Count(Counter::kTcpListenOverflows);
    if (sysctls().tcp_abort_on_overflow) {
      SendReset(seg, info);
      FreeRequest(r);
    } else {
      r->acked = true;
    }
    return;
  }
  Handshake done = shake;
  done.window = seg.window;
  if (seg.has_timestamps && seg.seq <= next) done.ts_recent = seg.ts_val;
  const FlowKey key = r->key;
  const IfIndex ifindex = r->ifindex;
  const Instant sent_at = r->retransmits == 0 ? r->sent_at : Instant();
  FreeRequest(r);
  Connection* c = NewConnection(listener->family());
  c->InitPassive(*listener, key, done, ifindex, sent_at);
  Count(Counter::kTcpPassiveOpens);
  listener->PushAccepted(c);
  c->Input(seg, std::move(packet), info);
}

// --- TIME-WAIT

TimeWait* Engine::NewTimeWait() {
  ctx.stream_memory.Add(sizeof(TimeWait));
  return time_wait_pool_.New(*this);
}

void Engine::AddTimeWait(const Connection& c, State substate, Duration length) {
  if (time_waits_ >= static_cast<size_t>(std::max(sysctls().tcp_max_tw_buckets, 0)) || ctx.stream_memory.exhausted()) {
    Count(Counter::kTcpTimeWaitOverflow);
    return;
  }
  TimeWait* tw = NewTimeWait();
  ++time_waits_;
  tw->key = c.key;
  tw->snd_nxt = c.snd_.nxt;
  tw->rcv_nxt = c.rcv_.nxt;
  tw->rcv_wnd = c.WindowNow();
  tw->rcv_wscale = c.rcv_.wscale;
  tw->substate = substate;
  tw->timestamps = c.timestamps_;
  tw->ts_recent = c.ts_recent_;
  tw->ts_recent_at = c.ts_recent_at_;
  tw->ts_offset = c.ts_offset_;
  tw->ifindex = c.scope_;
  tw->tos = c.tos_;
  tw->bound_address = c.key.local;
  tw->bound_ifindex = c.bound_ifindex;
  tw->reuse_address = c.reuse_address;
  tw->reuse_port = c.reuse_port;
  tw->auto_bound = c.auto_bound;
  tw->peer_port = c.key.remote_port;
  flows.Insert(tw);
  binds.Add(tw, c.key.local_port);
  ctx.timers.Schedule(tw->timer, now() + length);
}

void Engine::DropTimeWait(TimeWait* tw) {
  flows.Remove(tw);
  binds.Remove(tw);
  --time_waits_;
  ctx.stream_memory.Remove(sizeof(TimeWait));
  time_wait_pool_.Delete(tw);
}

void TimeWait::OnTimer(void* self) {
  auto* tw = static_cast<TimeWait*>(self);
  tw->engine.DropTimeWait(tw);
}

void TimeWait::SendAck() {
  ControlSegment s;
  s.flow = key;
  s.ifindex = ifindex;
  s.tos = tos;
  s.header.seq = snd_nxt;
  s.header.ack = rcv_nxt;
  s.header.flags = kAck;
  s.header.window = static_cast<uint16_t>(std::min(rcv_wnd >> rcv_wscale, 65535u));
  s.header.has_timestamps = timestamps;
  s.header.ts_val = ts_offset + TimestampClock(engine.now());
  s.header.ts_ecr = ts_recent;
  engine.SendControl(s);
}

void TimeWait::RememberTimestamp(uint32_t value) {
  ts_recent = value;
  ts_recent_at = engine.now();
}

bool Engine::TimeWaitReusable(const TimeWait& tw) const {
  if (tw.substate != State::kTimeWait || !tw.timestamps) return false;
  const int mode = sysctls().tcp_tw_reuse;
  if (mode == 0 || (mode == 2 && !tw.key.remote.IsLoopback())) return false;
  return now() - tw.ts_recent_at >= Duration::Seconds(1);
}

// As linux tcp_timewait_state_process. A reset's timestamp counts here, as little else protects what nobody watches.
void Engine::InputTimeWait(TimeWait* tw, const Segment& seg, Packet packet, const IpInfo& info) {
  const bool paws = tw->timestamps && seg.has_timestamps && static_cast<int32_t>(seg.ts_val - tw->ts_recent) < 0;
  if (paws) Count(Counter::kDropTcpPaws);
  if (tw->substate == State::kFinWait2) return InputFinWait2(tw, seg, paws, info);
  const bool stamps = tw->timestamps && seg.has_timestamps;
  if (!paws && seg.seq == tw->rcv_nxt && (seg.length() == 0 || seg.Has(kRst))) {
    if (seg.Has(kRst)) {  // RFC 1337: assassination, where the sysctl allows it
      if (!sysctls().tcp_rfc1337) return DropTimeWait(tw);
    } else {
      ctx.timers.Schedule(tw->timer, now() + kTimeWaitLength);
    }
    if (stamps) tw->RememberTimestamp(seg.ts_val);
    return;
  }
  // RFC 6191, RFC 9293 3.6.1: a new connection that cannot be mistaken for the old one.
  const bool newer = tw->rcv_nxt < seg.seq || (stamps && static_cast<int32_t>(seg.ts_val - tw->ts_recent) > 0);
  if (seg.Has(kSyn) && !seg.Has(kRst | kAck) && !paws && newer) {
    const FlowKey key = tw->key;
    if (Connection* listener = FindListener(key, info.ifindex, flows.Hash(key))) {
      SeqNum iss = tw->snd_nxt + 65537;
      DropTimeWait(tw);
      return InputListen(listener, seg, std::move(packet), info, key, &iss);
    }
    return tw->SendAck();
  }
  if (seg.Has(kRst)) return;
  // A SYN may be new and have a number below the old ones by chance: it does not prolong the wait.
  if (paws || seg.Has(kAck)) ctx.timers.Schedule(tw->timer, now() + kTimeWaitLength);
  if (!OutOfWindowLimit(seg, &tw->last_oow_ack)) tw->SendAck();
}

// No owner: only the peer's FIN is awaited.
void Engine::InputFinWait2(TimeWait* tw, const Segment& seg, bool paws, const IpInfo& info) {
  if (paws || !InWindow(seg, tw->rcv_nxt, tw->rcv_nxt + tw->rcv_wnd)) {
    if (!OutOfWindowLimit(seg, &tw->last_oow_ack)) tw->SendAck();
    return;
  }
  if (seg.Has(kRst)) return DropTimeWait(tw);
  const bool syn = seg.Has(kSyn) && tw->rcv_nxt <= seg.seq;
  const bool plain = !seg.Has(kAck) || seg.end() <= tw->rcv_nxt || seg.length() == 0;
  if (plain && !syn) return;
  if (syn || !seg.Has(kFin) || seg.end() != tw->rcv_nxt + 1) {  // or data that nobody will read
    SendReset(seg, info);
    return DropTimeWait(tw);
  }
  tw->substate = State::kTimeWait;
  tw->rcv_nxt = seg.end();
  if (tw->timestamps && seg.has_timestamps) tw->RememberTimestamp(seg.ts_val);
  ctx.timers.Schedule(tw->timer, now() + kTimeWaitLength);
  tw->SendAck();
}

}  // namespace sluice::tcp
