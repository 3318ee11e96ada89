// An AF_NETLINK socket of the program: an AF_UNIX datagram pair as its descriptor, netlink::NetlinkSocket as what it talks to.
#pragma once

#include <deque>
#include <memory>

#include "sentry/datagram_pair.h"
#include "sentry/inet_stand_in.h"

namespace sluice {

class NetlinkStandIn final : public StandIn, private FdHandler {
 public:
  static Errno Create(CallEngine& engine, IncomingCall& call, SocketCount count, int type, int flags, int protocol);
  // `net_admin`: who made the socket has CAP_NET_ADMIN; Linux asks that of the maker and of each sender.
  NetlinkStandIn(CallEngine& engine, int type, int protocol, uint32_t tgid, bool net_admin,
                 std::unique_ptr<netlink::NetlinkSocket> socket);
  ~NetlinkStandIn() override;

  void OnCall(IncomingCall& call, Bytes message) override;
  void OnWork() override;
  void OnLastClose() override { engine_.Destroy(this); }

 private:
  struct Sent {
    int64_t after_ns;
    sockaddr_nl source;
    uint32_t group;
  };
  struct Waiting {
    calls::Envelope envelope;
    int64_t value;
  };

  netlink::Caller CallerOf(const calls::Envelope& e);
  netlink::Caller SenderOf(msghdr* h);
  void OnSend(IncomingCall& call);
  void OnReceive(IncomingCall& call, Bytes message);
  bool ReadCopy(int p, size_t capacity, int flags, netlink::Reply* out, size_t* length);
  void AnswerReply(IncomingCall& call, netlink::Reply reply, size_t length, bool take);
  void AnswerName(IncomingCall& call, const sockaddr_nl& name);
  void OnGetOption(IncomingCall& call);
  void OnSetOption(IncomingCall& call);
  Errno SetSocketLevel(IncomingCall& call);
  bool GetSocketLevel(int name, int p, int* value);
  void OnFdEvents(uint32_t events) override;
  void FromProgram();
  void ToProgram();

  int type_, protocol_;
  uint32_t tgid_;
  bool net_admin_;
  std::unique_ptr<netlink::NetlinkSocket> socket_;
  DatagramPair ends_;
  bool s_readable_ = false, s_writable_ = true;
  int receive_buffer_ = 212992, send_buffer_ = 212992;
  std::deque<Sent> sent_;
  UnreadMemory::Queue unread_;
  std::deque<Waiting> changes_;                    // sendmsg calls that wait for a change to be made
  std::deque<std::unique_ptr<HeldCall>> readers_;  // blocking receives
};

}  // namespace sluice
