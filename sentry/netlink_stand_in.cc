#include "sentry/netlink_stand_in.h"

#include <errno.h>
#include <linux/netlink.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>

#include <algorithm>

#include "netstack/sysctls.h"
#include "sentry/message_control.h"

namespace sluice {

using calls::CallKind;

namespace {

constexpr int kSoPassPidfd = 76, kScmPidfd = 4;
constexpr size_t kMaxReaders = 4096;

int64_t RealtimeNs() {
  timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return int64_t{t.tv_sec} * 1000000000 + t.tv_nsec;
}

Bytes AsBytes(const sockaddr_nl& a) { return {reinterpret_cast<const uint8_t*>(&a), sizeof a}; }

}  // namespace

NetlinkStandIn::NetlinkStandIn(CallEngine& engine, int type, int protocol, uint32_t tgid, bool net_admin,
                               std::unique_ptr<netlink::NetlinkSocket> socket)
    : StandIn(engine),
      type_(type),
      protocol_(protocol),
      tgid_(tgid),
      net_admin_(net_admin),
      socket_(std::move(socket)),
      unread_(engine.unread()) {
  socket_->set_observer([this] { MarkDirty(); });
  ++engine_.stats().netlinks;
}

NetlinkStandIn::~NetlinkStandIn() {
  --engine_.stats().netlinks;
  if (ends_.s) engine_.worker().RemoveFd(ends_.s.get());
  socket_->set_observer([] {});
}

Errno NetlinkStandIn::Create(CallEngine& engine, IncomingCall& call, SocketCount count, int type, int flags, int protocol) {
  Errno error = Errno::kOk;
  std::unique_ptr<netlink::NetlinkSocket> socket = engine.netlink().NewSocket(type, protocol, &error);
  if (socket == nullptr) return error == Errno::kOk ? Errno::kEPROTONOSUPPORT : error;
  auto made = std::make_unique<NetlinkStandIn>(engine, type, protocol, call.head.tgid,
                                               (call.head.rights & calls::kRightNetAdmin) != 0, std::move(socket));
  NetlinkStandIn* n = made.get();
  engine.Own(std::move(made), std::move(count));
  // Connected from the start: send() without an address goes to the kernel on a netlink socket.
  if (!n->ends_.Make(engine.RandomName(), engine.RandomName(), (flags & SOCK_NONBLOCK) != 0) ||
      !n->ends_.ConnectEnd(n->ends_.p.get()) || !n->Adopt(n->ends_.p.get()) ||
      engine.worker().AddFd(n->ends_.s.get(), EPOLLIN | EPOLLOUT | EPOLLET, n) != Errno::kOk) {
    engine.Destroy(n);
    return Errno::kENFILE;
  }
  // Who sends natively (send() without an address) is told by the kernel; before 6.5 it knows no pidfd here.
  const int on = 1;
  setsockopt(n->ends_.s.get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
  setsockopt(n->ends_.s.get(), SOL_SOCKET, kSoPassPidfd, &on, sizeof on);
  int number = engine.Install(call.envelope(), n->ends_.p.get(), (flags & SOCK_CLOEXEC) != 0);
  n->ends_.p.reset();
  if (number < 0) {
    engine.Destroy(n);
  } else {
    n->NoteHolder(call.envelope().tid, number, call.envelope().listener);
  }
  return Errno::kOk;
}

netlink::Caller NetlinkStandIn::CallerOf(const calls::Envelope& e) {
  netlink::Caller caller;
  caller.known = true;
  caller.net_admin = net_admin_;  // the sender's is judged by the broker, on the live call
  caller.tgid = tgid_;
  caller.call = engine_.RememberCall(e);
  return caller;
}

void NetlinkStandIn::OnCall(IncomingCall& call, Bytes message) {
  const calls::Envelope& to = call.envelope();
  switch (call.head.kind) {
    case CallKind::kBind:
      return (void)engine_.Answer(to, socket_->Bind(call.parts[0].name, CallerOf(to)));
    case CallKind::kConnect:
      return (void)engine_.Answer(to, socket_->Connect(call.parts[0].name, CallerOf(to)));
    case CallKind::kGetSockName:
      return AnswerName(call, socket_->LocalName());
    case CallKind::kGetPeerName:
      return AnswerName(call, socket_->PeerName());
    case CallKind::kSend:
      return OnSend(call);
    case CallKind::kReceive:
      return OnReceive(call, message);
    case CallKind::kGetSockOpt:
      return OnGetOption(call);
    case CallKind::kSetSockOpt:
      return OnSetOption(call);
    case CallKind::kIoctl:
      return AnswerDeviceIoctl(engine_, call, AF_NETLINK);
    default:
      engine_.Answer(to, Errno::kEOPNOTSUPP);
  }
}

void NetlinkStandIn::AnswerName(IncomingCall& call, const sockaddr_nl& name) {
  ResultPart part{.name = AsBytes(name).first(std::min<size_t>(call.parts[0].head.name_length, sizeof name)),
                  .name_length = sizeof name};
  engine_.Result(call.envelope(), 0, {&part, 1}, this, nullptr);
}

void NetlinkStandIn::OnSend(IncomingCall& call) {
  FromProgram();
  const calls::Envelope& to = call.envelope();
  size_t sent = 0;
  Errno error = Errno::kOk;
  std::array<ResultPart, calls::kMaxParts> results;
  for (; sent < call.count(); ++sent) {
    const CallPart& part = call.parts[sent];
    if (part.head.total_length > part.data.size()) {
      error = Errno::kEMSGSIZE;
      break;
    }
    error = socket_->Send(part.data, part.head.has_name != 0 ? part.name : Bytes(), CallerOf(to));
    if (error != Errno::kOk) break;
    results[sent].return_value = part.head.total_length;
  }
  ToProgram();
  if (call.head.nr == SYS_sendmmsg && sent > 0) {
    return engine_.Result(to, static_cast<int64_t>(sent), {results.data(), sent}, this, nullptr);
  }
  if (error != Errno::kOk) return (void)engine_.Answer(to, error);
  int64_t value = call.count() == 0 ? 0 : int64_t{call.parts[0].head.total_length};
  if (socket_->busy()) {
    changes_.push_back({to, value});
    return;
  }
  engine_.Answer(to, value);
}

netlink::Caller NetlinkStandIn::SenderOf(msghdr* h) {
  netlink::Caller caller{.tgid = tgid_};
  for (cmsghdr* c = CMSG_FIRSTHDR(h); c != nullptr; c = CMSG_NXTHDR(h, c)) {
    if (c->cmsg_level != SOL_SOCKET) continue;
    int fd = -1;
    ucred credentials{};
    if (c->cmsg_type == kScmPidfd && c->cmsg_len == CMSG_LEN(sizeof fd)) {
      memcpy(&fd, CMSG_DATA(c), sizeof fd);
      if (fd >= 0) caller.sender = std::make_shared<const UniqueFd>(fd);
    } else if (c->cmsg_type == SCM_CREDENTIALS && c->cmsg_len == CMSG_LEN(sizeof credentials)) {
      memcpy(&credentials, CMSG_DATA(c), sizeof credentials);
      caller.uid = credentials.uid;
    }
  }
  caller.known = caller.sender != nullptr;
  caller.net_admin = caller.known && net_admin_;
  return caller;
}

void NetlinkStandIn::FromProgram() {
  std::vector<uint8_t>& buffer = engine_.buffer();
  while (s_readable_) {
    iovec iov{buffer.data(), buffer.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(ucred)) + CMSG_SPACE(sizeof(int))];
    msghdr h{};
    h.msg_iov = &iov;
    h.msg_iovlen = 1;
    h.msg_control = control;
    h.msg_controllen = sizeof control;
    ssize_t n = recvmsg(ends_.s.get(), &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0) {
      s_readable_ = errno == EINTR;
      continue;
    }
    Errno error = socket_->Send({buffer.data(), static_cast<size_t>(n)}, Bytes(), SenderOf(&h));
    (void)ToInt(error);  // the call is over; errors of messages come as replies
  }
}

void NetlinkStandIn::ToProgram() {
  netlink::Reply reply;
  // A reader that waits with a buffer of its own gets replies first: nothing is in P then.
  while (!readers_.empty() && socket_->HasReply()) {
    int pending = 0;
    if (ioctl(ends_.s.get(), SIOCOUTQ, &pending) == 0 && pending != 0) break;
    if (!socket_->NextReply(&reply)) break;
    std::unique_ptr<HeldCall> reader = std::move(readers_.front());
    readers_.pop_front();
    size_t length = reply.bytes.size();
    const bool peek = (reader->call.parts[0].head.flags & MSG_PEEK) != 0;
    netlink::Reply kept;
    if (peek) kept = reply;  // it stays for the next reader
    AnswerReply(reader->call, std::move(reply), length, !peek);
    if (peek) socket_->Unreceive(std::move(kept));
  }
  while (s_writable_ && socket_->HasReply()) {
    // A part of a dump is not made before there is room for it.
    if (unread_.held() > 0 && unread_.Room(ends_.s.get()) == 0 && unread_.held() > 0) {  // Room looks anew
      s_writable_ = false;
      return;
    }
    if (!socket_->NextReply(&reply)) return;
    const size_t need = reply.bytes.size() + UnreadMemory::kOverhead;
    const bool waits = need > unread_.Room(ends_.s.get()) && unread_.held() > 0;
    ssize_t n = waits ? -1 : send(ends_.s.get(), reply.bytes.data(), reply.bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0) {
      s_writable_ = false;
      socket_->Unreceive(std::move(reply));
      return;
    }
    unread_.Wrote(ends_.s.get(), reply.bytes.size());
    sent_.push_back({RealtimeNs(), reply.source, reply.group});
    if (sent_.size() > 4096) sent_.pop_front();
  }
}

void NetlinkStandIn::OnFdEvents(uint32_t events) {
  if ((events & EPOLLIN) != 0) s_readable_ = true;
  if ((events & EPOLLOUT) != 0) s_writable_ = true;
  MarkDirty();
}

void NetlinkStandIn::OnWork() {
  FromProgram();
  if (!socket_->busy()) {
    std::deque<Waiting> done = std::move(changes_);
    changes_.clear();
    // Replies first: the answer lets the program go on and read them.
    ToProgram();
    for (const Waiting& w : done) engine_.Answer(w.envelope, w.value);
  }
  ToProgram();
}

bool NetlinkStandIn::ReadCopy(int p, size_t capacity, int flags, netlink::Reply* out, size_t* length) {
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
  *length = static_cast<size_t>(n);
  out->bytes.assign(buffer.begin(), buffer.begin() + static_cast<ptrdiff_t>(std::min<size_t>(*length, iov.iov_len)));
  int64_t stamp = 0;
  cmsghdr* c = CMSG_FIRSTHDR(&h);
  if (c != nullptr && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPNS) {
    timespec t;
    memcpy(&t, CMSG_DATA(c), sizeof t);
    stamp = int64_t{t.tv_sec} * 1000000000 + t.tv_nsec;
  }
  while (sent_.size() > 1 && sent_.front().after_ns < stamp) sent_.pop_front();
  out->source.nl_family = AF_NETLINK;
  if (!sent_.empty()) {
    out->source = sent_.front().source;
    out->group = sent_.front().group;
    if ((flags & MSG_PEEK) == 0) sent_.pop_front();
  }
  return true;
}

void NetlinkStandIn::OnReceive(IncomingCall& call, Bytes message) {
  if (call.count() == 0) return (void)engine_.Answer(call.envelope(), 0);
  const calls::Part& want = call.parts[0].head;
  int flags = static_cast<int>(want.flags);
  std::erase_if(readers_, [&call](const auto& r) { return r->call.envelope().tid == call.envelope().tid; });
  Errno error = socket_->TakeError();
  if (error != Errno::kOk) return (void)engine_.Answer(call.envelope(), error);
  // What the program wrote before it asked is answered first, though its arrival may not have been told yet.
  s_readable_ = true;
  FromProgram();
  ToProgram();
  netlink::Reply reply;
  size_t length = 0;
  if (call.fd && ReadCopy(call.fd.get(), want.data_length, flags, &reply, &length)) {
    s_writable_ = true;
    MarkDirty();  // the rest of a dump
    return AnswerReply(call, std::move(reply), length, (flags & MSG_PEEK) == 0);
  }
  if (call.nonblocking() || (flags & MSG_DONTWAIT) != 0 || readers_.size() >= kMaxReaders) {
    return (void)engine_.Answer(call.envelope(), Errno::kEAGAIN);
  }
  call.fd.reset();
  readers_.push_back(std::make_unique<HeldCall>(message, container()));
}

void NetlinkStandIn::AnswerReply(IncomingCall& call, netlink::Reply reply, size_t length, bool take) {
  const calls::Part& want = call.parts[0].head;
  size_t copied = std::min<size_t>(reply.bytes.size(), want.data_length);
  ControlBuilder control(want.control_length);
  if (socket_->packet_info()) control.Add(270 /* SOL_NETLINK */, NETLINK_PKTINFO, nl_pktinfo{reply.group});
  ResultPart part;
  part.data = Bytes(reply.bytes).first(copied);
  part.control = control.bytes();
  if (want.has_name != 0) {
    part.name = AsBytes(reply.source).first(std::min<size_t>(want.name_length, sizeof reply.source));
    part.name_length = sizeof reply.source;
  }
  part.msg_flags = copied < length ? uint32_t{MSG_TRUNC} : 0u;
  part.return_value = static_cast<uint32_t>((want.flags & MSG_TRUNC) != 0 ? length : copied);
  int64_t value = call.head.nr == SYS_recvmmsg ? 1 : int64_t{part.return_value};
  auto kept = std::make_shared<netlink::Reply>(reply);
  part.data = Bytes(kept->bytes).first(copied);
  engine_.ResultOrUndo(call.envelope(), value, {&part, 1}, this, [this, kept, take](const calls::Delivered& d) {
    if (d.error != ENOENT || !take) return;
    socket_->Unreceive(std::move(*kept));
    MarkDirty();
  });
}

void NetlinkStandIn::OnGetOption(IncomingCall& call) {
  int level = call.int_arg(1), name = call.int_arg(2);
  size_t capacity = call.parts[0].head.total_length, length = 0;
  std::vector<uint8_t> value;
  if (level == SOL_SOCKET) {
    int number = 0;
    if (!GetSocketLevel(name, call.fd.get(), &number)) return (void)engine_.Answer(call.envelope(), Errno::kENOPROTOOPT);
    length = std::min(capacity, sizeof number);
    value.assign(reinterpret_cast<uint8_t*>(&number), reinterpret_cast<uint8_t*>(&number) + length);
  } else if (level == 270) {
    Errno error = socket_->GetOption(name, capacity, &value, &length);
    if (error != Errno::kOk) return (void)engine_.Answer(call.envelope(), error);
    value.resize(std::min(value.size(), capacity));
  } else {
    return (void)engine_.Answer(call.envelope(), Errno::kENOPROTOOPT);
  }
  ResultPart part{.data = value, .return_value = static_cast<uint32_t>(length)};
  engine_.Result(call.envelope(), 0, {&part, 1}, this, nullptr);
}

bool NetlinkStandIn::GetSocketLevel(int name, int p, int* value) {
  socklen_t length = sizeof *value;
  switch (name) {
    case SO_KEEPALIVE:
      return getsockopt(p, SOL_SOCKET, name, value, &length) == 0;  // means nothing: P keeps it
    case SO_TYPE:
      *value = type_;
      return true;
    case SO_DOMAIN:
      *value = AF_NETLINK;
      return true;
    case SO_PROTOCOL:
      *value = protocol_;
      return true;
    case SO_RCVBUF:
      *value = receive_buffer_;
      return true;
    case SO_SNDBUF:
      *value = send_buffer_;
      return true;
    case SO_ERROR:
      *value = ToInt(socket_->TakeError());
      return true;
    case SO_ACCEPTCONN:
      *value = 0;
      return true;
    default:
      return false;
  }
}

Errno NetlinkStandIn::SetSocketLevel(IncomingCall& call) {
  int value = 0;
  Bytes data = call.parts[0].data;
  int name = call.int_arg(2);
  if (name == SO_RCVTIMEO || name == SO_SNDTIMEO || name == SO_KEEPALIVE) {
    if (!call.fd || setsockopt(call.fd.get(), SOL_SOCKET, name, data.data(), static_cast<socklen_t>(data.size())) == 0)
      return Errno::kOk;
    return static_cast<Errno>(errno);
  }
  if (data.size() < sizeof value) return Errno::kEINVAL;
  memcpy(&value, data.data(), sizeof value);
  switch (name) {
    case SO_RCVBUF:
    case SO_RCVBUFFORCE:
    case SO_SNDBUF:
    case SO_SNDBUFFORCE: {
      bool force = name == SO_RCVBUFFORCE || name == SO_SNDBUFFORCE, receive = name == SO_RCVBUF || name == SO_RCVBUFFORCE;
      if (force && (call.head.rights & calls::kRightNetAdmin) == 0) return Errno::kEPERM;
      int limit = force ? 0x3fffffff : receive ? engine_.sysctls().rmem_max : engine_.sysctls().wmem_max;
      int doubled = std::max(std::min(value, limit), 1152) * 2;
      (receive ? receive_buffer_ : send_buffer_) = doubled;
      if (receive) socket_->set_receive_buffer(static_cast<size_t>(doubled));
      return Errno::kOk;
    }
    default:
      return Errno::kENOPROTOOPT;
  }
}

void NetlinkStandIn::OnSetOption(IncomingCall& call) {
  Errno error = Errno::kENOPROTOOPT;
  if (call.int_arg(1) == SOL_SOCKET) {
    error = SetSocketLevel(call);
  } else if (call.int_arg(1) == 270) {
    error = socket_->SetOption(call.int_arg(2), call.parts[0].data, CallerOf(call.envelope()));
  }
  engine_.Answer(call.envelope(), error);
}

}  // namespace sluice
