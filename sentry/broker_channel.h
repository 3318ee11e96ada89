// One message on the channel between broker and sentry (broker_protocol.h), for both of its ends.
#pragma once

#include "base/bytes.h"

namespace sluice::calls {

enum class SendOutcome : uint8_t {
  kSent,
  kFull,  // no room now: to be tried again when the channel is writable
  kGone,  // the other end is closed
};

// Sends a message with a descriptor (-1: none), which stays the caller's. Never waits.
SendOutcome SendMessage(int channel, Bytes message, int fd);

}  // namespace sluice::calls
