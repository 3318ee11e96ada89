// Bytes between P and the stack, and how streams end. One receive and one send per 64 KiB; try first, wait for an edge only after
// a short answer.
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <utility>

#include "sentry/stream_stand_in.h"

namespace sluice {
namespace {

constexpr size_t kRead = 65536;
// Smaller reads are copied to a block of their size, so that the large one stays for the next read.
constexpr size_t kCopyBelow = 4096;
constexpr size_t kSpans = 64;

int Unread(int s) {
  int n = 0;
  return ioctl(s, FIONREAD, &n) == 0 ? n : 0;
}

}  // namespace

// A queued connection's, when it has been offered: what came until then shows now. False where the worker has no memory for it.
bool StreamStandIn::HearEnd() {
  heard_ = heard_ || engine_.worker().AddFd(s_.get(), EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET, this) == Errno::kOk;
  return heard_;
}

void StreamStandIn::DropS() {
  if (!s_) return;
  engine_.worker().ForgetFd(s_.get());
  if (p_closed_) {
    unread_.Forget();
  } else {
    unread_.Detach();
  }
  s_.reset();
}

// A writer that found its buffer full sleeps until three quarters of it are read: with the default buffer of 208 KiB the reader
// runs dry before the other core has woken up. A stream that moves most of all bytes gets larger ones, which takes a right; not
// where the program chose a size itself, nor for one that does not read. Of several each fills the gaps of the others, and what
// all of them had queued would be colder than the caches when it is read.
void StreamStandIn::LetRunAhead() {
  if (runs_ahead_ || !s_ || number_ < 0 || options_.send_buffer != 0 || options_.receive_buffer != 0) return;
  runs_ahead_ = true;
  engine_.RequestRunAhead(this, s_.get());
}

void StreamStandIn::OnOptionsPosted() {
  if (!s_ || state_ != State::kConnected) return OnOptionsSet();
  s_readable_ = true;  // what was written before a push goes with it
  MarkDirty();
}

void StreamStandIn::Pump() {
  if (s_) FromProgram(p_closed_ ? SIZE_MAX : engine_.ReadShare());
  if (dead_ || !s_) return;
  ToProgram();
  if (dead_ || !s_) return;
  FinishIncoming();
  if (!dead_ && socket_->unsent_bytes() == 0) SetOptionInterest(NativeOptions::Interest::kLazy);
  if (!dead_ && !held_.empty()) {
    RetryHeld(calls::CallKind::kReceive);
    if (!dead_) RetryHeld(calls::CallKind::kSend);
  }
}

// -- program -> stack

// How much may be read now: where memory is scarce no more than the stack asks for; once P cannot send any more, all but the
// mark.
size_t StreamStandIn::ReadLimit() {
  const bool scarce = engine_.stack().stream_memory().pressure();
  const size_t most = scarce ? std::clamp<size_t>(socket_->send_space(), 1, kRead) : kRead;
  if (!write_shut_ || !write_mark_) return most;
  int unread = Unread(s_.get());
  return unread <= 1 ? 0 : std::min<size_t>(most, static_cast<size_t>(unread) - 1);
}

void StreamStandIn::SendToStack(size_t n) {
  Slice slice;
  BlockRef small(n < kCopyBelow ? engine_.pool().Allocate(n) : nullptr);
  if (small) {
    memcpy(small->data, engine_.Scratch()->data, n);
    slice = Slice{std::move(small), 0, static_cast<uint32_t>(n)};
  } else {
    slice = Slice{engine_.TakeScratch(), 0, static_cast<uint32_t>(n)};
  }
  bytes_out_ += n;
  engine_.stats().stream_bytes_out += n;
  engine_.ChargeTurn(n);
  OnSent(socket_->Send(std::move(slice), false));
}

// A failed send has taken the socket's error: it is kept here until the program is told.
void StreamStandIn::OnSent(Errno error) {
  if (error == Errno::kOk) return;
  if (error_ == Errno::kOk) error_ = error;
  gone_ = true;
  MarkDirty();
}

// Stops after about `most` bytes, or when enough waits in the stack: what is left has its turn later, and options that wait for
// it with it. SIZE_MAX: all that the stack has room for.
void StreamStandIn::FromProgram(size_t most) {
  // What is written to a connection that is gone stays unread: it makes the program's next call fail (StartReset).
  for (size_t taken = 0; s_ && s_readable_ && !dead_ && !Gone();) {
    if (socket_->send_space() == 0 && (socket_->events() & kHangup) == 0) {               // kWritable comes
      if (p_closed_ && ClosedWithReset()) return CloseByProgram(socket_->linger() != 0);  // which waits for no reader
      TakeOptions();  // it may be a cork that keeps the buffer full
      break;
    }
    if (most != SIZE_MAX && socket_->unsent_bytes() >= kUnsentEnough) return;  // here, too
    if (most == 0) return engine_.Postpone(this);
    const size_t n = taken < most ? ReadProgram() : 0;
    if (n == 0 && s_readable_) return MarkDirty();
    taken += n;
  }
  if (options_due() && !dead_) ApplyOptions();
}

// The edges of what was written may still wait behind the call in this turn's events, that of an urgent byte among them: the next
// one, or the mark of a shutdown, would take its place.
bool StreamStandIn::TakeWritten() {
  if (s_ && state_ == State::kConnected) {
    s_readable_ = true;
    pollfd urgent{s_.get(), POLLPRI, 0};
    s_urgent_ |= poll(&urgent, 1, 0) == 1 && (urgent.revents & POLLPRI) != 0;
    FromProgram();
  }
  return !dead_ && socket_ != nullptr;
}

// How many bytes came.
size_t StreamStandIn::ReadProgram() {
  size_t limit = ReadLimit();
  if (limit == 0) {
    s_readable_ = false;
    if (!write_shut_passed_) {
      write_shut_passed_ = true;
      Errno error = socket_->Shutdown(false, true);
      (void)ToInt(error);
    }
    if (p_closed_) CloseByProgram(ClosedWithReset() && socket_->linger() != 0);
    return 0;
  }
  Block* scratch = engine_.Scratch();
  if (scratch == nullptr) return 0;  // out of memory: the window stays closed until there is some
  if (s_urgent_) {
    int at_mark = 0;
    if (ioctl(s_.get(), 0x8905 /* SIOCATMARK */, &at_mark) == 0 && at_mark != 0 && !write_shut_) {
      s_urgent_ = false;
      ssize_t n = recv(s_.get(), scratch->data, 1, MSG_OOB | MSG_DONTWAIT);
      BlockRef block(n == 1 ? engine_.pool().Allocate(1) : nullptr);
      if (block) {
        block->data[0] = scratch->data[0];
        OnSent(socket_->SendUrgent(Slice{std::move(block), 0, 1}));
      }
      return 1;
    }
  }
  const bool pushed_before = TakeOptions() && push_due();
  ssize_t n = recv(s_.get(), scratch->data, limit, MSG_DONTWAIT);
  if (n > 0) SetOptionInterest(NativeOptions::Interest::kPush);
  // What was set before these bytes were written is there now. A push waits until everything is read.
  if (TakeOptions() && !push_due()) ApplyOptions();
  if (n > 0) {
    // A short answer means that the queue was empty: what comes later makes an edge. But a push that came meanwhile may have more
    // before it, which goes with it: else the rest is a small segment behind one that the peer acknowledges late.
    const bool pushed_since = push_due() && !pushed_before;
    if (static_cast<size_t>(n) < limit && !s_ended_ && !write_shut_ && !s_urgent_ && !pushed_since) s_readable_ = false;
    SendToStack(static_cast<size_t>(n));
    if (n == kRead && most_out_.Is(bytes_out_, engine_.stats().stream_bytes_out)) LetRunAhead();
    return static_cast<size_t>(n);
  }
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
    s_readable_ = errno == EINTR;
    return 0;
  }
  if (state_ == State::kQueued) {  // OnAccepted, or OnWithdrawn, looks again
    s_readable_ = false;
    reset_queued_ |= n < 0 && errno == ECONNRESET;
    return 0;
  }
  if (n < 0) {  // ECONNRESET: P was closed with bytes unread
    p_closed_ = true;
    CloseByProgram(true);
    return 0;
  }
  s_readable_ = false;
  if (write_shut_ && !p_closed_) {
    if (!write_shut_passed_) {
      write_shut_passed_ = true;
      Errno error = socket_->Shutdown(false, true);
      (void)ToInt(error);
    }
    return 0;
  }
  p_closed_ = true;
  CloseByProgram(false);
  return 0;
}

