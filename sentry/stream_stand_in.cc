#include "sentry/stream_stand_in.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <memory>

#include "netstack/sysctls.h"
#include "sentry/sockaddr.h"

namespace sluice {

using calls::CallKind;

StreamStandIn::StreamStandIn(CallEngine& engine, int family, int protocol, StreamSocket* socket)
    : InetStandIn(engine, family, SOCK_STREAM, protocol), socket_(socket), unread_(engine.unread()) {
  socket_->set_observer(this);
  socket_->SetUnsentLimit(kUnsentEnough);
  ++engine_.stats().streams;
}

StreamStandIn::~StreamStandIn() {
  --engine_.stats().streams;
  Unshare();
  DropS();
  if (socket_ != nullptr) {
    socket_->set_observer(nullptr);
    socket_->Close();
  }
}

Errno StreamStandIn::Create(CallEngine& engine, IncomingCall& call, SocketCount count, int flags, int protocol) {
  if (protocol != 0 && protocol != IPPROTO_TCP) return Errno::kEPROTONOSUPPORT;
  int family = call.int_arg(0);
  StreamSocket* socket = engine.stack().NewTcpSocket(family == AF_INET ? Family::kIpv4 : Family::kIpv6);
  if (socket == nullptr) return Errno::kENOBUFS;
  auto made = std::make_unique<StreamStandIn>(engine, family, IPPROTO_TCP, socket);
  StreamStandIn* s = made.get();
  engine.Own(std::move(made), std::move(count));
  UniqueFd p(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | (flags & SOCK_NONBLOCK), 0));
  if (!p || !s->Adopt(p.get())) {
    engine.Destroy(s);
    return Errno::kENFILE;
  }
  int number = engine.Install(call.envelope(), p.get(), (flags & SOCK_CLOEXEC) != 0);
  if (number < 0) {
    engine.Destroy(s);
  } else {
    s->NoteHolder(call.envelope().tid, number, call.envelope().listener);
  }
  return Errno::kOk;  // answered either way
}

void StreamStandIn::OnCall(IncomingCall& call, Bytes message) {
  // A reset that could not be shown for want of P's descriptor can be now.
  if (reset_pending_ && call.fd) ResetWith(call.fd.get());
  switch (call.head.kind) {
    case CallKind::kConnect:
      return OnConnect(call, message);
    case CallKind::kListen:
      return OnListen(call, message);
    case CallKind::kAccept:
      return OnAccept(call, message);
    case CallKind::kShutdown:
      return OnShutdown(call);
    case CallKind::kSend:
      return OnSend(call, message);
    case CallKind::kReceive:
      return OnReceive(call, message);
    default:
      return OnCommonCall(call);
  }
}

Errno StreamStandIn::TakePendingError() {
  if (error_ != Errno::kOk) return std::exchange(error_, Errno::kOk);
  return socket_->TakeError();
}

uint32_t StreamStandIn::QueuedOut() {
  int in_s = 0;
  if (s_ && state_ == State::kConnected) ioctl(s_.get(), FIONREAD, &in_s);
  return static_cast<uint32_t>(socket_->unacked_bytes()) + static_cast<uint32_t>(std::max(in_s - (write_mark_ ? 1 : 0), 0));
}

void StreamStandIn::OnExpired(HeldCall& held) {
  if (OwnsEarlySend(held.call)) return AnswerSent(held.call, held.call.parts[0].data.size());  // it is queued
  if (held.call.head.kind != CallKind::kConnect) return InetStandIn::OnExpired(held);
  // SO_SNDTIMEO: the attempt goes on in the background.
  if (state_ == State::kWaiting && held.call.fd) Hide(held.call.fd.get());
  engine_.Answer(held.call.envelope(), Errno::kEINPROGRESS);
}

void StreamStandIn::OnInterrupted(HeldCall& held) {
  if (held.call.head.kind == CallKind::kConnect && state_ == State::kWaiting && held.call.fd) Hide(held.call.fd.get());
}

