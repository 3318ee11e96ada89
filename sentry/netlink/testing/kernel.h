// For tests: a network namespace of their own, the kernel's rtnetlink in it, and a NetConfig recorded from there.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "sentry/netlink/message.h"
#include "sentry/netlink/netlink_server.h"

namespace sluice::netlink::testing {

// Runs `body` in a thread that has a fresh network namespace, which ends with it. False where that is not permitted (not root).
bool InNewNetns(const std::function<void()>& body);

// Runs `command` by the shell in the calling thread's namespaces; its exit status.
int Shell(const std::string& command);

// One request's answers, message by message (nlmsghdr included), until the final message of a dump, an acknowledgement, or a
// single reply.
using Messages = std::vector<Buffer>;

struct SocketOptions {
  bool strict = false;
  bool ext_ack = true;
  bool cap_ack = false;
};

Messages AskKernel(int protocol, Bytes request, const SocketOptions& options);
Messages AskServer(NetlinkServer& server, int protocol, Bytes request, const SocketOptions& options, const Caller& caller);
// Splits datagrams into messages.
void Split(Bytes datagram, Messages* out);

// What the kernel's tables hold, in the form of the mirror.
NetConfig RecordConfig();

// A message as text with one line per attribute, in which what differs between two equal answers (port id, counters, times) is
// left out. `sorted`: attributes in order of type.
std::string Describe(Bytes message, bool sorted);

Buffer MakeRequest(uint16_t type, uint16_t flags, Bytes header, const std::function<void(MessageWriter&)>& attributes = {});

}  // namespace sluice::netlink::testing
