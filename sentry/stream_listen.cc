// Listening: P is a listening AF_UNIX socket, readable exactly while a connection waits, because one socket of ours is connected
// to it per waiting connection: the connection's S, or a token where its P exists already. All accepts are notified. Connections
// are offered to the broker ahead of them (broker_protocol.h), with all that an accept needs: it takes the next offer, and what
// is next in P's queue.
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <memory>

#include "sentry/call_hub.h"
#include "sentry/listener_share.h"
#include "sentry/native_queue.h"
#include "sentry/sockaddr.h"
#include "sentry/stream_stand_in.h"

namespace sluice {
namespace {

constexpr int kTokens = 4096;       // P's backlog
constexpr size_t kMaxOffered = 64;  // of one listener and worker at a time; what else is established waits in the stack's queue

}  // namespace

void StreamStandIn::OnListen(IncomingCall& call, Bytes message) {
  if (state_ == State::kBroken && attempt_ == Attempt::kUnconnected) return ListenAnew(call, message);
  if (state_ != State::kFresh && state_ != State::kListening) return (void)engine_.Answer(call.envelope(), Errno::kEINVAL);
  if (!call.fd) return (void)engine_.Answer(call.envelope(), Errno::kEIO);
  Errno error = Errno::kOk;
  if (!engine_.alone() && state_ == State::kFresh && socket_->local().port == 0) error = BindSocket(socket_->local());
  if (error == Errno::kOk) error = socket_->Listen(call.int_arg(1));
  if (error == Errno::kOk && !engine_.alone()) error = ListenElsewhere(call.int_arg(1));
  if (error == Errno::kOk && state_ == State::kFresh) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    uint64_t name = engine_.RandomName();
    memcpy(address.sun_path + 1, &name, sizeof name);
    listen_address_length_ = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + sizeof name);
    memcpy(&listen_address_, &address, sizeof address);
    const bool bound = ::bind(call.fd.get(), reinterpret_cast<sockaddr*>(&address), listen_address_length_) == 0;
    const bool bound_before = !bound && errno == EINVAL;  // an earlier life as a listener
    if ((!bound && !bound_before) || ::listen(call.fd.get(), kTokens) != 0) {
      error = Errno::kENOBUFS;
    } else {
      BoundWaits(call.fd.get());
      if (bound_before) {
        while (TakeQueued(call.fd.get(), 0)) continue;  // of that life, whose offers are withdrawn
        listen_address_length_ = sizeof listen_address_;
        getsockname(call.fd.get(), reinterpret_cast<sockaddr*>(&listen_address_), &listen_address_length_);
      }
      state_ = State::kListening;
      life_ = engine_.RandomName();
      SetOptionInterest(NativeOptions::Interest::kAlways);  // connections inherit them
      ++engine_.stats().listeners;
    }
  }
  engine_.Answer(call.envelope(), error);
  MarkDirty();
}

// One whose connect() was given up is as new, but for P.
void StreamStandIn::ListenAnew(IncomingCall& call, Bytes message) {
  if (!ReplaceEnd(call)) return (void)engine_.Answer(call.envelope(), Errno::kENOBUFS);
  if (engine_.front()) return OnListen(call, message);
  UniqueFd p = std::move(call.fd);
  MoveTo(0, std::move(p), std::make_shared<CarriedCall>(call, message), {});
}

// The connection of `accepted`; null where there are no descriptors: the peer hears a reset rather than nothing.
StreamStandIn* StreamStandIn::MakeQueued(CallEngine& engine, const QueueFacts& facts, StreamSocket* accepted, SocketCount room) {
  auto made = std::make_unique<StreamStandIn>(engine, facts.family, facts.protocol, accepted);
  StreamStandIn* s = made.get();
  s->state_ = State::kQueued;
  s->attempt_ = Attempt::kConnected;
  s->options_ = facts.options;
  s->listener_cookie_ = facts.listener;
  engine.Own(std::move(made), std::move(room));
  if (!s->MakeEnds(facts.options)) {
    s->CloseByProgram(true);
    return nullptr;
  }
  s->OnBufferOptions(s->queued_end_.get());
  s->s_writable_ = true;
  s->MarkDirty();
  return s;
}

// S alone where that will do: P comes to be in the listener's native queue, from where the broker takes it. The last close of P
// shows in S as the end of what it wrote, so nothing watches for it unless P shuts that down before, or S goes first.
bool StreamStandIn::MakeEnds(const StandInOptions& o) {
  const bool plain = o.send_buffer == 0 && o.receive_timeout == Duration(0) && o.send_timeout == Duration(0);
  if (!plain) return MakePair(o);
  s_ = engine_.spare_ends().Take();
  if (!s_) return false;
  Enter(engine_.NextConnectionName());
  return ReserveSlot(&mark_);
}

