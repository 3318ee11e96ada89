// TCP Fast Open (RFC 7413) on a stand-in: sends with MSG_FASTOPEN, and connects that TCP_FASTOPEN_CONNECT has wait for the first
// data. That is read from S when it was written to P, as always: the write does not wait for the handshake.
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "netstack/sysctls.h"
#include "netstack/tcp/fast_open.h"
#include "sentry/sockaddr.h"
#include "sentry/stream_stand_in.h"

namespace sluice {

// As linux tcp_sendmsg_fastopen and __inet_stream_connect. False where it is a send like others: the first data of a connect that
// waits for it.
bool StreamStandIn::OnFastOpenSend(IncomingCall& call, Bytes message) {
  const auto answer = [&](Errno error) {
    engine_.Answer(call.envelope(), error);
    return true;
  };
  if (OwnsEarlySend(call)) {
    ContinueEarlySend(call, message);
    return true;
  }
  if ((engine_.sysctls().tcp_fastopen & tcp::kFastOpenClient) == 0) return answer(Errno::kEOPNOTSUPP);
  const int family = SockaddrFamily(call.parts[0].name);
  if (family == AF_UNSPEC) return answer(Errno::kEOPNOTSUPP);
  switch (state_) {
    case State::kConnected:
      if (connecting()) return false;
      return answer(Errno::kEISCONN);
    case State::kWaiting:
    case State::kHidden:
      return answer(Errno::kEALREADY);
    case State::kBroken:
      if (const std::optional<Errno> told = EarlierAttempt(call)) {
        AnswerFresh(call, *told);
        return true;
      }
      break;
    case State::kFresh:
      break;
    default:
      return answer(Errno::kEISCONN);
  }
  if (family < 0) return answer(Errno::kEINVAL);
  StartFastOpen(call, message);
  return true;
}

// A call that waits has all its data queued and is answered when it is connected, one that does not wait what the SYN carries.
void StreamStandIn::StartFastOpen(IncomingCall& call, Bytes message) {
  if (!engine_.alone() && MoveToConnect(call, message)) return;
  const CallPart& part = call.parts[0];
  const bool wait = !call.nonblocking() && (part.head.flags & MSG_DONTWAIT) == 0;
  Endpoint remote;
  size_t taken = 0;
  Errno error = ParseSockaddr(part.name, family_, false, &remote);
  BlockRef block(engine_.pool().Allocate(std::max<size_t>(part.data.size(), 1)));
  if (error == Errno::kOk && !block) error = Errno::kENOBUFS;
  if (error == Errno::kOk) {
    std::copy(part.data.begin(), part.data.end(), block->data);
    error = socket_->ConnectWithData(remote, Slice{std::move(block), 0, static_cast<uint32_t>(part.data.size())}, wait, &taken);
  }
  if (error != Errno::kEINPROGRESS) {
    if (!MoveBack(call.fd, {{call.envelope(), error}})) engine_.Answer(call.envelope(), error);
    return;
  }
  Unshare();
  attempt_ = Attempt::kConnecting;
  error_ = Errno::kOk;
  if (!call.fd || !Hide(call.fd.get())) return GiveUpStart(call);
  call.fd.reset();
  bytes_out_ += taken;
  engine_.stats().stream_bytes_out += taken;
  if (wait) {
    early_send_ = EarlySend{call.envelope().listener, call.envelope().id};
    Hold(call, message, options_.send_timeout, false);
  } else if (taken > 0) {
    AnswerSent(call, taken);
  } else {
    engine_.Answer(call.envelope(), Errno::kEINPROGRESS);
  }
  MarkDirty();  // it may be through already (loopback)
}

bool StreamStandIn::OwnsEarlySend(const IncomingCall& call) const {
  return early_send_ && early_send_->listener == call.envelope().listener && early_send_->id == call.envelope().id;
}

// Its connection may be there by now.
void StreamStandIn::ContinueEarlySend(IncomingCall& call, Bytes message) {
  if (state_ == State::kHidden) return Hold(call, message, options_.send_timeout, false);
  early_send_.reset();
  if (state_ != State::kConnected) return (void)engine_.Answer(call.envelope(), Errno::kEPIPE);
  attempt_ = Attempt::kConnected;
  AnswerSent(call, call.parts[0].data.size());
}

// How much of the first message of a call was sent.
void StreamStandIn::AnswerSent(IncomingCall& call, size_t bytes) {
  if (call.head.nr != SYS_sendmmsg) return (void)engine_.Answer(call.envelope(), static_cast<int64_t>(bytes));
  const ResultPart part{.return_value = static_cast<uint32_t>(bytes)};
  engine_.Result(call.envelope(), 1, {&part, 1}, this, nullptr);
}

// connect() was told that it is done: P takes what is written, which makes the SYN.
bool StreamStandIn::JoinDeferred(int p) {
  if (!Join(p)) return false;
  state_ = State::kConnected;
  s_readable_ = s_writable_ = true;
  s_ended_ = false;
  return engine_.worker().AddFd(s_.get(), EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET, this) == Errno::kOk;
}

}  // namespace sluice
