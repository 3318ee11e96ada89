// What the engine hears from the broker, whom it passes that on to, and what it asks the broker for (broker_protocol.h).
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "sentry/broker_channel.h"
#include "sentry/call_engine.h"
#include "sentry/call_netlink.h"
#include "sentry/datagram_stand_in.h"
#include "sentry/netlink/if_ioctl.h"
#include "sentry/netlink_stand_in.h"
#include "sentry/stream_stand_in.h"

namespace sluice {

using calls::CallKind;
using calls::Envelope;
using calls::MessageType;

// False where there is no room now. That the broker is gone is seen by receiving.
bool CallEngine::TrySend(Bytes message, int fd) {
  return calls::SendMessage(options_.calls_fd, message, fd) != calls::SendOutcome::kFull;
}

void CallEngine::Send(Bytes message, int fd, UniqueFd) {
  if (!connected_) return;
  if (queue_.empty() && TrySend(message, fd)) return;
  queue_.push_back(
      {std::vector<uint8_t>(message.begin(), message.end()), UniqueFd(fd >= 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1)});
  if (front()) {
    (void)ToInt(worker_.ModifyFd(options_.calls_fd, EPOLLIN | EPOLLOUT));
  } else if (queue_.size() == 1) {
    (void)ToInt(worker_.AddFd(options_.calls_fd, EPOLLOUT, calls_handler_.get()));
  }
}

void CallEngine::FlushQueue() {
  size_t sent = 0;
  while (sent < queue_.size() && TrySend(queue_[sent].bytes, queue_[sent].fd.get())) ++sent;
  queue_.erase(queue_.begin(), queue_.begin() + static_cast<ptrdiff_t>(sent));
  if (!queue_.empty()) return;
  if (front()) {
    (void)ToInt(worker_.ModifyFd(options_.calls_fd, EPOLLIN));
  } else {
    worker_.RemoveFd(options_.calls_fd);
  }
}

void CallEngine::OnCalls() {
  constexpr int kBursts = 8;
  if (!queue_.empty()) FlushQueue();
  for (int i = 0; i < kBursts; ++i) {
    const std::span<calls::ReceivedMessage> received = incoming_->Receive(options_.calls_fd);
    for (calls::ReceivedMessage& message : received) {
      if (message.bytes.empty()) {
        connected_ = false;
        worker_.RemoveFd(options_.calls_fd);
        backend_->Abandon();
        return;
      }
      OnMessage(message.bytes, message.fds.empty() ? UniqueFd() : std::move(message.fds[0]));
    }
    if (received.size() < calls::MessageReader::kAtOnce) return;
  }
}

void CallEngine::OnMessage(Bytes message, UniqueFd fd) {
  Envelope e;
  if (message.size() < sizeof e) return;
  memcpy(&e, message.data(), sizeof e);
  switch (e.type) {
    case MessageType::kListener:
      return OnListener(e, {reinterpret_cast<const char*>(message.data()) + sizeof e, message.size() - sizeof e}, std::move(fd));
    case MessageType::kListenerGone:
      listeners_.erase(e.listener);
      return hub_.PostToOthers([number = e.listener](CallEngine& other) { other.listeners_.erase(number); });
    case MessageType::kCall: {
      IncomingCall call;
      if (!call.Parse(message)) return;
      call.fd = std::move(fd);
      return OnCall(call, message);
    }
    case MessageType::kDelivered: {
      calls::Delivered d;
      if (message.size() != sizeof d) return;
      memcpy(&d, message.data(), sizeof d);
      if (e.worker == 0) return OnDelivered(d);
      if (e.worker < hub_.size()) hub_.Hand(e.worker, [d](CallEngine& other) { other.OnDelivered(d); });
      return;
    }
    case MessageType::kAccepted: {
      calls::Accepted a;
      if (message.size() != sizeof a) return;
      memcpy(&a, message.data(), sizeof a);
      return OnAccepted(a, std::move(fd));
    }
    case MessageType::kWithdrawn: {
      calls::Withdrawal w;
      if (message.size() != sizeof w) return;
      memcpy(&w, message.data(), sizeof w);
      return OnWithdrawn(w);
    }
    case MessageType::kFetched: {
      calls::Fetched f;
      if (message.size() != sizeof f) return;
      memcpy(&f, message.data(), sizeof f);
      if (e.worker == 0) return OnFetched(f, std::move(fd));
      if (e.worker < hub_.size()) {
        hub_.Hand(e.worker, [f, end = std::make_shared<UniqueFd>(std::move(fd))](CallEngine& other) {
          other.OnFetched(f, std::move(*end));
        });
      }
      return;
    }
    case MessageType::kNetChanged: {
      calls::NetChanged c;
      if (message.size() != sizeof c) return;
      memcpy(&c, message.data(), sizeof c);
      return backend_->OnChanged(c);
    }
    default:
      return;
  }
}

void CallEngine::OnListener(const Envelope& e, std::string_view container, UniqueFd fd) {
  // Those that are gone: nobody else knows of them.
  std::erase_if(containers_, [](const auto& c) { return c.second.use_count() == 1; });
  auto it = containers_.find(container);
  if (it == containers_.end()) {
    auto use = std::make_shared<ContainerUse>();
    use->id = container;
    it = containers_.emplace(use->id, std::move(use)).first;
  }
  auto listener = std::make_shared<const Listener>(std::move(fd), it->second);
  listeners_[e.listener] = listener;
  hub_.PostToOthers([number = e.listener, listener](CallEngine& other) { other.listeners_[number] = listener; });
}

void CallEngine::OnCall(IncomingCall& call, Bytes message) {
  ++stats_.calls;
  // What other workers said before this call came, a connection to be accepted above all.
  if (!alone()) worker_.RunPosted();
  // What the program closed before this call is closed: the port of an old listener is free for the next. A worker that it is
  // handed over to looks for its own.
  if (call.head.kind != CallKind::kSocket && routes_.contains(call.head.cookie)) return HandOver(call, message);
  OnCloses();
  if (call.head.kind == CallKind::kSocket) return OnSocketCall(call);
  if (call.head.cookie == 0) return OnForeignIoctl(call);
  StandIn* s = Find(call.head.cookie);
  if (s == nullptr) return HandOver(call, message);
  TakeCall(s, call, message);
}

void CallEngine::TakeCall(StandIn* s, IncomingCall& call, Bytes message) {
  s->NoteHolder(call.envelope().tid, call.int_arg(0), call.envelope().listener);
  s->OnOptionsSet();  // before this call
  // A call that tells of the connection's end must not be ahead of the last bytes.
  if (s->dirty_ && !s->dead_) s->OnWork();
  if (s->dead_) return (void)Answer(call.envelope(), Errno::kEBADF);
  s->OnCall(call, message);
}

// To the worker that has the stand-in, if one has: otherwise its last descriptor was closed while the call was on its way.
void CallEngine::HandOver(IncomingCall& call, Bytes message, uint32_t from) {
  const auto route = routes_.find(call.head.cookie);
  if (route == routes_.end() || route->second.shard == from) return (void)Answer(call.envelope(), Errno::kEBADF);
  // Devices are the front's, whatever socket asks.
  if (call.head.kind == CallKind::kIoctl && netlink::ShapeOfIoctl(static_cast<uint32_t>(call.arg(1))))
    return AnswerDeviceIoctl(*this, call, route->second.family);
  auto carried = std::make_shared<CarriedCall>(call, message);
  hub_.Hand(route->second.shard, [carried](CallEngine& other) { other.OnHandedOver(*carried); });
}

void CallEngine::OnHandedOver(CarriedCall& carried) {
  OnCloses();
  if (StandIn* s = Find(carried.call.head.cookie)) return TakeCall(s, carried.call, carried.storage);
  // Gone, or moved behind the caller's back.
  auto back = std::make_shared<CarriedCall>(carried.call, carried.storage);
  hub_.Post(0, [back, from = shard_](CallEngine& front) { front.OnReturned(*back, from); });
}

void CallEngine::OnReturned(CarriedCall& carried, uint32_t from) {
  StandIn* s = Find(carried.call.head.cookie);
  if (s == nullptr) return HandOver(carried.call, carried.storage, from);
  TakeCall(s, carried.call, carried.storage);
}

void CallEngine::OnSocketCall(IncomingCall& call) {
  int family = call.int_arg(0), type = call.int_arg(1) & 0xf, flags = call.int_arg(1) & ~0xf, protocol = call.int_arg(2);
  const std::shared_ptr<ContainerUse> container = ContainerOf(call.envelope());
  if (container == nullptr) return;  // the last of its callers is gone
  Errno error = Errno::kEINVAL;
  if ((flags & ~(SOCK_NONBLOCK | SOCK_CLOEXEC)) == 0) {
    SocketCount room = RoomForSocket(container);
    if (!room) {
      error = Errno::kENFILE;
    } else if (family == AF_NETLINK) {
      error = NetlinkStandIn::Create(*this, call, std::move(room), type, flags, protocol);
    } else if (family != AF_INET && family != AF_INET6) {
      error = Errno::kEAFNOSUPPORT;
    } else if (type == SOCK_STREAM) {
      error = StreamStandIn::Create(*this, call, std::move(room), flags, protocol);
    } else {
      error = DatagramStandIn::Create(*this, call, std::move(room), type, flags, protocol);
    }
  }
  if (error != Errno::kOk) Answer(call.envelope(), error);
}

// A device ioctl on a socket of the program's own (AF_UNIX): answered from the same configuration.
void CallEngine::OnForeignIoctl(IncomingCall& call) { AnswerDeviceIoctl(*this, call, AF_UNIX); }

void CallEngine::OnDelivered(const calls::Delivered& d) {
  auto it = awaiting_.find({d.envelope.listener, d.envelope.id});
  if (it == awaiting_.end()) {  // its owner has gone
    while (!unreported_.empty() && !awaiting_.contains(unreported_.front().second)) unreported_.pop_front();
    return;
  }
  const DeliveryDone done = std::move(it->second.done);
  const uint64_t order = it->second.order;
  awaiting_.erase(it);
  for (; !unreported_.empty() && unreported_.front().first <= order; unreported_.pop_front())
    awaiting_.erase(unreported_.front().second);
  if (d.error == ENOENT) ++stats_.undone;
  done(d);
}

calls::Fetch CallEngine::MakeFetch(MessageType type, const StandIn& s) {
  calls::Fetch f;
  f.envelope.type = type;
  f.envelope.worker = static_cast<uint8_t>(shard_);
  f.envelope.listener = s.listener_;
  f.envelope.tid = s.tid_;
  f.envelope.id = next_fetch_++;
  f.fd = s.number_;
  f.cookie = s.cookie_;
  f.inode = s.inode_;
  return f;
}

void CallEngine::SendFetch(StandIn* s) {
  if (s->fetching_) return;
  s->fetching_ = true;
  ++stats_.fetches;
  const calls::Fetch f = MakeFetch(MessageType::kFetch, *s);
  fetches_[f.envelope.id] = s;
  Send({reinterpret_cast<const uint8_t*>(&f), sizeof f}, -1, UniqueFd());
}

void CallEngine::RequestRunAhead(StandIn* owner, int s) {
  const calls::Fetch f = MakeFetch(MessageType::kRunAhead, *owner);
  Send({reinterpret_cast<const uint8_t*>(&f), sizeof f}, s, UniqueFd());
}

void CallEngine::OnFetched(const calls::Fetched& f, UniqueFd fd) {
  auto it = fetches_.find(f.envelope.id);
  if (it == fetches_.end()) return;
  StandIn* s = it->second;
  fetches_.erase(it);
  s->fetching_ = false;
  s->OnFetched(std::move(fd), f.error == EAGAIN);
}

}  // namespace sluice