// -- stack -> program

// False where P has no room for it now.
bool StreamStandIn::FlushPutBack() {
  while (!put_back_.empty() && !fin_passed_) {
    const ssize_t n = send(s_.get(), put_back_.data(), put_back_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno != EAGAIN && errno != ENOBUFS && errno != ENOMEM) put_back_.clear();  // P does not read any more
    if (n < 0 && (errno == ENOBUFS || errno == ENOMEM)) MarkDirty();  // nothing else tells when there is room
    if (n < 0) return put_back_.empty();
    put_back_.erase(put_back_.begin(), put_back_.begin() + n);
  }
  return true;
}

void StreamStandIn::ToProgram() {
  if (!FlushPutBack()) return;
  while (s_writable_ && socket_->readable_bytes() > 0) {
    std::array<Bytes, kSpans> spans;
    std::array<iovec, kSpans> iov;
    // Up to the urgent byte, or that one alone: as out-of-band data it is to AF_UNIX what it is to TCP.
    const std::optional<size_t> mark = socket_->urgent_mark();
    const size_t room = unread_.Room(s_.get());
    if (room == 0) {  // the program's queue is not empty: an edge comes when it is read
      s_writable_ = false;
      return;
    }
    const size_t limit = std::min(room, !mark ? SIZE_MAX : std::max<size_t>(*mark, 1));
    size_t count = socket_->Peek(spans), used = 0, total = 0;
    for (; used < count && total < limit; ++used) {
      const size_t size = std::min(spans[used].size(), limit - total);
      iov[used] = {const_cast<uint8_t*>(spans[used].data()), size};
      total += size;
    }
    if (total == 0) return;
    msghdr h{};
    h.msg_iov = iov.data();
    h.msg_iovlen = used;
    ssize_t n = sendmsg(s_.get(), &h, MSG_DONTWAIT | MSG_NOSIGNAL | (mark == 0u ? MSG_OOB : 0));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == ENOBUFS || errno == ENOMEM)) return MarkDirty();  // no edge will tell when there is memory again
    if (n < 0 && errno == EAGAIN) {
      s_writable_ = false;
      return;
    }
    if (n < 0) {
      // P does not read any more (shutdown or closed): acknowledged and dropped, as Linux does after SHUT_RD; a close shows in S.
      socket_->Consume(total);
      s_readable_ = true;
      continue;
    }
    engine_.stats().stream_bytes_in += static_cast<size_t>(n);
    bytes_in_ += static_cast<size_t>(n);
    unread_.Wrote(s_.get(), static_cast<size_t>(n));
    socket_->Consume(static_cast<size_t>(n));
    if (static_cast<size_t>(n) < total) {
      s_writable_ = false;
      if (most_in_.Is(bytes_in_, engine_.stats().stream_bytes_in)) LetRunAhead();
    }
  }
}

