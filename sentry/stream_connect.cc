// Connecting: connect() blocking and not, interrupted, failed, and back by AF_UNSPEC.
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "sentry/sockaddr.h"
#include "sentry/stream_stand_in.h"

namespace sluice {
namespace {

// With P's default send buffer (212992) so many bytes in flight make it "not writable" (four times what is in flight exceeds the
// buffer), while a send would still succeed: its bytes just wait behind.
constexpr size_t kFiller = 57344;

socklen_t RandomAddress(uint64_t name, sockaddr_un* out) {
  out->sun_family = AF_UNIX;
  out->sun_path[0] = 0;
  memcpy(out->sun_path + 1, &name, sizeof name);
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + sizeof name);
}

}  // namespace

// Nobody else can come in between: the name is not guessable and the listener is gone before the program can learn it.
bool StreamStandIn::Join(int p) {
  UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_un address{};
  socklen_t length = RandomAddress(engine_.RandomName(), &address);
  auto* name = reinterpret_cast<sockaddr*>(&address);
  if (!listener || ::bind(listener.get(), name, length) != 0 || ::listen(listener.get(), 1) != 0) return false;
  if (::connect(p, name, length) != 0) return false;
  s_ = UniqueFd(::accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!s_) return false;
  PrepareEnd();
  return true;
}

void StreamStandIn::PrepareEnd() {
  RefuseDescriptors(s_.get());
  OnBufferOptions(-1);
}

void StreamStandIn::OnBufferOptions(int p) {
  const auto bound = [](int fd, int bytes) {
    if (fd >= 0 && bytes != 0) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
  };
  bound(p, options_.send_buffer);
  bound(s_.get(), options_.receive_buffer);
}

bool StreamStandIn::Hide(int p) {
  if (!Join(p)) return false;
  Block* scratch = engine_.Scratch();
  filler_ = 0;
  if (scratch != nullptr) {
    ssize_t n = send(p, scratch->data, kFiller, MSG_DONTWAIT | MSG_NOSIGNAL);
    filler_ = n > 0 ? static_cast<size_t>(n) : 0;
  }
  state_ = State::kHidden;
  s_readable_ = s_ended_ = false;
  (void)ToInt(engine_.worker().AddFd(s_.get(), EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET, this));
  return true;
}

// Taking the filler out makes P writable: one edge.
void StreamStandIn::Unhide() {
  while (filler_ > 0) {
    Block* scratch = engine_.Scratch();
    ssize_t n = scratch == nullptr ? -1 : recv(s_.get(), scratch->data, filler_, MSG_DONTWAIT);
    if (n <= 0) break;
    filler_ -= static_cast<size_t>(n);
  }
  state_ = State::kConnected;
  s_readable_ = s_writable_ = true;
}

void StreamStandIn::OnConnect(IncomingCall& call, Bytes message) {
  const calls::Envelope& to = call.envelope();
  int family = SockaddrFamily(call.parts[0].name);
  if (family < 0) return (void)engine_.Answer(to, Errno::kEINVAL);
  if (family == AF_UNSPEC) return OnDisconnect(call);
  bool wait = !call.nonblocking();
  switch (state_) {
    case State::kListening:
      return (void)engine_.Answer(to, Errno::kEISCONN);
    case State::kWaiting:
    case State::kHidden:
      if (!wait) return (void)engine_.Answer(to, Errno::kEALREADY);
      return Hold(call, message, options_.send_timeout, state_ == State::kWaiting);
    default:
      break;
  }
  if (connecting()) return (void)engine_.Answer(to, Errno::kEISCONN);  // with the first data
  if (const std::optional<Errno> told = EarlierAttempt(call)) return AnswerFresh(call, *told);
  StartConnect(call, message);
}

// And home to the front, where a stand-in that has begun anew belongs.
void StreamStandIn::AnswerFresh(IncomingCall& call, Errno error) {
  if (state_ == State::kFresh && MoveBack(call.fd, {{call.envelope(), error}})) return;
  engine_.Answer(call.envelope(), error);
}