bool StreamStandIn::MakePair(const StandInOptions& options) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return false;
  s_.reset(ends[0]);
  queued_end_.reset(ends[1]);
  joined_ = true;
  const int p = ends[1];
  if (!AdoptUnwatched(p)) return false;
  RefuseDescriptors(s_.get());
  const auto bound_waits = [p](int option, Duration timeout, const timeval& raw) {
    if (timeout > Duration(0)) setsockopt(p, SOL_SOCKET, option, &raw, sizeof raw);
  };
  bound_waits(SO_RCVTIMEO, options.receive_timeout, options.receive_timeout_raw);
  bound_waits(SO_SNDTIMEO, options.send_timeout, options.send_timeout_raw);
  return true;
}

// Of a queued connection; the listener adds its life.
StreamStandIn::Offered StreamStandIn::MakeOffer() const {
  const Sockaddr name = FormatSockaddr(socket_->remote().value_or(Endpoint{}), family_);
  calls::Offer offer;
  offer.listener = listener_cookie_;
  offer.connection = cookie_;
  offer.end = queued_end_.get();
  offer.name_length = name.length;
  std::copy_n(name.view().begin(), std::min<size_t>(name.length, sizeof offer.name), offer.name);
  offer.mark = mark_;
  return {offer, engine_.shard(), s_.get()};
}

// Puts a connection in P's native queue. EAGAIN: not now; any other error: never. Only here, whichever worker has the connection,
// so that the queue and the offers are in one order.
Errno StreamStandIn::Queue(const Offered& connection) {
  if (connection.offer.end >= 0) return AddToken();
  const Errno error = JoinQueue(connection.s);
  if (error != Errno::kOk) return error;
  engine_.TellConnection({connection.offer.connection, connection.shard},
                         [](StandIn& s) { static_cast<StreamStandIn&>(s).OnQueued(); });
  return Errno::kOk;
}

// Of a connection: it has P now, and what came until an accept takes that waits there.
void StreamStandIn::OnQueued() {
  joined_ = true;
  MarkDirty();
}

