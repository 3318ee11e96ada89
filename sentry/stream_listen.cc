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
  Errno error = socket_->Listen(call.int_arg(1));
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

// A token in P's queue for a connection; false where there is no room.
bool StreamStandIn::Enqueue(StreamStandIn* connection) {
  bool fresh = !connection->ready_end_;
  UniqueFd token(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!token || ::connect(token.get(), reinterpret_cast<sockaddr*>(&listen_address_), listen_address_length_) != 0) return false;
  if (!fresh) {
    queue_.push_back({connection, std::move(token)});
    return true;
  }
  connection->s_ = std::move(token);
  connection->PrepareEnd();
  connection->s_readable_ = connection->s_writable_ = true;
  (void)ToInt(engine_.worker().AddFd(connection->s_.get(), EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET, connection));
  queue_.push_back({connection, UniqueFd()});
  return true;
}

void StreamStandIn::TakeConnections() {
  // Connections beyond the container's share wait in the stack's queue, as on a listener whose program has no descriptors left.
  while (queue_.size() < kMaxTokens && (socket_->events() & kReadable) != 0) {
    if (!engine_.RoomForSocket(*container())) {
      engine_.WaitForRoom(this);
      break;
    }
    StreamSocket* accepted = socket_->Accept();
    if (accepted == nullptr) break;
    auto made = std::make_unique<StreamStandIn>(engine_, family_, protocol_, accepted);
    StreamStandIn* s = made.get();
    s->state_ = State::kQueued;
    s->connect_reported_ = true;
    s->options_ = options_;
    engine_.Own(std::move(made), container());
    if (!Enqueue(s)) {
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

void StreamStandIn::Requeue(StreamStandIn* connection, UniqueFd end) {
  connection->Forget();
  connection->ready_end_ = std::move(end);
  connection->state_ = State::kQueued;
  if (state_ != State::kListening || !Enqueue(connection)) return engine_.Destroy(connection);
  MarkDirty();
}

void StreamStandIn::Accept(IncomingCall& call) {
  const calls::Envelope to = call.envelope();
  UniqueFd end = NextToken(call.fd.get());
  if (!end) return (void)engine_.Answer(to, Errno::kEAGAIN);
  Queued next = std::move(queue_.front());
  queue_.pop_front();
  StreamStandIn* c = next.connection;
  if (next.token) end = std::move(c->ready_end_);
  int flags = call.int_arg(3);
  if ((flags & SOCK_NONBLOCK) != 0) fcntl(end.get(), F_SETFL, O_RDWR | O_NONBLOCK);
  if (options_.receive_timeout > Duration(0)) {
    setsockopt(end.get(), SOL_SOCKET, SO_RCVTIMEO, &options_.receive_timeout_raw, sizeof(timeval));
  }
  if (options_.send_timeout > Duration(0))
    setsockopt(end.get(), SOL_SOCKET, SO_SNDTIMEO, &options_.send_timeout_raw, sizeof(timeval));
  c->OnBufferOptions(end.get());
  if (!c->Adopt(end.get())) {
    engine_.Answer(to, Errno::kENFILE);
    return Requeue(c, std::move(end));
  }
  c->state_ = State::kConnected;
  MarkDirty();  // room for another token
  bool close_on_exec = (flags & SOCK_CLOEXEC) != 0;
  if (call.parts[0].head.has_name == 0) {
    int number = engine_.Install(to, end.get(), close_on_exec);
    if (number < 0) return Requeue(c, std::move(end));
    if (c->reset_pending_) c->ResetWith(end.get());
    return c->OnAccepted(to.tid, number, to.listener);
  }
  std::optional<Endpoint> remote = c->socket_->remote();
  Sockaddr address = FormatSockaddr(remote.value_or(Endpoint{}), family_);
  ResultPart part{.name = address.view().first(std::min<size_t>(call.parts[0].head.name_length, address.length)),
                  .name_length = address.length};
  auto kept = std::make_shared<UniqueFd>(std::move(end));
  uint64_t cookie = c->cookie_;
  int p = kept->get();
  engine_.Result(to, 0, {&part, 1}, p, close_on_exec, this, [this, kept, cookie](const calls::Delivered& d) {
    auto* accepted = static_cast<StreamStandIn*>(engine_.Find(cookie));
    if (accepted == nullptr) return;
    if (d.error == 0) {
      if (accepted->reset_pending_) accepted->ResetWith(kept->get());
      return accepted->OnAccepted(d.envelope.tid, d.fd, d.envelope.listener);
    }
    // Linux drops the connection where the address cannot be written.
    if (d.error == EFAULT || d.error == EINVAL) return accepted->CloseByProgram(false);
    Requeue(accepted, std::move(*kept));
  });
}

void StreamStandIn::OnAccepted(uint32_t tid, int number, uint16_t listener) { NoteHolder(tid, number, listener); }

// The last descriptor of the listener is gone, or it was shut down: waiting connections are reset, waiting accepts end.
void StreamStandIn::CloseListener() {
  if (state_ != State::kListening) return;
  --engine_.stats().listeners;
  state_ = State::kFresh;
  std::deque<Queued> queue = std::move(queue_);
  queue_.clear();
  for (Queued& q : queue) q.connection->CloseByProgram(true);
  auto held = std::move(held_);
  held_.clear();
  for (auto& h : held) engine_.Answer(h->call.envelope(), Errno::kEINVAL);
}

}  // namespace sluice
