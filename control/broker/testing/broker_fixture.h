// The broker with a sentry that is the test's, and a program under the filter.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "control/broker/call_broker.h"
#include "sentry/broker_protocol.h"
#include "sentry/filter.h"

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

namespace sluice {

using calls::Envelope;
using calls::MessageType;

inline std::vector<uint8_t> Copy(Bytes b) { return {b.begin(), b.end()}; }

template <typename T>
Bytes BytesOf(const T& value) {
  return {reinterpret_cast<const uint8_t*>(&value), sizeof value};
}

inline Envelope To(MessageType type, uint16_t listener, uint32_t tid, uint64_t id) { return {type, 0, listener, tid, id}; }

struct Answered {
  std::vector<uint8_t> bytes;
  bool has_fd = false;
  template <typename T>
  T As() const {
    T out{};
    EXPECT_EQ(sizeof out, bytes.size());
    std::memcpy(&out, bytes.data(), std::min(sizeof out, bytes.size()));
    return out;
  }
  MessageType type() const { return static_cast<MessageType>(bytes.at(0)); }
};

// The sentry's end of the channel is the test's.
class BrokerTest : public ::testing::Test {
 protected:
  BrokerTest() {
    int ends[2];
    EXPECT_EQ(0, socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends));
    broker_end_ = UniqueFd(ends[0]);
    sentry_end_ = UniqueFd(ends[1]);
    EXPECT_EQ(0, socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends));
    broker_offers_ = UniqueFd(ends[0]);
    sentry_offers_ = UniqueFd(ends[1]);
    UniqueFd s(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    uint64_t cookie = 0;
    socklen_t length = sizeof cookie;
    EXPECT_EQ(0, getsockopt(s.get(), SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &length));
    netns_ = UniqueFd(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
    self_ = UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0)));
    // Every socket of this namespace counts as a stand-in.
    broker_.emplace(CallBroker::Options{.calls_fd = broker_end_.get(),
                                        .offers_fd = broker_offers_.get(),
                                        .sentry_pidfd = self_.get(),
                                        .netns_cookie = cookie,
                                        .target_netns_fd = netns_.get(),
                                        .apply_change = [this](const netlink::NetChange&, bool allowed) {
                                          ++changes_asked_;
                                          changes_allowed_ += allowed ? 1 : 0;
                                          return netlink::NetChangeResult{.error = static_cast<uint16_t>(allowed ? 0 : EPERM)};
                                        }});
  }

  bool Send(Bytes message, const std::vector<int>& fds = {}) { return SendBy(sentry_end_.get(), message, fds); }
  bool SendOffer(Bytes offer, const std::vector<int>& fds = {}) { return SendBy(sentry_offers_.get(), offer, fds); }

  static bool SendBy(int channel, Bytes message, const std::vector<int>& fds) {
    iovec iov{const_cast<uint8_t*>(message.data()), message.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))] = {};
    msghdr h{};
    h.msg_iov = &iov;
    h.msg_iovlen = 1;
    if (!fds.empty()) {
      h.msg_control = control;
      h.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
      cmsghdr* c = CMSG_FIRSTHDR(&h);
      c->cmsg_level = SOL_SOCKET;
      c->cmsg_type = SCM_RIGHTS;
      c->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
      std::memcpy(CMSG_DATA(c), fds.data(), fds.size() * sizeof(int));
    }
    return sendmsg(channel, &h, MSG_NOSIGNAL) >= 0;
  }

  std::optional<Answered> Receive() {
    std::vector<uint8_t> buffer(calls::kMaxMessage);
    iovec iov{buffer.data(), buffer.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    msghdr h{};
    h.msg_iov = &iov;
    h.msg_iovlen = 1;
    h.msg_control = control;
    h.msg_controllen = sizeof control;
    const ssize_t n = recvmsg(sentry_end_.get(), &h, MSG_CMSG_CLOEXEC);
    if (n <= 0) return std::nullopt;
    buffer.resize(static_cast<size_t>(n));
    Answered out{std::move(buffer)};
    if (cmsghdr* c = CMSG_FIRSTHDR(&h)) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(c), sizeof fd);
      close(fd);
      out.has_fd = true;
    }
    return out;
  }

  // Lets the broker work until it has sent something.
  Answered Next() {
    for (int i = 0; i < 3000; ++i) {
      if (auto a = Receive()) return *std::move(a);
      EXPECT_TRUE(broker_->RunOnce(10));
    }
    ADD_FAILURE() << "the broker sends nothing";
    return {std::vector<uint8_t>(1)};
  }

  void ExpectViolation(const std::vector<uint8_t>& message, const std::vector<int>& fds, const std::string& text) {
    ASSERT_TRUE(Send(message, fds));
    EXPECT_FALSE(broker_->RunOnce(1000));
    ASSERT_NE(nullptr, broker_->violation());
    EXPECT_NE(std::string::npos, std::string(broker_->violation()).find(text)) << broker_->violation();
    EXPECT_EQ(1u, broker_->stats().refused);
  }

  UniqueFd broker_end_, sentry_end_, broker_offers_, sentry_offers_, netns_, self_;
  std::optional<CallBroker> broker_;
  int changes_asked_ = 0, changes_allowed_ = 0;
};

// A child whose socket calls the broker serves.
class ProgramTest : public BrokerTest {
 protected:
  // `program` runs in the child, under the filter, with the socket that `make` made before; it returns the exit status.
  void Start(const std::function<int()>& make, const std::function<int(int)>& program) {
    ASSERT_EQ(0, pipe2(pipe_, O_CLOEXEC));
    ASSERT_EQ(0, pipe2(go_, O_CLOEXEC));
    child_ = fork();
    ASSERT_GE(child_, 0);
    if (child_ == 0) Run(make, program);
    int number = -1;
    ASSERT_EQ(static_cast<ssize_t>(sizeof number), read(pipe_[0], &number, sizeof number));
    if (number < 0) GTEST_SKIP() << "no right to install a seccomp listener";
    UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, child_, 0)));
    UniqueFd listener(static_cast<int>(syscall(SYS_pidfd_getfd, pidfd.get(), number, 0)));
    ASSERT_TRUE(listener);
    broker_->AddListener(std::move(listener));
    ASSERT_EQ(MessageType::kListener, Next().type());
    Go();
  }

  // Lets the program begin, and whenever it calls Await().
  void Go() { ASSERT_EQ(1, write(go_[1], "g", 1)); }
  void Await() {
    char c;
    if (read(go_[0], &c, 1) != 1) _exit(1);
  }

  void TearDown() override {
    if (child_ > 0 && !reaped_) {
      kill(child_, SIGKILL);
      waitpid(child_, nullptr, 0);
    }
    for (int fd : {pipe_[0], pipe_[1], go_[0], go_[1]}) close(fd);
  }

  int ExitStatus() {
    int status = 0;
    for (int i = 0; i < 6000; ++i) {
      if (waitpid(child_, &status, WNOHANG) == child_) {
        reaped_ = true;
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
      }
      if (!broker_->RunOnce(10)) break;
    }
    return -2;
  }

  int pipe_[2] = {-1, -1}, go_[2] = {-1, -1};
  pid_t child_ = -1;
  bool reaped_ = false;

 private:
  [[noreturn]] void Run(const std::function<int()>& make, const std::function<int(int)>& program) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int s = make();
    std::string error;
    UniqueFd listener = InstallProgramFilter({.no_new_privs = true}, &error);
    const int number = listener.get();
    if (write(pipe_[1], &number, sizeof number) != sizeof number) _exit(1);
    Await();
    listener.reset();
    _exit(program(s));
  }
};

}  // namespace sluice
