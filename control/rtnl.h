// A small rtnetlink client: requests of the control plane (make a veth, list links) and the parsing of the kernel's messages.
// Everything that is parsed is bounded by the message it lies in. man 7 rtnetlink.
#pragma once

#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include <array>
#include <cstdint>
#include <functional>
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
  bool has(int type) const { return static_cast<size_t>(type) < at_.size() && at_[static_cast<size_t>(type)].data() != nullptr; }
  Bytes get(int type) const { return has(type) ? at_[static_cast<size_t>(type)] : Bytes(); }
  // The value where it has the size asked for, else `otherwise`.
  uint8_t u8(int type, uint8_t otherwise = 0) const;
  uint16_t u16(int type, uint16_t otherwise = 0) const;
  uint32_t u32(int type, uint32_t otherwise = 0) const;
  std::string str(int type) const;

 private:
  static constexpr size_t kMax = 80;
  std::array<Bytes, kMax> at_{};
};

// The fixed header of type T of a message, and the attributes behind it. False where the message is too short.
template <typename T>
bool ParseMessage(const nlmsghdr* message, T* header, Attributes* attributes) {
  if (message->nlmsg_len < NLMSG_LENGTH(sizeof(T))) return false;
  const auto* body = static_cast<const uint8_t*>(NLMSG_DATA(message));
  __builtin_memcpy(header, body, sizeof(T));
  const size_t from = NLMSG_ALIGN(sizeof(T));
  const size_t all = message->nlmsg_len - NLMSG_HDRLEN;
  attributes->Parse(all > from ? Bytes(body + from, all - from) : Bytes());
  return true;
}

// Builds one message.
class NetlinkMessage {
 public:
  NetlinkMessage(uint16_t type, uint16_t flags);
  template <typename T>
  NetlinkMessage& Header(const T& header) {
    return Raw(&header, sizeof header);
  }
  NetlinkMessage& Attr(uint16_t type, Bytes value);
  NetlinkMessage& Attr(uint16_t type, uint32_t value) { return Attr(type, Bytes(reinterpret_cast<uint8_t*>(&value), sizeof value)); }
  NetlinkMessage& Attr8(uint16_t type, uint8_t value) { return Attr(type, Bytes(&value, 1)); }
  NetlinkMessage& Attr(uint16_t type, std::string_view text);  // with the terminating zero
  size_t Begin(uint16_t type);                                 // nested attribute
  void End(size_t begun);
  void EndWithHeader(size_t) = delete;
  NetlinkMessage& Raw(const void* data, size_t size);
  std::vector<uint8_t>& bytes();  // complete message

 private:
  std::vector<uint8_t> bytes_;
};

// A rtnetlink socket in the namespace that the thread was in when it was made, used by one thread.
class NetlinkClient {
 public:
  // `groups`: RTNLGRP_* numbers to join. The descriptor of a client may be passed to another process and adopted there.
  static Status Open(const std::vector<int>& groups, UniqueFd* out, int protocol = NETLINK_ROUTE);
  explicit NetlinkClient(UniqueFd fd) : fd_(std::move(fd)) {}

  // Sends and waits for the acknowledgement; 0 or the kernel's errno. `reason` gets the kernel's extended text where there is one.
  int Transact(NetlinkMessage& message, std::string* reason = nullptr);
  // Calls `each` for every message of the answer; a dump that the kernel marks as interrupted is started again from the
  // beginning (`restart` is called first). 0 or errno.
  int Dump(NetlinkMessage& message, const std::function<void(const nlmsghdr*)>& each, const std::function<void()>& restart);
  int fd() const { return fd_.get(); }

 private:
  int DumpOnce(NetlinkMessage& message, const std::function<void(const nlmsghdr*)>& each, bool* interrupted);
  int Send(NetlinkMessage& message);
  UniqueFd fd_;
  uint32_t seq_ = 0;
};

struct LinkInfo {
  int index = 0;
  std::string name;
  uint32_t flags = 0;
  uint32_t mtu = 0;
  uint16_t type = 0;  // ARPHRD_*
  bool xdp = false;  // a program is attached
};
Status ListLinks(NetlinkClient& client, std::vector<LinkInfo>* out);

}  // namespace sluice
