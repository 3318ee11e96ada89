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

void CallEngine::OnAccepted(const calls::Accepted& a, UniqueFd end) {
  if (StandIn* listener = Find(a.listener)) listener->OnOfferTaken(a, std::move(end));
  if (a.again != 0) return;
  const auto route = routes_.find(a.connection);
  TellConnection({a.connection, route == routes_.end() ? shard_ : route->second.shard}, [a](StandIn& s) { s.OnAccepted(a); });
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
