// What connections do with TCP Fast Open (RFC 7413): the SYN that has data, the connection that is there before its handshake is
// complete. As linux/net/ipv4/tcp_fastopen.c, tcp_send_syn_data and tcp_rcv_fastopen_synack.
#include <algorithm>
#include <utility>

#include "netstack/tcp/connection.h"

namespace sluice::tcp {
namespace {

constexpr uint32_t kMaxOptionBytes = 40;  // of a SYN: kept free of data, as middleboxes may add some

}  // namespace

// --- client

// Which cookie the SYN has, and how much data it may carry. As linux tcp_fastopen_cookie_check.
uint32_t Connection::ChooseFastOpenCookie() {
  FastOpen& f = *fast_open_;
  FastOpenClient& client = engine_.fast_open;
  const FastOpenClient::Server* server = client.Find(key.local, key.remote);
  f.option = FastOpenCookie{};
  if (client.Paused(Duration::Seconds(sysctls().tcp_fastopen_blackhole_timeout_s), now())) return 0;
  f.after_pause = client.was_paused();
  const bool without_cookie = fast_open_no_cookie_ || (sysctls().tcp_fastopen & kFastOpenClientNoCookie) != 0;
  if (!without_cookie) {
    f.option.length = 0;
    if (server == nullptr || !server->cookie.has_cookie()) {
      f.failure = FastOpenFailure::kNoCookie;
      return 0;
    }
    f.option = server->cookie;
  }
  peer_mss_ = server != nullptr && server->mss != 0 ? server->mss : AdvertisedMss(route_, key.remote.family());
  UpdateMss();
  return mss_ > kMaxOptionBytes ? mss_ - kMaxOptionBytes : 0;
}

// connect() with TCP_FASTOPEN_CONNECT: whether it is done, and the SYN goes with the first data.
bool Connection::DeferConnect() {
  fast_open_ = std::make_unique<FastOpen>();
  fast_open_->deferred = ChooseFastOpenCookie() > 0;
  return fast_open_->deferred;
}

void Connection::StartHandshake() {
  engine_.Count(Counter::kTcpActiveOpens);
  last_data_sent_ = probe_since_ = now();
  if (fast_open_ != nullptr) {
    FastOpen& f = *fast_open_;
    const uint32_t most = ChooseFastOpenCookie();
    f.deferred = false;
    f.option_sent = f.option.present();
    f.syn_data = f.next_data = static_cast<uint32_t>(std::min<size_t>(most, sndq_.size()));
    snd_.nxt = snd_.iss + 1 + f.syn_data;
  }
  SendSyn();
  Arm(kRetransmit, now() + rto_);
}

Errno Connection::ConnectWithData(const Endpoint& to, Slice data, bool all, size_t* taken) {
  *taken = 0;
  if ((sysctls().tcp_fastopen & kFastOpenClient) == 0) return Errno::kEOPNOTSUPP;
  if (!deferred()) {
    if (const Errno e = Open(to); e != Errno::kOk) return e;
    fast_open_ = std::make_unique<FastOpen>();
  }
  const uint32_t room = all ? data.length : std::min(data.length, ChooseFastOpenCookie());
  if (room > 0) sndq_.Append(data.Sub(0, room), pool());
  *taken = room;
  StartHandshake();
  last_events_ = events();
  return Errno::kEINPROGRESS;
}

// The SYN,ACK of a SYN with the option or with data; the connection is established.
void Connection::TakeFastOpenSynAck(const Segment& seg) {
  FastOpen& f = *fast_open_;
  if (!f.option_sent && f.syn_data == 0) return;
  const uint32_t acked = snd_.una - (snd_.iss + 1);
  sndq_.PopFront(acked);
  totals_.bytes_acked += acked;
  totals_.delivered += acked;
  snd_.up = Max(snd_.up, snd_.una);
  minshall_ = Max(minshall_, snd_.una);
  // One that was not asked for is ignored.
  engine_.fast_open.Remember(key.local, key.remote, seg.mss, f.option_sent ? seg.fast_open : FastOpenCookie{}, now());
  if (f.syn_data == 0) return;
  if (acked == f.syn_data) {
    f.data_acked = true;
    engine_.Count(Counter::kTcpFastOpenActive);
    return;
  }
  f.failure = totals_.retransmitted > 0 ? FastOpenFailure::kSynRetransmitted : FastOpenFailure::kDataNotAcked;
  engine_.Count(Counter::kTcpFastOpenActiveFail);
  // Sent again, without blaming congestion.
  sent_.OnSend(snd_.una, snd_.nxt, StampNow());
  sent_.MarkAllLost(false);
  ArmRetransmit();  // there may be no memory to send it now
}

// At a timeout, before it counts. As linux tcp_fastopen_active_detect_blackhole: the third in a row, or the last one.
void Connection::DetectBlackhole(bool expired) {
  if (fast_open_ == nullptr || !(fast_open_->option_sent || fast_open_->syn_data > 0)) return;
  if (retransmits_ != 2 && !(retransmits_ < 2 && expired)) return;
  engine_.Count(Counter::kTcpFastOpenActiveFail);
  PauseFastOpen();
}

void Connection::PauseFastOpen() {
  if (sysctls().tcp_fastopen_blackhole_timeout_s == 0) return;
  engine_.fast_open.Pause(now());
  engine_.Count(Counter::kTcpFastOpenBlackhole);
}

// The connection ends. As linux tcp_fastopen_active_disable_ofo_check: a FIN alone, and none of the data before it, is what a
// middlebox leaves of a connection that it did not understand.
void Connection::EndFastOpen() {
  if (fast_open_ == nullptr) return;
  LeaveFastOpenQueue(false);
  if (!std::exchange(fast_open_->option_sent, false)) return;
  if (totals_.data_segs_in > 0) {
    if (fast_open_->after_pause && !route_.local) engine_.fast_open.Resume();
  } else if (early_fin_ && (!ooo_ || ooo_->empty())) {
    PauseFastOpen();
  }
}

// --- server

// The answer of a SYN that is no usual one: true where it made a connection, which is on the accept queue. Otherwise `answer` is
// the option of the SYN,ACK. As linux tcp_try_fastopen.
bool Engine::TryFastOpen(Connection* listener, const Segment& seg, Packet& packet, const IpInfo& info, const FlowKey& key,
                         const Handshake& shake, FastOpenCookie* answer) {
  const FastOpenCookie& asked = seg.fast_open;
  if (asked.length == 0) Count(Counter::kTcpFastOpenCookieReqd);
  const int mode = sysctls().tcp_fastopen;
  const uint32_t most = listener->fast_open_backlog();
  if ((mode & kFastOpenServer) == 0 || most == 0 || (seg.payload_len == 0 && !asked.present())) return false;
  const std::shared_ptr<FastOpenQueue>& queue = listener->fast_open_queue();
  if (!queue->HasRoom(most, now())) {
    Count(Counter::kTcpFastOpenListenOverflow);
    return false;
  }
  size_t matched = 0;
  if (!listener->fast_open_without_cookie()) {
    const FastOpenKeys* own = listener->own_fast_open_keys();
    const FastOpenKeys& keys = own != nullptr ? *own : fast_open_keys();
    while (asked.has_cookie() && matched < keys.count && !(MakeFastOpenCookie(keys.keys[matched], key) == asked)) ++matched;
    const bool valid = asked.has_cookie() && matched < keys.count;
    if (asked.present() && (!valid || matched > 0)) *answer = MakeFastOpenCookie(keys.keys[0], key);
    if (asked.has_cookie() && !valid) Count(Counter::kTcpFastOpenPassiveFail);
    if (!valid) return false;
    if (matched > 0) Count(Counter::kTcpFastOpenPassiveAltKey);
  }
  Connection* c = NewConnection(listener->family());
  c->InitPassive(*listener, key, shake, info.ifindex, Instant());
  Count(Counter::kTcpPassiveOpens);
  Count(Counter::kTcpFastOpenPassive);
  c->BeginFastOpen(queue, seg, std::move(packet), shake, *answer);
  listener->PushAccepted(c);
  return true;
}

// In SYN-RECEIVED, and yet with an owner: the handshake goes on behind it.
void Connection::BeginFastOpen(const std::shared_ptr<FastOpenQueue>& queue, const Segment& syn, Packet packet,
                               const Handshake& shake, const FastOpenCookie& answer) {
  SetState(State::kSynReceived);
  Disarm(kKeepAlive);
  fast_open_ = std::make_unique<FastOpen>();
  fast_open_->queue = queue;
  fast_open_->option = answer;
  queue->Add();
  snd_.wnd = snd_.max_wnd = shake.window;  // of a SYN: not scaled
  if (syn.payload_len > 0) {
    Segment text = syn;
    text.seq = syn.seq + 1;
    text.flags &= static_cast<uint8_t>(~kSyn);
    (void)ProcessText(text, std::move(packet));
    fast_open_->data_acked = rcv_.nxt != text.seq;
  }
  rcv_.wup = rcv_.nxt;
  fast_open_->syn_ack_sent = now();
  SendSyn();
  Arm(kRetransmit, now() + kInitialRto);
}

// Of a segment that comes before the handshake is complete: false where it has got its answer. As linux tcp_check_req.
bool Connection::CheckEarly(const Segment& seg) {
  const bool old = timestamps_ && seg.has_timestamps && static_cast<int32_t>(seg.ts_val - ts_recent_) < 0;
  if (seg.Has(kSyn) && !seg.Has(kAck | kRst) && seg.seq == rcv_.irs && !old) {  // our SYN,ACK was lost
    if (!engine_.OutOfWindowLimit(seg, &last_oow_ack_)) RepeatSynAck();
    return false;
  }
  if (!old && InWindow(seg, rcv_.nxt, rcv_.nxt + WindowNow())) return true;
  engine_.Count(old ? Counter::kDropTcpPaws : Counter::kDropTcpOutOfWindow);
  if (!seg.Has(kRst) && !engine_.OutOfWindowLimit(seg, &last_oow_ack_)) SendAckNow();
  return false;
}

void Connection::RepeatSynAck() {
  ++totals_.retransmitted;
  engine_.Count(Counter::kTcpRetransSegs);
  SendSyn();
}

// As linux tcp_fastopen_synack_timer. What else was sent waits for the handshake.
void Connection::OnFastOpenTimeout() {
  const int limit = std::min(syn_count_ > 0 ? syn_count_ : sysctls().tcp_synack_retries + 1, 255);
  if (retransmits_ >= limit) {
    engine_.Count(Counter::kTcpAbortOnTimeout);
    return Fail(Errno::kETIMEDOUT);
  }
  if (retransmits_ == 1 && sent_.out_bytes() > 0) EnterLoss();
  ++retransmits_;
  if (backoff_ < 255) ++backoff_;
  engine_.Count(Counter::kTcpSynRetrans);
  RepeatSynAck();
  Arm(kRetransmit, now() + std::min(kInitialRto * (int64_t{1} << std::min<int>(backoff_, 16)), kMaxRto));
}

// The acknowledgment of our SYN,ACK.
void Connection::CompleteFastOpen(const Segment& seg) {
  if (retransmits_ == 0) {
    rtt_.Sample(now() - fast_open_->syn_ack_sent, snd_.una, snd_.nxt, MinRto());
    rto_ = rtt_.Rto(MinRto());
  }
  LeaveFastOpenQueue(false);
  SetState(fin_queued_ ? State::kFinWait1 : State::kEstablished);
  retransmits_ = backoff_ = 0;
  retransmit_stamp_ = 0;
  soft_error_ = Errno::kOk;
  snd_.wnd = uint32_t{seg.window} << snd_.wscale;
  snd_.max_wnd = std::max(snd_.max_wnd, snd_.wnd);
  snd_.wl1 = seg.seq;
  snd_.wl2 = seg.ack;
  ArmRetransmit();  // of what was sent meanwhile
  if (keep_alive_) Arm(kKeepAlive, now() + KeepIdle());
  last_ack_received_ = now();
  output_due_ = true;
  MarkWork();
}

// `reset`: by the peer, of a connection that somebody had accepted already.
void Connection::LeaveFastOpenQueue(bool reset) {
  if (fast_open_ == nullptr || fast_open_->queue == nullptr) return;
  fast_open_->queue->Remove(reset && listener_ == nullptr, now());
  fast_open_->queue.reset();
}

const std::shared_ptr<FastOpenQueue>& Connection::fast_open_queue() {
  if (listen_->fast_open == nullptr) listen_->fast_open = std::make_shared<FastOpenQueue>();
  return listen_->fast_open;
}

bool Connection::fast_open_without_cookie() const {
  return fast_open_no_cookie_ || (sysctls().tcp_fastopen & kFastOpenServerNoCookie) != 0;
}

// The key of those listeners that have none of their own. Several stacks that act as one host have the same.
const FastOpenKeys& Engine::fast_open_keys() {
  if (configured_keys_.count > 0) return configured_keys_;
  if (random_keys_.count == 0) {
    random_keys_.count = 1;
    SipKey& k = random_keys_.keys[0];
    if (ctx.peers == nullptr) {
      ctx.secure.Fill({reinterpret_cast<uint8_t*>(&k), sizeof k});
    } else {
      const SipKey shared{ctx.peers->key().k0, ctx.peers->key().k1};
      const std::array<uint8_t, 2> halves[] = {{'F', 0}, {'F', 1}};
      k = {SipHash24(shared, halves[0]), SipHash24(shared, halves[1])};
    }
  }
  return random_keys_;
}

// --- options

Errno Connection::SetFastOpenOption(SockOpt option, int64_t v) {
  const bool fresh = state_ == State::kClosed, listens = state_ == State::kListen;
  switch (option) {
    case SockOpt::kTcpFastOpen:
      if (v < 0 || !(fresh || listens)) return Errno::kEINVAL;
      fast_open_backlog_ = static_cast<uint32_t>(std::min<int64_t>(v, std::max(sysctls().somaxconn, 0)));
      return Errno::kOk;
    case SockOpt::kTcpFastOpenConnect:
      if (v != 0 && v != 1) return Errno::kEINVAL;
      if ((sysctls().tcp_fastopen & kFastOpenClient) == 0) return Errno::kEOPNOTSUPP;
      if (!fresh) return Errno::kEINVAL;
      fast_open_connect_ = v != 0;
      return Errno::kOk;
    case SockOpt::kTcpFastOpenNoCookie:
      if ((v != 0 && v != 1) || !(fresh || listens)) return Errno::kEINVAL;
      fast_open_no_cookie_ = v != 0;
      return Errno::kOk;
    default:
      return Errno::kENOPROTOOPT;
  }
}

Errno Connection::SetFastOpenKeys(Bytes bytes) {
  const std::optional<FastOpenKeys> keys = FastOpenKeys::FromBytes(bytes);
  if (!keys) return Errno::kEINVAL;
  own_fast_open_keys_ = std::make_shared<const FastOpenKeys>(*keys);
  return Errno::kOk;
}

std::vector<uint8_t> Connection::fast_open_keys() const {
  return own_fast_open_keys_ == nullptr ? std::vector<uint8_t>() : own_fast_open_keys_->ToBytes();
}

// listen(), where the sysctl says that every listener has a queue.
void Connection::TuneFastOpen(int backlog) {
  const int both = kFastOpenServer | kFastOpenAllListeners;
  if ((sysctls().tcp_fastopen & both) == both && fast_open_backlog_ == 0) fast_open_backlog_ = static_cast<uint32_t>(backlog);
}

}  // namespace sluice::tcp
