// Internal: what the topics of the server (link.cc, addr.cc ...) share.
#pragma once

#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "sentry/netlink/message.h"
#include "sentry/netlink/netlink_server.h"

namespace sluice::netlink {

// The size of a dump's datagrams: what the kernel fills where the reader did not announce a larger buffer (a page less its own
// overhead). Readers with a page-sized buffer, as the C libraries have, lose nothing. A single larger message goes alone.
inline constexpr size_t kDumpDatagram = 3776;

// A running dump: a list of messages made one by one as the reader takes them.
class Dump {
 public:
  virtual ~Dump() = default;
  // Appends at most one message (nlmsghdr with type and length; the rest is filled in by the socket). False at the end.
  virtual bool Next(Buffer* out) = 0;
  // The configuration the dump walks over, and going over to another one (see NetlinkServer::Impl::BoundSnapshots).
  virtual const NetConfig* config() const { return nullptr; }
  virtual void Rebase(std::shared_ptr<const NetConfig>) {}

  uint16_t flags = 0;        // of its messages: NLM_F_DUMP_FILTERED
  uint16_t done_flags = 0;   // of the final message
  bool interrupted = false;  // NLM_F_DUMP_INTR from now on
};

// A dump over a snapshot of the configuration. `step` is called with 0, 1, 2 ... until it returns false; it appends at most one
// message.
class ConfigDump final : public Dump {
 public:
  using Step = std::function<bool(const NetConfig& config, size_t index, Buffer* out)>;
  ConfigDump(std::shared_ptr<const NetConfig> config, Step step) : config_(std::move(config)), step_(std::move(step)) {}
  bool Next(Buffer* out) override { return step_(*config_, index_++, out); }
  const NetConfig* config() const override { return config_.get(); }
  void Rebase(std::shared_ptr<const NetConfig> config) override {
    config_ = std::move(config);
    interrupted = true;
  }

 private:
  std::shared_ptr<const NetConfig> config_;
  Step step_;
  size_t index_ = 0;
};

// A dump over messages that were made beforehand.
class ListDump final : public Dump {
 public:
  explicit ListDump(std::vector<Buffer> messages) : messages_(std::move(messages)) {}
  bool Next(Buffer* out) override {
    if (index_ == messages_.size()) return false;
    const Buffer& m = messages_[index_++];
    out->insert(out->end(), m.begin(), m.end());
    return true;
  }

 private:
  std::vector<Buffer> messages_;
  size_t index_ = 0;
};

// One message of a program, and what its handler answers with.
struct Request {
  Backend& backend;
  Bytes message;  // whole, header included
  nlmsghdr header;
  const Caller& caller;
  bool strict;  // NETLINK_GET_STRICT_CHK

  // Answers (at most one kind is set; with none, an acknowledgement is sent where it was asked for).
  ExtAck ack;
  std::vector<Buffer> replies;  // messages with type and length
  std::unique_ptr<Dump> dump;
  uint16_t dump_flags = 0;        // of its messages: NLM_F_DUMP_FILTERED
  uint16_t done_flags = 0;        // of its final message
  Errno dump_error = Errno::kOk;  // goes into the dump's final message, with `ack`
  std::unique_ptr<NetChange> change;

  Bytes payload() const { return message.subspan(sizeof(nlmsghdr)); }
  // The family-specific header; fields that the message is too short for are zero.
  template <typename T>
  T Fixed() const {
    return LoadPrefix<T>(payload());
  }
  template <typename T>
  Errno Parse(AttributeTable* table, uint16_t max, std::span<const AttributeRule> rules, bool strict_attributes) {
    const size_t skip = Align4(sizeof(T));
    if (payload().size() < sizeof(T)) return Refuse(Errno::kEINVAL, "the message is shorter than its header");
    const Bytes rest = payload().size() > skip ? payload().subspan(skip) : Bytes{};
    return table->Parse(rest, max, rules, strict_attributes, static_cast<uint32_t>(sizeof(nlmsghdr) + skip), &ack);
  }
  Errno Refuse(Errno error, std::string_view why) {
    ack.message = why;
    return error;
  }
  Errno Refuse(Errno error, std::string_view why, const Attribute& bad) {
    ack = {std::string(why), bad.offset};
    return error;
  }
  NetChange& Change(NetChangeKind kind) {
    change = std::make_unique<NetChange>();
    change->kind = kind;
    change->nl_flags = header.nlmsg_flags & (NLM_F_REPLACE | NLM_F_EXCL | NLM_F_CREATE | NLM_F_APPEND);
    return *change;
  }
  bool dumping() const { return (header.nlmsg_flags & NLM_F_DUMP) != 0; }
};

// Handlers of message types; the errno is that of the acknowledgement (or of the dump's end).
Errno GetLink(Request& r);
Errno DumpLinks(Request& r);
Errno SetLink(Request& r);
Errno DumpAddresses(Request& r);
Errno GetAddress(Request& r);
Errno ChangeAddress(Request& r);
Errno DumpRoutes(Request& r);
Errno GetRoute(Request& r);
Errno ChangeRoute(Request& r);
Errno DumpRules(Request& r);
Errno ChangeRule(Request& r);
Errno DumpNeighbors(Request& r);
Errno GetNeighbor(Request& r);
Errno ChangeNeighbor(Request& r);
Errno DumpNetconf(Request& r);
Errno GetNetconf(Request& r);
Errno DumpQdiscs(Request& r);
Errno GetQdisc(Request& r);
Errno GetNsid(Request& r);
Errno DumpNothing(Request& r);
// NETLINK_SOCK_DIAG.
Errno SockDiag(Request& r);

// Messages from the configuration: the kernel's own where the mirror has it, made from the fields otherwise.
// `ext_mask`: RTEXT_FILTER_*; `change`: ifi_change.
void AppendLink(const LinkConfig& link, const Stack::LinkCounters& counters, uint32_t ext_mask, uint32_t change, Buffer* out);
void AppendAddress(const AddressConfig& address, Buffer* out);
void AppendRoute(const RouteConfig& route, Buffer* out);
void AppendRule(const RuleConfig& rule, Buffer* out);
void AppendNeighbor(const NeighborInfo& neighbor, uint8_t flags, Buffer* out);

const LinkConfig* FindLink(const NetConfig& config, IfIndex index);
// By name or alternative name.
const LinkConfig* FindLink(const NetConfig& config, std::string_view name);
// What a request for `flags` (IFF_*, those in `mask`) means for a device: at most up or down. The reason of a refusal goes to
// `why`.
Errno FlagsToChange(const LinkConfig& link, uint32_t flags, uint32_t mask, LinkChange* change, std::string* why);
// Reads an attribute as an address of the family `af`; false where its length is wrong.
bool ReadAddress(const Attribute& attribute, int af, NetAddress* out);
NetName ToNetName(std::string_view text);
IpAddress ToIpAddress(const NetAddress& address);

// What changed between two configurations, as messages for the members of a multicast group.
struct Notification {
  uint32_t group = 0;  // RTNLGRP_*
  Buffer message;
};
std::vector<Notification> Differences(const NetConfig& before, const NetConfig& after, const Backend& backend);

}  // namespace sluice::netlink
