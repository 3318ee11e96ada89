// Any bytes as datagrams to netlink sockets and as arguments of device ioctls, with and without rights, with changes answered at
// once, later or never: no crash, no growth without a bound, and every datagram that comes out is well-formed.
#include <linux/sockios.h>
#include <sys/socket.h>

#include <cstdlib>

#include "sentry/netlink/if_ioctl.h"
#include "sentry/netlink/server_impl.h"
#include "sentry/netlink/testing/fake_backend.h"

namespace sluice::netlink {
namespace {

void CheckReplies(NetlinkSocket& socket) {
  Reply reply;
  for (int i = 0; i < 200 && socket.NextReply(&reply); ++i) {
    Bytes rest = reply.bytes;
    if (reply.source.nl_pid != 0) continue;  // what one program sent to another
    while (!rest.empty()) {
      if (!WellFormed(rest, 0)) std::abort();
      rest = rest.subspan(std::min(Align4(LoadPrefix<nlmsghdr>(rest).nlmsg_len), rest.size()));
    }
  }
}

void Prepare(testing::FakeBackend& backend) {
  backend.Change([](NetConfig& c) {
    LinkConfig link = c.links[0];
    link.index = 2;
    link.name = "eth0";
    link.flags = 0x11043;
    AppendLink(link, {}, 0, 0, &link.netlink);
    c.links.push_back(link);
  });
  backend.sockets.push_back({.family = Family::kIpv4, .protocol = 6, .state = 1, .local = {IpAddress::V4(10, 0, 0, 1), 80}});
  backend.neighbors.push_back({.ifindex = 2, .address = IpAddress::V4(10, 0, 0, 2), .state = 2});
  backend.route = {.error = Errno::kOk, .type = 1, .ifindex = 2, .source = IpAddress::V4(10, 0, 0, 1)};
}

void Ioctl(const testing::FakeBackend& backend, Bytes data) {
  const auto request = static_cast<uint32_t>(SIOCADDRT + (data.empty() ? 0 : data[0]));
  const auto shape = ShapeOfIoctl(request);
  if (!shape || data.size() < 1u + shape->argument) return;
  const Bytes extra = data.subspan(1u + shape->argument);
  const auto result =
      DeviceIoctl(backend, AF_INET, request, data.subspan(1, shape->argument),
                  extra.first(std::min<size_t>(extra.size(), shape->extra_read_max)), {.known = true, .net_admin = true});
  if (result.extra.size() > kMaxIoctlExtra || result.changes.size() > 2) std::abort();
}

}  // namespace
}  // namespace sluice::netlink

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sluice;
  using namespace sluice::netlink;
  if (size < 2) return 0;
  netlink::testing::FakeBackend backend;
  Prepare(backend);
  const uint8_t mode = data[0];
  const Bytes input(data + 1, size - 1);
  Ioctl(backend, input);
  NetlinkServer server(backend);
  Errno error = Errno::kOk;
  const auto socket = server.NewSocket(SOCK_RAW, (mode & 1) != 0 ? NETLINK_SOCK_DIAG : NETLINK_ROUTE, &error);
  const Caller caller{.known = true, .net_admin = (mode & 2) == 0, .tgid = 1};
  const int on = 1;
  if ((mode & 4) != 0) error = socket->SetOption(NETLINK_GET_STRICT_CHK, AsBytes(on), caller);
  if ((mode & 8) != 0) error = socket->SetOption(NETLINK_EXT_ACK, AsBytes(on), caller);
  backend.answer_at_once = (mode & 16) != 0;
  error = socket->Send(input, {}, caller);
  CheckReplies(*socket);
  while ((mode & 32) != 0 && !backend.pending.empty()) {
    auto done = backend.pending.front().done;
    backend.pending.pop_front();
    done({.error = mode});
    CheckReplies(*socket);
  }
  return 0;
}
