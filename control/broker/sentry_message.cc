#include "control/broker/sentry_message.h"

#include <cstring>

namespace sluice {
namespace {

using calls::MessageType;

template <typename T>
Violation Copy(Bytes message, T* out) {
  if (message.size() != sizeof *out) return Violation::kWrongLength;
  std::memcpy(out, message.data(), sizeof *out);
  return Violation::kNone;
}

}  // namespace

const char* ToText(Violation violation) {
  switch (violation) {
    case Violation::kNone:
      return "nothing";
    case Violation::kShortMessage:
      return "a message shorter than its envelope";
    case Violation::kLongMessage:
      return "a message longer than any is";
    case Violation::kUnknownType:
      return "a message of a type that it does not send";
    case Violation::kWrongLength:
      return "a message whose length is not its type's";
    case Violation::kBadResult:
      return "a result that does not hold what it announces";
    case Violation::kDescriptor:
      return "descriptors where none belong";
    case Violation::kMisfit:
      return "a result that does not fit the call it answers";
    case Violation::kForeignChange:
      return "a change of the namespace for a call that cannot ask for one";
    case Violation::kTooManyOffers:
      return "more connections to accept than there can be";
  }
  return "something unknown";
}

Violation ParseSentryMessage(Bytes message, size_t descriptors, SentryMessage* out) {
  if (message.size() < sizeof(calls::Envelope)) return Violation::kShortMessage;
  if (message.size() > calls::kMaxMessage) return Violation::kLongMessage;
  out->type = static_cast<MessageType>(message[0]);
  const bool may_have_one = out->type == MessageType::kNetChange || out->type == MessageType::kRunAhead;
  if (descriptors > (may_have_one ? 1u : 0u)) return Violation::kDescriptor;
  switch (out->type) {
    case MessageType::kResult:
      return ParseResult(message, &out->result) ? Violation::kNone : Violation::kBadResult;
    case MessageType::kFetch:
    case MessageType::kRunAhead:
    case MessageType::kOffered:
      return Copy(message, &out->fetch);
    case MessageType::kWithdraw:
      return Copy(message, &out->withdrawal);
    case MessageType::kNetChange:
      return Copy(message, &out->change);
    default:
      return Violation::kUnknownType;
  }
}

}  // namespace sluice
