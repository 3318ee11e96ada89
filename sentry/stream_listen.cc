// Listening: P is a listening AF_UNIX socket, readable exactly while a connection waits, because one socket of ours is connected
// to it per waiting connection (a token). All accepts are notified: the sentry takes the token off P's queue and gives the
// program the end that the token stands for.
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

constexpr int kTokens = 4096;  // connections offered to P at a time; the rest waits in the stack's queue
constexpr size_t kMaxTokens = 4000;

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
    // An accept of ours on an empty queue (a program that raced a native one) must not stop the worker.
    timeval soon{0, 1};
    setsockopt(call.fd.get(), SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon);
    bool done = ::bind(call.fd.get(), reinterpret_cast<sockaddr*>(&address), listen_address_length_) == 0 || errno == EINVAL;
    if (!done || ::listen(call.fd.get(), kTokens) != 0) {
      error = Errno::kENOBUFS;
    } else {
      if (errno == EINVAL) {  // bound before: an earlier life as a listener
        listen_address_length_ = sizeof listen_address_;
        getsockname(call.fd.get(), reinterpret_cast<sockaddr*>(&listen_address_), &listen_address_length_);
      }
      state_ = State::kListening;
      SetOptionInterest(NativeOptions::Interest::kAlways);  // connections inherit them
      ++engine_.stats().listeners;
    }
  }
  engine_.Answer(call.envelope(), error);
  MarkDirty();
}

