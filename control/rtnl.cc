#include "control/rtnl.h"

#include <linux/if_link.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

namespace sluice {

void Attributes::Parse(Bytes bytes) {
  at_.fill(Bytes());
  while (bytes.size() >= sizeof(rtattr)) {
    rtattr header;
    std::memcpy(&header, bytes.data(), sizeof header);
    if (header.rta_len < sizeof header || header.rta_len > bytes.size()) return;
    const size_t type = header.rta_type & NLA_TYPE_MASK;
    if (type < kMax) at_[type] = bytes.subspan(RTA_LENGTH(0), header.rta_len - RTA_LENGTH(0));
    bytes = bytes.subspan(std::min<size_t>(RTA_ALIGN(header.rta_len), bytes.size()));
  }
}

uint8_t Attributes::u8(int type, uint8_t otherwise) const { return get(type).size() == 1 ? get(type)[0] : otherwise; }

uint16_t Attributes::u16(int type, uint16_t otherwise) const {
  if (get(type).size() == sizeof otherwise) std::memcpy(&otherwise, get(type).data(), sizeof otherwise);
  return otherwise;
}

uint32_t Attributes::u32(int type, uint32_t otherwise) const {
  if (get(type).size() == sizeof otherwise) std::memcpy(&otherwise, get(type).data(), sizeof otherwise);
  return otherwise;
}

std::string Attributes::str(int type) const {
  const Bytes value = get(type);
  if (value.empty()) return {};
  return std::string(reinterpret_cast<const char*>(value.data()), strnlen(reinterpret_cast<const char*>(value.data()), value.size()));
}

NetlinkMessage::NetlinkMessage(uint16_t type, uint16_t flags) {
  nlmsghdr header{};
  header.nlmsg_type = type;
  header.nlmsg_flags = flags;
  Raw(&header, sizeof header);
}

NetlinkMessage& NetlinkMessage::Raw(const void* data, size_t size) {
  bytes_.resize(NLMSG_ALIGN(bytes_.size()));
  const auto* p = static_cast<const uint8_t*>(data);
  bytes_.insert(bytes_.end(), p, p + size);
  return *this;
}

NetlinkMessage& NetlinkMessage::Attr(uint16_t type, Bytes value) {
  const rtattr header{static_cast<uint16_t>(RTA_LENGTH(value.size())), type};
  Raw(&header, sizeof header);
  bytes_.insert(bytes_.end(), value.begin(), value.end());
  return *this;
}

NetlinkMessage& NetlinkMessage::Attr(uint16_t type, std::string_view text) {
  std::string zero_ended(text);
  return Attr(type, Bytes(reinterpret_cast<const uint8_t*>(zero_ended.c_str()), zero_ended.size() + 1));
}

size_t NetlinkMessage::Begin(uint16_t type) {
  const rtattr header{RTA_LENGTH(0), type};
  Raw(&header, sizeof header);
  return bytes_.size() - sizeof header;
}

void NetlinkMessage::End(size_t begun) {
  const auto length = static_cast<uint16_t>(bytes_.size() - begun);
  std::memcpy(bytes_.data() + begun, &length, sizeof length);
}

std::vector<uint8_t>& NetlinkMessage::bytes() {
  const auto length = static_cast<uint32_t>(bytes_.size());
  std::memcpy(bytes_.data(), &length, sizeof length);
  return bytes_;
}

Status NetlinkClient::Open(const std::vector<int>& groups, UniqueFd* out, int protocol) {
  UniqueFd fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol));
  if (!fd) return Status::Error("cannot open a netlink socket" + ErrnoText(errno));
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) < 0) {
    return Status::Error("cannot bind a netlink socket" + ErrnoText(errno));
  }
  const int on = 1;
  setsockopt(fd.get(), SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on);
  setsockopt(fd.get(), SOL_NETLINK, NETLINK_GET_STRICT_CHK, &on, sizeof on);
  const int buffer = 4 << 20;
  setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer);
  for (const int group : groups) {
    if (setsockopt(fd.get(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) < 0) {
      return Status::Error(Format("cannot follow netlink group %d", group) + ErrnoText(errno));
    }
  }
  *out = std::move(fd);
  return {};
}

