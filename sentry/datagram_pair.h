// The two AF_UNIX datagram sockets behind a datagram stand-in: P for the program, S for the sentry. S is connected to P from the
// start; P to S only after the program's connect(), so that a send without an address fails before it.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <cstddef>
#include <cstdint>

#include "base/bytes.h"
#include "base/unique_fd.h"

namespace sluice {

struct DatagramPair {
  UniqueFd p, s;
  sockaddr_un s_name{}, p_name{};
  socklen_t name_length = 0;

  // False with errno. Names are 64 random bits each in the private namespace's abstract space.
  bool Make(uint64_t p_random, uint64_t s_random, bool nonblocking);
  // Connects P, in place, by a copy of it.
  bool ConnectEnd(int p_copy) const;
};

}  // namespace sluice
