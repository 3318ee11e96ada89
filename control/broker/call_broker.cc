#include "control/broker/call_broker.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <deque>
#include <fstream>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>

#include "base/check.h"
#include "base/time.h"
#include "control/broker/accept_offers.h"
#include "control/broker/call_reader.h"
#include "control/broker/call_writer.h"
#include "control/broker/net_change.h"
#include "control/broker/sentry_message.h"
#include "control/broker/stand_in_finder.h"
#include "sentry/broker_channel.h"
#include "sentry/native_queue.h"
#include "sentry/netlink/if_ioctl.h"
#include "sentry/options.h"
#include "xdp/native_options.h"

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#endif
#ifndef SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (1UL << 0)
#endif
#ifndef SECCOMP_ADDFD_FLAG_SEND
#define SECCOMP_ADDFD_FLAG_SEND (1UL << 1)
#endif

namespace sluice {

using calls::CallKind;
using calls::Envelope;
using calls::MessageType;

namespace {

constexpr size_t kMaxListeners = 4096;
constexpr int kFullSearchesPerSecond = 10;
// What waits for a sentry that does not read. Beyond it nothing more is received from anybody until it has read.
constexpr size_t kMaxQueuedBytes = size_t{4} << 20;

struct Listener {
  UniqueFd fd;
  uint64_t pid_namespace = 0;  // of its first caller
};

// A message that the channel had no room for.
struct Queued {
  std::vector<uint8_t> bytes;
  UniqueFd fd;
};

bool NeedsDescriptor(const calls::Call& call, bool is_stream) {
  switch (call.kind) {
    case CallKind::kConnect:
    case CallKind::kListen:
    case CallKind::kShutdown:
    case CallKind::kReceive:
      return true;
    case CallKind::kSend:
      return is_stream;
    case CallKind::kBind:
      return !is_stream;
    case CallKind::kGetSockOpt:
    case CallKind::kSetSockOpt:
      return static_cast<int>(call.args[1]) == SOL_SOCKET;
    default:
      return false;
  }
}

bool NeedsFileFlags(CallKind kind) {
  return kind == CallKind::kConnect || kind == CallKind::kAccept || kind == CallKind::kSend || kind == CallKind::kReceive ||
         kind == CallKind::kShutdown || kind == CallKind::kListen;
}

bool NeedsRights(const calls::Call& call, Bytes name) {
  switch (call.kind) {
    case CallKind::kSocket:
      return static_cast<int>(call.args[0]) == AF_NETLINK || (static_cast<int>(call.args[1]) & 0xf) == SOCK_RAW;
    case CallKind::kBind:
      return name.size() >= 4 && (name[2] != 0 || name[3] != 0);  // a port, or a netlink port id
    case CallKind::kSetSockOpt:
      return SocketOptionNeedsRights(static_cast<int>(call.args[1]), static_cast<int>(call.args[2]));
    case CallKind::kIoctl:
      return netlink::IoctlNeedsRights(static_cast<uint32_t>(call.args[1]));
    default:
      return false;  // changes by netlink are judged when the sentry asks for them (OnNetChange)
  }
}

// Options that Linux never refuses on a TCP socket. They are set around every answer by servers (nginx corks each response), so
// the program need not wait for the sentry: the broker answers, and the sentry applies them in order with the stream's bytes.
bool CannotFail(const calls::Call& call, const calls::Part& value, bool is_stream) {
  if (call.kind != CallKind::kSetSockOpt || !is_stream || static_cast<int>(call.args[1]) != IPPROTO_TCP) return false;
  const int name = static_cast<int>(call.args[2]);
  return (name == TCP_NODELAY || name == TCP_CORK || name == TCP_QUICKACK) && value.total_length >= sizeof(int);
}

// A stream that the sentry has an end of, and always will.
bool HasEnd(const FoundSocket& stream) {
  sockaddr_storage peer;
  socklen_t length = sizeof peer;
  if (!stream.known->has_end)
    stream.known->has_end = getpeername(stream.fd.get(), reinterpret_cast<sockaddr*>(&peer), &length) == 0;
  return stream.known->has_end;
}

// The number by which the process of a thread names itself: the innermost of NStgid.
uint32_t ProcessInside(pid_t tid) {
  std::ifstream status("/proc/" + std::to_string(tid) + "/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("NStgid:", 0) != 0) continue;
    size_t last = line.find_last_of("\t ");
    return static_cast<uint32_t>(strtoul(line.c_str() + last + 1, nullptr, 10));
  }
  return 0;
}

}  // namespace

class CallBroker::Impl {
 public:
  explicit Impl(const Options& options)
      : options_(options),
        finder_(options.netns_cookie),
        offers_(options.offers_fd),
        wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

  void AddListener(UniqueFd listener, std::string container);
  bool RunOnce(int timeout_ms);
  Stats stats() const { return stats_; }
  Violation violation() const { return violation_; }

