// AF_NETLINK as a program inside sees it: sockets of NETLINK_ROUTE (the namespace's configuration as mirrored, neighbours and
// counters of our stack) and NETLINK_SOCK_DIAG (our stack's sockets), as man 7 netlink, man 7 rtnetlink and man 7 sock_diag say.
//
// No descriptor, no thread, no clock here: the socket calls of a program come in as bytes, replies are fetched by whoever holds
// the stand-in. Everything of one NetlinkServer runs on one thread, the worker's that owns the Stack. All input is hostile: a
// malformed request gets the errno Linux gives, the memory of a socket is bounded by its receive buffer.
#pragma once

#include <linux/netlink.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/errno.h"
#include "base/unique_fd.h"
#include "netstack/config.h"
#include "netstack/stack.h"
#include "sentry/netlink/net_change.h"

namespace sluice::netlink {

// Who made a socket call.
struct Caller {
  // The call was notified, or the kernel told who sent. Else it may ask, but not change.
  bool known = false;
  bool net_admin = false;  // CAP_NET_ADMIN in the user namespace that owns the network namespace
  uint32_t tgid = 0;       // process id as the program sees it itself; proposed as the port id at autobind. 0: unknown
  uint32_t uid = 0;        // effective user id, told back by RTM_GETROUTE
  uint64_t call = 0;       // the backend's handle of the live notification, passed through to RequestChange
  // Of a native send(), whose call has returned: a pidfd of the sender, by which the broker judges it. Empty: nobody can.
  std::shared_ptr<const UniqueFd> sender;
};

// What the server needs of its surroundings.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::shared_ptr<const NetConfig> config() const = 0;
  virtual Route Lookup(const RouteQuery& query) = 0;
  virtual std::vector<NeighborInfo> Neighbors() const = 0;
  virtual std::vector<SocketInfo> Sockets(bool with_tcp_info) const = 0;
  virtual Stack::LinkCounters link_counters(IfIndex ifindex) const = 0;

  using ChangeDone = std::function<void(const NetChangeResult& result)>;
  // Sends `change` to the broker together with caller.call. `done` is called once, on this thread, possibly before RequestChange
  // returns. On success it is called only after config() shows the change (the mirror has seen the kernel's own notification), so
  // that a dump which follows the acknowledgement shows it too. Where the broker is lost: EPERM or EIO, never silence.
  virtual void RequestChange(const NetChange& change, const Caller& caller, ChangeDone done) = 0;
};

// True where `config` holds what `change` did: the mirror has caught up. Where several objects answer to a deletion it may stay
// false although one of them went, so a caller waits with a bound.
bool ConfigShows(const NetConfig& config, const NetChange& change);

// A Backend's questions answered by a Stack; what remains is RequestChange.
class StackBackend : public Backend {
 public:
  explicit StackBackend(Stack& stack) : stack_(stack) {}
  std::shared_ptr<const NetConfig> config() const override { return stack_.shared_config(); }
  Route Lookup(const RouteQuery& query) override { return stack_.Lookup(query); }
  std::vector<NeighborInfo> Neighbors() const override { return stack_.Neighbors(); }
  std::vector<SocketInfo> Sockets(bool with_tcp_info) const override { return stack_.Sockets(with_tcp_info); }
  Stack::LinkCounters link_counters(IfIndex ifindex) const override { return stack_.link_counters(ifindex); }

 private:
  Stack& stack_;
};

// One datagram for the program.
struct Reply {
  std::vector<uint8_t> bytes;
  sockaddr_nl source{};  // as msg_name
  uint32_t group = 0;    // multicast group it was sent to (0: unicast), for NETLINK_PKTINFO
};

class NetlinkServer;

// One AF_NETLINK socket. Made by NetlinkServer::NewSocket; the last close of the program's end destroys it.
class NetlinkSocket {
 public:
  virtual ~NetlinkSocket() = default;

  // sendto, sendmsg, or a native send/write of the stand-in (destination empty). `destination` is the sockaddr as
  // given, possibly malformed. The bytes are one datagram with one or more messages. The errno is that of the call; errors of
  // single messages come as NLMSG_ERROR replies.
  virtual Errno Send(Bytes datagram, Bytes destination, const Caller& caller) = 0;
  // A change asked for by Send is under way at the broker. As the kernel applies changes within sendmsg, the caller's sendmsg
  // should be answered only when this turned false (the observer is called then), which also keeps its notification alive for the
  // broker's judgement. Send while busy: the datagram is queued behind (bounded, then EAGAIN).
  virtual bool busy() const = 0;

  // The next datagram to hand to the program; false where none waits. Dumps are made as far as they are fetched: call again when
  // the reader has room. Up to 32 KiB.
  virtual bool NextReply(Reply* reply) = 0;
  virtual bool HasReply() const = 0;
  // Puts a fetched reply that could not be delivered back to the front.
  virtual void Unreceive(Reply&& reply) = 0;
  // A pending error of the socket (ENOBUFS after notifications were lost), cleared.
  virtual Errno TakeError() = 0;

  // Addresses as the system call has them (sockaddr_nl); lengths and families are checked here.
  virtual Errno Bind(Bytes address, const Caller& caller) = 0;
  virtual Errno Connect(Bytes address, const Caller& caller) = 0;  // AF_UNSPEC dissolves
  virtual sockaddr_nl LocalName() const = 0;
  virtual sockaddr_nl PeerName() const = 0;

  // SOL_NETLINK; everything at SOL_SOCKET is the stand-in's own matter, but for SO_RCVBUF (set_receive_buffer).
  virtual Errno SetOption(int name, Bytes value, const Caller& caller) = 0;
  // `capacity` is the caller's optlen; `value` gets what is to be written, `length` the optlen to report (it may exceed capacity:
  // NETLINK_LIST_MEMBERSHIPS).
  virtual Errno GetOption(int name, size_t capacity, std::vector<uint8_t>* value, size_t* length) const = 0;
  virtual void set_receive_buffer(size_t bytes) = 0;  // bound for queued replies and notifications
  virtual bool packet_info() const = 0;               // NETLINK_PKTINFO: recvmsg adds a control message nl_pktinfo{group}

  // Called when replies became available, busy() turned false, or an error is pending. It may call NextReply, and must
  // not destroy the socket.
  using Observer = std::function<void()>;
  virtual void set_observer(Observer observer) = 0;
};

class NetlinkServer {
 public:
  // What all sockets together may have queued is bounded by `queued_bytes`: beyond it a socket that has replies queued loses what
  // comes (ENOBUFS), and one that has none still gets one.
  explicit NetlinkServer(Backend& backend, size_t queued_bytes = size_t{16} << 20);
  ~NetlinkServer();
  NetlinkServer(const NetlinkServer&) = delete;
  NetlinkServer& operator=(const NetlinkServer&) = delete;

  // socket(AF_NETLINK, type, protocol); nullptr with the errno where Linux refuses (ESOCKTNOSUPPORT), or where we have no such
  // protocol (EPROTONOSUPPORT, as a kernel without that module).
  std::unique_ptr<NetlinkSocket> NewSocket(int type, int protocol, Errno* error);
  // The backend's config() changed: members of multicast groups hear of the differences. Call after every ApplyConfig, before the
  // callbacks of changes that it completes.
  void OnConfig();

  class Impl;

 private:
  std::shared_ptr<Impl> impl_;  // sockets may outlive the server
};

}  // namespace sluice::netlink
