// Listening: P is a listening AF_UNIX socket, readable exactly while a connection waits, because one socket of ours is connected
// to it per waiting connection (a token). All accepts are notified. Connections are offered to the broker ahead of them
// (broker_protocol.h), with all that an accept needs: it takes the next offer, and a token off P's queue.
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <memory>

#include "sentry/call_hub.h"
#include "sentry/listener_share.h"
#include "sentry/sockaddr.h"
#include "sentry/stream_stand_in.h"

namespace sluice {
namespace {

constexpr int kTokens = 4096;       // P's backlog
constexpr size_t kMaxOffered = 64;  // of one listener and worker at a time; what else is established waits in the stack's queue

}  // namespace

void StreamStandIn::OnListen(IncomingCall& call) {
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
    bool done = ::bind(call.fd.get(), reinterpret_cast<sockaddr*>(&address), listen_address_length_) == 0 || errno == EINVAL;
    if (!done || ::listen(call.fd.get(), kTokens) != 0) {
      error = Errno::kENOBUFS;
    } else {
      if (errno == EINVAL) {  // bound before: an earlier life as a listener
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

// The connection of `accepted`, with both ends; null where there are no descriptors: the peer hears a reset rather than nothing.
StreamStandIn* StreamStandIn::MakeQueued(CallEngine& engine, const QueueFacts& facts, StreamSocket* accepted, SocketCount room) {
  auto made = std::make_unique<StreamStandIn>(engine, facts.family, facts.protocol, accepted);
  StreamStandIn* s = made.get();
  s->state_ = State::kQueued;
  s->connect_reported_ = true;
  s->options_ = facts.options;
  s->listener_cookie_ = facts.listener;
  engine.Own(std::move(made), std::move(room));
  int ends[2];
  const bool done = ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0;
  if (done) {
    s->s_.reset(ends[0]);
    s->queued_end_.reset(ends[1]);
  }
  const int p = s->queued_end_.get();
  if (!done || !s->Adopt(p)) {
    s->CloseByProgram(true);
    return nullptr;
  }
  s->PrepareEnd();
  s->OnBufferOptions(p);
  const auto bound_waits = [p](int option, Duration timeout, const timeval& raw) {
    if (timeout > Duration(0)) setsockopt(p, SOL_SOCKET, option, &raw, sizeof raw);
  };
  bound_waits(SO_RCVTIMEO, facts.options.receive_timeout, facts.options.receive_timeout_raw);
  bound_waits(SO_SNDTIMEO, facts.options.send_timeout, facts.options.send_timeout_raw);
  s->s_readable_ = s->s_writable_ = true;
  (void)ToInt(engine.worker().AddFd(s->s_.get(), EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET, s));
  s->MarkDirty();
  return s;
}

// Of a queued connection; the listener adds its life.
calls::Offer StreamStandIn::MakeOffer() const {
  const Sockaddr name = FormatSockaddr(socket_->remote().value_or(Endpoint{}), family_);
  calls::Offer offer;
  offer.listener = listener_cookie_;
  offer.connection = cookie_;
  offer.end = queued_end_.get();
  offer.name_length = name.length;
  std::copy_n(name.view().begin(), std::min<size_t>(name.length, sizeof offer.name), offer.name);
  return offer;
}

// In P's queue, for one connection. What connects to it may be closed: P stays readable until the token is taken off.
bool StreamStandIn::AddToken() {
  UniqueFd token(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  return token && ::connect(token.get(), reinterpret_cast<sockaddr*>(&listen_address_), listen_address_length_) == 0;
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
    Offer({s->MakeOffer(), engine_.shard()});
  }
  SendOffers();
}

void StreamStandIn::Offer(const Offered& connection) {
  offered_.push_back(connection);
  offered_.back().offer.life = life_;
  if (connection.shard == engine_.shard()) ++offered_here_;
  ++missing_tokens_;
  ++unsent_offers_;
}

// Each offer behind its token, so that there is one for whoever takes it. What finds no room now is tried again.
void StreamStandIn::SendOffers() {
  while (missing_tokens_ > 0 && AddToken()) --missing_tokens_;
  for (; unsent_offers_ > missing_tokens_; --unsent_offers_) {
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

void StreamStandIn::OnOfferTaken(const calls::Accepted& a) {
  ForgetHeldOf(a.envelope.tid);
  if (a.life != life_ || state_ != State::kListening) return;
  const auto it =
      std::find_if(offered_.begin(), offered_.end(), [&a](const Offered& o) { return o.offer.connection == a.connection; });
  if (it == offered_.end()) return;
  const Offered connection = *it;
  offered_.erase(it);
  if (connection.shard == engine_.shard()) --offered_here_;
  if (a.again != 0) Offer(connection);
  if (offered_.empty()) AnswerImpatient();
  MarkDirty();  // to send it, or room for another one
}

// Of a connection.
void StreamStandIn::OnAccepted(const calls::Accepted& a) {
  if (state_ != State::kQueued) return;
  if (ListenerShare* share = engine_.FindShare(listener_cookie_)) share->OnTaken(cookie_);
  if (a.error != 0) return CloseByProgram(a.error == EBADF);  // as Linux where the address cannot be written
  const UniqueFd p = std::move(queued_end_);
  state_ = s_ ? State::kConnected : State::kBroken;  // it may have ended while it waited
  NoteHolder(a.envelope.tid, a.fd, a.envelope.listener);
  socket_->HoldPort(true);
  if (reset_pending_) ResetWith(p.get());
}

void StreamStandIn::OnWithdrawn() {
  if (state_ == State::kQueued) CloseByProgram(true);
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
  unsent_offers_ = missing_tokens_ = offered_here_ = 0;
  offer_timer_.Cancel();
  if (!connections.empty()) engine_.Withdraw(cookie_, life_, std::move(connections));
  auto held = std::move(held_);
  held_.clear();
  for (auto& h : held) engine_.Answer(h->call.envelope(), Errno::kEINVAL);
}

}  // namespace sluice