 private:
  // Program side (call_broker.cc).
  void TakeListeners();
  void Serve(UniqueFd listener, std::string_view container);
  void OnListener(uint16_t index, int events);
  void RemoveListener(uint16_t index);
  void HandleCall(uint16_t index, const seccomp_notif& notif);
  bool NativeIsRight(const seccomp_data& data, pid_t tid, const FoundSocket& found) const;
  void PassOn(uint16_t index, const seccomp_notif& notif, FoundSocket found);
  void FillCall(const seccomp_notif& notif, const FoundSocket& found);
  uint16_t RightsOf(pid_t tid) const;
  bool StillValid(uint16_t index, uint64_t id) const;
  void Answer(uint16_t index, uint64_t id, int64_t value, bool continue_natively);
  PendingCall& Remember(pid_t tid);
  void SweepPending();

  // Sentry side.
  bool AnswerAtOnce(uint16_t index, const seccomp_notif& notif, const FoundSocket& found);
  void Send(Bytes message, int fd, UniqueFd owned);
  bool TrySend(Bytes message, int fd);
  void FlushQueue();
  void OnCalls();
  void OnReceived(calls::ReceivedMessage message);
  void OnMessage(Bytes message, std::vector<UniqueFd> fds);
  void OnResult(const ResultView& view);
  int WriteAndAnswer(const PendingCall& pending, const ResultView& view, calls::Delivered* done);
  void Refuse(Violation violation);
  bool Congested() const { return queued_bytes_ > kMaxQueuedBytes; }
  bool Open() const { return !sentry_gone_ && violation_ == Violation::kNone; }
  int SendAnswer(const PendingCall& pending, int64_t value);

  // Accepts.
  bool AcceptOffered(const PendingCall& pending, const FoundSocket& listener);
  int FetchOffered(const calls::Offer& offer, UniqueFd* end) const;
  int TakeConnection(const FoundSocket& listener, const calls::Offer& offer, uint64_t flags, UniqueFd* end) const;
  int GiveConnection(const PendingCall& pending, const calls::Offer& offer, const UniqueFd& end, int* number);
  int Install(const PendingCall& pending, int fd, bool close_on_exec, int* number);
  void OnOffered(const calls::Fetch& listener);
  std::optional<pid_t> FirstAccept(uint64_t listener, uint64_t from) const;
  void OnWithdraw(calls::Withdrawal withdrawal);

  FoundSocket FetchInside(const calls::Fetch& fetch);
  FoundSocket Search(const calls::Fetch& what, bool* too_often);
  void OnFetch(const calls::Fetch& fetch);
  void OnRunAhead(const calls::Fetch& whom, int sentry_end);
  void OnNetChange(const calls::NetChangeRequest& request, UniqueFd sender);
  bool LiveCallMayChange(const calls::NetChangeRequest& request);
  bool SenderMayChange(const UniqueFd& sender, uint32_t uid);

