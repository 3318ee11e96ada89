#include "sentry/datagram_stand_in.h"

#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>

#include <algorithm>
#include <array>

#include "netstack/sysctls.h"
#include "sentry/call_hub.h"
#include "sentry/message_control.h"
#include "sentry/sockaddr.h"

namespace sluice {

using calls::CallKind;

namespace {

constexpr size_t kMaxSent = 8192;
constexpr int kBurst = 64;

int64_t RealtimeNs() {
  timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return int64_t{t.tv_sec} * 1000000000 + t.tv_nsec;
}

}  // namespace

// `rights`: of a raw socket's maker.
DatagramSocket* DatagramStandIn::MakeSocket(CallEngine& engine, int family, int type, int protocol, uint16_t rights,
                                            Errno* error) {
  Family f = family == AF_INET ? Family::kIpv4 : Family::kIpv6;
  *error = Errno::kENOBUFS;
  if (type == SOCK_DGRAM) {
    if (protocol == 0 || protocol == IPPROTO_UDP) return engine.stack().NewUdpSocket(f);
    if (protocol == (family == AF_INET ? int{IPPROTO_ICMP} : int{IPPROTO_ICMPV6})) return engine.stack().NewPingSocket(f);
    *error = Errno::kEPROTONOSUPPORT;
    return nullptr;
  }
  if (type == SOCK_RAW) {
    *error = protocol == 0 ? Errno::kEPROTONOSUPPORT : Errno::kEPERM;
    if (protocol <= 0 || protocol > 255) {
      if (protocol != 0) *error = Errno::kEINVAL;
      return nullptr;
    }
    if (!engine.options().net_raw || (rights & calls::kRightNetRaw) == 0) return nullptr;
    *error = Errno::kENOBUFS;
    return engine.stack().NewRawSocket(f, static_cast<uint8_t>(protocol));
  }
  *error = Errno::kESOCKTNOSUPPORT;
  return nullptr;
}

DatagramStandIn::DatagramStandIn(CallEngine& engine, int family, int type, int protocol, DatagramSocket* socket)
    : InetStandIn(engine, family, type, protocol), socket_(socket), unread_(engine.unread()) {
  socket_->set_observer(this);
  ++engine_.stats().datagrams;
}

DatagramStandIn::~DatagramStandIn() {
  --engine_.stats().datagrams;
  if (ends_.s) {
    // What the program sent before it closed goes out.
    s_readable_ = true;
    FromProgram();
    engine_.worker().RemoveFd(ends_.s.get());
  }
  socket_->set_observer(nullptr);
  socket_->Close();
}

Errno DatagramStandIn::Create(CallEngine& engine, IncomingCall& call, SocketCount count, int type, int flags, int protocol) {
  int family = call.int_arg(0);
  Errno error = Errno::kOk;
  DatagramSocket* socket = MakeSocket(engine, family, type, protocol, call.head.rights, &error);
  if (socket == nullptr) return error;
  if (type == SOCK_DGRAM && protocol == 0) protocol = IPPROTO_UDP;
  auto made = std::make_unique<DatagramStandIn>(engine, family, type, protocol, socket);
  DatagramStandIn* d = made.get();
  engine.Own(std::move(made), std::move(count));
  if (!d->ends_.Make(engine.RandomName(), engine.RandomName(), (flags & SOCK_NONBLOCK) != 0) || !d->Adopt(d->ends_.p.get()) ||
      engine.worker().AddFd(d->ends_.s.get(), EPOLLIN | EPOLLOUT | EPOLLET, d) != Errno::kOk) {
    engine.Destroy(d);
    return Errno::kENFILE;
  }
  int number = engine.Install(call.envelope(), d->ends_.p.get(), (flags & SOCK_CLOEXEC) != 0);
  UniqueFd p = std::move(d->ends_.p);
  if (number < 0) {
    engine.Destroy(d);
    return Errno::kOk;
  }
  d->NoteHolder(call.envelope().tid, number, call.envelope().listener);
  const uint32_t shard = type == SOCK_RAW ? 0 : engine.hub().NextDatagramWorker();
  if (shard != engine.shard()) d->MoveTo(shard, std::move(p), nullptr);
  return Errno::kOk;
}

void DatagramStandIn::OnCall(IncomingCall& call, Bytes message) {
  switch (call.head.kind) {
    case CallKind::kBind:
      if (MoveToBind(call, message)) return;
      return OnCommonCall(call);
    case CallKind::kConnect:
      return OnConnect(call);
    case CallKind::kShutdown:
      return OnShutdown(call);
    case CallKind::kSend:
      return OnSend(call, message);
    case CallKind::kReceive:
      return OnReceive(call, message);
    case CallKind::kListen:
    case CallKind::kAccept:
      return (void)engine_.Answer(call.envelope(), Errno::kEOPNOTSUPP);
    default:
      return OnCommonCall(call);
  }
}

Errno DatagramStandIn::TakePendingError() {
  if (error_ != Errno::kOk) return std::exchange(error_, Errno::kOk);
  return socket_->TakeError();
}

void DatagramStandIn::OnFdEvents(uint32_t events) {
  if ((events & (EPOLLIN | EPOLLERR | EPOLLHUP)) != 0) s_readable_ = true;
  if ((events & EPOLLOUT) != 0) s_writable_ = true;
  MarkDirty();
}

void DatagramStandIn::OnConnect(IncomingCall& call) {
  Bytes name = call.parts[0].name;
  if (SockaddrFamily(name) < 0) return (void)engine_.Answer(call.envelope(), Errno::kEINVAL);
  Errno error = Errno::kOk;
  if (SockaddrFamily(name) == AF_UNSPEC) {
    error = socket_->Connect(std::nullopt);
  } else {
    Endpoint remote;
    error = ParseSockaddr(name, family_, false, &remote);
    if (error == Errno::kOk) error = socket_->Connect(remote);
    if (error == Errno::kOk && !end_connected_) end_connected_ = call.fd && ends_.ConnectEnd(call.fd.get());
  }
  engine_.Answer(call.envelope(), error);
}

void DatagramStandIn::OnShutdown(IncomingCall& call) {
  int how = call.int_arg(1);
  Errno error = Errno::kEINVAL;
  if (how >= SHUT_RD && how <= SHUT_RDWR) {
    error = socket_->Shutdown(how != SHUT_WR, how != SHUT_RD);  // without a peer too, which wakes who waits
    if (call.fd) ::shutdown(call.fd.get(), how);
  }
  engine_.Answer(call.envelope(), error);
}

// -- sending

Errno DatagramStandIn::SendPart(const CallPart& part, bool* would_block) {
  DatagramSend how;
  if ((part.head.flags & MSG_OOB) != 0) return Errno::kEOPNOTSUPP;
  if (part.head.has_name != 0 && part.head.name_length > 0) {
    Endpoint to;
    if (Errno e = ParseSockaddr(part.name, family_, false, &to); e != Errno::kOk) {
      // Linux takes AF_UNSPEC with an AF_INET address from old programs.
      if (family_ != AF_INET || SockaddrFamily(part.name) != AF_UNSPEC ||
          ParseSockaddr(part.name, family_, true, &to) != Errno::kOk)
        return e;
    }
    how.destination = to;
  }
  if (Errno e = ParseSendControl(family_, part.control, &how); e != Errno::kOk) return e;
  if (part.head.total_length > part.data.size()) return Errno::kEMSGSIZE;
  how.dont_route = (part.head.flags & MSG_DONTROUTE) != 0;
  how.confirm = (part.head.flags & MSG_CONFIRM) != 0;
  Bytes payload = part.data;
  Errno error = socket_->Send(how, {&payload, 1});
  *would_block = error == Errno::kEAGAIN;
  if (error == Errno::kOk) ++engine_.stats().datagrams_out;
  return error;
}

void DatagramStandIn::OnSend(IncomingCall& call, Bytes message) {
  FromProgram();                                                                      // what was sent natively before goes first
  if (error_shown_ && (error_ != Errno::kOk || (socket_->events() & kError) != 0)) {  // P is not to show what this call tells
    clear_shown_ = true;
    RequestFetch();
    return Hold(call, message, Duration(), false);
  }
  Errno pending = TakePendingError();
  if (pending != Errno::kOk) return (void)engine_.Answer(call.envelope(), pending);
  std::array<ResultPart, calls::kMaxParts> results;
  size_t sent = 0;
  Errno error = Errno::kOk;
  bool would_block = false;
  for (; sent < call.count(); ++sent) {
    error = SendPart(call.parts[sent], &would_block);
    if (error != Errno::kOk) break;
    results[sent].return_value = call.parts[sent].head.total_length;
  }
  if (call.head.nr == SYS_sendmmsg && (sent > 0 || call.count() == 0)) {
    return engine_.Result(call.envelope(), static_cast<int64_t>(sent), {results.data(), sent}, this, nullptr);
  }
  if (would_block && !call.nonblocking() && (call.parts[0].head.flags & MSG_DONTWAIT) == 0) {
    return Hold(call, message, options_.send_timeout, false);
  }
  if (error != Errno::kOk) return (void)engine_.Answer(call.envelope(), error);
  engine_.Answer(call.envelope(), call.count() == 0 ? 0 : int64_t{call.parts[0].head.total_length});
}

// Native sends of a connected socket.
void DatagramStandIn::FromProgram() {
  std::vector<uint8_t>& buffer = engine_.buffer();
  for (int i = 0; s_readable_ || has_unsent_; ++i) {
    if (i >= kBurst && !dead_) return MarkDirty();
    Bytes payload;
    if (has_unsent_) {
      payload = unsent_;
    } else {
      ssize_t n = recv(ends_.s.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
      if (n < 0) {
        if (errno != EINTR) s_readable_ = errno != EAGAIN && errno != ECONNREFUSED && errno != ECONNRESET && errno != ENOTCONN;
        if (errno == EAGAIN || !s_readable_) return;
        continue;
      }
      payload = Bytes(buffer.data(), static_cast<size_t>(n));
      // A native send tells of the error that P shows, and sends nothing: this one found it told.
      if (error_at_p_ && (socket_->events() & kErrorQueue) == 0) {
        (void)ToInt(TakePendingError());
        error_shown_ = error_at_p_ = false;
      }
    }
    Errno error = socket_->Send(DatagramSend{}, {&payload, 1});
    if (error == Errno::kEAGAIN) {
      if (!has_unsent_) unsent_.assign(payload.begin(), payload.end());
      has_unsent_ = true;
      return;
    }
    has_unsent_ = false;
    if (error == Errno::kOk) {
      ++engine_.stats().datagrams_out;
    } else {
      error_ = error;  // the call has returned: the next one that is notified hears of it
    }
  }
}

// -- receiving

bool DatagramStandIn::NothingInP() const {
  int bytes = 0;
  return ioctl(ends_.s.get(), SIOCOUTQ, &bytes) == 0 && bytes == 0;
}

// False where the next datagram has to wait for the program to read. Where it has read everything, and others hold all there is,
// the datagram is dropped, as on Linux (udp_mem).
bool DatagramStandIn::RoomInP() {
  for (;;) {
    const std::optional<size_t> size = socket_->next_size();
    if (!size) return false;
    const size_t need = *size + UnreadMemory::kOverhead;
    if (need <= unread_.Room(ends_.s.get(), need)) return true;
    if (unread_.held() > 0) {
      s_writable_ = false;
      return false;
    }
    if (engine_.unread().Spares(need)) return true;
    Datagram lost;
    if (socket_->Receive(&lost)) ++engine_.stats().datagrams_dropped;
  }
}

// What is noted of datagrams that the program reads by itself is of no use; now and then it is looked whether it has.
void DatagramStandIn::NoteSent(const DatagramMeta& meta) {
  if (sent_.size() >= look_again_) {
    if (NothingInP()) sent_.clear();
    look_again_ = std::max<size_t>(kLookAgain, 2 * sent_.size());
  }
  if (sent_.size() >= kMaxSent) sent_.pop_front();
  sent_.push_back({RealtimeNs(), meta});
}

void DatagramStandIn::ToProgram() {
  Datagram d;
  if (HasHeld(CallKind::kReceive) && NothingInP()) RetryHeld(CallKind::kReceive);
  while (s_writable_ && RoomInP() && socket_->Receive(&d)) {
    std::array<iovec, Packet::kMaxSlices + 1> iov;
    size_t count = 0;
    iov[count++] = {d.payload ? d.payload.data() : nullptr, d.payload ? d.payload.linear_size() : 0};
    for (size_t i = 0; d.payload && i < d.payload.slice_count(); ++i) {
      Bytes b = d.payload.slice(i).bytes();
      iov[count++] = {const_cast<uint8_t*>(b.data()), b.size()};
    }
    msghdr h{};
    h.msg_iov = iov.data();
    h.msg_iovlen = count;
    ssize_t n = sendmsg(ends_.s.get(), &h, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM)) {
      // It stays in the stack's queue, which drops what exceeds the receive buffer, and counts.
      s_writable_ = false;
      socket_->Unreceive(std::move(d));
      return;
    }
    if (n < 0) {
      ++engine_.stats().datagrams_dropped;
      continue;
    }
    ++engine_.stats().datagrams_in;
    unread_.Wrote(ends_.s.get(), static_cast<size_t>(n));
    NoteSent(d.meta);
  }
}

void DatagramStandIn::OnWork() {
  FromProgram();
  ToProgram();
  if (!HasHeld(CallKind::kSend)) {
  } else if ((socket_->events() & (kWritable | kError)) != 0) {
    RetryHeld(CallKind::kSend);
  }
  if ((socket_->events() & (kError | kErrorQueue)) != 0) ShowError();
}

// One datagram of P's queue; its metadata is that of the first one whose sending ended after its time stamp: those before were
// read by the program itself.
bool DatagramStandIn::ReadCopy(int p, size_t capacity, int flags, Received* out) {
  std::vector<uint8_t>& buffer = engine_.buffer();
  iovec iov{buffer.data(), std::min(capacity, buffer.size())};
  alignas(cmsghdr) char control[128];
  msghdr h{};
  h.msg_iov = &iov;
  h.msg_iovlen = 1;
  h.msg_control = control;
  h.msg_controllen = sizeof control;
  ssize_t n = recvmsg(p, &h, MSG_DONTWAIT | MSG_TRUNC | (flags & MSG_PEEK));
  if (n < 0) return false;
  out->length = static_cast<size_t>(n);
  out->bytes.assign(buffer.begin(), buffer.begin() + static_cast<ptrdiff_t>(std::min<size_t>(out->length, iov.iov_len)));
  int64_t stamp = 0;
  for (cmsghdr* c = CMSG_FIRSTHDR(&h); c != nullptr; c = CMSG_NXTHDR(&h, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_TIMESTAMPNS) continue;
    timespec t;
    memcpy(&t, CMSG_DATA(c), sizeof t);
    stamp = int64_t{t.tv_sec} * 1000000000 + t.tv_nsec;
  }
  while (sent_.size() > 1 && sent_.front().after_ns < stamp) sent_.pop_front();
  if (sent_.empty()) return false;
  out->meta = sent_.front().meta;
  if ((flags & MSG_PEEK) == 0) sent_.pop_front();
  return true;
}

bool DatagramStandIn::ReadStack(size_t capacity, Received* out) {
  Datagram d;
  if (!socket_->Receive(&d)) return false;
  out->length = d.payload ? d.payload.size() : 0;
  out->bytes.resize(out->length);
  if (d.payload) d.payload.CopyOut(0, out->bytes);
  (void)capacity;
  out->meta = d.meta;
  ++engine_.stats().datagrams_in;
  return true;
}

void DatagramStandIn::OnReceive(IncomingCall& call, Bytes message) {
  if (call.count() == 0) return (void)engine_.Answer(call.envelope(), 0);
  int flags = static_cast<int>(call.parts[0].head.flags);
  if ((flags & MSG_ERRQUEUE) != 0) {
    if (!ReceiveError(call)) engine_.Answer(call.envelope(), Errno::kEAGAIN);
    return;
  }
  if ((flags & MSG_OOB) != 0 && protocol_ != IPPROTO_UDP) return (void)engine_.Answer(call.envelope(), Errno::kEOPNOTSUPP);
  Errno pending = TakePendingError();
  if (pending != Errno::kOk) {
    if (call.fd && error_shown_) {
      ClearNativeError(call.fd.get());
      error_shown_ = error_at_p_ = false;
    }
    return (void)engine_.Answer(call.envelope(), pending);
  }
  std::vector<Received> received;
  bool peek = (flags & MSG_PEEK) != 0;
  size_t limit = peek ? 1 : call.count();
  bool from_copy = call.fd && !NothingInP();
  for (size_t i = 0; i < limit; ++i) {
    Received r;
    size_t capacity = call.parts[i].head.data_length;
    bool got = from_copy && ReadCopy(call.fd.get(), capacity, flags, &r);
    // A peek leaves the datagram where every reader finds it: in P.
    if (!got && !peek) got = NothingInP() && ReadStack(capacity, &r);
    if (!got) break;
    received.push_back(std::move(r));
  }
  if (!received.empty()) return AnswerReceived(call, std::move(received), !peek);
  if (call.nonblocking() || (flags & MSG_DONTWAIT) != 0 || call.head.timeout_ms == 0) {
    return (void)engine_.Answer(call.envelope(), Errno::kEAGAIN);
  }
  if ((socket_->events() & kReadClosed) != 0) return AnswerEnd(call);
  Duration timeout = options_.receive_timeout;
  if (call.head.timeout_ms != 0xffffffff) timeout = Duration::Milliseconds(call.head.timeout_ms);
  if (peek && !call.fd) RequestFetch();
  Hold(call, message, timeout, false);
}

// After shutdown(): nothing, from nobody.
void DatagramStandIn::AnswerEnd(IncomingCall& call) {
  const ResultPart nothing;
  engine_.Result(call.envelope(), 0, {&nothing, call.head.nr == SYS_recvmmsg ? size_t{0} : size_t{1}}, this, nullptr);
}

void DatagramStandIn::AnswerReceived(IncomingCall& call, std::vector<Received> received, bool take) {
  std::vector<ResultPart> parts(received.size());
  std::vector<Sockaddr> names(received.size());
  std::vector<ControlBuilder> controls;
  controls.reserve(received.size());
  bool vector = call.head.nr == SYS_recvmmsg;
  int64_t value = static_cast<int64_t>(received.size());
  for (size_t i = 0; i < received.size(); ++i) {
    const Received& r = received[i];
    const calls::Part& want = call.parts[i].head;
    ResultPart& part = parts[i];
    size_t copied = std::min<size_t>(r.bytes.size(), want.data_length);
    names[i] = FormatSockaddr(r.meta.source, family_);
    if (want.has_name != 0) {
      part.name = names[i].view().first(std::min<size_t>(want.name_length, names[i].length));
      part.name_length = names[i].length;
    }
    controls.emplace_back(want.control_length);
    AddReceiveControl(*socket_, family_, r.meta, &controls.back());
    if (options_.timestamp || options_.timestamp_ns) AddTimestamp(r.meta, &controls.back());
    part.control = controls.back().bytes();
    part.data = Bytes(r.bytes).first(copied);
    bool cut = r.length > copied;
    part.msg_flags = (cut ? uint32_t{MSG_TRUNC} : 0u) | (controls.back().truncated() ? uint32_t{MSG_CTRUNC} : 0u);
    if ((call.parts[0].head.flags & MSG_CMSG_CLOEXEC) != 0 && call.head.nr != SYS_recvfrom) part.msg_flags |= MSG_CMSG_CLOEXEC;
    part.return_value = static_cast<uint32_t>((call.parts[0].head.flags & MSG_TRUNC) != 0 ? r.length : copied);
    if (!vector) value = part.return_value;
  }
  auto kept = std::make_shared<std::vector<Received>>(std::move(received));
  engine_.ResultOrUndo(call.envelope(), value, parts, this, [this, kept, take](const calls::Delivered& d) {
    if (!take) return;
    if (d.error == ENOENT) return PutBack(std::move(*kept), 0);
    if (d.error == 0 && d.parts < kept->size()) PutBack(std::move(*kept), d.parts);
  });
}

void DatagramStandIn::AddTimestamp(const DatagramMeta& meta, ControlBuilder* out) {
  // The stack's clock is monotonic: the age of the datagram is what it tells.
  int64_t at = RealtimeNs() - std::max<int64_t>((CallEngine::Now() - meta.received).ns(), 0);
  timespec ts{at / 1000000000, at % 1000000000};
  if (options_.timestamp_ns) {
    out->Add(SOL_SOCKET, SCM_TIMESTAMPNS, ts);
  } else {
    timeval tv{ts.tv_sec, ts.tv_nsec / 1000};
    out->Add(SOL_SOCKET, SCM_TIMESTAMP, tv);
  }
}

// The program never got them: back to the front of the stack's queue.
void DatagramStandIn::PutBack(std::vector<Received> received, size_t from) {
  for (size_t i = received.size(); i > from; --i) {
    Received& r = received[i - 1];
    Datagram d;
    d.payload = Packet::Allocate(engine_.pool(), std::max<size_t>(r.bytes.size(), 1));
    if (!d.payload) {
      ++engine_.stats().datagrams_dropped;
      continue;
    }
    if (!r.bytes.empty()) memcpy(d.payload.Append(r.bytes.size()), r.bytes.data(), r.bytes.size());
    d.meta = r.meta;
    socket_->Unreceive(std::move(d));
  }
  MarkDirty();
}

// -- errors

bool DatagramStandIn::ReceiveError(IncomingCall& call) {
  SocketError e;
  if (!socket_->ReceiveError(&e)) return false;
  const calls::Part& want = call.parts[0].head;
  std::vector<uint8_t> data(e.payload ? e.payload.size() : 0);
  if (e.payload) e.payload.CopyOut(0, data);
  ControlBuilder control(want.control_length);
  AddErrorControl(family_, e, &control);
  Sockaddr name = FormatSockaddr(e.destination, family_);
  ResultPart part;
  size_t copied = std::min<size_t>(data.size(), want.data_length);
  part.data = Bytes(data).first(copied);
  part.control = control.bytes();
  if (want.has_name != 0 && e.destination.address) {
    part.name = name.view().first(std::min<size_t>(want.name_length, name.length));
    part.name_length = name.length;
  }
  part.return_value = static_cast<uint32_t>(copied);
  part.msg_flags =
      MSG_ERRQUEUE | (copied < data.size() ? uint32_t{MSG_TRUNC} : 0u) | (control.truncated() ? uint32_t{MSG_CTRUNC} : 0u);
  int64_t value = call.head.nr == SYS_recvmmsg ? 1 : static_cast<int64_t>(copied);
  engine_.Result(call.envelope(), value, {&part, 1}, this, nullptr);
  return true;
}

// An error of a connected socket shows at P as POLLERR and wakes its readers; needs P for a moment.
void DatagramStandIn::ShowError() {
  RetryHeld(CallKind::kReceive);
  if (dead_ || error_shown_ || (socket_->events() & (kError | kErrorQueue)) == 0) return;
  error_shown_ = true;
  RequestFetch();
}

void DatagramStandIn::ShowErrorWith(int p) {
  FromProgram();
  // S leaves P with a byte of P's unread: P gets ECONNRESET once, its queue stays.
  if (send(p, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) != 1) return;
  sockaddr none{};
  none.sa_family = AF_UNSPEC;
  ::connect(ends_.s.get(), &none, sizeof none);
  ::connect(ends_.s.get(), reinterpret_cast<sockaddr*>(&ends_.p_name), ends_.name_length);
  error_at_p_ = true;
}

void DatagramStandIn::OnFetched(UniqueFd fd, bool) {
  if (clear_shown_) {
    clear_shown_ = error_shown_ = error_at_p_ = false;
    if (fd) ClearNativeError(fd.get());
    RetryHeld(CallKind::kSend);
    if (dead_) return;
  }
  if (!fd) {
    error_shown_ = error_at_p_ = false;
    return;
  }
  // An unconnected socket hears of errors too (IP_RECVERR): from here on its end stays joined.
  if (error_shown_ && !end_connected_) end_connected_ = ends_.ConnectEnd(fd.get());
  if (error_shown_) ShowErrorWith(fd.get());
  for (auto& h : held_) {
    if (h->call.head.kind == CallKind::kReceive && !h->call.fd) h->call.fd = UniqueFd(fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  }
  RetryHeld(CallKind::kReceive);
}

}  // namespace sluice
