// Control messages (ancillary data) of datagram sockets, as the system calls have them. man 3 cmsg, man 7 ip, ipv6, udp.
#pragma once

#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "base/errno.h"
#include "netstack/socket/socket.h"

namespace sluice {

// What sendmsg was given. EINVAL where it is malformed or of an unknown kind, as Linux.
Errno ParseSendControl(int family, Bytes control, DatagramSend* how);

// Collects control messages up to the capacity the program gave.
class ControlBuilder {
 public:
  explicit ControlBuilder(size_t capacity) : capacity_(capacity) {}
  // Cut where it does not fit (MSG_CTRUNC), as put_cmsg does.
  void Add(int level, int type, const void* data, size_t size);
  template <typename T>
  void Add(int level, int type, const T& value) {
    Add(level, type, &value, sizeof value);
  }
  const std::vector<uint8_t>& bytes() const { return bytes_; }
  bool truncated() const { return truncated_; }

 private:
  size_t capacity_;
  std::vector<uint8_t> bytes_;
  bool truncated_ = false;
};

// What the socket's options ask for with a received datagram.
void AddReceiveControl(const DatagramSocket& socket, int family, const DatagramMeta& meta, ControlBuilder* out);
// IP_RECVERR / IPV6_RECVERR.
void AddErrorControl(int family, const SocketError& error, ControlBuilder* out);

}  // namespace sluice
