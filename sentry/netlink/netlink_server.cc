// Sockets, dispatch of messages, acknowledgements, dumps at the reader's pace, multicast groups. Semantics: man 7 netlink.
#include "sentry/netlink/netlink_server.h"

#include <linux/sock_diag.h>
#include <sys/socket.h>

#include <algorithm>
#include <optional>

#include "sentry/netlink/server_impl.h"

namespace sluice::netlink {
namespace {

constexpr size_t kMaxQueuedSends = 16;          // datagrams that wait behind a change
constexpr size_t kMaxSend = 212992 - 32;        // as the kernel's default send buffer allows
constexpr size_t kReplyOverhead = 768;          // bytes a queued datagram counts beside its own, as an skb's truesize does
constexpr size_t kMaxPinnedSnapshots = 8;       // old configurations that dumps may keep alive
constexpr uint32_t kRouteGroups = RTNLGRP_MAX;  // groups that can be joined
constexpr uint32_t kDiagGroups = SKNLGRP_MAX;

// What differs between the families of netlink.
struct Protocol {
  int number;
  uint32_t groups;
};

struct Handler {
  uint16_t type;
  Errno (*get)(Request&);   // a single request, or a change
  Errno (*dump)(Request&);  // with NLM_F_DUMP
};

constexpr Handler kRouteHandlers[] = {
    {RTM_NEWLINK, SetLink, nullptr},
    {RTM_SETLINK, SetLink, nullptr},
    {RTM_GETLINK, GetLink, DumpLinks},
    {RTM_NEWADDR, ChangeAddress, nullptr},
    {RTM_DELADDR, ChangeAddress, nullptr},
    {RTM_GETADDR, GetAddress, DumpAddresses},
    {RTM_NEWROUTE, ChangeRoute, nullptr},
    {RTM_DELROUTE, ChangeRoute, nullptr},
    {RTM_GETROUTE, GetRoute, DumpRoutes},
    {RTM_NEWRULE, ChangeRule, nullptr},
    {RTM_DELRULE, ChangeRule, nullptr},
    {RTM_GETRULE, nullptr, DumpRules},
    {RTM_NEWNEIGH, ChangeNeighbor, nullptr},
    {RTM_DELNEIGH, ChangeNeighbor, nullptr},
    {RTM_GETNEIGH, GetNeighbor, DumpNeighbors},
    {RTM_GETNETCONF, GetNetconf, DumpNetconf},
    {RTM_GETQDISC, GetQdisc, DumpQdiscs},
    {RTM_GETNSID, GetNsid, DumpNothing},
    // There are none of these: an empty list is the truth.
    {RTM_GETTCLASS, nullptr, DumpNothing},
    {RTM_GETTFILTER, nullptr, DumpNothing},
    {RTM_GETCHAIN, nullptr, DumpNothing},
    {RTM_GETNEXTHOP, nullptr, DumpNothing},
    {RTM_GETMDB, nullptr, DumpNothing},
};

Errno DispatchRoute(Request& r) {
  const uint16_t type = r.header.nlmsg_type;
  if (type < RTM_BASE || type > RTM_MAX) return Errno::kEOPNOTSUPP;
  if (r.payload().size() < sizeof(rtgenmsg)) return Errno::kOk;
  const bool get = (type & 3) == 2;
  if (!get && !r.caller.net_admin) return Errno::kEPERM;
  const Handler* handler = nullptr;
  for (const Handler& h : kRouteHandlers) {
    if (h.type == type) handler = &h;
  }
  if (handler == nullptr) return Errno::kEOPNOTSUPP;
  if (get && r.dumping()) {
    if (handler->dump == nullptr) return Errno::kEOPNOTSUPP;
    // An error of a dump is told by its final message.
    r.dump_error = handler->dump(r);
    if (r.dump_error != Errno::kOk) r.dump = std::make_unique<ListDump>(std::vector<Buffer>{});
    return Errno::kOk;
  }
  return handler->get != nullptr ? handler->get(r) : Errno::kEOPNOTSUPP;
}

uint32_t GroupMask(uint32_t group) { return group >= 1 && group <= 32 ? 1u << (group - 1) : 0; }

}  // namespace

class SocketImpl;

class NetlinkServer::Impl {
 public:
  Impl(Backend& b, size_t most_queued) : backend(b), config(b.config()), queued_limit(most_queued) {}

