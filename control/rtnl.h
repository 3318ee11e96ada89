// A small netlink client on libnl: requests of the control plane (make a veth, list links, dump tables) and the parsing of the
// kernel's messages. Everything that is parsed is bounded by the message it lies in. man 7 netlink, man 7 rtnetlink.
#pragma once

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netlink/attr.h>
#include <netlink/msg.h>
#include <netlink/socket.h>

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/unique_fd.h"
#include "control/status.h"

namespace sluice {

// The attributes of one message by type; the last of a kind wins, as in the kernel. Points into the message.
class Attributes {
 public:
  Attributes() = default;
  explicit Attributes(Bytes bytes) { Parse(bytes); }
  void Parse(Bytes bytes);
  bool has(int type) const { return static_cast<size_t>(type) < at_.size() && at_[static_cast<size_t>(type)] != nullptr; }
  Bytes get(int type) const;
  // The value where it has the size asked for, else `otherwise`.
  uint8_t u8(int type, uint8_t otherwise = 0) const;
  uint32_t u32(int type, uint32_t otherwise = 0) const;
  std::string str(int type) const;

 private:
  std::array<nlattr*, 80> at_{};
};

// The fixed header of type T of a message, and the attributes behind it. False where the message is too short.
template <typename T>
bool ParseMessage(const nlmsghdr* message, T* header, Attributes* attributes) {
  if (!nlmsg_valid_hdr(message, sizeof(T))) return false;
  __builtin_memcpy(header, nlmsg_data(message), sizeof(T));
  attributes->Parse(Bytes(reinterpret_cast<const uint8_t*>(nlmsg_attrdata(message, sizeof(T))),
                          static_cast<size_t>(nlmsg_attrlen(message, sizeof(T)))));
  return true;
}

// Builds one message of at most 32 KiB; what does not fit is a bug of the caller and ends the process.
class NetlinkMessage {
 public:
  NetlinkMessage(uint16_t type, uint16_t flags);
  template <typename T>
  NetlinkMessage& Header(const T& header) {
    return Raw(&header, sizeof header);
  }
  NetlinkMessage& Attr(uint16_t type, Bytes value);
  NetlinkMessage& Attr(uint16_t type, uint32_t value) {
    return Attr(type, Bytes(reinterpret_cast<uint8_t*>(&value), sizeof value));
  }
  NetlinkMessage& Attr8(uint16_t type, uint8_t value) { return Attr(type, Bytes(&value, 1)); }
  NetlinkMessage& Attr(uint16_t type, std::string_view text);  // with the terminating zero
  nlattr* Begin(uint16_t type);                                // nested attribute
  void End(nlattr* begun) { nla_nest_end(message_.get(), begun); }
  NetlinkMessage& Raw(const void* data, size_t size);  // padded to 4
  void* Reserve(size_t size);                          // zeroed room, padded to 4; stays where it is
  nlmsghdr* header() { return nlmsg_hdr(message_.get()); }
  nl_msg* get() { return message_.get(); }

 private:
  struct Free {
    void operator()(nl_msg* message) const { nlmsg_free(message); }
  };
  std::unique_ptr<nl_msg, Free> message_;
};

// A netlink socket in the namespace that the thread was in when it was made, used by one thread.
class NetlinkClient {
 public:
  // `groups`: RTNLGRP_* numbers to join. The descriptor of a client may be passed to another process and adopted there.
  static Status Open(const std::vector<int>& groups, UniqueFd* out, int protocol = NETLINK_ROUTE);
  explicit NetlinkClient(UniqueFd fd);

  // Sends and waits for the acknowledgement; 0 or the kernel's errno. `reason` gets the kernel's extended text where there is
  // one.
  int Transact(NetlinkMessage& message, std::string* reason = nullptr);
  // Calls `each` for every message of the answer; a dump that the kernel marks as interrupted is started again from the
  // beginning (`restart` is called first). 0 or errno.
  int Dump(NetlinkMessage& message, const std::function<void(const nlmsghdr*)>& each, const std::function<void()>& restart);
  // Calls `each` for the messages of one datagram. 0 or errno.
  int ReadEvents(const std::function<void(const nlmsghdr*)>& each);
  // Nothing waits from now on: EAGAIN where there is no message.
  void SetNonblocking() { nl_socket_set_nonblocking(socket_.get()); }
  int fd() const { return nl_socket_get_fd(socket_.get()); }

 private:
  struct Free {
    void operator()(nl_sock* socket) const { nl_socket_free(socket); }
  };
  int Send(NetlinkMessage& message);
  // Calls `each` for the messages of one datagram until it returns false. 0 or errno.
  int Receive(const std::function<bool(const nlmsghdr*)>& each);
  int DumpOnce(NetlinkMessage& message, const std::function<void(const nlmsghdr*)>& each, bool* interrupted);

  std::unique_ptr<nl_sock, Free> socket_;
  uint32_t seq_ = 0;  // of the last request
};

struct LinkInfo {
  int index = 0;
  std::string name;
  uint32_t flags = 0;
  uint32_t mtu = 0;
  uint16_t type = 0;  // ARPHRD_*
  bool xdp = false;   // a program is attached
};
Status ListLinks(NetlinkClient& client, std::vector<LinkInfo>* out);

}  // namespace sluice
