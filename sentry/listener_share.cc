#include "sentry/listener_share.h"

#include <sys/socket.h>

#include <utility>

#include "sentry/call_hub.h"
#include "sentry/stream_stand_in.h"

namespace sluice {
namespace {

constexpr size_t kMaxOffered = 64;  // as of a stand-in; the rest waits in the stack's queue

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
  for (StreamStandIn* connection : offered_) connection->OnListenerClosed();
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
    StreamStandIn* connection = StreamStandIn::MakeQueued(
        engine_, {facts_.cookie, facts_.family, facts_.protocol, facts_.options}, accepted, std::move(room));
    if (connection == nullptr) return;
    Offer(connection);
  }
}

// The front offers it to the program, and says what becomes of it.
void ListenerShare::Offer(StreamStandIn* connection) {
  offered_.insert(connection);
  engine_.hub().Post(0, [offered = connection->MakeOffer()](CallEngine& front) { StreamStandIn::OfferFrom(front, offered); });
}

void ListenerShare::OnTaken(StreamStandIn* connection) {
  if (offered_.erase(connection) != 0) MarkDirty();  // room for another one
}

}  // namespace sluice
