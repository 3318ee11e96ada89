// Datagram sockets with several workers. Each belongs to one: where it is made one after the other, and where it is bound to a
// port the port's home (netstack/shard.h), so that all sockets of a port are in one stack. Frames that come by other queues are
// passed on by mail. Raw sockets stay with the first.
#include <sys/epoll.h>

#include "sentry/call_hub.h"
#include "sentry/datagram_stand_in.h"
#include "sentry/sockaddr.h"

namespace sluice {

// A socket without port, peer and datagrams between two workers, with the call that moves it.
struct DatagramStandIn::Moved {
  int family, type, protocol;
  std::shared_ptr<const DatagramSettings> settings;
  StandInOptions options;
  SocketCount count;
  uint64_t cookie, inode;
  uint32_t option_slot, tid;
  int number;
  uint16_t listener;
  DatagramPair ends;
  std::list<std::unique_ptr<HeldCall>> held;
  std::shared_ptr<CarriedCall> call;
};

// Later calls come behind it: the front learns of the new place when the socket is on its way there.
void DatagramStandIn::MoveTo(uint32_t shard, UniqueFd p, std::shared_ptr<CarriedCall> call) {
  engine_.worker().RemoveFd(ends_.s.get());
  ends_.p = std::move(p);
  auto moved = std::make_shared<Moved>(Moved{.family = family_,
                                             .type = type_,
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
                                             .ends = std::move(ends_),
                                             .held = std::move(held_),
                                             .call = std::move(call)});
  held_.clear();
  GiveAway(shard);
  engine_.Destroy(this);
  engine_.hub().Post(shard, [moved](CallEngine& there) { Arrive(there, *moved); });
  engine_.AnnounceMoved(moved->cookie, moved->family, shard);
}

void DatagramStandIn::Arrive(CallEngine& engine, Moved& m) {
  if (engine.front()) engine.ForgetRoute(m.cookie);
  Errno error = Errno::kOk;
  DatagramSocket* socket = MakeSocket(engine, m.family, m.type, m.protocol, 0, &error);
  DatagramStandIn* d = nullptr;
  // Open until the call is done: its close may be the last one, which would end the object.
  const UniqueFd p = std::move(m.ends.p);
  if (socket != nullptr) {
    auto made = std::make_unique<DatagramStandIn>(engine, m.family, m.type, m.protocol, socket);
    d = made.get();
    engine.Own(std::move(made), std::move(m.count));
    socket->TakeSettings(*m.settings);
    d->options_ = m.options;
    d->NoteHolder(m.tid, m.number, m.listener);
    d->ends_ = std::move(m.ends);
    if (engine.worker().AddFd(d->ends_.s.get(), EPOLLIN | EPOLLOUT | EPOLLET, d) != Errno::kOk ||
        !d->AdoptMoved(p.get(), m.cookie, m.inode, m.option_slot)) {
      engine.Destroy(d);
      d = nullptr;
    }
  }
  if (d != nullptr) d->TakeHeld(std::move(m.held));
  if (m.call == nullptr) return;
  // What the program closed before it binds is closed.
  engine.OnCloses();
  if (d == nullptr) return (void)engine.Answer(m.call->call.envelope(), Errno::kENOBUFS);
  d->OnCall(m.call->call, m.call->storage);
}

// True where the call goes on in another worker. A socket that had a peer before stays: it may have datagrams on their way, and
// gets the port if nobody else has it.
bool DatagramStandIn::MoveToBind(IncomingCall& call, Bytes message) {
  if (engine_.alone() || type_ == SOCK_RAW || !call.fd || end_connected_) return false;
  Endpoint local;
  if (socket_->local().port != 0 || socket_->remote() || ParseSockaddr(call.parts[0].name, family_, true, &local) != Errno::kOk ||
      local.port == 0)
    return false;
  const uint32_t home = engine_.hub().PortHome(local.port);
  if (home == engine_.shard()) return false;
  UniqueFd p = std::move(call.fd);
  MoveTo(home, std::move(p), std::make_shared<CarriedCall>(call, message));
  return true;
}

}  // namespace sluice
