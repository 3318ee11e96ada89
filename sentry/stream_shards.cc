// TCP sockets with several workers. A fresh, bound or listening one is the front's, an active open goes to one worker after the
// other, a connection that was accepted stays where it came in, and the front connects its S to the listener. A bound or
// listening socket has a share (listener_share.h) in every other stack: so the rules of sharing a port hold for what any of them
// has, and each takes the connections it is home to.
#include <sys/socket.h>

#include <atomic>
#include <optional>

#include "sentry/call_hub.h"
#include "sentry/listener_share.h"
#include "sentry/sockaddr.h"
#include "sentry/stream_stand_in.h"

namespace sluice {

// A fresh socket between two workers, with the call that moves it, or what its callers are to hear when it has arrived.
struct StreamStandIn::Moved {
  int family, protocol;
  std::shared_ptr<const StreamSettings> settings;
  StandInOptions options;
  SocketCount count;
  uint64_t cookie, inode;
  uint32_t option_slot, tid;
  int number;
  uint16_t listener;
  std::optional<Endpoint> bound;  // by the program
  UniqueFd p;
  std::shared_ptr<CarriedCall> call;
  std::vector<std::pair<calls::Envelope, Errno>> answers;
};

// Calls of other threads come behind it: handed over by the front, or back to it.
void StreamStandIn::MoveTo(uint32_t shard, UniqueFd p, std::shared_ptr<CarriedCall> call,
                           std::vector<std::pair<calls::Envelope, Errno>> answers) {
  auto moved = std::make_shared<Moved>(Moved{.family = family_,
                                             .protocol = protocol_,
                                             .settings = socket_->Settings(),
                                             .options = options_,
                                             .count = std::move(count_),
                                             .cookie = cookie_,
                                             .inode = inode_,
                                             .option_slot = option_slot_,
                                             .tid = tid_,
                                             .number = number_,
                                             .listener = listener_,
                                             .bound = bound_,
                                             .p = std::move(p),
                                             .call = std::move(call),
                                             .answers = std::move(answers)});
  if (engine_.front()) engine_.SetRoute(cookie_, shard, family_);
  GiveAway(shard);
  engine_.Destroy(this);
  engine_.hub().Post(shard, [moved](CallEngine& there) { Arrive(there, *moved); });
}

void StreamStandIn::Arrive(CallEngine& engine, Moved& m) {
  if (engine.front()) engine.ForgetRoute(m.cookie);
  StreamSocket* socket = engine.stack().NewTcpSocket(m.family == AF_INET ? Family::kIpv4 : Family::kIpv6);
  StreamStandIn* s = nullptr;
  if (socket != nullptr) {
    socket->TakeSettings(*m.settings);
    auto made = std::make_unique<StreamStandIn>(engine, m.family, m.protocol, socket);
    s = made.get();
    s->options_ = m.options;
    s->bound_ = m.bound;
    engine.Own(std::move(made), std::move(m.count));
    s->NoteHolder(m.tid, m.number, m.listener);
    if (!s->AdoptMoved(m.p.get(), m.cookie, m.inode, m.option_slot)) {
      engine.Destroy(s);
      s = nullptr;
    }
  }
  // What the program closed before this call is closed.
  if (m.call != nullptr) engine.OnCloses();
  if (s != nullptr && m.bound) {
    const Errno error = s->BindSocket(*m.bound);
    if (error != Errno::kOk) s->bound_.reset();
    // Somebody took the port meanwhile, or the address is gone: the program hears of it.
    if (error != Errno::kOk && m.call != nullptr && s->MoveBack(m.p, {{m.call->call.envelope(), error}})) return;
  }
  for (const auto& [to, error] : m.answers) engine.Answer(to, error);
  if (m.call == nullptr) return;
  if (s == nullptr) return (void)engine.Answer(m.call->call.envelope(), Errno::kENOBUFS);
  m.call->call.fd = std::move(m.p);
  s->OnCall(m.call->call, m.call->storage);
}

// True where the call goes on in another worker: where it has no port yet one after the other, as the port will be chosen so that
// the flow is at home there; otherwise the home of its flow.
bool StreamStandIn::MoveToConnect(IncomingCall& call, Bytes message) {
  if (!engine_.front() || state_ != State::kFresh || !call.fd) return false;
  const Endpoint local = socket_->local();
  Endpoint remote;
  if (ParseSockaddr(call.parts[0].name, family_, false, &remote) != Errno::kOk) return false;
  const uint32_t shard = local.port == 0 ? engine_.hub().NextWorker() : socket_->HomeOfConnect(remote).value_or(0);
  if (shard == engine_.shard() || !ShareWith(shard, local)) return false;
  Unshare();
  if (local.port != 0 || !local.address.IsAny()) bound_ = local;
  UniqueFd p = std::move(call.fd);
  MoveTo(shard, std::move(p), std::make_shared<CarriedCall>(call, message), {});
  return true;
}

// Whether the other stack has its port, too, or lets it have it: a port that bind() chose here is in no other yet.
bool StreamStandIn::ShareWith(uint32_t shard, const Endpoint& local) {
  if (local.port == 0 || shared_as_ != 0) return true;
  shared_as_ = cookie_;
  const ListenerFacts facts{cookie_, family_, protocol_, options_, container(), socket_->Settings()};
  Errno error = Errno::kOk;
  engine_.hub().Ask(shard, [&](CallEngine& other) {
    error = other.AddShare(facts.cookie, std::make_unique<ListenerShare>(other, facts), local);
  });
  if (error != Errno::kOk) shared_as_ = 0;
  return error == Errno::kOk;
}

// A socket that is fresh again is the front's, before its program hears of it and binds it. False where it is there.
bool StreamStandIn::MoveBack(UniqueFd& p, std::vector<std::pair<calls::Envelope, Errno>> answers) {
  if (engine_.front() || !p) return false;
  MoveTo(0, std::move(p), nullptr, std::move(answers));
  return true;
}

bool StreamStandIn::MoveBackWithHeld(Errno error) {
  if (engine_.front()) return false;
  UniqueFd p;
  std::vector<std::pair<calls::Envelope, Errno>> answers;
  for (const auto& h : held_) {
    if (h->call.head.kind != calls::CallKind::kConnect) continue;
    answers.emplace_back(h->call.envelope(), error);
    if (h->call.fd) p = std::move(h->call.fd);
  }
  if (!MoveBack(p, std::move(answers))) return false;
  for (const auto& h : held_) {
    if (h->call.head.kind != calls::CallKind::kConnect) engine_.Answer(h->call.envelope(), Errno::kENOTCONN);
  }
  held_.clear();
  return true;
}

// -- shares

Errno StreamStandIn::BindSocket(const Endpoint& local) {
  const bool fresh = state_ == State::kFresh && socket_->local().port == 0;
  if (engine_.alone() || !engine_.front() || !fresh) return socket_->Bind(local);
  if (local.port == 0) return BindToAnyPort(local);
  Errno error = Share(local);
  if (error == Errno::kOk) error = socket_->Bind(local);
  if (error != Errno::kOk) Unshare();
  return error;
}

// A port that this stack has free may be in use in another: connections that chose theirs tell nobody.
Errno StreamStandIn::BindToAnyPort(const Endpoint& local) {
  constexpr int kTries = 256;
  for (int i = 0; i < kTries; ++i) {
    Errno error = socket_->Bind(local);
    if (error != Errno::kOk || socket_->local().port == 0) return error;  // none yet: IP_BIND_ADDRESS_NO_PORT
    error = Share(socket_->local());
    if (error == Errno::kOk) return error;
    Unshare();
    (void)ToInt(socket_->Disconnect());
  }
  return Errno::kEADDRINUSE;
}

Errno StreamStandIn::Share(const Endpoint& local) {
  shared_as_ = cookie_;
  const ListenerFacts facts{cookie_, family_, protocol_, options_, container(), socket_->Settings()};
  std::atomic<Errno> error{Errno::kOk};
  engine_.hub().AskOthers(engine_, [&](CallEngine& other) {
    const Errno e = other.AddShare(facts.cookie, std::make_unique<ListenerShare>(other, facts), local);
    if (e != Errno::kOk) error.store(e);
  });
  return error;
}

void StreamStandIn::Unshare() {
  if (shared_as_ == 0) return;
  engine_.hub().PostToOthers([listener = shared_as_](CallEngine& other) { other.RemoveShare(listener); });
  shared_as_ = 0;
}

// Behind the socket's own listen, which has chosen a port where it had none.
Errno StreamStandIn::ListenElsewhere(int backlog) {
  Errno failed = Errno::kOk;
  if (shared_as_ == 0) failed = Share(socket_->local());
  std::atomic<Errno> error{failed};
  if (failed == Errno::kOk) {
    engine_.hub().AskOthers(engine_, [&, listener = shared_as_](CallEngine& other) {
      const Errno e = other.FindShare(listener)->Listen(backlog);
      if (e != Errno::kOk) error.store(e);
    });
  }
  if (error != Errno::kOk && state_ != State::kListening) {
    Unshare();
    (void)ToInt(socket_->Shutdown(true, false));
  }
  return error;
}

void StreamStandIn::OnSettings() {
  if (shared_as_ == 0) return;
  engine_.hub().PostToOthers(
      [facts = ListenerFacts{shared_as_, family_, protocol_, options_, container(), socket_->Settings()}](CallEngine& other) {
        if (ListenerShare* share = other.FindShare(facts.cookie)) share->TakeSettings(facts);
      });
}

// The front: a connection that the share of a listener has taken in another worker.
void StreamStandIn::OfferFrom(CallEngine& front, const Offered& connection) {
  auto* listener = static_cast<StreamStandIn*>(front.Find(connection.offer.listener));
  if (listener == nullptr || listener->state_ != State::kListening) {  // it closed meanwhile
    return DropConnection(front, connection);
  }
  front.SetRoute(connection.offer.connection, connection.shard, listener->family_);
  listener->Offer(connection);
  listener->SendOffers();
}

}  // namespace sluice