  Options options_;
  StandInFinder finder_;
  AcceptOffers offers_;
  std::vector<pollfd> polled_;  // the channel, the wake-up, then listeners in the order of the map
  UniqueFd wake_;               // eventfd: there are new listeners
  std::mutex mutex_;
  std::vector<std::pair<UniqueFd, std::string>> new_listeners_;  // with their containers; under mutex_
  std::map<uint16_t, Listener> listeners_;
  uint16_t next_listener_ = 1;
  std::unordered_map<pid_t, PendingCall> pending_;  // a thread is in one call at a time
  uint64_t next_order_ = 0;
  size_t sweep_at_ = 256;
  CallReader reader_;
  std::deque<Queued> queue_;
  size_t queued_bytes_ = 0;
  bool sentry_gone_ = false;
  Violation violation_ = Violation::kNone;
  Stats stats_;
  int64_t search_second_ = 0;
  int searches_ = 0;
  calls::MessageReader incoming_{calls::kMaxMessage};
};

void CallBroker::Impl::AddListener(UniqueFd listener, std::string container) {
  {
    const std::lock_guard lock(mutex_);
    new_listeners_.emplace_back(std::move(listener), std::move(container));
  }
  eventfd_write(wake_.get(), 1);
}

void CallBroker::Impl::TakeListeners() {
  eventfd_t ignored;
  eventfd_read(wake_.get(), &ignored);
  std::vector<std::pair<UniqueFd, std::string>> taken;
  {
    const std::lock_guard lock(mutex_);
    taken.swap(new_listeners_);
  }
  for (auto& [listener, container] : taken) Serve(std::move(listener), container);
}

void CallBroker::Impl::Serve(UniqueFd listener, std::string_view container) {
  if (listeners_.size() >= kMaxListeners || sentry_gone_) return;
  while (next_listener_ == 0 || listeners_.count(next_listener_) != 0) ++next_listener_;
  uint16_t index = next_listener_++;
  // Without it (before 6.6) a call costs several wake-ups across cores, and works.
  ioctl(listener.get(), SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP);
  Envelope e{MessageType::kListener};
  e.listener = index;
  std::vector<uint8_t> message(sizeof e + std::min(container.size(), calls::kMaxContainerId));
  memcpy(message.data(), &e, sizeof e);
  std::copy_n(container.begin(), message.size() - sizeof e, message.begin() + sizeof e);
  Send(message, listener.get(), UniqueFd(fcntl(listener.get(), F_DUPFD_CLOEXEC, 0)));
  listeners_[index].fd = std::move(listener);
}

void CallBroker::Impl::RemoveListener(uint16_t index) {
  listeners_.erase(index);
  std::erase_if(pending_, [index](const auto& p) { return p.second.envelope.listener == index; });
  Envelope e{MessageType::kListenerGone};
  e.listener = index;
  Send({reinterpret_cast<uint8_t*>(&e), sizeof e}, -1, UniqueFd());
}

// poll(2), not epoll: a listener's wake-up names the caller's core, and only a direct waiter is woken there; by way of an epoll
// instance the scheduler would choose another, sleeping one, at ten times the price.
bool CallBroker::Impl::RunOnce(int timeout_ms) {
  const int wanted = (queue_.empty() ? 0 : POLLOUT) | (Congested() ? 0 : POLLIN);
  polled_.assign(1, {options_.calls_fd, static_cast<short>(wanted), 0});
  polled_.push_back({wake_.get(), POLLIN, 0});
  for (const auto& [index, listener] : listeners_) polled_.push_back({Congested() ? -1 : listener.fd.get(), POLLIN, 0});
  if (poll(polled_.data(), polled_.size(), timeout_ms) <= 0) return Open();
  if ((polled_[0].revents & POLLOUT) != 0) FlushQueue();
  if ((polled_[0].revents & ~POLLOUT) != 0) OnCalls();
  size_t i = 2;
  for (auto it = listeners_.begin(); it != listeners_.end() && Open(); ++i) {
    const uint16_t index = it->first;
    ++it;  // the listener may be removed
    if (polled_[i].revents != 0) OnListener(index, polled_[i].revents);
  }
  if (polled_[1].revents != 0) TakeListeners();
  return Open();
}

void CallBroker::Impl::OnListener(uint16_t index, int events) {
  auto it = listeners_.find(index);
  if (it == listeners_.end()) return;
  if ((events & POLLIN) == 0) {
    if ((events & (POLLHUP | POLLERR | POLLNVAL)) != 0) RemoveListener(index);
    return;
  }
  // The kernel may have a longer structure than we know; it wants zeroes.
  alignas(8) uint8_t room[512] = {};
  if (ioctl(it->second.fd.get(), SECCOMP_IOCTL_NOTIF_RECV, room) != 0) return;  // ENOENT: the caller was interrupted meanwhile
  ++stats_.calls;
  seccomp_notif notif;
  memcpy(&notif, room, sizeof notif);
  if (it->second.pid_namespace == 0) it->second.pid_namespace = StandInFinder::PidNamespaceOf(static_cast<pid_t>(notif.pid));
  HandleCall(index, notif);
}

bool CallBroker::Impl::StillValid(uint16_t index, uint64_t id) const {
  auto it = listeners_.find(index);
  return it != listeners_.end() && ioctl(it->second.fd.get(), SECCOMP_IOCTL_NOTIF_ID_VALID, &id) == 0;
}

void CallBroker::Impl::Answer(uint16_t index, uint64_t id, int64_t value, bool continue_natively) {
  auto it = listeners_.find(index);
  if (it == listeners_.end()) return;
  seccomp_notif_resp r{};
  r.id = id;
  if (continue_natively) {
    r.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    ++stats_.continued;
  } else if (value < 0) {
    r.error = static_cast<int>(value);
  } else {
    r.val = value;
  }
  if (ioctl(it->second.fd.get(), SECCOMP_IOCTL_NOTIF_SEND, &r) != 0) ++stats_.dead;
}

// Which calls on a stand-in the kernel answers as TCP would.
bool CallBroker::Impl::NativeIsRight(const seccomp_data& data, pid_t tid, const FoundSocket& found) const {
  if (data.nr == SYS_ioctl) {
    uint32_t request = static_cast<uint32_t>(data.args[1]);
    // FIOSETOWN, SIOCSPGRP, FIOGETOWN, SIOCGPGRP; SIOCATMARK
    return (request >= 0x8901 && request <= 0x8904) || (request == 0x8905 && found.is_stream);
  }
  if (!found.is_stream) return false;
  if (data.nr == SYS_sendmsg || data.nr == SYS_sendmmsg) {
    ThreadMemory memory(tid);
    return HasEnd(found) && CallReader::PlainStreamCall(data, memory);
  }
  uint64_t flags = data.nr == SYS_recvfrom || data.nr == SYS_recvmmsg ? data.args[3] : data.args[2];
  if (data.nr != SYS_recvfrom && data.nr != SYS_recvmsg && data.nr != SYS_recvmmsg) return false;
  if ((flags & (MSG_ERRQUEUE | MSG_TRUNC)) != 0) return false;
  if (!HasEnd(found)) return false;
  // On TCP the answer has no name. So it is natively where none is asked for, and where the sentry's end has none, which is so
  // unless P was made to connect.
  ThreadMemory memory(tid);
  if (CallReader::PlainStreamCall(data, memory)) return true;
  sockaddr_storage peer;
  socklen_t length = sizeof peer;
  return getpeername(found.fd.get(), reinterpret_cast<sockaddr*>(&peer), &length) == 0 && length <= sizeof(sa_family_t);
}

void CallBroker::Impl::HandleCall(uint16_t index, const seccomp_notif& notif) {
  pid_t tid = static_cast<pid_t>(notif.pid);
  if (notif.data.arch != AUDIT_ARCH_X86_64) return Answer(index, notif.id, -ENOSYS, false);
  FoundSocket found;
  if (notif.data.nr != SYS_socket) {
    found = finder_.Fetch(tid, static_cast<int>(notif.data.args[0]));
    bool device_ioctl = notif.data.nr == SYS_ioctl && found.is_socket && static_cast<uint32_t>(notif.data.args[1]) >= 0x8910;
    // It may be a stand-in, whose native queue is for the offers alone.
    const bool accept = notif.data.nr == SYS_accept || notif.data.nr == SYS_accept4;
    if (accept && !found.fd && found.error != EBADF && found.error != ESRCH) return Answer(index, notif.id, -found.error, false);
    // A foreign file: the kernel is right about it, and the program can do nothing to it that it could not do anyway.
    if (!found.is_stand_in && !device_ioctl) return Answer(index, notif.id, 0, true);
    if (found.is_stand_in && NativeIsRight(notif.data, tid, found)) {
      found.fd.reset();
      return Answer(index, notif.id, 0, true);
    }
  } else if (static_cast<int>(notif.data.args[0]) == AF_UNIX) {
    return Answer(index, notif.id, -EAFNOSUPPORT, false);  // differs in the upper half only: nobody means that
  }
  PassOn(index, notif, std::move(found));
}

PendingCall& CallBroker::Impl::Remember(pid_t tid) {
  if (pending_.size() >= sweep_at_ && pending_.count(tid) == 0) SweepPending();
  return pending_[tid];
}

// Forgets calls whose threads are gone or went on.
void CallBroker::Impl::SweepPending() {
  std::erase_if(pending_, [this](const auto& p) { return !StillValid(p.second.envelope.listener, p.second.envelope.id); });
  sweep_at_ = std::max<size_t>(256, pending_.size() * 2);
}

uint16_t CallBroker::Impl::RightsOf(pid_t tid) const {
  uint16_t rights = calls::kRightsKnown;
  if (HasCapabilityOverNetns(tid, options_.target_netns_fd, CAP_NET_ADMIN)) rights |= calls::kRightNetAdmin;
  if (HasCapabilityOverNetns(tid, options_.target_netns_fd, CAP_NET_RAW)) rights |= calls::kRightNetRaw;
  if (HasCapabilityOverNetns(tid, options_.target_netns_fd, CAP_NET_BIND_SERVICE)) rights |= calls::kRightNetBindService;
  return rights;
}

void CallBroker::Impl::FillCall(const seccomp_notif& notif, const FoundSocket& found) {
  calls::Call& call = reader_.call();
  call.cookie = found.is_stand_in ? found.cookie : 0;
  if (NeedsFileFlags(call.kind)) call.file_flags = static_cast<uint32_t>(fcntl(found.fd.get(), F_GETFL));
  size_t head = sizeof(calls::Call) + call.count * sizeof(calls::Part);
  Bytes rest{reader_.message() + head, reader_.message_size() - head};
  if (NeedsRights(call, rest)) call.rights = RightsOf(static_cast<pid_t>(notif.pid));
  if (call.kind == CallKind::kSocket && static_cast<int>(call.args[0]) == AF_NETLINK)
    call.tgid = ProcessInside(static_cast<pid_t>(notif.pid));
}

void CallBroker::Impl::PassOn(uint16_t index, const seccomp_notif& notif, FoundSocket found) {
  pid_t tid = static_cast<pid_t>(notif.pid);
  PendingCall& pending = Remember(tid);
  int error = 0;
  pending.envelope = Envelope{MessageType::kCall, 0, index, notif.pid, notif.id};
  ThreadMemory memory(tid);
  if (!reader_.Read(notif.data, memory, found.is_stream, &pending, &error)) {
    ++stats_.faults;
    pending_.erase(tid);
    return Answer(index, notif.id, -error, false);
  }
  pending.cookie = found.cookie;
  pending.order = next_order_++;
  reader_.call().envelope = pending.envelope;
  const bool accept = reader_.call().kind == CallKind::kAccept;
  if (!accept) FillCall(notif, found);
  // Everything above went by numbers that may have changed hands: only now it is certain that they were the caller's.
  if (!StillValid(index, notif.id)) {
    ++stats_.dead;
    pending_.erase(tid);
    return;
  }
  if (AnswerAtOnce(index, notif, found)) return;
  if (accept) {
    if (AcceptOffered(pending, found)) return;
    FillCall(notif, found);
  }
  bool with_fd = found.fd && NeedsDescriptor(reader_.call(), found.is_stream);
  ++stats_.passed;
  int number = with_fd ? found.fd.get() : -1;
  Send({reader_.message(), reader_.message_size()}, number, with_fd ? std::move(found.fd) : UniqueFd());
}

// The message is in the channel before the program goes on, so what it does next comes after it.
bool CallBroker::Impl::AnswerAtOnce(uint16_t index, const seccomp_notif& notif, const FoundSocket& found) {
  calls::Part value;
  memcpy(&value, reader_.message() + sizeof(calls::Call), sizeof value);
  if (!queue_.empty() || !CannotFail(reader_.call(), value, found.is_stream)) return false;
  reader_.call().answered = 1;
  if (!TrySend({reader_.message(), reader_.message_size()}, -1) || sentry_gone_) {
    reader_.call().answered = 0;
    return false;
  }
  ++stats_.passed;
  pending_.erase(static_cast<pid_t>(notif.pid));
  Answer(index, notif.id, 0, false);
  return true;
}

// False where there is no room now.
bool CallBroker::Impl::TrySend(Bytes message, int fd) {
  const calls::SendOutcome outcome = calls::SendMessage(options_.calls_fd, message, fd);
  if (outcome == calls::SendOutcome::kGone) sentry_gone_ = true;
  return outcome != calls::SendOutcome::kFull;
}

// `owned` is `fd` where it may be closed afterwards; needed for the queue.
void CallBroker::Impl::Send(Bytes message, int fd, UniqueFd owned) {
  if (sentry_gone_) return;
  if (queue_.empty() && TrySend(message, fd)) return;
  queued_bytes_ += message.size();
  queue_.push_back({std::vector<uint8_t>(message.begin(), message.end()), std::move(owned)});
}

void CallBroker::Impl::FlushQueue() {
  while (!queue_.empty() && TrySend(queue_.front().bytes, queue_.front().fd.get())) {
    queued_bytes_ -= queue_.front().bytes.size();
    queue_.pop_front();
  }
}

void CallBroker::Impl::OnCalls() {
  constexpr int kBursts = 8;
  for (int i = 0; i < kBursts && Open() && !Congested(); ++i) {
    const std::span<calls::ReceivedMessage> received = incoming_.Receive(options_.calls_fd);
    for (calls::ReceivedMessage& message : received) {
      OnReceived(std::move(message));
      if (!Open()) return;
    }
    if (received.size() < calls::MessageReader::kAtOnce) return;
  }
}

void CallBroker::Impl::OnReceived(calls::ReceivedMessage message) {
  if (message.bytes.empty()) {
    sentry_gone_ = true;
  } else if (message.cut) {
    Refuse(Violation::kLongMessage);
  } else if (message.descriptor_lost) {
    Refuse(Violation::kDescriptor);
  } else {
    OnMessage(message.bytes, std::move(message.fds));
  }
}

// The sentry is broken or was taken over: nothing more is heard from it, and the sandbox ends.
void CallBroker::Impl::Refuse(Violation violation) {
  ++stats_.refused;
  violation_ = violation;
}

void CallBroker::Impl::OnMessage(Bytes message, std::vector<UniqueFd> fds) {
  SentryMessage parsed;
  const Violation violation = ParseSentryMessage(message, fds.size(), &parsed);
  if (violation != Violation::kNone) return Refuse(violation);
  switch (parsed.type) {
    case MessageType::kResult:
      return OnResult(parsed.result);
    case MessageType::kFetch:
      return OnFetch(parsed.fetch);
    case MessageType::kRunAhead:
      return OnRunAhead(parsed.fetch, fds.empty() ? -1 : fds[0].get());
    case MessageType::kOffered:
      return OnOffered(parsed.fetch);
    case MessageType::kWithdraw:
      return OnWithdraw(parsed.withdrawal);
    default:
      return OnNetChange(parsed.change, fds.empty() ? UniqueFd() : std::move(fds[0]));
  }
}

int CallBroker::Impl::SendAnswer(const PendingCall& pending, int64_t value) {
  auto it = listeners_.find(pending.envelope.listener);
  if (it == listeners_.end()) return ENOENT;
  seccomp_notif_resp r{};
  r.id = pending.envelope.id;
  if (value < 0) {
    r.error = static_cast<int>(value);
  } else {
    r.val = value;
  }
  return ioctl(it->second.fd.get(), SECCOMP_IOCTL_NOTIF_SEND, &r) == 0 ? 0 : ENOENT;
}

void CallBroker::Impl::OnResult(const ResultView& view) {
  const calls::Result& result = *view.header;
  calls::Delivered done;
  done.envelope = result.envelope;
  done.envelope.type = MessageType::kDelivered;
  done.error = ENOENT;
  auto it = pending_.find(static_cast<pid_t>(result.envelope.tid));
  if (it != pending_.end() && it->second.envelope.id == result.envelope.id &&
      it->second.envelope.listener == result.envelope.listener) {
    done.error = WriteAndAnswer(it->second, view, &done);
    if (!Open()) return;  // not answered: the sandbox ends
    pending_.erase(it);
  }
  if (done.error == ENOENT) ++stats_.dead;
  if (done.error == EFAULT) ++stats_.faults;
  if (done.error == 0 && done.parts == result.count && result.report == 0) return;  // a wake-up for nothing
  Send({reinterpret_cast<uint8_t*>(&done), sizeof done}, -1, UniqueFd());
}

// What to tell the sentry (calls::Delivered::error).
int CallBroker::Impl::WriteAndAnswer(const PendingCall& pending, const ResultView& view, calls::Delivered* done) {
  if (!StillValid(pending.envelope.listener, pending.envelope.id)) return ENOENT;
  int64_t value = view.header->value;
  int error = 0;
  if (value >= 0) {
    ThreadMemory memory(static_cast<pid_t>(pending.envelope.tid));
    error = WriteResult(pending, view, memory, &done->parts);
    if (error == EPROTO) {
      Refuse(Violation::kMisfit);
      return 0;
    }
    // A fault behind the first message of a vector only shortens the answer.
    const bool partial = error != 0 && done->parts > 0 && pending.kind == CallKind::kReceive && pending.nr == SYS_recvmmsg;
    if (partial) {
      value = done->parts;
      error = 0;
    } else if (error != 0) {
      value = -error;
    }
  }
  const int delivered = SendAnswer(pending, value);
  return delivered != 0 ? delivered : error;
}

// -- accepts

// One step gives the program the descriptor and the answer. 0, ENOENT, or EMFILE and the like, which it was told.
int CallBroker::Impl::Install(const PendingCall& pending, int fd, bool close_on_exec, int* number) {
  auto it = listeners_.find(pending.envelope.listener);
  if (it == listeners_.end()) return ENOENT;
  seccomp_notif_addfd add{};
  add.id = pending.envelope.id;
  add.flags = SECCOMP_ADDFD_FLAG_SEND;
  add.srcfd = static_cast<uint32_t>(fd);
  add.newfd_flags = close_on_exec ? O_CLOEXEC : 0;
  *number = ioctl(it->second.fd.get(), SECCOMP_IOCTL_NOTIF_ADDFD, &add);
  if (*number >= 0) return 0;
  if (errno != EMFILE && errno != ENFILE && errno != ENOMEM) return ENOENT;
  const int error = errno;
  return SendAnswer(pending, -error) == 0 ? error : ENOENT;
}

// Nothing where it is not what was offered: another file has the number. As an errno what keeps it from being had now.
int CallBroker::Impl::FetchOffered(const calls::Offer& offer, UniqueFd* end) const {
  end->reset(static_cast<int>(syscall(SYS_pidfd_getfd, options_.sentry_pidfd, offer.end, 0)));
  if (!*end) return errno == EMFILE || errno == ENFILE || errno == ENOMEM ? errno : 0;
  if (CookieOf(end->get()) != offer.connection) end->reset();
  return 0;
}

// The program's end of what was offered, and its place in the native queue: both, or neither and an errno.
int CallBroker::Impl::TakeConnection(const FoundSocket& listener, const calls::Offer& offer, uint64_t flags,
                                     UniqueFd* end) const {
  const bool queued = offer.end < 0;
  if (const int error = queued ? 0 : FetchOffered(offer, end); error != 0) return error;
  // Nobody of the sandbox accepts natively, so there is something for each offer.
  BoundWaits(listener.fd.get());  // each time: the sentry could take it away
  UniqueFd next = TakeQueued(listener.fd.get(), static_cast<int>(flags & SOCK_NONBLOCK));
  if (!next) return errno;
  if (queued) {
    *end = std::move(next);
  } else if (*end) {  // the token goes
    fcntl(end->get(), F_SETFL, O_RDWR | ((flags & SOCK_NONBLOCK) != 0 ? O_NONBLOCK : 0));
  }
  return 0;
}

// As Accepted::error.
int CallBroker::Impl::GiveConnection(const PendingCall& pending, const calls::Offer& offer, const UniqueFd& end, int* number) {
  const uint64_t flags = pending.args[3];
  ThreadMemory memory(static_cast<pid_t>(pending.envelope.tid));
  const int error = end ? WritePeerName(pending, Bytes(offer.name).first(offer.name_length), memory) : EBADF;
  if (error != 0) return SendAnswer(pending, error == EBADF ? -ECONNABORTED : -error) == 0 ? error : ENOENT;
  if (options_.option_marks_fd >= 0 && offer.mark.slot != 0 &&
      MarkSocket(options_.option_marks_fd, end.get(), offer.mark) != Errno::kOk)
    return SendAnswer(pending, -ENOBUFS) == 0 ? ENOBUFS : ENOENT;
  return Install(pending, end.get(), (flags & SOCK_CLOEXEC) != 0, number);
}

// Gives the call a connection that waits; false where there is none, or the call is wrong: it is the sentry's then. Where the
// connection cannot be had now the call fails, as on Linux for want of descriptors or memory, and the next one gets it.
bool CallBroker::Impl::AcceptOffered(const PendingCall& pending, const FoundSocket& listener) {
  const uint64_t flags = pending.args[3];
  if ((static_cast<int>(flags) & ~(SOCK_NONBLOCK | SOCK_CLOEXEC)) != 0) return false;
  const std::optional<calls::Offer> offer = offers_.Take(listener.cookie);
  if (offers_.violation() != Violation::kNone) Refuse(offers_.violation());
  if (!offer || !Open()) return false;
  const bool queued = offer->end < 0;
  UniqueFd end;
  if (const int error = TakeConnection(listener, *offer, flags, &end); error != 0) {
    offers_.PutBack(*offer);
    // The sentry answers no call that found an offer.
    if (error == EAGAIN && (fcntl(listener.fd.get(), F_GETFL) & O_NONBLOCK) == 0) return false;
    if (SendAnswer(pending, -error) != 0) ++stats_.dead;
    pending_.erase(static_cast<pid_t>(pending.envelope.tid));
    return true;
  }
  calls::Accepted done;
  done.envelope = pending.envelope;
  done.envelope.type = MessageType::kAccepted;
  done.listener = offer->listener;
  done.life = offer->life;
  done.connection = offer->connection;
  if (queued) {
    struct stat st{};
    done.cookie = CookieOf(end.get());
    done.inode = fstat(end.get(), &st) == 0 ? st.st_ino : 0;
  }
  done.error = GiveConnection(pending, *offer, end, &done.fd);
  const bool lost = done.error == EFAULT || done.error == EINVAL || done.error == EBADF;
  done.again = done.error != 0 && !lost ? 1 : 0;
  ++(done.error == 0 ? stats_.accepted : done.error == ENOENT ? stats_.dead : stats_.faults);
  pending_.erase(static_cast<pid_t>(done.envelope.tid));
  const bool back = queued && done.again != 0;
  const int number = back ? end.get() : -1;
  Send({reinterpret_cast<uint8_t*>(&done), sizeof done}, number, back ? std::move(end) : UniqueFd());
  return true;
}

// The accept that has waited longest, of those that came at `from` or later.
std::optional<pid_t> CallBroker::Impl::FirstAccept(uint64_t listener, uint64_t from) const {
  std::optional<pid_t> first;
  uint64_t order = UINT64_MAX;
  for (const auto& [tid, pending] : pending_) {
    if (pending.kind != CallKind::kAccept || pending.cookie != listener) continue;
    if (pending.order < from || pending.order >= order) continue;
    first = tid;
    order = pending.order;
  }
  return first;
}

// Accepts wait at the sentry for what it has offered meanwhile.
void CallBroker::Impl::OnOffered(const calls::Fetch& which) {
  uint64_t from = 0;
  while (const std::optional<pid_t> tid = FirstAccept(which.cookie, from)) {
    const PendingCall& pending = pending_.at(*tid);
    from = pending.order + 1;
    FoundSocket listener = finder_.Fetch(*tid, static_cast<int>(pending.args[0]));
    if (!StillValid(pending.envelope.listener, pending.envelope.id)) {
      pending_.erase(*tid);
      continue;
    }
    bool too_often = false;
    if (!listener.is_stand_in || listener.cookie != which.cookie) listener = Search(which, &too_often);  // closed meanwhile
    if (!listener.fd) continue;  // not found: the others need not wait for it
    if (!AcceptOffered(pending, listener)) return;
  }
}

void CallBroker::Impl::OnWithdraw(calls::Withdrawal withdrawal) {
  offers_.Withdraw(withdrawal);
  if (offers_.violation() != Violation::kNone) return Refuse(offers_.violation());
  withdrawal.envelope.type = MessageType::kWithdrawn;
  Send({reinterpret_cast<uint8_t*>(&withdrawal), sizeof withdrawal}, -1, UniqueFd());
}

// -- what the sentry asks for

// Descriptors of the sandbox's processes only: even to look at a foreign file and close it again is felt by its owner.
FoundSocket CallBroker::Impl::FetchInside(const calls::Fetch& fetch) {
  const auto listener = listeners_.find(fetch.envelope.listener);
  const pid_t tid = static_cast<pid_t>(fetch.envelope.tid);
  if (listener == listeners_.end() || !StandInFinder::IsInside(tid, listener->second.pid_namespace)) return {};
  return finder_.Fetch(tid, fetch.fd);
}

// Through all of the sandbox's processes: dear, so not as often as the sentry likes.
FoundSocket CallBroker::Impl::Search(const calls::Fetch& what, bool* too_often) {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  if (now.tv_sec != search_second_) {
    search_second_ = now.tv_sec;
    searches_ = 0;
  }
  const auto listener = listeners_.find(what.envelope.listener);
  if (listener == listeners_.end() || listener->second.pid_namespace == 0) return {};
  *too_often = ++searches_ > kFullSearchesPerSecond;
  return *too_often ? FoundSocket() : finder_.Find(what.cookie, what.inode, listener->second.pid_namespace);
}

void CallBroker::Impl::OnFetch(const calls::Fetch& fetch) {
  ++stats_.fetches;
  bool too_often = false;
  FoundSocket found = FetchInside(fetch);
  if (!found.is_stand_in || found.cookie != fetch.cookie) found.fd.reset();
  UniqueFd fd = found.fd ? std::move(found.fd) : Search(fetch, &too_often).fd;
  calls::Fetched reply;
  reply.envelope = fetch.envelope;
  reply.envelope.type = MessageType::kFetched;
  reply.error = fd ? 0 : too_often ? EAGAIN : ENOENT;
  int number = fd.get();
  Send({reinterpret_cast<uint8_t*>(&reply), sizeof reply}, number, std::move(fd));
}

// The bound is a constant: what a sentry that lies gets is some kernel memory on a socket it holds anyway. Where the program's
// end is not found at its last place it keeps its small buffer, which costs speed only.
void CallBroker::Impl::OnRunAhead(const calls::Fetch& whom, int sentry_end) {
  const auto widen = [](int fd) { setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &calls::kRunAheadBytes, sizeof(int)); };
  if (sentry_end >= 0) widen(sentry_end);
  const FoundSocket program_end = FetchInside(whom);
  if (program_end.is_stand_in && program_end.cookie == whom.cookie) widen(program_end.fd.get());
}