// A token in P's queue; invalid where there is no room.
UniqueFd StreamStandIn::MakeToken() const {
  UniqueFd token(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const auto* address = reinterpret_cast<const sockaddr*>(&listen_address_);
  if (token && ::connect(token.get(), address, listen_address_length_) != 0) token.reset();
  return token;
}

// `end`: P of the connection where it has one already; otherwise the token makes it. False where there is no room.
bool StreamStandIn::Enqueue(StreamStandIn* connection, UniqueFd end) {
  UniqueFd token = MakeToken();
  if (!token) return false;
  if (!end) {
    connection->s_ = std::move(token);
    connection->PrepareEnd();
    connection->s_readable_ = connection->s_writable_ = true;
    (void)ToInt(engine_.worker().AddFd(connection->s_.get(), EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET, connection));
  }
  queue_.push_back({.connection = connection, .end = std::move(end), .token = std::move(token)});
  return true;
}

void StreamStandIn::TakeConnections() {
  // Connections beyond the container's share wait in the stack's queue, as on a listener whose program has no descriptors left.
  while (queue_.size() < kMaxTokens && (socket_->events() & kReadable) != 0) {
    SocketCount room = engine_.RoomForConnection(container(), this);
    if (!room) break;
    StreamSocket* accepted = socket_->Accept();
    if (accepted == nullptr) break;
    auto made = std::make_unique<StreamStandIn>(engine_, family_, protocol_, accepted);
    StreamStandIn* s = made.get();
    s->state_ = State::kQueued;
    s->connect_reported_ = true;
    s->options_ = options_;
    s->listener_cookie_ = cookie_;
    engine_.Own(std::move(made), std::move(room));
    if (!Enqueue(s, UniqueFd())) {
      // No descriptors: the peer hears a reset rather than nothing.
      engine_.Destroy(s);
      break;
    }
    s->MarkDirty();
  }
  RetryHeld(calls::CallKind::kAccept);
}

void StreamStandIn::OnAccept(IncomingCall& call, Bytes message) {
  const calls::Envelope& to = call.envelope();
  if ((call.int_arg(3) & ~(SOCK_NONBLOCK | SOCK_CLOEXEC)) != 0) return (void)engine_.Answer(to, Errno::kEINVAL);
  if (state_ != State::kListening) return (void)engine_.Answer(to, Errno::kEINVAL);
  if (queue_.empty()) {
    if (call.nonblocking()) return (void)engine_.Answer(to, Errno::kEAGAIN);
    return Hold(call, message, options_.receive_timeout, false);
  }
  if (!call.fd) {
    RequestFetch();
    return Hold(call, message, options_.receive_timeout, false);
  }
  Accept(call);
}

// The next end that a token in P's queue made; invalid where there is none (a race that the program can only make on purpose).
UniqueFd StreamStandIn::NextToken(int p) {
  static const pid_t own_pid = getpid();
  for (int i = 0; i < 64; ++i) {
    UniqueFd end(::accept4(p, nullptr, nullptr, SOCK_CLOEXEC));
    if (!end) return end;
    ucred peer{};
    socklen_t length = sizeof peer;
    if (getsockopt(end.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.pid == own_pid) return end;
    // Somebody of the sandbox connected to P by its own means: not ours.
  }
  return UniqueFd();
}

void StreamStandIn::Accept(IncomingCall& call) {
  const calls::Envelope to = call.envelope();
  UniqueFd end = NextToken(call.fd.get());
  if (!end) return (void)engine_.Answer(to, Errno::kEAGAIN);
  Queued next = std::move(queue_.front());
  queue_.pop_front();
  MarkDirty();  // room for another token
  if (next.end) end = std::move(next.end);
  int flags = call.int_arg(3);
  if ((flags & SOCK_NONBLOCK) != 0) fcntl(end.get(), F_SETFL, O_RDWR | O_NONBLOCK);
  if (options_.receive_timeout > Duration(0)) {
    setsockopt(end.get(), SOL_SOCKET, SO_RCVTIMEO, &options_.receive_timeout_raw, sizeof(timeval));
  }
  if (options_.send_timeout > Duration(0))
    setsockopt(end.get(), SOL_SOCKET, SO_SNDTIMEO, &options_.send_timeout_raw, sizeof(timeval));
  const AcceptCall accept{.to = to,
                          .close_on_exec = (flags & SOCK_CLOEXEC) != 0,
                          .has_name = call.parts[0].head.has_name != 0,
                          .name_length = call.parts[0].head.name_length};
  if (next.connection != nullptr) return next.connection->BeAccepted(accept, std::move(end));
  AcceptElsewhere(accept, next, std::move(end));
}

// The listener may be gone by the time that the answer was delivered, or not.
void StreamStandIn::BeAccepted(const AcceptCall& accept, UniqueFd end) {
  OnBufferOptions(end.get());
  if (!Adopt(end.get())) {
    engine_.Answer(accept.to, Errno::kENFILE);
    return OnAcceptFailed(std::move(end));
  }
  state_ = State::kConnected;
  if (!accept.has_name) {
    int number = engine_.Install(accept.to, end.get(), accept.close_on_exec);
    if (number < 0) return OnAcceptFailed(std::move(end));
    if (reset_pending_) ResetWith(end.get());
    return NoteHolder(accept.to.tid, number, accept.to.listener);
  }
  std::optional<Endpoint> remote = socket_->remote();
  Sockaddr address = FormatSockaddr(remote.value_or(Endpoint{}), family_);
  ResultPart part{.name = address.view().first(std::min<size_t>(accept.name_length, address.length)),
                  .name_length = address.length};
  auto kept = std::make_shared<UniqueFd>(std::move(end));
  int p = kept->get();
  engine_.Result(accept.to, 0, {&part, 1}, p, accept.close_on_exec, this, [this, kept](const calls::Delivered& d) {
    if (d.error == 0) {
      if (reset_pending_) ResetWith(kept->get());
      return NoteHolder(d.envelope.tid, d.fd, d.envelope.listener);
    }
    // Linux drops the connection where the address cannot be written.
    if (d.error == EFAULT || d.error == EINVAL) return CloseByProgram(false);
    OnAcceptFailed(std::move(*kept));
  });
}

// The connection waits for the next accept.
void StreamStandIn::OnAcceptFailed(UniqueFd end) {
  Forget();
  state_ = State::kQueued;
  if (ListenerShare* share = engine_.FindShare(listener_cookie_)) return share->Offer(this, std::move(end));
  auto* listener = engine_.front() ? static_cast<StreamStandIn*>(engine_.Find(listener_cookie_)) : nullptr;
  if (listener == nullptr || listener->state_ != State::kListening || !listener->Enqueue(this, std::move(end)))
    return engine_.Destroy(this);
  listener->MarkDirty();
}

// The last descriptor of the listener is gone, or it was shut down: waiting connections are reset, waiting accepts end.
void StreamStandIn::CloseListener() {
  if (state_ != State::kListening) return;
  --engine_.stats().listeners;
  state_ = State::kFresh;
  Unshare();  // with the connections that wait elsewhere
  std::deque<Queued> queue = std::move(queue_);
  queue_.clear();
  for (Queued& q : queue) {
    if (q.connection != nullptr) q.connection->CloseByProgram(true);
  }
  auto held = std::move(held_);
  held_.clear();
  for (auto& h : held) engine_.Answer(h->call.envelope(), Errno::kEINVAL);
}

}  // namespace sluice