  void OnConfig();
  // Each dump keeps the configuration it began with, so that what it shows is consistent. So that a program cannot keep any
  // number of old configurations alive, dumps beyond a few go over to the present one and say that they were interrupted, as the
  // kernel's do.
  void BoundSnapshots();
  bool PortIdFree(int protocol, uint32_t portid) const;
  uint32_t AutoPortId(int protocol, uint32_t proposed);

  Backend& backend;
  std::shared_ptr<const NetConfig> config;
  std::set<SocketImpl*> sockets;
  const size_t queued_limit;
  size_t queued = 0;  // bytes in the queues of all sockets

 private:
  uint32_t next_auto_ = 0;
};

class SocketImpl final : public NetlinkSocket {
 public:
  SocketImpl(std::shared_ptr<NetlinkServer::Impl> server, Protocol protocol)
      : server_(std::move(server)), protocol_(protocol), self_(std::make_shared<SocketImpl*>(this)) {
    server_->sockets.insert(this);
  }
  ~SocketImpl() override {
    *self_ = nullptr;
    server_->sockets.erase(this);
    server_->queued -= queued_bytes_;
  }

  Errno Send(Bytes datagram, Bytes destination, const Caller& caller) override;
  bool busy() const override { return change_pending_; }
  bool NextReply(Reply* reply) override;
  bool HasReply() const override { return !queue_.empty() || dump_ != nullptr; }
  void Unreceive(Reply&& reply) override;
  Errno TakeError() override { return std::exchange(error_, Errno::kOk); }
  Errno Bind(Bytes address, const Caller& caller) override;
  Errno Connect(Bytes address, const Caller& caller) override;
  sockaddr_nl LocalName() const override;
  sockaddr_nl PeerName() const override;
  Errno SetOption(int name, Bytes value, const Caller& caller) override;
  Errno GetOption(int name, size_t capacity, Buffer* value, size_t* length) const override;
  void set_receive_buffer(size_t bytes) override { receive_buffer_ = bytes; }
  bool packet_info() const override { return options_.contains(NETLINK_PKTINFO); }
  void set_observer(Observer observer) override { observer_ = std::move(observer); }

  int protocol() const { return protocol_.number; }
  uint32_t portid() const { return portid_; }
  bool bound() const { return bound_; }
  bool member(uint32_t group) const { return groups_.contains(group); }
  Dump* dump() const { return dump_.get(); }
  // A datagram of another socket or a notification. What does not fit is lost, and the socket says so once (ENOBUFS).
  void Notify(Reply reply);

 private:
  struct PendingSend {
    Buffer bytes;
    Caller caller;
  };

  void AutoBind(const Caller& caller);
  Errno SendToSocket(uint32_t portid, uint32_t groups, Bytes datagram, const Caller& caller);
  // Handles messages of `bytes` until the end or a change that has to wait for the broker; then the rest is kept.
  void Process(Bytes bytes, const Caller& caller);
  // One message. Returns false where the rest must wait.
  bool HandleMessage(Bytes message, const Caller& caller, size_t rest_at, Bytes all);
  void StartChange(Request& request, Bytes rest);
  void OnChangeDone(const nlmsghdr& header, const Buffer& message, const NetChangeResult& result);
  void Acknowledge(const nlmsghdr& header, Bytes message, Errno error, const ExtAck& ack);
  Errno StartDump(Request& request);
  void FillDump(Buffer* out);
  void EndDump(Buffer* out);
  void Enqueue(Buffer bytes);
  bool Fits(size_t bytes) const {
    const size_t need = bytes + kReplyOverhead;
    return queued_bytes_ == 0 || (queued_bytes_ + need <= receive_buffer_ && server_->queued + need <= server_->queued_limit);
  }
  void CountQueued(const Reply& reply) {
    queued_bytes_ += reply.bytes.size() + kReplyOverhead;
    server_->queued += reply.bytes.size() + kReplyOverhead;
  }
  void CountTaken(const Reply& reply) {
    queued_bytes_ -= reply.bytes.size() + kReplyOverhead;
    server_->queued -= reply.bytes.size() + kReplyOverhead;
  }
  bool strict() const { return options_.contains(NETLINK_GET_STRICT_CHK); }
  void Wake() {
    if (observer_ && !processing_) observer_();
  }

