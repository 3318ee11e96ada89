#include "control/rtnl.h"

#include <fcntl.h>
#include <linux/if_link.h>
#include <netlink/netlink.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/check.h"

namespace sluice {

void Attributes::Parse(Bytes bytes) {
  // libnl takes no const; it only reads.
  auto* first = reinterpret_cast<nlattr*>(const_cast<uint8_t*>(bytes.data()));
  nla_parse(at_.data(), static_cast<int>(at_.size()) - 1, first, static_cast<int>(bytes.size()), nullptr);
}

Bytes Attributes::get(int type) const {
  if (!has(type)) return {};
  const nlattr* attribute = at_[static_cast<size_t>(type)];
  return {static_cast<const uint8_t*>(nla_data(attribute)), static_cast<size_t>(nla_len(attribute))};
}

uint8_t Attributes::u8(int type, uint8_t otherwise) const { return get(type).size() == 1 ? get(type)[0] : otherwise; }

uint32_t Attributes::u32(int type, uint32_t otherwise) const {
  return get(type).size() == sizeof otherwise ? nla_get_u32(at_[static_cast<size_t>(type)]) : otherwise;
}

std::string Attributes::str(int type) const {
  const Bytes value = get(type);
  const auto* text = reinterpret_cast<const char*>(value.data());
  return value.empty() ? std::string() : std::string(text, strnlen(text, value.size()));
}

NetlinkMessage::NetlinkMessage(uint16_t type, uint16_t flags) : message_(nlmsg_alloc_size(32768)) {
  SLUICE_CHECK(message_ != nullptr);
  header()->nlmsg_type = type;
  header()->nlmsg_flags = flags;
}

NetlinkMessage& NetlinkMessage::Raw(const void* data, size_t size) {
  SLUICE_CHECK(nlmsg_append(get(), const_cast<void*>(data), size, NLMSG_ALIGNTO) == 0);
  return *this;
}

void* NetlinkMessage::Reserve(size_t size) {
  void* room = nlmsg_reserve(get(), size, NLMSG_ALIGNTO);
  SLUICE_CHECK(room != nullptr);
  return room;
}

NetlinkMessage& NetlinkMessage::Attr(uint16_t type, Bytes value) {
  SLUICE_CHECK(nla_put(get(), type, static_cast<int>(value.size()), value.data()) == 0);
  return *this;
}

NetlinkMessage& NetlinkMessage::Attr(uint16_t type, std::string_view text) {
  SLUICE_CHECK(nla_put_string(get(), type, std::string(text).c_str()) == 0);
  return *this;
}

nlattr* NetlinkMessage::Begin(uint16_t type) {
  nlattr* begun = nla_nest_start(get(), type);
  SLUICE_CHECK(begun != nullptr);
  return begun;
}

Status NetlinkClient::Open(const std::vector<int>& groups, UniqueFd* out, int protocol) {
  const std::unique_ptr<nl_sock, Free> socket(nl_socket_alloc());
  if (socket == nullptr) return Status::Error("cannot open a netlink socket" + ErrnoText(ENOMEM));
  if (const int error = nl_connect(socket.get(), protocol))
    return Status::Error(std::string("cannot open a netlink socket: ") + nl_geterror(error));
  const int fd = nl_socket_get_fd(socket.get());
  const int on = 1;
  for (const int option : {NETLINK_EXT_ACK, NETLINK_CAP_ACK, NETLINK_GET_STRICT_CHK}) {
    if (setsockopt(fd, SOL_NETLINK, option, &on, sizeof on) < 0)
      return Status::Error("cannot set up a netlink socket" + ErrnoText(errno));
  }
  const int buffer = 4 << 20;
  setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer);
  for (const int group : groups) {
    if (const int error = nl_socket_add_membership(socket.get(), group)) {
      return Status::Error(Format("cannot follow netlink group %d: %s", group, nl_geterror(error)));
    }
  }
  out->Reset(fcntl(fd, F_DUPFD_CLOEXEC, 0));  // libnl closes its own
  return *out ? Status() : Status::Error("cannot keep a netlink socket" + ErrnoText(errno));
}

NetlinkClient::NetlinkClient(UniqueFd fd) : socket_(nl_socket_alloc()) {
  int protocol = 0;
  socklen_t size = sizeof protocol;
  SLUICE_CHECK(socket_ != nullptr && getsockopt(fd.get(), SOL_SOCKET, SO_PROTOCOL, &protocol, &size) == 0);
  SLUICE_CHECK(nl_socket_set_fd(socket_.get(), protocol, fd.release()) == 0);
  nl_socket_disable_auto_ack(socket_.get());
  nl_socket_set_msg_buf_size(socket_.get(),
                             65536);  // more than the kernel puts in one datagram; without it every one is peeked at first
}