// What a new attempt is told of the one before. Nothing where it may begin, then on a fresh P.
std::optional<Errno> StreamStandIn::EarlierAttempt(IncomingCall& call) {
  switch (attempt_) {
    case Attempt::kConnected:
      return Errno::kEISCONN;
    case Attempt::kDisconnecting:
      return Errno::kEINVAL;
    case Attempt::kConnecting: {
      const Errno error = ReportConnect();
      if (error != Errno::kOk) (void)ReplaceEnd(call);  // told, and fresh again; if it cannot be, the next connect() tries
      return error;
    }
    case Attempt::kUnconnected:
      break;
  }
  if (state_ == State::kBroken && !ReplaceEnd(call)) return Errno::kECONNABORTED;
  return std::nullopt;
}

// The first connect() after the attempt has ended. The error may have been told before: by SO_ERROR.
Errno StreamStandIn::ReportConnect() {
  attempt_ = state_ == State::kConnected ? Attempt::kConnected : Attempt::kUnconnected;
  if (state_ == State::kConnected) return Errno::kOk;
  const Errno error = std::exchange(error_, Errno::kOk);
  return error == Errno::kOk ? Errno::kECONNABORTED : error;
}

void StreamStandIn::StartConnect(IncomingCall& call, Bytes message) {
  if (!engine_.alone() && MoveToConnect(call, message)) return;
  Endpoint remote;
  Errno error = ParseSockaddr(call.parts[0].name, family_, false, &remote);
  // Datagram sockets of AF_INET6 take an AF_INET address here.
  if (family_ == AF_INET6 && SockaddrFamily(call.parts[0].name) == AF_INET) {
    error = call.parts[0].name.size() < sizeof(sockaddr_in6) - sizeof(uint32_t) ? Errno::kEINVAL : Errno::kEAFNOSUPPORT;
  }
  if (error == Errno::kOk) error = socket_->Connect(remote);
  if (error != Errno::kOk && error != Errno::kEINPROGRESS) {
    if (!MoveBack(call.fd, {{call.envelope(), error}})) engine_.Answer(call.envelope(), error);
    return;
  }
  Unshare();  // it held the port, too
  attempt_ = Attempt::kConnecting;
  error_ = Errno::kOk;
  if (!call.fd) return (void)engine_.Answer(call.envelope(), Errno::kEIO);
  if (error == Errno::kOk) {  // TCP_FASTOPEN_CONNECT
    if (!JoinDeferred(call.fd.get())) return GiveUpStart(call);
    call.fd.reset();
    engine_.Answer(call.envelope(), Errno::kOk);
  } else if (call.nonblocking()) {
    if (!Hide(call.fd.get())) {
      Errno ignored = socket_->Disconnect();
      (void)ToInt(ignored);
      attempt_ = Attempt::kUnconnected;
      return AnswerFresh(call, Errno::kENOBUFS);
    }
    call.fd.reset();
    engine_.Answer(call.envelope(), Errno::kEINPROGRESS);
  } else {
    state_ = State::kWaiting;
    Hold(call, message, options_.send_timeout, true);
  }
  MarkDirty();  // it may be through already (loopback)
}

void StreamStandIn::OnConnectProgress() {
  if (state_ == State::kHidden && s_ended_) return CloseByProgram(true);
  uint32_t events = socket_->events();
  if ((events & kConnected) == 0) {
    if ((events & (kError | kHangup)) == 0) return;
    Errno error = socket_->TakeError();
    return OnConnectFailed(error == Errno::kOk ? Errno::kECONNABORTED : error);
  }
  if (state_ == State::kHidden) {
    Unhide();
  } else {
    // The thread that waits has P's descriptor with its call.
    for (auto& h : held_) {
      if (h->call.head.kind != calls::CallKind::kConnect || !h->call.fd || s_) continue;
      if (!Join(h->call.fd.get())) continue;
      h->call.fd.reset();
      state_ = State::kConnected;
      s_readable_ = s_writable_ = true;
      (void)ToInt(engine_.worker().AddFd(s_.get(), EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET, this));
    }
    if (!s_) return;
  }
  RetryHeld(calls::CallKind::kConnect);
  if (!dead_) Pump();
}

