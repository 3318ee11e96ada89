// What comes from the sentry over the calls channel, taken apart and judged as far as that goes without the call it is about. The
// sentry may be hostile: whatever breaks the protocol has a name, and ends the sandbox.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/bytes.h"
#include "control/broker/call_writer.h"
#include "sentry/broker_protocol.h"

namespace sluice {

enum class Violation : uint8_t {
  kNone,
  kShortMessage,   // shorter than an envelope
  kLongMessage,    // longer than any message is
  kUnknownType,    // or one that only the broker sends
  kWrongLength,    // of its type
  kBadResult,      // a table that does not fit into the message
  kDescriptor,     // attached where none belongs, or more than one
  kMisfit,         // a result that does not fit its call
  kForeignChange,  // a change of the namespace on behalf of a call that cannot ask for one
  kTooManyOffers,  // more connections to accept than a sandbox has sockets
};

// In words, for the line that says why the sandbox was ended.
const char* ToText(Violation violation);

// One message; `result` points into its bytes.
struct SentryMessage {
  calls::MessageType type{};
  ResultView result;               // kResult
  calls::Fetch fetch;              // kFetch, kRunAhead, kOffered
  calls::NetChangeRequest change;  // kNetChange
  calls::Withdrawal withdrawal;    // kWithdraw
};

// `message` lies at an address divisible by 8; `descriptors` is how many came with it.
Violation ParseSentryMessage(Bytes message, size_t descriptors, SentryMessage* out);

}  // namespace sluice
