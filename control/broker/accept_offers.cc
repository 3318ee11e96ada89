#include "control/broker/accept_offers.h"

#include <cstring>
#include <utility>

#include "sentry/broker_channel.h"

namespace sluice {

// False where there is no more to read.
bool AcceptOffers::ReadNext() {
  if (channel_ < 0 || violation_ != Violation::kNone) return false;
  AcceptOffer offer;
  uint8_t room[sizeof offer.head + 1];
  std::optional<calls::ReceivedMessage> received = calls::ReceiveMessage(channel_, room);
  if (!received || received->size == 0) return false;
  if (received->size != sizeof offer.head || received->cut) {
    violation_ = Violation::kWrongLength;
  } else if (received->fds.size() > 1 || (received->fds.empty() && !received->descriptor_lost)) {
    violation_ = Violation::kDescriptor;
  } else if (count_ == calls::kMaxOffers) {
    violation_ = Violation::kTooManyOffers;
  }
  std::memcpy(&offer.head, room, sizeof offer.head);
  if (offer.head.name_length > sizeof offer.head.name) violation_ = Violation::kBadResult;
  if (violation_ != Violation::kNone) return false;
  if (!received->fds.empty()) offer.end = std::move(received->fds[0]);
  ++count_;
  waiting_[offer.head.listener].push_back(std::move(offer));
  return true;
}

std::optional<AcceptOffer> AcceptOffers::Take(uint64_t listener) {
  auto it = waiting_.find(listener);
  while (it == waiting_.end()) {
    if (!ReadNext()) return std::nullopt;
    it = waiting_.find(listener);
  }
  AcceptOffer offer = std::move(it->second.front());
  it->second.pop_front();
  if (it->second.empty()) waiting_.erase(it);
  --count_;
  return offer;
}

void AcceptOffers::PutBack(AcceptOffer offer) {
  ++count_;
  waiting_[offer.head.listener].push_front(std::move(offer));
}

void AcceptOffers::Withdraw(const calls::Withdrawal& which) {
  while (ReadNext()) continue;
  const auto it = waiting_.find(which.listener);
  if (it == waiting_.end()) return;
  count_ -= std::erase_if(it->second, [&](const AcceptOffer& offer) { return offer.head.life == which.life; });
  if (it->second.empty()) waiting_.erase(it);
}

}  // namespace sluice
