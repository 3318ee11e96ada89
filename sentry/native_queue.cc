#include "sentry/native_queue.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <cerrno>

namespace sluice {

void BoundWaits(int listener) {
  const timeval soon{0, 1};
  setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon);
}

UniqueFd TakeQueued(int listener, int flags) {
  pollfd polled{listener, POLLIN, 0};
  if (poll(&polled, 1, 0) != 1) {  // the receive timeout takes a tick of the clock
    errno = EAGAIN;
    return UniqueFd();
  }
  return UniqueFd(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | flags));
}

}  // namespace sluice
