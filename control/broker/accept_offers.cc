#include "control/broker/accept_offers.h"

#include <cstring>

#include "sentry/broker_channel.h"

namespace sluice {

// False where there is no more to read.
bool AcceptOffers::ReadNext() {
  if (channel_ < 0 || violation_ != Violation::kNone) return false;
  uint8_t room[sizeof(calls::Offer) + 1];
  const std::optional<calls::ReceivedMessage> received = calls::ReceiveMessage(channel_, room);
  if (!received || received->size == 0) return false;
  calls::Offer offer;
  std::memcpy(&offer, room, sizeof offer);
  if (received->size != sizeof offer || received->cut) {
    violation_ = Violation::kWrongLength;
  } else if (!received->fds.empty() || received->descriptor_lost) {
    violation_ = Violation::kDescriptor;
  } else if (offer.name_length > sizeof offer.name) {
    violation_ = Violation::kBadResult;
  } else if (count_ == calls::kMaxOffers) {
    violation_ = Violation::kTooManyOffers;
  } else {
    ++count_;
    waiting_[offer.listener].push_back(offer);
  }
  return violation_ == Violation::kNone;
}

std::optional<calls::Offer> AcceptOffers::Take(uint64_t listener) {
  auto it = waiting_.find(listener);
  while (it == waiting_.end()) {
    if (!ReadNext()) return std::nullopt;
    it = waiting_.find(listener);
  }
  const calls::Offer offer = it->second.front();
  it->second.pop_front();
  if (it->second.empty()) waiting_.erase(it);
  --count_;
  return offer;
}

void AcceptOffers::PutBack(const calls::Offer& offer) {
  ++count_;
  waiting_[offer.listener].push_front(offer);
}

void AcceptOffers::Withdraw(const calls::Withdrawal& which) {
  while (ReadNext()) continue;
  const auto it = waiting_.find(which.listener);
  if (it == waiting_.end()) return;
  count_ -= std::erase_if(it->second, [&](const calls::Offer& offer) { return offer.life == which.life; });
  if (it->second.empty()) waiting_.erase(it);
}

}  // namespace sluice
