#include "sentry/listener_share.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <utility>

#include "sentry/call_hub.h"
#include "sentry/stream_stand_in.h"

namespace sluice {
namespace {

constexpr size_t kMaxOffered = 4000;  // as the tokens of a stand-in; the rest waits in the stack's queue

}  // namespace

ListenerShare::ListenerShare(CallEngine& engine, ListenerFacts facts)
    : engine_(engine),
      facts_(std::move(facts)),
      socket_(engine.stack().NewTcpSocket(facts_.family == AF_INET ? Family::kIpv4 : Family::kIpv6)) {
  if (socket_ == nullptr) return;
  socket_->set_observer(this);
  socket_->TakeSettings(*facts_.settings);
}

ListenerShare::~ListenerShare() {
  engine_.ForgetShare(this);
  for (const auto& [number, connection] : std::exchange(offered_, {})) {
    connection->share_number_ = 0;
    connection->CloseByProgram(true);
  }
  if (socket_ == nullptr) return;
  socket_->set_observer(nullptr);
  socket_->Close();
}

Errno ListenerShare::Bind(const Endpoint& local) { return socket_ == nullptr ? Errno::kENOBUFS : socket_->Bind(local); }
Errno ListenerShare::Listen(int backlog) { return socket_->Listen(backlog); }

void ListenerShare::TakeSettings(const ListenerFacts& facts) {
  facts_.options = facts.options;
  socket_->TakeSettings(*facts.settings);
}

void ListenerShare::MarkDirty() {
  if (std::exchange(dirty_, true)) return;
  engine_.MarkDirty(this);
}

void ListenerShare::TakeConnections() {
  dirty_ = false;
  while (offered_.size() < kMaxOffered && (socket_->events() & kReadable) != 0) {
    SocketCount room = engine_.RoomForConnection(facts_.container, this);
    if (!room) return;
    StreamSocket* accepted = socket_->Accept();
    if (accepted == nullptr) return;
    UniqueFd end;
    StreamStandIn* connection = Make(accepted, std::move(room), &end);
    if (connection == nullptr) return;
    Offer(connection, std::move(end));
  }
}

// Null where there are no descriptors: the peer hears a reset rather than nothing.
StreamStandIn* ListenerShare::Make(StreamSocket* accepted, SocketCount room, UniqueFd* end) {
  auto made = std::make_unique<StreamStandIn>(engine_, facts_.family, facts_.protocol, accepted);
  StreamStandIn* s = made.get();
  s->state_ = StreamStandIn::State::kQueued;
  s->connect_reported_ = true;
  s->options_ = facts_.options;
  s->listener_cookie_ = facts_.cookie;
  engine_.Own(std::move(made), std::move(room));
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    engine_.Destroy(s);
    return nullptr;
  }
  s->s_ = UniqueFd(ends[0]);
  s->PrepareEnd();
  end->reset(ends[1]);
  (void)ToInt(engine_.worker().AddFd(s->s_.get(), EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET, s));
  s->s_readable_ = s->s_writable_ = true;
  s->MarkDirty();
  return s;
}

void ListenerShare::Offer(StreamStandIn* connection, UniqueFd end) {
  const uint64_t number = engine_.NextNumber();
  connection->share_number_ = number;
  offered_[number] = connection;
  engine_.hub().Post(0, [listener = facts_.cookie, shard = engine_.shard(), number,
                         kept = std::make_shared<UniqueFd>(std::move(end))](CallEngine& front) {
    auto* s = static_cast<StreamStandIn*>(front.Find(listener));
    // Where it is gone, so will the share be in a moment, with what it offers.
    if (s != nullptr) s->OfferFrom(shard, number, std::move(*kept));
  });
}

void ListenerShare::Accept(const AcceptCall& accept, uint64_t number, UniqueFd end) {
  const auto it = offered_.find(number);
  if (it == offered_.end() || it->second->dead_) return (void)engine_.Answer(accept.to, Errno::kECONNABORTED);
  StreamStandIn* connection = it->second;
  offered_.erase(it);
  connection->share_number_ = 0;
  MarkDirty();  // room for another one
  connection->BeAccepted(accept, std::move(end));
}

void ListenerShare::Refuse(uint64_t number) {
  const auto it = offered_.find(number);
  if (it == offered_.end()) return;
  StreamStandIn* connection = it->second;
  offered_.erase(it);
  connection->share_number_ = 0;
  connection->CloseByProgram(true);
}

}  // namespace sluice
