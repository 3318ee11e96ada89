// The native queue of a listening stand-in (stream_listen.cc): what the broker takes from there for accepts, and the sentry where
// an earlier life of the listener left something.
#pragma once

#include "base/unique_fd.h"

namespace sluice {

// From here on an accept on `listener` waits for a tick of the clock at most: its SO_RCVTIMEO is left alone afterwards.
void BoundWaits(int listener);

// What is next; invalid, with errno, where there is nothing (EAGAIN) or where it cannot be had. Does not wait, after BoundWaits
// also where another accept is quicker. `flags`: SOCK_NONBLOCK or 0; it is close-on-exec.
UniqueFd TakeQueued(int listener, int flags);

}  // namespace sluice
