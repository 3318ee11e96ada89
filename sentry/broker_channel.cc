#include "sentry/broker_channel.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

namespace sluice::calls {
namespace {

std::vector<UniqueFd> TakeDescriptors(msghdr& h) {
  std::vector<UniqueFd> fds;
  for (cmsghdr* c = CMSG_FIRSTHDR(&h); c != nullptr; c = CMSG_NXTHDR(&h, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t k = 0; k < count; ++k) {
      int fd;
      memcpy(&fd, CMSG_DATA(c) + k * sizeof(int), sizeof fd);
      fds.emplace_back(fd);
    }
  }
  return fds;
}

}  // namespace

SendOutcome SendMessage(int channel, Bytes message, int fd) {
  iovec iov{const_cast<uint8_t*>(message.data()), message.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr h{};
  h.msg_iov = &iov;
  h.msg_iovlen = 1;
  if (fd >= 0) {
    h.msg_control = control;
    h.msg_controllen = sizeof control;
    cmsghdr* c = CMSG_FIRSTHDR(&h);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
  }
  if (sendmsg(channel, &h, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return SendOutcome::kSent;
  const bool full = errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM || errno == ETOOMANYREFS;
  return full ? SendOutcome::kFull : SendOutcome::kGone;
}

struct MessageReader::Headers {
  struct Control {
    alignas(cmsghdr) char room[CMSG_SPACE(4 * sizeof(int))];
  };
  std::array<mmsghdr, kAtOnce> messages;
  std::array<iovec, kAtOnce> buffers;
  std::array<Control, kAtOnce> controls;
};

// The buffers are aligned as messages are, and none of their memory is touched before a message lies there.
MessageReader::MessageReader(size_t longest)
    : longest_((longest + 63) / 64 * 64), buffer_(new uint8_t[longest_ * kAtOnce]), headers_(std::make_unique<Headers>()) {}

MessageReader::~MessageReader() = default;

std::span<ReceivedMessage> MessageReader::Receive(int channel) {
  for (; count_ > 0; --count_) messages_[count_ - 1] = {};  // descriptors that nobody took
  for (size_t i = 0; i < kAtOnce; ++i) {
    headers_->buffers[i] = {buffer_.get() + i * longest_, longest_};
    headers_->messages[i].msg_hdr = {.msg_iov = &headers_->buffers[i],
                                     .msg_iovlen = 1,
                                     .msg_control = headers_->controls[i].room,
                                     .msg_controllen = sizeof headers_->controls[i].room};
  }
  const int n = recvmmsg(channel, headers_->messages.data(), kAtOnce, MSG_DONTWAIT | MSG_CMSG_CLOEXEC, nullptr);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return {};
  if (n <= 0) return std::span(messages_).first(1);
  for (; count_ < static_cast<size_t>(n); ++count_) {
    msghdr& h = headers_->messages[count_].msg_hdr;
    messages_[count_] = {.bytes = {buffer_.get() + count_ * longest_, headers_->messages[count_].msg_len},
                         .fds = TakeDescriptors(h),
                         .cut = (h.msg_flags & MSG_TRUNC) != 0,
                         .descriptor_lost = (h.msg_flags & MSG_CTRUNC) != 0};
  }
  return std::span(messages_).first(count_);
}

}  // namespace sluice::calls
