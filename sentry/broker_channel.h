// Messages on the channel between broker and sentry (broker_protocol.h), for both of its ends.
#pragma once

#include <array>
#include <memory>
#include <span>
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
  Bytes bytes;  // valid until the reader's next Receive; none: the other end is closed
  std::vector<UniqueFd> fds;
  bool cut = false;              // it was longer than any is
  bool descriptor_lost = false;  // more than four came with it, or no number was free
};

// Receives what waits in one system call: neither what is behind the first message costs another, nor that nothing is.
class MessageReader {
 public:
  static constexpr size_t kAtOnce = 8;

  // `longest` message, in bytes.
  explicit MessageReader(size_t longest);
  ~MessageReader();
  MessageReader(const MessageReader&) = delete;
  MessageReader& operator=(const MessageReader&) = delete;

  // In their order; less than kAtOnce where no more waits. Never waits.
  std::span<ReceivedMessage> Receive(int channel);

 private:
  struct Headers;

  const size_t longest_;
  std::unique_ptr<uint8_t[]> buffer_;
  std::unique_ptr<Headers> headers_;
  std::array<ReceivedMessage, kAtOnce> messages_;
  size_t count_ = 0;  // of these that were received last
};

}  // namespace sluice::calls