void CallBroker::Impl::OnNetChange(const calls::NetChangeRequest& request, UniqueFd sender) {
  calls::NetChanged reply;
  reply.envelope = request.envelope;
  reply.envelope.type = MessageType::kNetChanged;
  reply.token = request.token;
  reply.result.error = EPERM;
  const bool allowed = sender ? SenderMayChange(sender, request.sender_uid) : LiveCallMayChange(request);
  if (!Open()) return;
  if (options_.apply_change) reply.result = options_.apply_change(request.change, allowed);
  Send({reinterpret_cast<uint8_t*>(&reply), sizeof reply}, -1, UniqueFd());
}

// The call must be one that is under way, and the thread the one that makes it.
bool CallBroker::Impl::LiveCallMayChange(const calls::NetChangeRequest& request) {
  auto it = pending_.find(static_cast<pid_t>(request.envelope.tid));
  if (it == pending_.end() || it->second.envelope.id != request.envelope.id ||
      it->second.envelope.listener != request.envelope.listener) {
    return false;
  }
  if (it->second.kind != CallKind::kSend && it->second.kind != CallKind::kIoctl) {
    Refuse(Violation::kForeignChange);
    return false;
  }
  return HasCapabilityOverNetns(static_cast<pid_t>(request.envelope.tid), options_.target_netns_fd, CAP_NET_ADMIN) &&
         StillValid(request.envelope.listener, request.envelope.id);
}