// What follows the last byte: the peer's FIN, or the end of the connection.
void StreamStandIn::FinishIncoming() {
  // What was, or may be, put back is P's as long as S may write.
  const bool all_passed = socket_->readable_bytes() == 0 && !receiving_ && (put_back_.empty() || fin_passed_);
  if (Gone()) {
    if (p_closed_) return CloseByProgram(false);
    if (all_passed) return Fail(Errno::kECONNRESET);
    // What came before can still be read, but nothing written any more.
    // Once: it makes an edge, which comes back here.
    if (state_ == State::kConnected && !read_shut_ && !AwaitsWatch() && Unread(s_.get()) > 0) {
      read_shut_ = true;
      ::shutdown(s_.get(), SHUT_RD);
    }
    return;
  }
  if (!all_passed) return;
  if (socket_->at_end() && !fin_passed_) {
    fin_passed_ = true;
    ::shutdown(s_.get(), SHUT_WR);
  }
  // Gone without a FIN and without an error that is still to be told: never an end that looks complete.
  if ((socket_->events() & kHangup) != 0 && !fin_passed_) Fail(Errno::kECONNRESET);
}

// True where P's last close is not to be seen any more once S is closed or shut down, and the watch for it is asked for.
bool StreamStandIn::AwaitsWatch() {
  if (watched()) return false;
  FetchEnd();
  return true;
}

