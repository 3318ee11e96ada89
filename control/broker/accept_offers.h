// Connections that the sentry offers to accepts of the program before they are called (calls::Offer). They are read when an
// accept asks for one, and wait here by listener.
//
// One thread, the one that answers calls. Holds kMaxOffers at most.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <unordered_map>

#include "control/broker/sentry_message.h"
#include "sentry/broker_channel.h"
#include "sentry/broker_protocol.h"

namespace sluice {

class AcceptOffers {
 public:
  // `channel` stays the caller's; -1: there are no offers.
  explicit AcceptOffers(int channel) : channel_(channel) {}

  // The first one for `listener`; nothing where there is none, or the sentry broke the protocol.
  std::optional<calls::Offer> Take(uint64_t listener);
  // What Take gave, before all others.
  void PutBack(const calls::Offer& offer);
  // Gives up those of one life of a listener.
  void Withdraw(const calls::Withdrawal& which);

  // What the sentry did wrong so far.
  Violation violation() const { return violation_; }

 private:
  bool ReadMore();
  Violation Enter(const calls::ReceivedMessage& message);

  int channel_;
  calls::MessageReader reader_{sizeof(calls::Offer) + 1};
  size_t count_ = 0;
  Violation violation_ = Violation::kNone;
  std::unordered_map<uint64_t, std::deque<calls::Offer>> waiting_;  // by listener; none is empty
};

}  // namespace sluice