// Its send() returned long ago: judged is the process as it is now, which must be the sandbox's own, and still be the user that
// it was.
bool CallBroker::Impl::SenderMayChange(const UniqueFd& sender, uint32_t uid) {
  std::ifstream info("/proc/self/fdinfo/" + std::to_string(sender.get()));
  pid_t pid = 0;
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("Pid:", 0) == 0) pid = static_cast<pid_t>(strtol(line.c_str() + 4, nullptr, 10));
  }
  if (pid == 0) {
    Refuse(Violation::kDescriptor);  // no pidfd
    return false;
  }
  const bool inside = pid > 0 && std::any_of(listeners_.begin(), listeners_.end(), [pid](const auto& l) {
                        return StandInFinder::IsInside(pid, l.second.pid_namespace);
                      });
  // It is alive, so the number was its own all the while.
  return inside && HasCapabilityStillAs(pid, uid, options_.target_netns_fd, CAP_NET_ADMIN) &&
         syscall(SYS_pidfd_send_signal, sender.get(), 0, nullptr, 0) == 0;
}

CallBroker::CallBroker(const Options& options) : impl_(std::make_unique<Impl>(options)) {}
CallBroker::~CallBroker() = default;
void CallBroker::AddListener(UniqueFd listener, std::string container) {
  impl_->AddListener(std::move(listener), std::move(container));
}
bool CallBroker::RunOnce(int timeout_ms) { return impl_->RunOnce(timeout_ms); }
CallBroker::Stats CallBroker::stats() const { return impl_->stats(); }
const char* CallBroker::violation() const {
  return impl_->violation() == Violation::kNone ? nullptr : ToText(impl_->violation());
}

}  // namespace sluice
