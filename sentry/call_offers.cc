// Connections that are offered to accepts (broker_protocol.h), and what becomes of them.
#include <utility>
#include <vector>

#include "sentry/broker_channel.h"
#include "sentry/call_engine.h"

namespace sluice {

using calls::MessageType;

bool CallEngine::SendOffer(const calls::Offer& offer) {
  return calls::SendMessage(options_.offers_fd, {reinterpret_cast<const uint8_t*>(&offer), sizeof offer}, -1) !=
         calls::SendOutcome::kFull;
}

void CallEngine::TellOffered(const StandIn& listener) {
  const calls::Fetch f = MakeFetch(MessageType::kOffered, listener);
  Send({reinterpret_cast<const uint8_t*>(&f), sizeof f}, -1, UniqueFd());
}

// Behind what was handed over to that engine before, and ahead of the connection's own calls.
void CallEngine::TellConnection(const OfferedConnection& c, std::function<void(StandIn&)> what) {
  if (c.shard != shard_) {
    return hub_.Post(c.shard, [cookie = c.cookie, what = std::move(what)](CallEngine& other) {
      if (StandIn* s = other.Find(cookie)) what(*s);
    });
  }
  if (StandIn* s = Find(c.cookie)) what(*s);
}

// From the cookie of its program's end on a connection has that for its name.
uint32_t CallEngine::RenameRoute(uint64_t connection, uint64_t cookie) {
  const auto it = routes_.find(connection);
  if (it == routes_.end()) return shard_;
  const Route route = it->second;
  if (cookie != 0) {
    routes_.erase(it);
    routes_[cookie] = route;
  }
  return route.shard;
}

void CallEngine::OnAccepted(const calls::Accepted& a, UniqueFd end) {
  if (StandIn* listener = Find(a.listener)) listener->OnOfferTaken(a, std::move(end));
  if (a.again != 0) return;
  TellConnection({a.connection, RenameRoute(a.connection, a.cookie)}, [a](StandIn& s) { s.OnAccepted(a); });
}

void CallEngine::Withdraw(uint64_t listener, uint64_t life, std::vector<OfferedConnection> connections) {
  calls::Withdrawal w;
  w.envelope.type = MessageType::kWithdraw;
  w.listener = listener;
  w.life = life;
  withdrawn_[life] = std::move(connections);
  Send({reinterpret_cast<const uint8_t*>(&w), sizeof w}, -1, UniqueFd());
}

void CallEngine::OnWithdrawn(const calls::Withdrawal& w) {
  const auto it = withdrawn_.find(w.life);
  if (it == withdrawn_.end()) return;
  const std::vector<OfferedConnection> connections = std::move(it->second);
  withdrawn_.erase(it);
  for (const OfferedConnection& c : connections) TellConnection(c, [](StandIn& s) { s.OnWithdrawn(); });
}

}  // namespace sluice