int NetlinkClient::Send(NetlinkMessage& message) {
  auto& bytes = message.bytes();
  nlmsghdr header;
  std::memcpy(&header, bytes.data(), sizeof header);
  header.nlmsg_seq = ++seq_;
  std::memcpy(bytes.data(), &header, sizeof header);
  sockaddr_nl kernel{};
  kernel.nl_family = AF_NETLINK;
  ssize_t n;
  do {
    n = sendto(fd_.get(), bytes.data(), bytes.size(), 0, reinterpret_cast<sockaddr*>(&kernel), sizeof kernel);
  } while (n < 0 && errno == EINTR);
  return n < 0 ? errno : 0;
}

int NetlinkClient::Transact(NetlinkMessage& message, std::string* reason) {
  if (const int error = Send(message)) return error;
  std::vector<uint8_t> buffer(32768);
  for (;;) {
    const ssize_t n = recv(fd_.get(), buffer.data(), buffer.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    int left = static_cast<int>(n);
    for (auto* m = reinterpret_cast<const nlmsghdr*>(buffer.data()); NLMSG_OK(m, static_cast<uint32_t>(left)); m = NLMSG_NEXT(m, left)) {
      if (m->nlmsg_seq != seq_ || m->nlmsg_type != NLMSG_ERROR || m->nlmsg_len < NLMSG_LENGTH(sizeof(nlmsgerr))) continue;
      nlmsgerr error;
      std::memcpy(&error, NLMSG_DATA(m), sizeof error);
      if (reason != nullptr && (m->nlmsg_flags & NLM_F_ACK_TLVS) != 0) {
        size_t offset = NLMSG_LENGTH(sizeof error);
        if ((m->nlmsg_flags & NLM_F_CAPPED) == 0 && error.msg.nlmsg_len > sizeof(nlmsghdr)) {
          offset += NLMSG_ALIGN(error.msg.nlmsg_len - sizeof(nlmsghdr));
        }
        if (offset < m->nlmsg_len) {
          *reason = Attributes(Bytes(reinterpret_cast<const uint8_t*>(m) + offset, m->nlmsg_len - offset)).str(NLMSGERR_ATTR_MSG);
        }
      }
      return -error.error;
    }
  }
}

int NetlinkClient::DumpOnce(NetlinkMessage& message, const std::function<void(const nlmsghdr*)>& each, bool* interrupted) {
  *interrupted = false;
  if (const int error = Send(message)) return error;
  std::vector<uint8_t> buffer(65536);
  for (;;) {
    const ssize_t n = recv(fd_.get(), buffer.data(), buffer.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    int left = static_cast<int>(n);
    for (auto* m = reinterpret_cast<const nlmsghdr*>(buffer.data()); NLMSG_OK(m, static_cast<uint32_t>(left)); m = NLMSG_NEXT(m, left)) {
      if (m->nlmsg_seq != seq_) continue;  // the rest of a dump that was given up
      if ((m->nlmsg_flags & NLM_F_DUMP_INTR) != 0) *interrupted = true;
      if (m->nlmsg_type == NLMSG_DONE) {
        int error = 0;
        if (m->nlmsg_len >= NLMSG_LENGTH(sizeof error)) std::memcpy(&error, NLMSG_DATA(m), sizeof error);
        return -error;
      }
      if (m->nlmsg_type == NLMSG_ERROR) {
        nlmsgerr error;
        if (m->nlmsg_len < NLMSG_LENGTH(sizeof error)) return EPROTO;
        std::memcpy(&error, NLMSG_DATA(m), sizeof error);
        return -error.error;
      }
      each(m);
    }
  }
}

int NetlinkClient::Dump(NetlinkMessage& message, const std::function<void(const nlmsghdr*)>& each, const std::function<void()>& restart) {
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
        LinkInfo link{header.ifi_index, attributes.str(IFLA_IFNAME), header.ifi_flags, attributes.u32(IFLA_MTU), header.ifi_type, false};
        link.xdp = Attributes(attributes.get(IFLA_XDP)).u8(IFLA_XDP_ATTACHED) != 0;
        out->push_back(std::move(link));
      },
      [&] { out->clear(); });
  if (error != 0) return Status::Error("cannot list the devices of the namespace" + ErrnoText(error));
  return {};
}

}  // namespace sluice
