// The filter programs that ss attaches to a socket dump (INET_DIAG_REQ_BYTECODE, linux/inet_diag.h).
#pragma once

#include "netstack/stack.h"
#include "sentry/netlink/message.h"

namespace sluice::netlink {

class DiagFilter {
 public:
  // Checks that every jump lands on an instruction behind it, so that running always ends. False: refuse the request.
  bool Load(Bytes code);
  bool Accepts(const SocketInfo& socket) const;

 private:
  Buffer code_;
};

}  // namespace sluice::netlink
