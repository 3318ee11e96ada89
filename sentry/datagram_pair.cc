#include "sentry/datagram_pair.h"

#include <string.h>

namespace sluice {
namespace {

socklen_t Name(uint64_t random, sockaddr_un* out) {
  out->sun_family = AF_UNIX;
  out->sun_path[0] = 0;
  memcpy(out->sun_path + 1, &random, sizeof random);
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + sizeof random);
}

}  // namespace

bool DatagramPair::Make(uint64_t p_random, uint64_t s_random, bool nonblocking) {
  p = UniqueFd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | (nonblocking ? SOCK_NONBLOCK : 0), 0));
  s = UniqueFd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!p || !s) return false;
  name_length = Name(p_random, &p_name);
  Name(s_random, &s_name);
  // The time stamp is the tag by which a datagram read from P is recognised: reads of the program's own may have come in between.
  int on = 1;
  return ::bind(p.get(), reinterpret_cast<sockaddr*>(&p_name), name_length) == 0 &&
         ::bind(s.get(), reinterpret_cast<sockaddr*>(&s_name), name_length) == 0 &&
         ::connect(s.get(), reinterpret_cast<sockaddr*>(&p_name), name_length) == 0 &&
         setsockopt(p.get(), SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on) == 0;
}

bool DatagramPair::ConnectEnd(int p_copy) const {
  return ::connect(p_copy, reinterpret_cast<const sockaddr*>(&s_name), name_length) == 0;
}

}  // namespace sluice