int NetlinkClient::Send(NetlinkMessage& message) {
  message.header()->nlmsg_seq = NL_AUTO_SEQ;  // a new one where it is sent again
  if (nl_send_auto(socket_.get(), message.get()) < 0) return errno;
  seq_ = message.header()->nlmsg_seq;
  return 0;
}

int NetlinkClient::Receive(const std::function<bool(const nlmsghdr*)>& each) {
  sockaddr_nl from{};
  unsigned char* bytes = nullptr;
  int left = nl_recv(socket_.get(), &from, &bytes, nullptr);
  if (left == 0) return EAGAIN;
  if (left < 0) return errno;  // libnl's own numbers are fewer
  const std::unique_ptr<unsigned char, decltype(&std::free)> buffer(bytes, &std::free);
  for (auto* m = reinterpret_cast<nlmsghdr*>(bytes); nlmsg_ok(m, left); m = nlmsg_next(m, &left)) {
    if (!each(m)) break;
  }
  return 0;
}

int NetlinkClient::ReadEvents(const std::function<void(const nlmsghdr*)>& each) {
  return Receive([&](const nlmsghdr* m) {
    each(m);
    return true;
  });
}

namespace {

// What an NLMSG_ERROR (an acknowledgement too) or NLMSG_DONE says.
int ErrorOf(const nlmsghdr* m) {
  int error = 0;  // the first field of struct nlmsgerr
  if (!nlmsg_valid_hdr(m, sizeof error)) return m->nlmsg_type == NLMSG_DONE ? 0 : EPROTO;
  std::memcpy(&error, nlmsg_data(m), sizeof error);
  return -error;
}

}  // namespace

int NetlinkClient::Transact(NetlinkMessage& message, std::string* reason) {
  if (const int error = Send(message)) return error;
  for (;;) {
    int result = 0;
    bool answered = false;
    const int error = Receive([&](const nlmsghdr* m) {
      if (m->nlmsg_seq != seq_ || m->nlmsg_type != NLMSG_ERROR) return true;
      answered = true;
      result = ErrorOf(m);
      nlmsgerr header;
      Attributes attributes;  // the request is not repeated before them (NETLINK_CAP_ACK)
      if (reason != nullptr && (m->nlmsg_flags & NLM_F_ACK_TLVS) != 0 && ParseMessage(m, &header, &attributes))
        *reason = attributes.str(NLMSGERR_ATTR_MSG);
      return false;
    });
    if (answered || error != 0) return answered ? result : error;
  }
}

int NetlinkClient::DumpOnce(NetlinkMessage& message, const std::function<void(const nlmsghdr*)>& each, bool* interrupted) {
  *interrupted = false;
  if (const int error = Send(message)) return error;
  for (;;) {
    int result = 0;
    bool done = false;
    const int error = Receive([&](const nlmsghdr* m) {
      if (m->nlmsg_seq != seq_) return true;  // the rest of a dump that was given up
      if ((m->nlmsg_flags & NLM_F_DUMP_INTR) != 0) *interrupted = true;
      done = m->nlmsg_type == NLMSG_DONE || m->nlmsg_type == NLMSG_ERROR;
      if (done) {
        result = ErrorOf(m);
      } else {
        each(m);
      }
      return !done;
    });
    if (done || error != 0) return done ? result : error;
  }
}

int NetlinkClient::Dump(NetlinkMessage& message, const std::function<void(const nlmsghdr*)>& each,
                        const std::function<void()>& restart) {
  // Tables that change all the time would never be dumped in one piece: the last try is kept, the next event brings another.
  for (int attempt = 0;; ++attempt) {
    bool interrupted = false;
    restart();
    const int error = DumpOnce(message, each, &interrupted);
    if (error != 0 || !interrupted || attempt == 8) return error;
  }
}

Status ListLinks(NetlinkClient& client, std::vector<LinkInfo>* out) {
  NetlinkMessage request(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP);
  request.Header(ifinfomsg{});
  const int error = client.Dump(
      request,
      [&](const nlmsghdr* m) {
        ifinfomsg header;
        Attributes attributes;
        if (m->nlmsg_type != RTM_NEWLINK || !ParseMessage(m, &header, &attributes)) return;
        LinkInfo link{
            header.ifi_index, attributes.str(IFLA_IFNAME), header.ifi_flags, attributes.u32(IFLA_MTU), header.ifi_type, false};
        link.xdp = Attributes(attributes.get(IFLA_XDP)).u8(IFLA_XDP_ATTACHED) != 0;
        out->push_back(std::move(link));
      },
      [&] { out->clear(); });
  if (error != 0) return Status::Error("cannot list the devices of the namespace" + ErrnoText(error));
  return {};
}

}  // namespace sluice
