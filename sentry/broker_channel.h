// One message on the channel between broker and sentry (broker_protocol.h), for both of its ends.
#pragma once

#include <optional>
#include <vector>

#include "base/bytes.h"
#include "base/unique_fd.h"

namespace sluice::calls {

enum class SendOutcome : uint8_t {
  kSent,
  kFull,  // no room now: to be tried again when the channel is writable
  kGone,  // the other end is closed
};

// Sends a message with a descriptor (-1: none), which stays the caller's. Never waits.
SendOutcome SendMessage(int channel, Bytes message, int fd);

struct ReceivedMessage {
  size_t size = 0;  // of what lies in the buffer; 0: the other end is closed
  std::vector<UniqueFd> fds;
  bool cut = false;              // it was longer than the buffer
  bool descriptor_lost = false;  // more than four came with it, or no number was free
};

// The next message, into `buffer`; nothing where none waits. Never waits.
std::optional<ReceivedMessage> ReceiveMessage(int channel, MutableBytes buffer);

}  // namespace sluice::calls