bool StreamStandIn::Gone() const { return gone_ || (socket_->events() & kError) != 0; }

void StreamStandIn::Fail(Errno without_a_reason) {
  if (error_ == Errno::kOk) error_ = socket_->TakeError();
  if (error_ == Errno::kOk && !gone_) error_ = without_a_reason;
  gone_ = true;
  StartReset();
}

// P is to see ECONNRESET: S is closed while a byte of P's is unread in it. Where there is none, one is put in through P.
void StreamStandIn::StartReset() {
  if (!s_ || state_ == State::kQueued) return;
  if (p_closed_) return CloseByProgram(false);
  reset_pending_ = AwaitsWatch();
  if (reset_pending_) return;
  if (fin_passed_) {
    // The stream ended before: reads stay 0, writes give EPIPE.
    ::shutdown(s_.get(), SHUT_RD);  // or a quick writer would keep this busy
    Block* scratch = engine_.Scratch();
    while (scratch != nullptr && recv(s_.get(), scratch->data, kRead, MSG_DONTWAIT) > 0) continue;
    DropS();
    state_ = State::kBroken;
    return;
  }
  if (Unread(s_.get()) > 0) {
    DropS();
    state_ = State::kBroken;
    auto held = std::move(held_);
    held_.clear();
    for (auto& h : held) engine_.Answer(h->call.envelope(), h->call.head.kind == calls::CallKind::kSend ? Errno::kEPIPE : error_);
    return;
  }
  reset_pending_ = true;
  FetchEnd();
}

void StreamStandIn::ResetWith(int p) {
  if (!watched() && !Watch(p)) return;
  reset_pending_ = false;
  if (!fin_passed_ && Unread(s_.get()) == 0) send(p, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (!fin_passed_ && Unread(s_.get()) == 0) {
    // P cannot send (it shut its side down natively): an end is all that can be shown.
    DropS();
    state_ = State::kBroken;
    return;
  }
  StartReset();
}

// Whether P was closed so that what is not sent yet is discarded: with SO_LINGER 0, or with bytes unread.
bool StreamStandIn::ClosedWithReset() const {
  if (socket_->linger() == 0) return true;
  int error = 0;
  socklen_t length = sizeof error;
  return getsockopt(s_.get(), SOL_SOCKET, SO_ERROR, &error, &length) == 0 && error == ECONNRESET;
}

// On Linux send() itself carries bytes to a peer on the same host, as far as its window goes. Here it is a matter of turns, and
// the reset may come in the turn of the bytes.
void StreamStandIn::DeliverBeforeReset() {
  if (socket_->unsent_bytes() > 0) engine_.stack().DeliverLooped();
}

// The program closed its end, or it never got it.
void StreamStandIn::CloseByProgram(bool abort) {
  if (dead_) return;
  socket_->set_observer(nullptr);
  DropS();
  if (abort || socket_->linger() == 0) DeliverBeforeReset();
  if (abort) {
    socket_->Abort();
  } else {
    socket_->Close();
  }
  socket_ = nullptr;
  engine_.Destroy(this);
}

}  // namespace sluice
