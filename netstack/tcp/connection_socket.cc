// The calls of a socket: bind, listen, connect, accept, send; readiness.
#include <algorithm>

#include "netstack/tcp/connection.h"

namespace sluice::tcp {

Connection::Connection(Engine& engine, Family family)
    : FlowEntry(FlowKind::kConnection),
      engine_(engine),
      family_(family),
      sndq_(&engine.ctx.stream_memory),
      rcvq_(&engine.ctx.stream_memory),
      timer_(&Connection::OnTimer, this) {
  rcvbuf_ = static_cast<uint32_t>(engine.sysctls().tcp_rmem[1]);
  sndbuf_ = static_cast<uint32_t>(engine.sysctls().tcp_wmem[1]);
  deadlines_.fill(Instant::Max());
  bound_address = IpAddress::Any(family);
  memory().AddSocket();
  memory().Add(sizeof(Connection));
  cc_ = MakeCongestionControl(sysctls().tcp_congestion_control, cc_storage_);
  if (cc_ == nullptr) cc_ = MakeCongestionControl("cubic", cc_storage_);
  model_ = paced_ = cc_->is_model();
}

Connection::~Connection() {
  memory().RemoveSocket();
  memory().Remove(sizeof(Connection));
  cc_->~CongestionControl();
}

Endpoint Connection::FromWire(const IpAddress& a, uint16_t port) const {
  return Endpoint{family_ == Family::kIpv6 && a.is_v4() ? a.Mapped() : a, port, a.IsLinkLocal() && a.is_v6() ? scope_ : 0};
}

// The level-triggered state, as linux tcp_poll.
uint32_t Connection::events() const {
  if (state_ == State::kListen) return listen_->accept_head != nullptr ? uint32_t{kReadable} : 0;
  uint32_t e = 0;
  const bool closed = state_ == State::kClosed;
  const bool no_more_input = fin_received_ || read_shutdown_ || (closed && was_connected_);
  const bool write_closed = fin_queued_ || (closed && was_connected_);
  if ((no_more_input && write_closed) || closed) e |= kHangup;
  if (no_more_input) e |= kReadClosed | kReadable;
  if (error_ != Errno::kOk) e |= kError | kReadable | kWritable;
  if (state_ == State::kSynSent || (state_ == State::kSynReceived && !early())) return deferred() ? e | kWritable : e;
  if (was_connected_ && active_open_) e |= kConnected;
  if (rcvq_.size() >= static_cast<size_t>(std::max(rcv_lowat_, 1))) e |= kReadable;
  if (urgent_valid_) e |= kUrgent;
  if (write_closed || closed) {
    e |= kWritable;
  } else {
    const size_t queued = sndq_.memory();
    const bool room = queued < sndbuf_ && sndbuf_ - queued >= queued / 2 && memory().Room(queued) > 0;
    if (room && BelowLowWater() && Unsent() < unsent_limit_) e |= kWritable;
  }
  return e;
}

// TCP_NOTSENT_LOWAT
bool Connection::BelowLowWater() const {
  const int64_t lowat = notsent_lowat_ >= 0 ? notsent_lowat_ : sysctls().tcp_notsent_lowat;
  return lowat < 0 || lowat > int64_t{0x7fffffff} || Unsent() < static_cast<uint64_t>(std::max<int64_t>(lowat, 1));
}

// Tells the observer of every bit that rose, and of `again` in any case.
void Connection::NotifyState(uint32_t again) {
  const uint32_t e = events();
  if (memory_refused_ && (e & kWritable) != 0) {
    memory_refused_ = false;
    again |= kWritable;
  }
  const uint32_t rose = (e & ~last_events_) | (again & e);
  last_events_ = e;
  if (rose != 0) Notify(rose);
}

Errno Connection::AllowedToBind(const IpAddress& address) const {
  if (address.IsAny() || freebind_ || transparent_ || sysctls().ip_nonlocal_bind) return Errno::kOk;
  if (address.IsMulticast() || address.IsLimitedBroadcast()) return Errno::kEADDRNOTAVAIL;
  const IpLayer& ip = *engine_.ctx.ip;
  if (!ip.IsLocalAddress(address) || ip.IsBroadcastAddress(address, bound_ifindex)) return Errno::kEADDRNOTAVAIL;
  return Errno::kOk;
}

Errno Connection::PortChoiceRange(uint16_t* low, uint16_t* high) const {
  int lo = sysctls().ip_local_port_range[0], hi = sysctls().ip_local_port_range[1];
  const int my_low = static_cast<int>(port_range_ & 0xffff), my_high = static_cast<int>(port_range_ >> 16);
  if (my_low != 0 && my_low >= lo && my_low <= hi) lo = my_low;
  if (my_high != 0 && my_high <= hi && my_high >= lo) hi = my_high;
  *low = static_cast<uint16_t>(lo);
  *high = static_cast<uint16_t>(hi);
  return Errno::kOk;
}

Errno Connection::Bind(const Endpoint& local) {
  if (local.address && local.address.family() != family_) {
    return family_ == Family::kIpv6 ? Errno::kEINVAL : Errno::kEAFNOSUPPORT;
  }
  IpAddress address = local.address ? ToWire(local.address) : IpAddress::Any(family_);
  if (family_ == Family::kIpv6 && v6_only && address.is_v4()) return Errno::kEINVAL;
  const Errno allowed = AllowedToBind(address);
  if (allowed != Errno::kOk && family_ == Family::kIpv4) return allowed;
  if (state_ != State::kClosed || bound_port != 0) return Errno::kEINVAL;
  if (allowed != Errno::kOk) return allowed;
  bound_address = address;
  if (local.scope != 0 && address.IsLinkLocal()) scope_ = local.scope;
  uint16_t port = local.port;
  if (port == 0 && !bind_no_port_) {
    uint16_t low, high;
    (void)PortChoiceRange(&low, &high);
    port = engine_.ChooseBindPort(*this, low, high);
  } else if (port != 0 && engine_.binds.Conflicts(*this, port)) {
    port = 0;
  }
  if (port == 0 && !(bind_no_port_ && local.port == 0)) {
    bound_address = IpAddress::Any(family_);
    return Errno::kEADDRINUSE;
  }
  address_bound_ = !address.IsAny();
  v6_only |= address_bound_ && address.is_v6();  // as Linux
  if (port != 0) {
    engine_.binds.Add(this, port);
    port_bound_ = local.port != 0;
  }
  return Errno::kOk;
}

Endpoint Connection::local() const {
  if (key.local_port != 0) return FromWire(key.local, key.local_port);
  IpAddress a = bound_address;
  if (family_ == Family::kIpv6 && a.is_v4()) a = a.Mapped();
  return Endpoint{a, bound_port, a.IsLinkLocal() && a.is_v6() ? scope_ : 0};
}

std::optional<Endpoint> Connection::remote() const {
  if (key.remote_port == 0 || state_ == State::kSynSent || state_ == State::kListen) return std::nullopt;
  if (state_ == State::kClosed) return std::nullopt;
  return FromWire(key.remote, key.remote_port);
}

Errno Connection::TakeError() {
  const Errno e = error_;
  error_ = Errno::kOk;
  last_events_ &= events() | ~static_cast<uint32_t>(kError);
  return e;
}

Errno Connection::Listen(int backlog) {
  if (state_ != State::kClosed && state_ != State::kListen) return Errno::kEINVAL;
  const int most = std::max(sysctls().somaxconn, 0);
  const int bounded = backlog < 0 || backlog > most ? most : backlog;
  TuneFastOpen(bounded);
  if (state_ == State::kListen) {
    listen_->backlog = bounded;
    return Errno::kOk;
  }
  if (was_connected_) ResetToFresh();
  if (!holds_port()) {
    uint16_t low, high;
    (void)PortChoiceRange(&low, &high);
    const uint16_t port =
        bound_port != 0 && !engine_.binds.Conflicts(*this, bound_port) ? bound_port : engine_.ChooseBindPort(*this, low, high);
    if (port == 0) return Errno::kEADDRINUSE;
    engine_.binds.Add(this, port);
  }
  if (engine_.binds.ListenConflicts(*this)) return Errno::kEADDRINUSE;
  auto_bound = false;
  listen_ = std::make_unique<ListenState>();
  listen_->backlog = bounded;
  engine_.binds.SetListening(this, true);
  ++engine_.ctx.listening_changes;
  SetState(State::kListen);
  last_events_ = 0;
  return Errno::kOk;
}

bool Connection::AcceptQueueFull() const { return listen_->accept_count > static_cast<size_t>(listen_->backlog); }

void Connection::PushAccepted(Connection* child) {
  child->listener_ = this;
  child->next_accept_ = nullptr;
  if (listen_->accept_head == nullptr)
    listen_->accept_head = child;
  else
    listen_->accept_tail->next_accept_ = child;
  listen_->accept_tail = child;
  ++listen_->accept_count;
  NotifyState(kReadable);
}

StreamSocket* Connection::Accept() {
  if (state_ != State::kListen || listen_->accept_head == nullptr) return nullptr;
  Connection* c = listen_->accept_head;
  listen_->accept_head = c->next_accept_;
  if (listen_->accept_head == nullptr) listen_->accept_tail = nullptr;
  --listen_->accept_count;
  c->next_accept_ = nullptr;
  c->listener_ = nullptr;
  last_events_ &= events();
  return c;
}

uint8_t Connection::ChooseWindowScale() const {
  if (!sysctls().tcp_window_scaling) return 0;
  uint64_t space = rcvbuf_locked_ ? rcvbuf_ : static_cast<uint64_t>(std::max({sysctls().tcp_rmem[2], sysctls().rmem_max, 0}));
  if (user_window_clamp_ != 0) space = std::min<uint64_t>(space, user_window_clamp_);
  uint8_t scale = 0;
  for (; space > 65535 && scale < kMaxWindowScale; space >>= 1) ++scale;
  return scale;
}

uint32_t Connection::InitialReceiveWindow(uint32_t mss) const {
  uint32_t window = std::min<uint32_t>(rcvbuf_ / 2, 65535);
  if (user_window_clamp_ != 0) window = std::min(window, user_window_clamp_);
  return window > mss ? window / mss * mss : window;
}

uint16_t Connection::AdvertisedMss(const Route& route, Family wire_family) const {
  const uint32_t headers = (wire_family == Family::kIpv4 ? 20u : 40u) + kHeaderSize;
  uint32_t mss = route.advmss != 0 ? route.advmss : (route.mtu > headers ? route.mtu - headers : 536);
  if (user_mss_ != 0) mss = std::min(mss, user_mss_);
  return static_cast<uint16_t>(std::clamp<uint32_t>(mss, kMinMss, 65495));
}

Errno Connection::FindPath(const Endpoint& to, IpAddress* out, Route* route) const {
  if (!to.address || to.address.family() != family_) return Errno::kEAFNOSUPPORT;
  IpAddress remote = ToWire(to.address);
  if (family_ == Family::kIpv6 && v6_only && remote.is_v4()) return Errno::kENETUNREACH;
  // As Linux: this host.
  if (remote.IsAny()) remote = IpAddress::Loopback(bound_address.IsAny() ? remote.family() : bound_address.family());
  if (!bound_address.IsAny() && bound_address.family() != remote.family()) return Errno::kEINVAL;
  if (to.port == 0) return Errno::kECONNREFUSED;
  RouteQuery q;
  q.destination = remote;
  q.source = bound_address.IsAny() ? IpAddress() : bound_address;
  q.ifindex = bound_ifindex != 0 ? bound_ifindex : to.scope;
  q.tos = tos_;
  q.mark = mark_;
  q.dont_route = dont_route_;
  q.any_source = freebind_ || transparent_;
  *route = engine_.ctx.ip->Lookup(q);
  if (!route->ok()) return route->error;
  if (remote.IsMulticast() || remote.IsLimitedBroadcast() || engine_.ctx.ip->IsBroadcastAddress(remote, route->ifindex))
    return Errno::kENETUNREACH;
  *out = remote;
  return Errno::kOk;
}

std::optional<uint32_t> Connection::HomeOfConnect(const Endpoint& to) const {
  const ShardPeers* peers = engine_.ctx.peers;
  IpAddress remote;
  Route r;
  if (peers == nullptr || bound_port == 0 || FindPath(to, &remote, &r) != Errno::kOk) return std::nullopt;
  return peers->Home({r.source, remote, bound_port, to.port});
}

Errno Connection::Connect(const Endpoint& to) {
  if (deferred()) return Errno::kEISCONN;
  if (const Errno e = Open(to); e != Errno::kOk) return e;
  if (fast_open_connect_ && DeferConnect()) return Errno::kOk;
  StartHandshake();
  return Errno::kEINPROGRESS;
}

// All of connect() but the SYN.
Errno Connection::Open(const Endpoint& to) {
  switch (state_) {
    case State::kClosed:
      break;
    case State::kSynSent:
    case State::kSynReceived:
      return Errno::kEALREADY;
    case State::kListen:
      return Errno::kEISCONN;
    default:
      return Errno::kEISCONN;
  }
  if (closed_by_time_wait_ || was_connected_ || active_open_) {
    ResetToFresh();
    closed_by_time_wait_ = false;
  }
  error_ = Errno::kOk;
  IpAddress remote;
  Route r;
  if (const Errno e = FindPath(to, &remote, &r); e != Errno::kOk) return e;
  if (to.scope != 0) scope_ = to.scope;
  key.local = r.source;
  key.remote = remote;
  key.remote_port = to.port;
  SeqNum iss;
  bool reused = false;
  if (bound_port == 0) {
    uint16_t low, high;
    (void)PortChoiceRange(&low, &high);
    const uint16_t port = engine_.ChooseConnectPort(key, *this, low, high, &reused, &iss);
    if (port == 0) {
      key = FlowKey{};
      return Errno::kEADDRNOTAVAIL;
    }
    auto_bound = true;
    peer_port = to.port;
    engine_.binds.Add(this, port);
    key.local_port = port;
  } else {
    key.local_port = bound_port;
    if (!engine_.ClaimFlow(key, &iss, &reused)) {
      key = FlowKey{};
      return Errno::kEADDRNOTAVAIL;
    }
    if (!holds_port()) engine_.binds.Add(this, bound_port);
  }
  if (bound_address.IsAny()) bound_address = key.local;
  UseRoute(r);
  engine_.flows.Insert(this);
  active_open_ = true;
  if (!reused) iss = engine_.InitialSequence(key);
  snd_.iss = snd_.una = iss;
  snd_.nxt = iss + 1;
  snd_.up = iss + 1;
  ts_offset_ = engine_.TimestampOffset(key);
  rcv_.wscale = ChooseWindowScale();
  window_clamp_ = user_window_clamp_ != 0 ? std::min(user_window_clamp_, rcvbuf_ / 2) : rcvbuf_ / 2;
  rcv_.wnd = InitialReceiveWindow(AdvertisedMss(route_, remote.family()));
  rcv_ssthresh_ = rcv_.wnd;
  peer_mss_ = 0;
  UpdateMss();
  SetState(State::kSynSent);
  last_events_ = events();
  return Errno::kOk;
}

void Connection::InitPassive(Connection& l, const FlowKey& flow, const Handshake& shake, IfIndex ifindex, Instant syn_ack_sent) {
  key = flow;
  ingress_ = ifindex;
  if (flow.remote.is_v6() && flow.remote.IsLinkLocal()) scope_ = ifindex;
  bound_address = flow.local;
  bound_ifindex = l.bound_ifindex;
  reuse_address = l.reuse_address;
  reuse_port = l.reuse_port;
  v6_only = l.v6_only;
  // Options are inherited (Linux clones the listener), but for those that are about listening.
  static_cast<StreamOptions&>(*this) = l;
  defer_accept_ = 0;
  fast_open_backlog_ = 0;
  own_fast_open_keys_.reset();
  max_pacing_rate_ = l.max_pacing_rate_;
  (void)SetCongestionControl(l.cc_->name());
  engine_.flows.Insert(this);
  engine_.binds.Add(this, flow.local_port);
  snd_.iss = shake.iss;
  snd_.una = snd_.nxt = shake.iss + 1;
  snd_.wl2 = snd_.una;
  window_clamp_ = user_window_clamp_ != 0 ? std::min(user_window_clamp_, rcvbuf_ / 2) : rcvbuf_ / 2;
  (void)EnsureRoute();
  ApplyHandshake(shake);
  snd_.wnd = uint32_t{shake.window} << snd_.wscale;
  snd_.max_wnd = std::max(snd_.max_wnd, snd_.wnd);
  if (syn_ack_sent != Instant()) {
    rtt_.Sample(now() - syn_ack_sent, snd_.una, snd_.nxt, MinRto());
    rto_ = rtt_.Rto(MinRto());
  }
  SetState(State::kEstablished);
  was_connected_ = true;
  StartControl();
  last_ack_received_ = last_data_received_ = now();
  GrowSendBuffer();
  if (keep_alive_) Arm(kKeepAlive, now() + KeepIdle());
}

bool Connection::at_end() const {
  if (!rcvq_.empty()) return false;
  return fin_received_ || read_shutdown_ || (state_ == State::kClosed && was_connected_);
}

std::optional<size_t> Connection::urgent_mark() const {
  if (!urgent_valid_) return std::nullopt;
  return rcv_.up - copied_;
}

void Connection::HoldPort(bool hold) {
  if (hold == holds_port() || state_ == State::kClosed) return;
  if (hold) {
    engine_.binds.Add(this, bound_port);
  } else {
    engine_.binds.Remove(this);
  }
}

size_t Connection::send_space() const {
  if ((state_ == State::kSynSent && !deferred()) || (state_ == State::kSynReceived && !early())) return 0;
  const size_t queued = sndq_.memory();
  if (queued >= sndbuf_ || !BelowLowWater()) return 0;
  const size_t room = memory().Room(queued);
  // Only a queue that holds something is refused: the acknowledgments of that are when to look again.
  memory_refused_ |= room == 0;
  return std::min(sndbuf_ - queued, room);
}

Errno Connection::Send(Slice data, bool more) {
  if (error_ != Errno::kOk) return TakeError();
  if (fin_queued_ || (state_ == State::kClosed && was_connected_)) return Errno::kEPIPE;
  if (state_ == State::kClosed || state_ == State::kListen) return active_open_ ? Errno::kEPIPE : Errno::kENOTCONN;
  if ((state_ == State::kSynSent && !deferred()) || (state_ == State::kSynReceived && !early())) return Errno::kEAGAIN;
  if (data.length == 0) return Errno::kOk;
  sndq_.Append(std::move(data), pool());
  more_ = more;
  if (deferred()) {
    StartHandshake();
    last_events_ = events();
    return Errno::kOk;
  }
  last_events_ &= events() | ~static_cast<uint32_t>(kWritable);
  output_due_ = true;
  MarkWork();
  return Errno::kOk;
}

Errno Connection::SendUrgent(Slice data) {
  const Errno e = Send(std::move(data), false);
  if (e == Errno::kOk) snd_.up = WriteEnd();
  return e;
}

size_t Connection::unsent_bytes() const { return Synchronized() ? Unsent() : sndq_.size(); }
size_t Connection::unacked_bytes() const { return sndq_.size() + (fin_sent_ && Synchronized() ? snd_.nxt - WriteEnd() : 0); }

Errno Connection::SetCongestionControl(std::string_view name) {
  if (!KnownCongestionControl(name)) return Errno::kENOENT;
  const std::string copy(name);  // the name may lie in the object that goes
  cc_->~CongestionControl();
  cc_ = MakeCongestionControl(copy, cc_storage_);
  model_ = cc_->is_model();
  UpdatePaced();
  if (Synchronized() || early()) StartControl();
  return Errno::kOk;
}

void Connection::StartControl() {
  cw_.pacing_rate = kUnpaced;
  cc_->OnStart(cw_, rtt_.srtt(), rtt_.min_rtt(), now());
}

std::string Connection::congestion_control() const { return std::string(cc_->name()); }

// The route is looked up anew at the next frame; a connection whose address went away dies by its timers, as on Linux.
void Connection::OnConfig() { route_.generation = 0; }

}  // namespace sluice::tcp