// What connects to P may be closed: P stays readable until the token is taken off.
Errno StreamStandIn::AddToken() {
  const UniqueFd token(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  return token ? JoinQueue(token.get()) : Errno::kEAGAIN;
}

Errno StreamStandIn::JoinQueue(int end) {
  if (::connect(end, reinterpret_cast<sockaddr*>(&listen_address_), listen_address_length_) == 0) return Errno::kOk;
  return errno == ENOMEM || errno == ENOBUFS ? Errno::kEAGAIN : static_cast<Errno>(errno);
}

// Of the offers that are not queued: false where the first of them has to wait.
bool StreamStandIn::QueueNext() {
  const auto next = offered_.end() - static_cast<ptrdiff_t>(unqueued_);
  const Errno error = Queue(*next);
  if (error == Errno::kEAGAIN) return false;
  --unqueued_;
  if (error == Errno::kOk) return true;
  // Its peer hears a reset rather than that those behind it wait for good.
  const Offered lost = *next;
  offered_.erase(next);
  --unsent_offers_;
  if (lost.shard == engine_.shard()) --offered_here_;
  DropConnection(engine_, lost);
  return true;
}

// No accept will get it.
void StreamStandIn::DropConnection(CallEngine& engine, const Offered& connection) {
  engine.hub().Post(connection.shard, [cookie = connection.offer.connection](CallEngine& there) {
    if (StandIn* s = there.Find(cookie)) s->OnWithdrawn();
  });
}

void StreamStandIn::TakeConnections() {
  // Connections beyond the container's share wait in the stack's queue, as on a listener whose program has no descriptors left.
  while (offered_here_ < kMaxOffered && (socket_->events() & kReadable) != 0) {
    SocketCount room = engine_.RoomForConnection(container(), this);
    if (!room) break;
    StreamSocket* accepted = socket_->Accept();
    if (accepted == nullptr) break;
    StreamStandIn* s = MakeQueued(engine_, {cookie_, family_, protocol_, options_}, accepted, std::move(room));
    if (s == nullptr) break;
    Offer(s->MakeOffer());
  }
  SendOffers();
}

void StreamStandIn::Offer(const Offered& connection) {
  offered_.push_back(connection);
  offered_.back().offer.life = life_;
  if (connection.shard == engine_.shard()) ++offered_here_;
  ++unqueued_;
  ++unsent_offers_;
}

// Each offer behind its place in the native queue, so that there is one for whoever takes it. What finds no room now is tried
// again.
void StreamStandIn::SendOffers() {
  while (unqueued_ > 0 && QueueNext()) continue;
  for (; unsent_offers_ > unqueued_; --unsent_offers_) {
    if (!engine_.SendOffer(offered_[offered_.size() - unsent_offers_].offer)) break;
  }
  if (unsent_offers_ > 0) engine_.Schedule(offer_timer_, CallEngine::Now() + Duration::Milliseconds(10));
  if (!offered_.empty() && HasHeld(calls::CallKind::kAccept)) engine_.TellOffered(*this);
}

void StreamStandIn::OnAccept(IncomingCall& call, Bytes message) {
  const calls::Envelope& to = call.envelope();
  if ((call.int_arg(3) & ~(SOCK_NONBLOCK | SOCK_CLOEXEC)) != 0) return (void)engine_.Answer(to, Errno::kEINVAL);
  if (state_ != State::kListening) return (void)engine_.Answer(to, Errno::kEINVAL);
  if (offered_.empty() && call.nonblocking()) return (void)engine_.Answer(to, Errno::kEAGAIN);
  Hold(call, message, options_.receive_timeout, false);
  // Where one was offered since the broker looked, it looks again.
  if (!offered_.empty()) engine_.TellOffered(*this);
}

// Calls that do not wait came when there was a connection, which another accept got.
void StreamStandIn::AnswerImpatient() {
  std::list<std::unique_ptr<HeldCall>> held = std::exchange(held_, {});
  for (auto& h : held) {
    if (h->call.head.kind == calls::CallKind::kAccept && h->call.nonblocking()) {
      engine_.Answer(h->call.envelope(), Errno::kEAGAIN);
    } else {
      held_.push_back(std::move(h));
    }
  }
}

void StreamStandIn::OnOfferTaken(const calls::Accepted& a, UniqueFd end) {
  ForgetHeldOf(a.envelope.tid);
  if (a.life != life_ || state_ != State::kListening) return;
  const auto it =
      std::find_if(offered_.begin(), offered_.end(), [&a](const Offered& o) { return o.offer.connection == a.connection; });
  if (it == offered_.end()) return;
  Offered connection = *it;
  offered_.erase(it);
  if (connection.shard == engine_.shard()) --offered_here_;
  // Its end came back, and there was no descriptor for it here.
  const bool lost = a.again != 0 && connection.offer.end < 0 && !end;
  if (lost) DropConnection(engine_, connection);
  if (end) {
    connection.offer.connection = a.cookie;
    connection.offer.end = end.get();
    ReturnEnd(a, std::move(end));
  }
  if (a.again != 0 && !lost) Offer(connection);
  if (offered_.empty()) AnswerImpatient();
  MarkDirty();  // to send it, or room for another one
}

// P, which no accept could have, to its connection.
void StreamStandIn::ReturnEnd(const calls::Accepted& a, UniqueFd end) {
  const uint32_t shard = engine_.RenameRoute(a.connection, a.cookie);
  engine_.TellConnection({a.connection, shard}, [a, carried = std::make_shared<UniqueFd>(std::move(end))](StandIn& s) {
    auto& connection = static_cast<StreamStandIn&>(s);
    connection.Rename(a.cookie, a.inode);
    connection.queued_end_ = std::move(*carried);
  });
}

// Of a connection.
void StreamStandIn::OnAccepted(const calls::Accepted& a) {
  if (state_ != State::kQueued) return;
  LeaveShare();
  if (a.cookie != 0) Rename(a.cookie, a.inode);
  if (a.error != 0 || reset_queued_)
    return CloseByProgram(a.error == EBADF || reset_queued_);  // as Linux where the address cannot be written
  queued_end_.reset();
  state_ = State::kConnected;
  if (!HearEnd()) return CloseByProgram(true);
  NoteHolder(a.envelope.tid, a.fd, a.envelope.listener);
  socket_->HoldPort(true);
  // It may have ended at either side meanwhile.
  if (s_ended_) p_closed_ = s_readable_ = true;
  MarkDirty();
}

void StreamStandIn::OnWithdrawn() {
  if (state_ != State::kQueued) return;
  LeaveShare();
  CloseByProgram(true);
}

void StreamStandIn::LeaveShare() {
  if (ListenerShare* share = engine_.FindShare(listener_cookie_)) share->OnTaken(this);
}

// On Linux it is reset by now. Here an accept may have got it already, and what tells of that be on its way.
void StreamStandIn::OnListenerClosed() {
  if (state_ == State::kQueued) socket_->HoldPort(false);
}

// The last descriptor of the listener is gone, or it was shut down: waiting connections are reset, waiting accepts end.
void StreamStandIn::CloseListener() {
  if (state_ != State::kListening) return;
  --engine_.stats().listeners;
  state_ = State::kFresh;
  Unshare();
  std::vector<CallEngine::OfferedConnection> connections;
  for (const Offered& o : std::exchange(offered_, {})) {
    connections.push_back({o.offer.connection, o.shard});
    if (StandIn* here = engine_.Find(o.offer.connection)) here->OnListenerClosed();
  }
  unsent_offers_ = unqueued_ = offered_here_ = 0;
  offer_timer_.Cancel();
  if (!connections.empty()) engine_.Withdraw(cookie_, life_, std::move(connections));
  auto held = std::move(held_);
  held_.clear();
  for (auto& h : held) engine_.Answer(h->call.envelope(), Errno::kEINVAL);
}

}  // namespace sluice
