// The process behind PortForward: takes connections from the guard and joins each to one of our loopback.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdint>
#include <memory>

#include "base/unique_fd.h"
#include "control/oci/relay_process.h"

namespace sluice::oci {

// A record on the channel, with the connection's descriptor.
struct ForwardedConnection {
  int32_t family = 0;
  uint16_t port = 0;
};

// 127.0.0.1 or ::1.
class LoopbackAddress {
 public:
  LoopbackAddress(int family, uint16_t port) {
    if (family == AF_INET) {
      v4_.sin_family = AF_INET;
      v4_.sin_port = htons(port);
      v4_.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    } else {
      v6_.sin6_family = AF_INET6;
      v6_.sin6_port = htons(port);
      v6_.sin6_addr = in6addr_loopback;
    }
  }
  const sockaddr* get() const {
    return reinterpret_cast<const sockaddr*>(v4_.sin_family == AF_INET ? static_cast<const void*>(&v4_) : &v6_);
  }
  socklen_t size() const { return v4_.sin_family == AF_INET ? sizeof v4_ : sizeof v6_; }

 private:
  sockaddr_in v4_{};
  sockaddr_in6 v6_{};
};

std::unique_ptr<RelayBody> MakePortForwardRelay(UniqueFd channel);

}  // namespace sluice::oci