  std::shared_ptr<NetlinkServer::Impl> server_;
  Protocol protocol_;
  std::shared_ptr<SocketImpl*> self_;  // for callbacks that may come after the end
  Observer observer_;

  uint32_t portid_ = 0;
  bool bound_ = false;
  sockaddr_nl peer_{.nl_family = AF_NETLINK};
  std::set<uint32_t> groups_;
  std::set<int> options_;  // boolean options that are set
  size_t receive_buffer_ = 212992;

  std::deque<Reply> queue_;
  size_t queued_bytes_ = 0;
  Errno error_ = Errno::kOk;

  std::unique_ptr<Dump> dump_;
  nlmsghdr dump_request_{};
  Errno dump_error_ = Errno::kOk;
  ExtAck dump_ack_;
  Buffer dump_carry_;  // a message that did not fit the last datagram

  bool change_pending_ = false;
  bool processing_ = false;
  std::deque<PendingSend> waiting_;  // the rest of the datagram whose change is pending, and later ones
};

// ---- addresses and options ----

namespace {

Errno CheckAddress(Bytes address, sockaddr_nl* out) {
  if (address.size() < sizeof(sockaddr_nl)) return Errno::kEINVAL;
  *out = LoadPrefix<sockaddr_nl>(address);
  return out->nl_family == AF_NETLINK ? Errno::kOk : Errno::kEINVAL;
}

bool BooleanOption(int name) {
  switch (name) {
    case NETLINK_PKTINFO:
    case NETLINK_BROADCAST_ERROR:
    case NETLINK_NO_ENOBUFS:
    case NETLINK_LISTEN_ALL_NSID:
    case NETLINK_CAP_ACK:
    case NETLINK_EXT_ACK:
    case NETLINK_GET_STRICT_CHK:
      return true;
    default:
      return false;
  }
}

}  // namespace

Errno SocketImpl::Bind(Bytes address, const Caller& caller) {
  sockaddr_nl name{};
  if (const Errno e = CheckAddress(address, &name); e != Errno::kOk) return e;
  if (bound_) {
    if (name.nl_pid != portid_) return Errno::kEINVAL;
  } else if (name.nl_pid != 0) {
    if (!server_->PortIdFree(protocol(), name.nl_pid)) return Errno::kEADDRINUSE;
    portid_ = name.nl_pid;
    bound_ = true;
  } else {
    AutoBind(caller);
  }
  // The mask speaks for the first 32 groups; those joined by NETLINK_ADD_MEMBERSHIP above them stay.
  for (uint32_t group = 1; group <= std::min<uint32_t>(32, protocol_.groups); ++group) {
    if ((name.nl_groups & GroupMask(group)) != 0) {
      groups_.insert(group);
    } else {
      groups_.erase(group);
    }
  }
  return Errno::kOk;
}

Errno SocketImpl::Connect(Bytes address, const Caller& caller) {
  if (address.size() < sizeof(sa_family_t)) return Errno::kEINVAL;
  if (LoadPrefix<sa_family_t>(address) == AF_UNSPEC) {
    peer_ = {.nl_family = AF_NETLINK};
    return Errno::kOk;
  }
  sockaddr_nl name{};
  if (const Errno e = CheckAddress(address, &name); e != Errno::kOk) return e;
  if ((name.nl_groups != 0 || name.nl_pid != 0) && !caller.net_admin) return Errno::kEPERM;
  if (!bound_) AutoBind(caller);
  peer_ = {.nl_family = AF_NETLINK, .nl_pid = name.nl_pid, .nl_groups = name.nl_groups};
  return Errno::kOk;
}

void SocketImpl::AutoBind(const Caller& caller) {
  portid_ = server_->AutoPortId(protocol(), caller.tgid);
  bound_ = true;
}

sockaddr_nl SocketImpl::LocalName() const {
  sockaddr_nl name{.nl_family = AF_NETLINK, .nl_pid = portid_};
  for (const uint32_t group : groups_) name.nl_groups |= GroupMask(group);
  return name;
}

sockaddr_nl SocketImpl::PeerName() const { return peer_; }

Errno SocketImpl::SetOption(int name, Bytes value, const Caller& caller) {
  const bool membership = name == NETLINK_ADD_MEMBERSHIP || name == NETLINK_DROP_MEMBERSHIP;
  if (!membership && !BooleanOption(name)) return Errno::kENOPROTOOPT;
  if (value.size() < sizeof(int)) return Errno::kEINVAL;
  const auto number = LoadPrefix<uint32_t>(value);
  if (membership) {
    if (number == 0 || number > protocol_.groups) return Errno::kEINVAL;
    if (name == NETLINK_ADD_MEMBERSHIP) {
      groups_.insert(number);
    } else {
      groups_.erase(number);
    }
    return Errno::kOk;
  }
  if (name == NETLINK_LISTEN_ALL_NSID && !caller.net_admin) return Errno::kEPERM;
  if (number != 0) {
    options_.insert(name);
    if (name == NETLINK_NO_ENOBUFS) error_ = Errno::kOk;
  } else {
    options_.erase(name);
  }
  return Errno::kOk;
}

Errno SocketImpl::GetOption(int name, size_t capacity, Buffer* value, size_t* length) const {
  value->clear();
  if (name == NETLINK_LIST_MEMBERSHIPS) {
    // A bit mask in 32-bit words, as many as fit; the length told is what the whole needs.
    const size_t words = (protocol_.groups + 31) / 32;
    value->resize(words * sizeof(uint32_t));
    for (const uint32_t group : groups_) (*value)[(group - 1) / 8] |= static_cast<uint8_t>(1u << ((group - 1) % 8));
    *length = value->size();
    value->resize(std::min(value->size(), capacity / sizeof(uint32_t) * sizeof(uint32_t)));
    return Errno::kOk;
  }
  if (!BooleanOption(name)) return Errno::kENOPROTOOPT;
  if (capacity < sizeof(int)) return Errno::kEINVAL;
  const int on = options_.contains(name) ? 1 : 0;
  value->assign(AsBytes(on).begin(), AsBytes(on).end());
  *length = sizeof(int);
  return Errno::kOk;
}

// ---- requests ----

Errno SocketImpl::Send(Bytes datagram, Bytes destination, const Caller& caller) {
  uint32_t portid = peer_.nl_pid;
  uint32_t groups = peer_.nl_groups;
  if (!destination.empty()) {
    sockaddr_nl name{};
    if (const Errno e = CheckAddress(destination, &name); e != Errno::kOk) return e;
    portid = name.nl_pid;
    groups = name.nl_groups;
    if ((portid != 0 || groups != 0) && !caller.net_admin) return Errno::kEPERM;
  }
  if (!bound_) AutoBind(caller);
  if (datagram.size() > kMaxSend) return Errno::kEMSGSIZE;
  if (portid != 0 || groups != 0) return SendToSocket(portid, groups, datagram, caller);
  if (change_pending_) {
    size_t bytes = datagram.size();
    for (const PendingSend& p : waiting_) bytes += p.bytes.size();
    if (waiting_.size() >= kMaxQueuedSends || bytes > kMaxSend) return Errno::kEAGAIN;
    waiting_.push_back({Buffer(datagram.begin(), datagram.end()), caller});
    return Errno::kOk;
  }
  Process(datagram, caller);
  if (HasReply()) Wake();
  return Errno::kOk;
}

Errno SocketImpl::SendToSocket(uint32_t portid, uint32_t groups, Bytes datagram, const Caller&) {
  const Buffer bytes(datagram.begin(), datagram.end());
  const sockaddr_nl from{.nl_family = AF_NETLINK, .nl_pid = portid_};
  const uint32_t group = groups != 0 ? static_cast<uint32_t>(__builtin_ctz(groups)) + 1 : 0;
  SocketImpl* unicast = nullptr;
  for (SocketImpl* other : server_->sockets) {
    if (other->protocol() != protocol() || other == this) continue;
    if (group != 0 && other->member(group)) {
      Reply copy{.bytes = bytes, .source = from, .group = group};
      copy.source.nl_groups = GroupMask(group);
      other->Notify(std::move(copy));
    }
    if (portid != 0 && other->bound() && other->portid() == portid) unicast = other;
  }
  if (portid == 0) return Errno::kOk;
  if (unicast == nullptr) return Errno::kECONNREFUSED;
  if (!unicast->Fits(bytes.size())) return Errno::kEAGAIN;
  unicast->Notify({.bytes = bytes, .source = from, .group = 0});
  return Errno::kOk;
}

void SocketImpl::Process(Bytes bytes, const Caller& caller) {
  processing_ = true;
  size_t at = 0;
  while (bytes.size() - at >= sizeof(nlmsghdr)) {
    const nlmsghdr header = LoadPrefix<nlmsghdr>(bytes.subspan(at));
    if (header.nlmsg_len < sizeof(nlmsghdr) || header.nlmsg_len > bytes.size() - at) break;
    const Bytes message = bytes.subspan(at, header.nlmsg_len);
    at += std::min(Align4(header.nlmsg_len), bytes.size() - at);
    if (!HandleMessage(message, caller, at, bytes)) break;
  }
  processing_ = false;
}

bool SocketImpl::HandleMessage(Bytes message, const Caller& caller, size_t rest_at, Bytes all) {
  const nlmsghdr header = LoadPrefix<nlmsghdr>(message);
  const bool wants_ack = (header.nlmsg_flags & NLM_F_ACK) != 0;
  if ((header.nlmsg_flags & NLM_F_REQUEST) == 0 || header.nlmsg_type < NLMSG_MIN_TYPE) {
    if (wants_ack) Acknowledge(header, message, Errno::kOk, {});
    return true;
  }
  Request request{.backend = server_->backend, .message = message, .header = header, .caller = caller, .strict = strict()};
  Errno error = protocol() == NETLINK_ROUTE ? DispatchRoute(request) : SockDiag(request);
  if (error == Errno::kOk && request.change != nullptr) {
    StartChange(request, all.subspan(rest_at));
    return !change_pending_;
  }
  if (error == Errno::kOk && request.dump != nullptr) {
    error = StartDump(request);
    if (error == Errno::kOk) return true;  // the final message of the dump is its acknowledgement
  }
  if (error == Errno::kOk) {
    for (Buffer& reply : request.replies) {
      PatchHeader(&reply, 0, 0, header.nlmsg_seq, portid_);
      Enqueue(std::move(reply));
    }
  }
  if (error != Errno::kOk || wants_ack) Acknowledge(header, message, error, request.ack);
  return true;
}

void SocketImpl::StartChange(Request& request, Bytes rest) {
  change_pending_ = true;
  if (!rest.empty()) waiting_.push_front({Buffer(rest.begin(), rest.end()), request.caller});
  const size_t left = waiting_.size();
  auto message = std::make_shared<Buffer>(request.message.begin(), request.message.end());
  server_->backend.RequestChange(*request.change, request.caller,
                                 [self = self_, header = request.header, message](const NetChangeResult& result) {
                                   if (*self != nullptr) (*self)->OnChangeDone(header, *message, result);
                                 });
  // Done at once: the loop that called goes on with the rest itself.
  if (!change_pending_ && !rest.empty() && waiting_.size() == left) waiting_.pop_front();
}

void SocketImpl::OnChangeDone(const nlmsghdr& header, const Buffer& message, const NetChangeResult& result) {
  change_pending_ = false;
  const auto error = static_cast<Errno>(result.error);
  ExtAck ack{std::string(result.message.data(), strnlen(result.message.data(), result.message.size())), std::nullopt};
  if (error != Errno::kOk || (header.nlmsg_flags & NLM_F_ACK) != 0) Acknowledge(header, message, error, ack);
  if (processing_) return;  // called from within RequestChange
  while (!change_pending_ && !waiting_.empty()) {
    const PendingSend next = std::move(waiting_.front());
    waiting_.pop_front();
    Process(next.bytes, next.caller);
  }
  Wake();
}

void SocketImpl::Acknowledge(const nlmsghdr& header, Bytes message, Errno error, const ExtAck& ack) {
  const bool failed = error != Errno::kOk;
  const bool capped = !failed || options_.contains(NETLINK_CAP_ACK);
  const bool extended = options_.contains(NETLINK_EXT_ACK) && (!ack.message.empty() || (failed && ack.offset.has_value()));
  const auto flags = static_cast<uint16_t>((capped ? NLM_F_CAPPED : 0) | (extended ? NLM_F_ACK_TLVS : 0));
  Buffer bytes;
  {
    MessageWriter w(&bytes, NLMSG_ERROR, flags, header.nlmsg_seq, portid_);
    w.Header(nlmsgerr{.error = -ToInt(error), .msg = header});
    if (!capped) w.Raw(message.subspan(sizeof(nlmsghdr)));
    if (extended && !ack.message.empty()) w.Text(NLMSGERR_ATTR_MSG, ack.message);
    if (extended && failed && ack.offset) w.U32(NLMSGERR_ATTR_OFFS, *ack.offset);
  }
  Enqueue(std::move(bytes));
}

void SocketImpl::Enqueue(Buffer bytes) { Notify({.bytes = std::move(bytes), .source = {.nl_family = AF_NETLINK}, .group = 0}); }

void SocketImpl::Notify(Reply reply) {
  if (!Fits(reply.bytes.size())) {
    if (!options_.contains(NETLINK_NO_ENOBUFS)) error_ = Errno::kENOBUFS;
    Wake();
    return;
  }
  CountQueued(reply);
  queue_.push_back(std::move(reply));
  Wake();
}

void SocketImpl::Unreceive(Reply&& reply) {
  CountQueued(reply);
  queue_.push_front(std::move(reply));
}

bool SocketImpl::NextReply(Reply* reply) {
  if (queue_.empty()) {
    if (dump_ == nullptr) return false;
    *reply = {.bytes = {}, .source = {.nl_family = AF_NETLINK}, .group = 0};
    FillDump(&reply->bytes);
    return true;
  }
  *reply = std::move(queue_.front());
  queue_.pop_front();
  CountTaken(*reply);
  return true;
}

// ---- dumps ----

Errno SocketImpl::StartDump(Request& request) {
  if (dump_ != nullptr) return Errno::kEBUSY;
  dump_ = std::move(request.dump);
  dump_->flags = request.dump_flags;
  dump_->done_flags = request.done_flags;
  dump_request_ = request.header;
  dump_error_ = request.dump_error;
  dump_ack_ = std::move(request.ack);
  dump_carry_.clear();
  // The first datagram takes its place in the queue now, before answers to later messages.
  Buffer first;
  FillDump(&first);
  Enqueue(std::move(first));
  return Errno::kOk;
}

void SocketImpl::FillDump(Buffer* out) {
  out->swap(dump_carry_);
  dump_carry_.clear();
  for (;;) {
    const size_t at = out->size();
    if (!dump_->Next(out)) return EndDump(out);
    if (out->size() == at) continue;
    const auto flags = static_cast<uint16_t>(NLM_F_MULTI | dump_->flags | (dump_->interrupted ? NLM_F_DUMP_INTR : 0));
    PatchHeader(out, at, flags, dump_request_.nlmsg_seq, portid_);
    if (at != 0 && out->size() > kDumpDatagram) {
      dump_carry_.assign(out->begin() + static_cast<ptrdiff_t>(at), out->end());
      out->resize(at);
      return;
    }
  }
}

void SocketImpl::EndDump(Buffer* out) {
  constexpr size_t kSize = sizeof(nlmsghdr) + sizeof(int);
  // Without room for it the final message goes alone: the dump's next Next() says end again.
  if (!out->empty() && out->size() + kSize > kDumpDatagram) return;
  const bool extended = options_.contains(NETLINK_EXT_ACK) && !dump_ack_.message.empty();
  const auto flags = static_cast<uint16_t>(NLM_F_MULTI | dump_->done_flags | (dump_->interrupted ? NLM_F_DUMP_INTR : 0) |
                                           (extended ? NLM_F_ACK_TLVS : 0));
  MessageWriter w(out, NLMSG_DONE, flags, dump_request_.nlmsg_seq, portid_);
  w.Header(-ToInt(dump_error_));
  if (extended) w.Text(NLMSGERR_ATTR_MSG, dump_ack_.message);
  w.Finish();
  dump_.reset();
}

// ---- the server ----

void NetlinkServer::Impl::OnConfig() {
  const auto before = std::exchange(config, backend.config());
  if (before == config) return;
  BoundSnapshots();
  const bool heard = std::any_of(sockets.begin(), sockets.end(), [](const SocketImpl* s) {
    for (uint32_t group = 1; group <= kRouteGroups; ++group) {
      if (s->protocol() == NETLINK_ROUTE && s->member(group)) return true;
    }
    return false;
  });
  if (!heard) return;
  const auto notifications = Differences(*before, *config, backend);
  const auto present = sockets;  // an observer may close a socket
  for (const Notification& n : notifications) {
    for (SocketImpl* s : present) {
      if (!sockets.contains(s) || s->protocol() != NETLINK_ROUTE || !s->member(n.group)) continue;
      const sockaddr_nl source{.nl_family = AF_NETLINK, .nl_groups = GroupMask(n.group)};
      s->Notify({.bytes = n.message, .source = source, .group = n.group});
    }
  }
}

void NetlinkServer::Impl::BoundSnapshots() {
  std::map<uint64_t, std::vector<Dump*>> by_generation;
  for (const SocketImpl* s : sockets) {
    Dump* dump = s->dump();
    if (dump != nullptr && dump->config() != nullptr && dump->config() != config.get()) {
      by_generation[dump->config()->generation].push_back(dump);
    }
  }
  for (auto it = by_generation.begin(); by_generation.size() > kMaxPinnedSnapshots; it = by_generation.erase(it)) {
    for (Dump* dump : it->second) dump->Rebase(config);
  }
}

bool NetlinkServer::Impl::PortIdFree(int protocol, uint32_t portid) const {
  return std::none_of(sockets.begin(), sockets.end(),
                      [=](const SocketImpl* s) { return s->protocol() == protocol && s->bound() && s->portid() == portid; });
}

uint32_t NetlinkServer::Impl::AutoPortId(int protocol, uint32_t proposed) {
  if (proposed != 0 && PortIdFree(protocol, proposed)) return proposed;
  // As the kernel: numbers that are negative and no process can have.
  do {
    ++next_auto_;
  } while (!PortIdFree(protocol, 0xffffefffu - (next_auto_ & 0x3fffffff)));
  return 0xffffefffu - (next_auto_ & 0x3fffffff);
}

NetlinkServer::NetlinkServer(Backend& backend, size_t queued_bytes) : impl_(std::make_shared<Impl>(backend, queued_bytes)) {}
NetlinkServer::~NetlinkServer() = default;

std::unique_ptr<NetlinkSocket> NetlinkServer::NewSocket(int type, int protocol, Errno* error) {
  *error = Errno::kOk;
  const int plain_type = type & 0xf;  // without SOCK_CLOEXEC and SOCK_NONBLOCK
  if (plain_type != SOCK_RAW && plain_type != SOCK_DGRAM) {
    *error = Errno::kESOCKTNOSUPPORT;
    return nullptr;
  }
  switch (protocol) {
    case NETLINK_ROUTE:
      return std::make_unique<SocketImpl>(impl_, Protocol{NETLINK_ROUTE, kRouteGroups});
    case NETLINK_SOCK_DIAG:
      return std::make_unique<SocketImpl>(impl_, Protocol{NETLINK_SOCK_DIAG, kDiagGroups});
    default:
      *error = Errno::kEPROTONOSUPPORT;
      return nullptr;
  }
}

void NetlinkServer::OnConfig() { impl_->OnConfig(); }

}  // namespace sluice::netlink