void StreamStandIn::OnFdEvents(uint32_t events) {
  if ((events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) s_readable_ = true;
  if ((events & EPOLLPRI) != 0) s_urgent_ = true;
  if ((events & EPOLLOUT) != 0) s_writable_ = true;
  if ((events & (EPOLLHUP | EPOLLRDHUP)) != 0) s_ended_ = true;
  if ((events & EPOLLRDHUP) != 0 && unwatched_end() >= 0) p_closed_ = true;
  MarkDirty();
}

// Without a watch neither P was shut down nor S: that P sends no more means that it is closed.
int StreamStandIn::unwatched_end() const { return !watched() && state_ == State::kConnected ? s_.get() : -1; }

void StreamStandIn::OnEndClosed() {
  p_closed_ = s_readable_ = true;
  MarkDirty();
}

void StreamStandIn::OnWork() {
  switch (state_) {
    case State::kWaiting:
    case State::kHidden:
      OnConnectProgress();
      break;
    case State::kListening:
      TakeConnections();
      break;
    case State::kQueued:
      if (!joined_) break;
      (void)HearEnd();  // OnAccepted tries again
      Pump();
      break;
    case State::kConnected:
      Pump();
      break;
    case State::kBroken:  // one that waits for its descriptor
      RetryHeld(CallKind::kReceive);
      break;
    default:
      break;
  }
}

void StreamStandIn::OnLastClose() {
  switch (state_) {
    case State::kListening:
      CloseListener();
      break;
    case State::kConnected:  // what it wrote before goes out first
      return OnEndClosed();
    default:
      break;
  }
  engine_.Destroy(this);
}

void StreamStandIn::OnFetched(UniqueFd fd, bool try_again) {
  if (dead_) return;
  if (fd) ReceiveWith(fd.get());
  const bool unwatched = s_ && !watched();
  if (fd && unwatched && !Watch(fd.get())) fd.reset();
  if (fd && reset_pending_) return ResetWith(fd.get());
  if (fd && unwatched) return MarkDirty();
  if (fd || (!s_ && !HasHeld(CallKind::kReceive))) return;
  // On its way in a message, or too many searches just now. Until it is found P hangs, which is better than a stream that looks
  // complete.
  engine_.Schedule(retry_timer_, CallEngine::Now() + (try_again ? Duration::Milliseconds(100) : Duration::Seconds(2)));
}

// What waits for the descriptor may be a receive. It goes with this: a copy that is kept hides the close of P.
void StreamStandIn::ReceiveWith(int p) {
  for (const auto& h : held_) {
    if (h->call.head.kind != CallKind::kReceive || h->call.fd) continue;
    h->call.fd.reset(fcntl(p, F_DUPFD_CLOEXEC, 0));
    if (!h->call.fd) return;  // no descriptor is left: at the next occasion
  }
  RetryHeld(CallKind::kReceive);
  for (const auto& h : held_) {
    if (h->call.head.kind == CallKind::kReceive) h->call.fd.reset();
  }
}

// Where the last answer was that it cannot be found, not before the time for the next question.
void StreamStandIn::FetchEnd() {
  if (!retry_timer_.pending()) RequestFetch();
}

void StreamStandIn::OnShutdown(IncomingCall& call) {
  int how = call.int_arg(1);
  if (how < SHUT_RD || how > SHUT_RDWR) return (void)engine_.Answer(call.envelope(), Errno::kEINVAL);
  bool read = how != SHUT_WR, write = how != SHUT_RD;
  if (state_ == State::kListening) {
    if (read && call.fd) {
      Errno error = socket_->Shutdown(true, write);
      ::shutdown(call.fd.get(), SHUT_RDWR);  // whoever polls it wakes up
      CloseListener();
      // It may listen again, which a socket that was shut down cannot.
      if (error == Errno::kOk && !ReplaceEnd(call)) error = Errno::kENOBUFS;
      return (void)engine_.Answer(call.envelope(), error);
    }
    return (void)engine_.Answer(call.envelope(), Errno::kOk);
  }
  if (state_ == State::kWaiting || state_ == State::kHidden) return GiveUpConnect(call);
  if (attempt_ == Attempt::kConnecting) attempt_ = state_ == State::kConnected ? Attempt::kConnected : Attempt::kDisconnecting;
  if (state_ != State::kConnected || (!socket_->remote() && !connecting()))
    return (void)engine_.Answer(call.envelope(), Errno::kENOTCONN);
  if (call.fd && !watched() && !Watch(call.fd.get())) return (void)engine_.Answer(call.envelope(), Errno::kENOBUFS);
  if (!TakeWritten()) return (void)engine_.Answer(call.envelope(), Errno::kEBADF);
  if (write && !write_shut_ && call.fd) {
    // The mark: a byte that stays unread in S, so that a reset can be told from an end although P cannot send any more. Out of
    // band, so that bytes of another thread which slips in between are not taken for it.
    write_mark_ = send(call.fd.get(), "", 1, MSG_OOB | MSG_DONTWAIT | MSG_NOSIGNAL) == 1;
    write_shut_ = true;
    s_readable_ = true;
  }
  if (read) {
    Errno error = socket_->Shutdown(true, false);
    (void)ToInt(error);
  }
  if (call.fd) ::shutdown(call.fd.get(), how);
  engine_.Answer(call.envelope(), Errno::kOk);
  MarkDirty();
}

void StreamStandIn::OnSend(IncomingCall& call, Bytes message) {
  const CallPart& part = call.parts[0];
  if ((part.head.flags & MSG_FASTOPEN) != 0 && OnFastOpenSend(call, message)) return;
  switch (state_) {
    case State::kConnected:
      break;
    case State::kHidden:
    case State::kWaiting:
      return (void)engine_.Answer(call.envelope(), Errno::kEAGAIN);
    default:
      return (void)engine_.Answer(call.envelope(), Errno::kEPIPE);
  }
  if (write_shut_) return (void)engine_.Answer(call.envelope(), Errno::kEPIPE);
  // Behind what was written natively.
  if (!TakeWritten()) return (void)engine_.Answer(call.envelope(), Errno::kEPIPE);
  if (Gone()) {
    MarkDirty();
    return (void)engine_.Answer(call.envelope(), Errno::kEPIPE);
  }
  bool full = s_readable_ || socket_->send_space() == 0;
  if (full && (call.nonblocking() || (part.head.flags & MSG_DONTWAIT) != 0)) {
    return (void)engine_.Answer(call.envelope(), Errno::kEAGAIN);
  }
  if (full) return Hold(call, message, options_.send_timeout, false);
  if (part.data.empty()) return AnswerSent(call, 0);
  BlockRef block(engine_.pool().Allocate(part.data.size()));
  if (!block) return (void)engine_.Answer(call.envelope(), Errno::kENOBUFS);
  memcpy(block->data, part.data.data(), part.data.size());
  if (call.head.nr == SYS_sendmmsg)
    AnswerSent(call, part.data.size());
  else if (!engine_.Answer(call.envelope(), static_cast<int64_t>(part.data.size())))
    return;
  Slice slice{std::move(block), 0, static_cast<uint32_t>(part.data.size())};
  OnSent(socket_->Send(std::move(slice), (part.head.flags & MSG_MORE) != 0));
}

void StreamStandIn::OnReceive(IncomingCall& call, Bytes message) {
  const CallPart& part = call.parts[0];
  if ((part.head.flags & MSG_ERRQUEUE) != 0) return (void)engine_.Answer(call.envelope(), Errno::kEAGAIN);
  switch (state_) {
    case State::kFresh:
    case State::kListening:
      return (void)engine_.Answer(call.envelope(), Errno::kENOTCONN);
    case State::kBroken:
      if (error_ == Errno::kOk || call.fd) break;  // what is to be read, and an end, come before the error
      return (void)engine_.Answer(call.envelope(), std::exchange(error_, Errno::kOk));
    default:
      break;
  }
  if (!call.fd) {  // a held call that gave up its copy
    FetchEnd();
    return Hold(call, message, options_.receive_timeout, false);
  }
  ReceiveFromCopy(call, message, static_cast<int>(part.head.flags));
}

// recv with an address, or one that discards: done here on a copy of P, one at a time. Whether the program gets the answer is
// known later than it can ask for what comes next, so the bytes are taken before, and put back where it does not.
void StreamStandIn::ReceiveFromCopy(IncomingCall& call, Bytes message, int flags) {
  const CallPart& part = call.parts[0];
  if (receiving_) return Hold(call, message, options_.receive_timeout, false);
  std::vector<uint8_t>& buffer = engine_.buffer();
  const size_t want = std::min<size_t>({part.head.data_length, calls::kMaxData, buffer.size()});
  const ssize_t n = TakeFromEnd(call.fd.get(), MutableBytes(buffer).first(want), flags);
  if (n < 0 && errno == EAGAIN) {
    if (call.nonblocking() || (flags & MSG_DONTWAIT) != 0) return (void)engine_.Answer(call.envelope(), Errno::kEAGAIN);
    return Hold(call, message, options_.receive_timeout, false);
  }
  if (n < 0) {
    Errno error = static_cast<Errno>(errno);
    if (errno == ECONNRESET && error_ != Errno::kOk) error = std::exchange(error_, Errno::kOk);
    return (void)engine_.Answer(call.envelope(), error);
  }
  const bool discard = (flags & MSG_TRUNC) != 0;
  const Bytes taken = Bytes(buffer).first(static_cast<size_t>(n));
  ResultPart result{.data = discard ? Bytes() : taken, .return_value = static_cast<uint32_t>(n)};
  int64_t value = call.head.nr == 299 /* recvmmsg */ ? 1 : n;
  auto done = [this, flags, cookie = cookie_, copy = std::make_shared<UniqueFd>(std::move(call.fd)),
               kept = std::vector<uint8_t>(taken.begin(), taken.end())](const calls::Delivered& d) {
    if (cookie != cookie_) return;  // another end took its place
    receiving_ = false;
    if (d.error != 0 && (flags & MSG_PEEK) == 0) PutBack(copy->get(), kept, (flags & MSG_OOB) != 0);
    RetryHeld(CallKind::kReceive);
    if (!dead_) MarkDirty();  // the peer's FIN may have waited for this
  };
  receiving_ = true;
  engine_.Result(call.envelope(), value, {&result, 1}, this, std::move(done));
}

// As recv without waiting, from a copy of P.
ssize_t StreamStandIn::TakeFromEnd(int p, MutableBytes out, int flags) {
  const bool ahead = fin_passed_ && !put_back_.empty() && (flags & MSG_OOB) == 0;
  if (!ahead) return recv(p, out.data(), out.size(), MSG_DONTWAIT | (flags & (MSG_PEEK | MSG_OOB)));
  const size_t n = std::min(out.size(), put_back_.size());
  std::copy_n(put_back_.begin(), n, out.begin());
  if ((flags & MSG_PEEK) == 0) put_back_.erase(put_back_.begin(), put_back_.begin() + static_cast<ptrdiff_t>(n));
  return static_cast<ssize_t>(n);
}

// Ahead of what else waits in P, which is taken for that. Behind the peer's FIN nothing comes into P any more: then it is for the
// next receive that is done here, as the one that was interrupted begins again.
void StreamStandIn::PutBack(int p, std::vector<uint8_t> bytes, bool urgent) {
  if (!s_) return;  // reset meanwhile
  if (urgent) return (void)send(s_.get(), bytes.data(), bytes.size(), MSG_OOB | MSG_DONTWAIT | MSG_NOSIGNAL);
  std::vector<uint8_t>& buffer = engine_.buffer();
  for (ssize_t n; !fin_passed_ && (n = recv(p, buffer.data(), buffer.size(), MSG_DONTWAIT)) > 0;) {
    bytes.insert(bytes.end(), buffer.data(), buffer.data() + n);
  }
  put_back_.insert(put_back_.begin(), bytes.begin(), bytes.end());
  (void)FlushPutBack();
}

}  // namespace sluice
