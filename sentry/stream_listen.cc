// Listening: P is a listening AF_UNIX socket, readable exactly while a connection waits, because one socket of ours is connected
// to it per waiting connection (a token). All accepts are notified. Connections are offered to the broker ahead of them
// (broker_protocol.h), with all that an accept needs: it takes the next offer, and a token off P's queue.
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <memory>

#include "sentry/sockaddr.h"
#include "sentry/stream_stand_in.h"

namespace sluice {
namespace {

constexpr int kTokens = 4096;       // P's backlog
constexpr size_t kMaxOffered = 64;  // of one listener at a time; what else is established waits in the stack's queue

}  // namespace

void StreamStandIn::OnListen(IncomingCall& call) {
  if (state_ != State::kFresh && state_ != State::kListening) return (void)engine_.Answer(call.envelope(), Errno::kEINVAL);
  if (!call.fd) return (void)engine_.Answer(call.envelope(), Errno::kEIO);
  Errno error = socket_->Listen(call.int_arg(1));
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
StreamStandIn* StreamStandIn::MakeQueued(StreamSocket* accepted) {
  auto made = std::make_unique<StreamStandIn>(engine_, family_, protocol_, accepted);
  StreamStandIn* s = made.get();
  s->state_ = State::kQueued;
  s->connect_reported_ = true;
  s->options_ = options_;
  s->listener_cookie_ = cookie_;
  engine_.Own(std::move(made), container());
  int ends[2];
  const bool done = ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0;
  if (done) {
    s->s_.reset(ends[0]);
    s->queued_end_.reset(ends[1]);
  }
  if (!done || !s->Adopt(s->queued_end_.get()) || !AddToken()) {
    engine_.Destroy(s);
    return nullptr;
  }
  s->PrepareEnd();
  s->OnBufferOptions(s->queued_end_.get());
  if (options_.receive_timeout > Duration(0))
    setsockopt(s->queued_end_.get(), SOL_SOCKET, SO_RCVTIMEO, &options_.receive_timeout_raw, sizeof(timeval));
  if (options_.send_timeout > Duration(0))
    setsockopt(s->queued_end_.get(), SOL_SOCKET, SO_SNDTIMEO, &options_.send_timeout_raw, sizeof(timeval));
  s->s_readable_ = s->s_writable_ = true;
  (void)ToInt(engine_.worker().AddFd(s->s_.get(), EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET, s));
  s->MarkDirty();
  return s;
}

// In P's queue, for one connection. What connects to it may be closed: P stays readable until the token is taken off.
bool StreamStandIn::AddToken() {
  UniqueFd token(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  return token && ::connect(token.get(), reinterpret_cast<sockaddr*>(&listen_address_), listen_address_length_) == 0;
}

void StreamStandIn::TakeConnections() {
  while (missing_tokens_ > 0 && AddToken()) --missing_tokens_;
  if (missing_tokens_ > 0) MarkDirty();
  // Connections beyond the container's share wait in the stack's queue, as on a listener whose program has no descriptors left.
  while (offered_.size() < kMaxOffered && (socket_->events() & kReadable) != 0) {
    if (!engine_.RoomForSocket(*container())) {
      engine_.WaitForRoom(this);
      break;
    }
    StreamSocket* accepted = socket_->Accept();
    StreamStandIn* s = accepted == nullptr ? nullptr : MakeQueued(accepted);
    if (s == nullptr) break;
    offered_.push_back(s);
    ++unsent_offers_;
  }
  SendOffers();
  if (!offered_.empty() && HasHeld(calls::CallKind::kAccept)) engine_.TellOffered(*this);
}

// In order; what finds no room now is tried again.
void StreamStandIn::SendOffers() {
  for (; unsent_offers_ > 0; --unsent_offers_) {
    const StreamStandIn& c = *offered_[offered_.size() - unsent_offers_];
    const Sockaddr name = FormatSockaddr(c.socket_->remote().value_or(Endpoint{}), family_);
    calls::Offer offer;
    offer.listener = cookie_;
    offer.life = life_;
    offer.connection = c.cookie_;
    offer.name_length = name.length;
    std::copy_n(name.view().begin(), std::min<size_t>(name.length, sizeof offer.name), offer.name);
    if (!engine_.SendOffer(offer, c.queued_end_.get())) return MarkDirty();
  }
}

void StreamStandIn::OnAccept(IncomingCall& call, Bytes message) {
  const calls::Envelope& to = call.envelope();
  if ((call.int_arg(3) & ~(SOCK_NONBLOCK | SOCK_CLOEXEC)) != 0) return (void)engine_.Answer(to, Errno::kEINVAL);
  if (state_ != State::kListening) return (void)engine_.Answer(to, Errno::kEINVAL);
  if (offered_.empty() && call.nonblocking()) return (void)engine_.Answer(to, Errno::kEAGAIN);
  // Where one was offered since the broker looked, it looks again.
  Hold(call, message, options_.receive_timeout, false);
  if (!offered_.empty()) engine_.TellOffered(*this);
}

// Those that do not wait came when there was a connection that another accept got.
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

void StreamStandIn::OnTaken(StreamStandIn* connection) {
  std::erase(offered_, connection);
  if (offered_.empty()) AnswerImpatient();
  MarkDirty();  // room for another one
}

// Of a queued connection.
void StreamStandIn::OnAccepted(const calls::Accepted& a) {
  if (state_ != State::kQueued) return;
  auto* listener = static_cast<StreamStandIn*>(engine_.Find(listener_cookie_));
  if (listener != nullptr && listener->state_ != State::kListening) listener = nullptr;
  const bool lost = a.error == EFAULT || a.error == EINVAL || a.error == EBADF;
  if (listener != nullptr) {
    listener->ForgetHeldOf(a.envelope.tid);
    if (a.error == 0 || lost) {
      listener->OnTaken(this);
    } else {  // it waits for the next one
      ++listener->missing_tokens_;
      listener->MarkDirty();
    }
  }
  if (lost) return CloseByProgram(a.error == EBADF);  // as Linux where the address cannot be written
  if (a.error != 0) return;
  const UniqueFd p = std::move(queued_end_);
  state_ = State::kConnected;
  NoteHolder(a.envelope.tid, a.fd, a.envelope.listener);
  if (reset_pending_) ResetWith(p.get());
}

void StreamStandIn::OnWithdrawn() {
  if (state_ == State::kQueued) CloseByProgram(true);
}

// The last descriptor of the listener is gone, or it was shut down: waiting connections are reset, waiting accepts end.
void StreamStandIn::CloseListener() {
  if (state_ != State::kListening) return;
  --engine_.stats().listeners;
  state_ = State::kFresh;
  std::vector<uint64_t> connections;
  for (const StreamStandIn* c : std::exchange(offered_, {})) connections.push_back(c->cookie_);
  unsent_offers_ = missing_tokens_ = 0;
  if (!connections.empty()) engine_.Withdraw(cookie_, life_, std::move(connections));
  auto held = std::move(held_);
  held_.clear();
  for (auto& h : held) engine_.Answer(h->call.envelope(), Errno::kEINVAL);
}

}  // namespace sluice
