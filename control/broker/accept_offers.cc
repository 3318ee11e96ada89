#include "control/broker/accept_offers.h"

#include <cstring>
#include <span>

namespace sluice {

// False where there is no more to read, or the sentry broke the protocol.
bool AcceptOffers::ReadMore() {
  if (channel_ < 0 || violation_ != Violation::kNone) return false;
  const std::span<calls::ReceivedMessage> received = reader_.Receive(channel_);
  for (const calls::ReceivedMessage& message : received) {
    if (message.bytes.empty()) return false;
    violation_ = Enter(message);
    if (violation_ != Violation::kNone) return false;
  }
  return !received.empty();
}

Violation AcceptOffers::Enter(const calls::ReceivedMessage& message) {
  calls::Offer offer;
  if (message.bytes.size() != sizeof offer || message.cut) return Violation::kWrongLength;
  if (!message.fds.empty() || message.descriptor_lost) return Violation::kDescriptor;
  std::memcpy(&offer, message.bytes.data(), sizeof offer);
  if (offer.name_length > sizeof offer.name) return Violation::kBadResult;
  if (count_ == calls::kMaxOffers) return Violation::kTooManyOffers;
  ++count_;
  waiting_[offer.listener].push_back(offer);
  return Violation::kNone;
}

std::optional<calls::Offer> AcceptOffers::Take(uint64_t listener) {
  auto it = waiting_.find(listener);
  while (it == waiting_.end()) {
    if (!ReadMore()) return std::nullopt;
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
  while (ReadMore()) continue;
  const auto it = waiting_.find(which.listener);
  if (it == waiting_.end()) return;
  count_ -= std::erase_if(it->second, [&](const calls::Offer& offer) { return offer.life == which.life; });
  if (it->second.empty()) waiting_.erase(it);
}

}  // namespace sluice
