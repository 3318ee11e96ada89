#include "sentry/inet_stand_in.h"

#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>

#include "netstack/sysctls.h"
#include "sentry/netlink/if_ioctl.h"
#include "sentry/options.h"
#include "sentry/sockaddr.h"

namespace sluice {

using calls::CallKind;

namespace {

constexpr Duration kFirstCheck = Duration::Milliseconds(4);
constexpr Duration kCloseCheckMax = Duration::Milliseconds(64);
constexpr Duration kCopyKept = Duration::Milliseconds(20);
constexpr Duration kIdleCheckMax = Duration::Seconds(60);

}  // namespace

void ClearNativeError(int p) {
  int native = 0;
  socklen_t length = sizeof native;
  getsockopt(p, SOL_SOCKET, SO_ERROR, &native, &length);
}

Errno InetStandIn::TakePendingError() { return socket() == nullptr ? Errno::kOk : socket()->TakeError(); }

void InetStandIn::OnCommonCall(IncomingCall& call) {
  switch (call.head.kind) {
    case CallKind::kBind:
      return OnBind(call);
    case CallKind::kGetSockName:
      return AnswerName(call, socket()->local());
    case CallKind::kGetPeerName: {
      std::optional<Endpoint> remote = socket()->remote();
      if (!remote || (remote->port == 0 && protocol_ == IPPROTO_UDP))
        return (void)engine_.Answer(call.envelope(), Errno::kENOTCONN);
      return AnswerName(call, *remote);
    }
    case CallKind::kGetSockOpt:
      return OnGetOption(call);
    case CallKind::kSetSockOpt:
      return OnSetOption(call);
    case CallKind::kIoctl:
      return OnIoctl(call);
    default:
      engine_.Answer(call.envelope(), Errno::kEOPNOTSUPP);
  }
}

void InetStandIn::OnBind(IncomingCall& call) {
  Endpoint local;
  Errno error = ParseSockaddr(call.parts[0].name, family_, true, &local);
  if (error == Errno::kOk && type_ != SOCK_RAW && local.port != 0 && local.port < engine_.sysctls().ip_unprivileged_port_start &&
      (call.head.rights & calls::kRightNetBindService) == 0 && protocol_ != IPPROTO_ICMP) {
    error = Errno::kEACCES;
  }
  if (error == Errno::kOk) error = BindSocket(local);
  if (error == Errno::kEADDRINUSE && type_ == SOCK_STREAM) {  // what holds it may be closed
    CallEngine& engine = engine_;
    const uint64_t cookie = cookie_;
    engine.FindAllCloses(container());
    // This one, too, by another thread.
    if (engine.Find(cookie) != this) return (void)engine.Answer(call.envelope(), Errno::kEBADF);
    error = BindSocket(local);
  }
  engine_.Answer(call.envelope(), error);
}

void InetStandIn::AnswerName(IncomingCall& call, const Endpoint& endpoint) {
  Sockaddr address = FormatSockaddr(endpoint, family_);
  size_t room = std::min<size_t>(call.parts[0].head.name_length, address.length);
  ResultPart part{.name = address.view().first(room), .name_length = address.length};
  engine_.Result(call.envelope(), 0, {&part, 1}, this, nullptr);
}

void InetStandIn::OnGetOption(IncomingCall& call) {
  OptionValue value;
  Errno error = GetSocketOption(*this, call.int_arg(1), call.int_arg(2), call.parts[0].head.total_length, call.fd.get(), &value);
  if (error != Errno::kOk) return (void)engine_.Answer(call.envelope(), error);
  ResultPart part{.data = value.bytes, .return_value = value.length};
  engine_.Result(call.envelope(), 0, {&part, 1}, this, nullptr);
}

void InetStandIn::OnSetOption(IncomingCall& call) {
  const bool answered = call.head.answered != 0;
  if (answered && !TakeWritten()) return;
  Errno error = SetSocketOption(*this, call.int_arg(1), call.int_arg(2), call.parts[0].data, call.parts[0].head.total_length,
                                call.head.rights, call.fd.get());
  if (error == Errno::kOk) OnSettings();
  if (!answered) engine_.Answer(call.envelope(), error);
}

// -- options that the kernel answered

namespace {

constexpr std::array<SockOpt, SLUICE_OPTIONS> kNativeSockOpts = {
    SockOpt::kTcpNoDelay,   SockOpt::kTcpCork,    SockOpt::kTcpQuickAck,    SockOpt::kTcpKeepIdle,
    SockOpt::kTcpKeepIntvl, SockOpt::kTcpKeepCnt, SockOpt::kTcpUserTimeout, SockOpt::kKeepAlive,
};

}  // namespace

NativeOptions::Kind InetStandIn::option_kind() const {
  return type_ == SOCK_STREAM ? NativeOptions::Kind::kStream : NativeOptions::Kind::kDatagram;
}

bool InetStandIn::TakeOptions() {
  if (option_slot_ != 0) due_options_ |= engine_.native_options()->Take(option_slot_);
  return due_options_ != 0;
}

void InetStandIn::ApplyOptions() {
  const uint32_t due = std::exchange(due_options_, 0);
  if (socket() == nullptr || option_slot_ == 0) return;
  const bool push = (due & SLUICE_PUSH) != 0;
  for (size_t i = 0; i < kNativeSockOpts.size(); ++i) {
    if ((due >> i & 1) == 0) continue;
    const int value = engine_.native_options()->value(option_slot_, i);
    // A call set the cork behind one that had cleared it: what waited goes out.
    if (i == SLUICE_TCP_CORK && value != 0 && push) (void)ToInt(socket()->SetOption(SockOpt::kTcpCork, 0));
    // The program was told that it is set: only what cannot fail is answered by the kernel.
    const Errno error = socket()->SetOption(kNativeSockOpts[i], value);
    if (error == Errno::kOk) ++engine_.stats().options_native;
  }
  if (due != 0) OnSettings();
}

void InetStandIn::OnOptionsSet() {
  // What was written before a push goes with it.
  if (TakeOptions() && (!push_due() || TakeWritten())) ApplyOptions();
}

void InetStandIn::SetOptionInterest(NativeOptions::Interest interest) {
  if (option_slot_ != 0) engine_.native_options()->SetInterest(option_slot_, interest);
}

void InetStandIn::OnIoctl(IncomingCall& call) {
  uint32_t request = static_cast<uint32_t>(call.arg(1));
  int value = 0;
  switch (request) {
    case SIOCOUTQ:
      value = static_cast<int>(QueuedOut());
      break;
    case 0x894B:  // SIOCOUTQNSD
      if (stream() == nullptr) return (void)engine_.Answer(call.envelope(), Errno::kENOTTY);
      value = static_cast<int>(stream()->unsent_bytes());
      break;
    case 0x8905:  // SIOCATMARK, of a stream the kernel's answer is right
      return (void)engine_.Answer(call.envelope(), Errno::kENOTTY);
    case 0x8906:
    case 0x8907:  // SIOCGSTAMP, SIOCGSTAMPNS: no datagram with a time stamp was read
      return (void)engine_.Answer(call.envelope(), Errno::kENOENT);
    default:
      return AnswerDeviceIoctl(engine_, call, family_);
  }
  ResultPart part{.data = {reinterpret_cast<uint8_t*>(&value), sizeof value}};
  engine_.Result(call.envelope(), 0, {&part, 1}, this, nullptr);
}

namespace {

void ApplyChanges(CallEngine& engine, calls::Envelope to, netlink::Caller caller,
                  std::shared_ptr<std::vector<netlink::NetChange>> left) {
  if (left->empty()) return (void)engine.Answer(to, Errno::kOk);
  netlink::NetChange next = left->back();
  left->pop_back();
  engine.backend().RequestChange(next, caller, [&engine, to, caller, left](const netlink::NetChangeResult& r) {
    if (r.error != 0) return (void)engine.Answer(to, -int64_t{r.error});
    ApplyChanges(engine, to, caller, left);
  });
}

}  // namespace

void AnswerDeviceIoctl(CallEngine& engine, IncomingCall& call, int family) {
  uint32_t request = static_cast<uint32_t>(call.arg(1));
  if (!netlink::ShapeOfIoctl(request) || call.count() != 1) return (void)engine.Answer(call.envelope(), Errno::kENOTTY);
  netlink::Caller caller;
  caller.known = true;
  caller.net_admin = (call.head.rights & calls::kRightNetAdmin) != 0;  // a change is judged once more, by the broker
  caller.call = engine.RememberCall(call.envelope());
  netlink::IoctlResult result =
      netlink::DeviceIoctl(engine.backend(), family, request, call.parts[0].data, call.parts[0].control, caller);
  if (!result.changes.empty()) {
    // One after the other; the first refusal is the call's result.
    auto left = std::make_shared<std::vector<netlink::NetChange>>(result.changes.rbegin(), result.changes.rend());
    return ApplyChanges(engine, call.envelope(), caller, std::move(left));
  }
  if (result.error != Errno::kOk) return (void)engine.Answer(call.envelope(), result.error);
  ResultPart part{.control = result.extra, .data = result.argument};
  engine.Result(call.envelope(), 0, {&part, 1}, nullptr, nullptr);
}

// -- held calls

void InetStandIn::ForgetHeldOf(uint32_t tid) {
  std::erase_if(held_, [tid](const auto& h) { return h->call.envelope().tid == tid; });
}

void InetStandIn::Hold(IncomingCall& call, Bytes message, Duration timeout, bool watch_closely) {
  if (retrying_ != nullptr && &retrying_->call == &call) {
    retry_kept_ = true;  // stays held, with its deadline
    return;
  }
  ForgetHeldOf(call.envelope().tid);
  if (!engine_.RoomForHeld(*container(), message.size())) return (void)engine_.Answer(call.envelope(), Errno::kENOBUFS);
  auto held = std::make_unique<HeldCall>(message, container());
  held->call.fd = std::move(call.fd);
  Instant now = CallEngine::Now();
  if (timeout > Duration(0)) held->deadline = now + timeout;
  held->check_interval = watch_closely ? kFirstCheck : kCopyKept;
  held->next_check = now + held->check_interval;
  held_.push_back(std::move(held));
  ++engine_.stats().held;
  ArmHoldTimer();
}

bool InetStandIn::HasHeld(CallKind kind) const {
  return std::any_of(held_.begin(), held_.end(), [kind](const auto& h) { return h->call.head.kind == kind; });
}

void InetStandIn::RetryHeld(CallKind kind) {
  if (held_.empty() || retrying_ != nullptr) return;
  std::list<std::unique_ptr<HeldCall>> mine;
  mine.swap(held_);
  while (!mine.empty()) {
    std::unique_ptr<HeldCall> h = std::move(mine.front());
    mine.pop_front();
    if (h->call.head.kind != kind || dead_) {
      held_.push_back(std::move(h));
      continue;
    }
    // Still held afterwards: OnCall came to Hold with this very call.
    retrying_ = h.get();
    retry_kept_ = false;
    OnCall(h->call, h->storage);
    retrying_ = nullptr;
    if (retry_kept_) held_.push_back(std::move(h));
  }
  ArmHoldTimer();
}

void InetStandIn::OnExpired(HeldCall& held) { engine_.Answer(held.call.envelope(), Errno::kEAGAIN); }

void InetStandIn::CheckHeld() {
  Instant now = CallEngine::Now();
  std::list<std::unique_ptr<HeldCall>> gone;
  for (auto it = held_.begin(); it != held_.end();) {
    HeldCall& h = **it;
    bool expired = h.deadline && *h.deadline <= now;
    bool interrupted = !expired && h.next_check <= now && !engine_.StillValid(h.call.envelope());
    auto current = it++;
    if (expired || interrupted) {
      gone.splice(gone.end(), held_, current);
      continue;
    }
    if (h.next_check > now) continue;
    bool closely = h.call.head.kind == CallKind::kConnect;
    // A copy kept for long would hide the close of the program's end once its call was interrupted.
    if (!closely) h.call.fd.reset();
    Duration limit = closely ? kCloseCheckMax : kIdleCheckMax;
    h.check_interval = std::min(h.check_interval * 2, limit);
    h.next_check = now + h.check_interval;
  }
  for (auto& h : gone) {
    if (h->deadline && *h->deadline <= now) {
      OnExpired(*h);
    } else {
      OnInterrupted(*h);
    }
  }
  ArmHoldTimer();
}

void InetStandIn::TakeHeld(std::list<std::unique_ptr<HeldCall>> held) {
  held_.splice(held_.end(), std::move(held));
  ArmHoldTimer();
}

void InetStandIn::ArmHoldTimer() {
  Instant next = Instant::Max();
  for (const auto& h : held_) next = std::min({next, h->next_check, h->deadline.value_or(Instant::Max())});
  if (next == Instant::Max()) {
    hold_timer_.Cancel();
  } else if (!hold_timer_.pending() || hold_timer_.deadline() != next) {
    engine_.Schedule(hold_timer_, next);
  }
}

}  // namespace sluice