void StreamStandIn::OnConnectFailed(Errno error) {
  bool hidden = state_ == State::kHidden;
  if (hidden) {
    // The filler is unread: P gets its one edge with IN, OUT, ERR, HUP and RDHUP.
    DropS();
    state_ = State::kBroken;
    error_ = error;
  } else {
    state_ = State::kFresh;
    attempt_ = Attempt::kUnconnected;
  }
  Errno ignored = socket_->Disconnect();
  (void)ToInt(ignored);
  if (!hidden && MoveBackWithHeld(error)) return;
  auto held = std::move(held_);
  held_.clear();
  for (auto& h : held) {
    const bool early_send = OwnsEarlySend(h->call);
    if (h->call.head.kind == calls::CallKind::kConnect || early_send) {
      if (engine_.Answer(h->call.envelope(), error) && hidden) {
        error_ = Errno::kOk;
        attempt_ = Attempt::kUnconnected;
      }
    } else {
      held_.push_back(std::move(h));
    }
  }
  RetryHeld(calls::CallKind::kReceive);
}

// By shutdown(), in whichever direction: the socket is as new, but who waits in connect(), or asks for SO_ERROR, hears of a
// reset, and whoever polls wakes up.
void StreamStandIn::GiveUpConnect(IncomingCall& call) {
  OnConnectFailed(Errno::kECONNRESET);
  attempt_ = Attempt::kUnconnected;
  engine_.Answer(call.envelope(), Errno::kOk);
}

// A fresh P in the caller's descriptor number; duplicates and epoll sets keep the old one (docs/limits.md).
bool StreamStandIn::ReplaceEnd(IncomingCall& call) {
  int flags = static_cast<int>(call.head.file_flags);
  UniqueFd p(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | ((flags & O_NONBLOCK) != 0 ? SOCK_NONBLOCK : 0), 0));
  if (!p) return false;
  engine_.NoteGone(cookie_);
  Forget();
  bool replaced = Adopt(p.get());
  if (replaced) {
    engine_.Announce(cookie_, family_);
    replaced = engine_.Replace(call.envelope(), p.get(), call.int_arg(0), true);
  }
  if (!replaced) {  // a signal, or there is no room: the old one goes on
    if (cookie_ != 0) engine_.NoteGone(cookie_);
    Forget();
    if (call.fd && Adopt(call.fd.get())) engine_.Announce(cookie_, family_);
    return false;
  }
  DropS();
  put_back_.clear();
  receiving_ = false;
  early_send_.reset();
  OnBufferOptions(p.get());
  state_ = State::kFresh;
  runs_ahead_ = false;
  fin_passed_ = read_shut_ = write_shut_ = write_mark_ = write_shut_passed_ = reset_pending_ = gone_ = false;
  call.fd = std::move(p);
  return true;
}

// A connect that could not be shown to the program: as if there had been none.
void StreamStandIn::GiveUpStart(IncomingCall& call) {
  (void)ToInt(socket_->Disconnect());
  DropS();
  state_ = State::kFresh;
  attempt_ = Attempt::kUnconnected;
  AnswerFresh(call, Errno::kENOBUFS);
}

void StreamStandIn::OnDisconnect(IncomingCall& call) {
  for (auto& h : std::exchange(held_, {})) {
    if (OwnsEarlySend(h->call))
      engine_.Answer(h->call.envelope(), Errno::kECONNRESET);
    else
      held_.push_back(std::move(h));
  }
  early_send_.reset();
  if (!TakeWritten()) return (void)engine_.Answer(call.envelope(), Errno::kEBADF);
  DeliverBeforeReset();
  Errno error = socket_->Disconnect();
  if (error == Errno::kOk && state_ != State::kFresh && state_ != State::kWaiting) {
    if (state_ == State::kListening) CloseListener();
    if (!ReplaceEnd(call)) error = Errno::kENOBUFS;
  }
  error_ = Errno::kOk;
  attempt_ = Attempt::kUnconnected;
  if (socket_->local().port == 0) Unshare();
  if (state_ == State::kFresh && MoveBack(call.fd, {{call.envelope(), error}})) return;
  engine_.Answer(call.envelope(), error);
}

}  // namespace sluice
