// Writes the sentry's results to where the pending call wants them, and nowhere else. What the sentry says is bounded by the
// call.
#pragma once

#include <sys/types.h>

#include "control/broker/call_reader.h"

namespace sluice {

// A parsed calls::Result: `parts` and `bytes` point into the message. The bytes of name, control and data follow part by part.
struct ResultView {
  const calls::Result* header = nullptr;
  const calls::PartResult* parts = nullptr;
  Bytes bytes;
};

// False where the message is not well formed.
bool ParseResult(Bytes message, ResultView* out);

// 0, or EFAULT / EINVAL as the program is to be told; `written` counts the messages of a vector that were written whole. EPROTO
// where the result does not fit the call (a bug, or a sentry that was taken over): nothing was written then.
int WriteResult(const PendingCall& pending, const ResultView& result, CallerMemory& memory, uint32_t* written);

// accept's: the peer's address, to where the call wants it. 0, EFAULT or EINVAL.
int WritePeerName(const PendingCall& accept, Bytes name, CallerMemory& memory);

}  // namespace sluice
