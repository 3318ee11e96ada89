// The broker against a hostile sentry: what comes over the calls channel, with and without a program whose call is under way.
#include "control/broker/call_broker.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>
#include <vector>

#include "base/bytes.h"
#include "sentry/broker_protocol.h"
#include "sentry/filter.h"

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

namespace sluice {
namespace {

using calls::Envelope;
using calls::MessageType;

size_t OpenDescriptors() {
  const auto dir = std::filesystem::directory_iterator("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(dir), end(dir)));
}

template <typename T>
Bytes BytesOf(const T& value) {
  return {reinterpret_cast<const uint8_t*>(&value), sizeof value};
}

Envelope To(MessageType type, uint16_t listener, uint32_t tid, uint64_t id) { return {type, 0, listener, tid, id}; }

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
    UniqueFd s(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    uint64_t cookie = 0;
    socklen_t length = sizeof cookie;
    EXPECT_EQ(0, getsockopt(s.get(), SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &length));
    netns_ = UniqueFd(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
    // Every socket of this namespace counts as a stand-in.
    broker_.emplace(CallBroker::Options{.calls_fd = broker_end_.get(),
                                        .netns_cookie = cookie,
                                        .target_netns_fd = netns_.get(),
                                        .apply_change = [this](const netlink::NetChange&, bool allowed) {
                                          ++changes_asked_;
                                          changes_allowed_ += allowed ? 1 : 0;
                                          return netlink::NetChangeResult{.error = static_cast<uint16_t>(allowed ? 0 : EPERM)};
                                        }});
  }

  bool Send(Bytes message, const std::vector<int>& fds = {}) {
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
    return sendmsg(sentry_end_.get(), &h, MSG_NOSIGNAL) >= 0;
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

  UniqueFd broker_end_, sentry_end_, netns_;
  std::optional<CallBroker> broker_;
  int changes_asked_ = 0, changes_allowed_ = 0;
};

std::vector<uint8_t> Copy(Bytes b) { return {b.begin(), b.end()}; }

TEST_F(BrokerTest, EndsTheSandboxOverAShortMessage) { ExpectViolation({7, 0, 0}, {}, "shorter than its envelope"); }

TEST_F(BrokerTest, EndsTheSandboxOverATypeThatIsTheBrokersOwn) {
  ExpectViolation(Copy(BytesOf(To(MessageType::kListener, 1, 1, 1))), {}, "type that it does not send");
}

TEST_F(BrokerTest, EndsTheSandboxOverAnUnknownType) {
  ExpectViolation(Copy(BytesOf(To(static_cast<MessageType>(200), 1, 1, 1))), {}, "type that it does not send");
}

TEST_F(BrokerTest, EndsTheSandboxOverALongMessage) {
  ExpectViolation(std::vector<uint8_t>(calls::kMaxMessage + 100, static_cast<uint8_t>(MessageType::kResult)), {}, "longer");
}

TEST_F(BrokerTest, EndsTheSandboxOverATableThatIsNotThere) {
  calls::Result r;
  r.envelope = To(MessageType::kResult, 1, 1, 1);
  r.count = 3;
  ExpectViolation(Copy(BytesOf(r)), {}, "does not hold what it announces");
}

TEST_F(BrokerTest, EndsTheSandboxOverATableOfAllMessagesThereAre) {
  calls::Result r;
  r.envelope = To(MessageType::kResult, 1, 1, 1);
  r.count = 0xffffffff;
  ExpectViolation(Copy(BytesOf(r)), {}, "does not hold what it announces");
}

TEST_F(BrokerTest, EndsTheSandboxOverAWrongLength) {
  calls::Fetch fetch;
  fetch.envelope = To(MessageType::kFetch, 1, 1, 1);
  std::vector<uint8_t> message = Copy(BytesOf(fetch));
  message.push_back(0);
  ExpectViolation(message, {}, "length is not its type's");
}

TEST_F(BrokerTest, EndsTheSandboxOverADescriptorWhereNoneBelongs) {
  calls::Fetch fetch;
  fetch.envelope = To(MessageType::kFetch, 1, 1, 1);
  const size_t before = OpenDescriptors();
  ExpectViolation(Copy(BytesOf(fetch)), {STDIN_FILENO}, "descriptors");
  EXPECT_EQ(before, OpenDescriptors());
}

TEST_F(BrokerTest, EndsTheSandboxOverManyDescriptorsAndKeepsNone) {
  calls::Result r;
  r.envelope = To(MessageType::kResult, 1, 1, 1);
  const size_t before = OpenDescriptors();
  ExpectViolation(Copy(BytesOf(r)), std::vector<int>(8, STDIN_FILENO), "descriptors");
  EXPECT_EQ(before, OpenDescriptors());
}

TEST_F(BrokerTest, TellsThatAnAnswerToNobodyWasNotDelivered) {
  calls::Result r;
  r.envelope = To(MessageType::kResult, 1, static_cast<uint32_t>(getpid()), 42);
  const size_t before = OpenDescriptors();
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(Send(BytesOf(r), {STDIN_FILENO}));
    EXPECT_EQ(ENOENT, Next().As<calls::Delivered>().error);
  }
  EXPECT_EQ(before, OpenDescriptors());
  EXPECT_EQ(nullptr, broker_->violation());
}

TEST_F(BrokerTest, FetchesNothingFromProcessesThatAreNotTheSandboxs) {
  UniqueFd mine(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  calls::Fetch fetch;
  fetch.envelope = To(MessageType::kFetch, 1, static_cast<uint32_t>(getpid()), 7);
  fetch.fd = mine.get();
  socklen_t length = sizeof fetch.cookie;
  ASSERT_EQ(0, getsockopt(mine.get(), SOL_SOCKET, SO_COOKIE, &fetch.cookie, &length));
  ASSERT_TRUE(Send(BytesOf(fetch)));
  const Answered answer = Next();
  EXPECT_EQ(ENOENT, answer.As<calls::Fetched>().error);
  EXPECT_FALSE(answer.has_fd);
}

TEST_F(BrokerTest, AppliesNoChangeWithoutACallUnderWay) {
  calls::NetChangeRequest request{};
  request.envelope = To(MessageType::kNetChange, 1, static_cast<uint32_t>(getpid()), 7);
  request.token = 99;
  ASSERT_TRUE(Send(BytesOf(request)));
  const auto answer = Next().As<calls::NetChanged>();
  EXPECT_EQ(EPERM, answer.result.error);
  EXPECT_EQ(99u, answer.token);
  EXPECT_EQ(0, changes_allowed_);
}

TEST_F(BrokerTest, HoldsLittleForASentryThatDoesNotRead) {
  calls::Result r;
  r.envelope = To(MessageType::kResult, 1, 1, 1);
  // Until the broker takes no more: each message has an answer that is not read.
  uint64_t sent = 0;
  for (int idle = 0; idle < 3;) {
    uint64_t now = 0;
    while (Send(BytesOf(r))) ++now;
    sent += now;
    idle = now == 0 ? idle + 1 : 0;
    ASSERT_TRUE(broker_->RunOnce(0));
    ASSERT_LT(sent, 1000000u) << "the broker takes messages without an end";
  }
  EXPECT_LT(broker_->stats().dead * sizeof(calls::Delivered), size_t{8} << 20);
  // And goes on, with nothing lost, once it reads.
  uint64_t answers = 0;
  for (int i = 0; i < 1000000 && answers < sent; ++i) {
    while (Receive()) ++answers;
    ASSERT_TRUE(broker_->RunOnce(0));
  }
  EXPECT_EQ(sent, answers);
}

// -- with a program

struct Canary {
  std::array<uint8_t, 64> before;
  std::array<uint8_t, 16> name;
  std::array<uint8_t, 64> after;
  bool Intact() const {
    auto is = [](uint8_t b) { return b == 0x5a; };
    return std::all_of(before.begin(), before.end(), is) && std::all_of(after.begin(), after.end(), is);
  }
};

// A child that makes one getsockname call under the filter; its exit status says what it saw.
class LiveCallTest : public BrokerTest {
 protected:
  void SetUp() override {
    ASSERT_EQ(0, pipe2(pipe_, O_CLOEXEC));
    ASSERT_EQ(0, pipe2(go_, O_CLOEXEC));
    child_ = fork();
    ASSERT_GE(child_, 0);
    if (child_ == 0) Program();
    int number = -1;
    ASSERT_EQ(static_cast<ssize_t>(sizeof number), read(pipe_[0], &number, sizeof number));
    if (number < 0) GTEST_SKIP() << "no right to install a seccomp listener";
    UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, child_, 0)));
    UniqueFd listener(static_cast<int>(syscall(SYS_pidfd_getfd, pidfd.get(), number, 0)));
    ASSERT_TRUE(listener);
    broker_->AddListener(std::move(listener));
    ASSERT_EQ(1, write(go_[1], "g", 1));
    Answered a = Next();
    ASSERT_EQ(MessageType::kListener, a.type());
    a = Next();
    ASSERT_EQ(MessageType::kCall, a.type());
    std::memcpy(&call_, a.bytes.data(), sizeof call_);
    ASSERT_EQ(calls::CallKind::kGetSockName, call_.kind);
  }

  void TearDown() override {
    if (child_ > 0 && !reaped_) {
      kill(child_, SIGKILL);
      waitpid(child_, nullptr, 0);
    }
    for (int fd : {pipe_[0], pipe_[1], go_[0], go_[1]}) close(fd);
  }

  [[noreturn]] void Program() {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int s = socket(AF_UNIX, SOCK_STREAM, 0);
    std::string error;
    UniqueFd listener = InstallProgramFilter({.no_new_privs = true}, &error);
    const int number = listener.get();
    if (write(pipe_[1], &number, sizeof number) != sizeof number) _exit(1);
    char c;
    if (read(go_[0], &c, 1) != 1) _exit(1);
    listener.reset();
    Canary canary;
    std::memset(&canary, 0x5a, sizeof canary);
    socklen_t length = sizeof canary.name;
    const long result = syscall(SYS_getsockname, s, canary.name.data(), &length);
    if (!canary.Intact()) _exit(2);
    if (result != 0) _exit(100 + errno % 100);
    _exit(canary.name[0] == 'n' && canary.name[15] == 'n' && length == 120 ? 0 : 3);
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

  std::vector<uint8_t> Answer(uint32_t name, uint32_t control, uint32_t data, size_t bytes, uint32_t count = 1) {
    calls::Result r;
    r.envelope = call_.envelope;
    r.envelope.type = MessageType::kResult;
    r.count = count;
    std::vector<uint8_t> out = Copy(BytesOf(r));
    for (uint32_t i = 0; i < count; ++i) {
      calls::PartResult p;
      p.name_length = name;
      p.control_length = control;
      p.data_length = data;
      out.insert(out.end(), BytesOf(p).begin(), BytesOf(p).end());
    }
    out.insert(out.end(), bytes, 'n');
    return out;
  }

  int pipe_[2] = {-1, -1}, go_[2] = {-1, -1};
  pid_t child_ = -1;
  bool reaped_ = false;
  calls::Call call_;
};

TEST_F(LiveCallTest, WritesNoMoreOfANameThanTheCallHasRoomFor) {
  ASSERT_TRUE(Send(Answer(120, 0, 0, 120)));
  EXPECT_EQ(0, Next().As<calls::Delivered>().error);
  EXPECT_EQ(0, ExitStatus());
}

TEST_F(LiveCallTest, AnswersACallOnce) {
  std::vector<uint8_t> other = Answer(120, 0, 0, 120);
  auto* head = reinterpret_cast<calls::Result*>(other.data());
  head->envelope.id ^= 1;
  ASSERT_TRUE(Send(other));
  EXPECT_EQ(ENOENT, Next().As<calls::Delivered>().error);
  head->envelope.id ^= 1;
  head->envelope.listener = 77;
  ASSERT_TRUE(Send(other));
  EXPECT_EQ(ENOENT, Next().As<calls::Delivered>().error);
  ASSERT_TRUE(Send(Answer(120, 0, 0, 120)));
  EXPECT_EQ(0, Next().As<calls::Delivered>().error);
  ASSERT_TRUE(Send(Answer(16, 0, 0, 16)));
  EXPECT_EQ(ENOENT, Next().As<calls::Delivered>().error);
  EXPECT_EQ(0, ExitStatus());
}

TEST_F(LiveCallTest, RefusesDataThatTheCallHasNoPlaceFor) {
  ExpectViolation(Answer(16, 0, 100, 116), {}, "does not fit the call");
}

TEST_F(LiveCallTest, RefusesControlDataThatTheCallHasNoPlaceFor) {
  ExpectViolation(Answer(16, 64, 0, 80), {}, "does not fit the call");
}

TEST_F(LiveCallTest, RefusesMorePartsThanTheCallHas) { ExpectViolation(Answer(16, 0, 0, 32, 2), {}, "does not fit the call"); }

TEST_F(LiveCallTest, RefusesANameThatIsNotInTheMessage) { ExpectViolation(Answer(16, 0, 0, 8), {}, "does not fit the call"); }

TEST_F(LiveCallTest, RefusesADescriptorForACallThatReturnsNone) {
  ExpectViolation(Answer(16, 0, 0, 16), {STDIN_FILENO}, "descriptors");
}

TEST_F(LiveCallTest, RefusesAChangeOfTheNamespaceForACallThatCannotAskForOne) {
  calls::NetChangeRequest request{};
  request.envelope = call_.envelope;
  request.envelope.type = MessageType::kNetChange;
  ExpectViolation(Copy(BytesOf(request)), {}, "change of the namespace");
  EXPECT_EQ(0, changes_asked_);
}

TEST_F(LiveCallTest, AppliesChangesForASenderThatMayAndStillIsTheSame) {
  if (geteuid() != 0) GTEST_SKIP() << "the sender is to be root";
  UniqueFd child(static_cast<int>(syscall(SYS_pidfd_open, child_, 0)));
  calls::NetChangeRequest request{};
  request.envelope.type = MessageType::kNetChange;
  ASSERT_TRUE(Send(BytesOf(request), {child.get()}));
  EXPECT_EQ(0, Next().As<calls::NetChanged>().result.error);
  EXPECT_EQ(1, changes_allowed_);
  request.sender_uid = 1000;  // was another user when it sent
  ASSERT_TRUE(Send(BytesOf(request), {child.get()}));
  EXPECT_EQ(EPERM, Next().As<calls::NetChanged>().result.error);
  request.sender_uid = 0;
  ASSERT_TRUE(Send(Answer(120, 0, 0, 120)));
  EXPECT_EQ(MessageType::kDelivered, Next().type());
  EXPECT_EQ(0, ExitStatus());                           // gone
  for (auto a = Receive(); a; a = Receive()) continue;  // and its listener
  ASSERT_TRUE(broker_->RunOnce(0));
  for (auto a = Receive(); a; a = Receive()) continue;
  ASSERT_TRUE(Send(BytesOf(request), {child.get()}));
  EXPECT_EQ(EPERM, Next().As<calls::NetChanged>().result.error);
  EXPECT_EQ(1, changes_allowed_);
}

TEST_F(LiveCallTest, RefusesASenderThatIsNoProcess) {
  calls::NetChangeRequest request{};
  request.envelope.type = MessageType::kNetChange;
  ExpectViolation(Copy(BytesOf(request)), {go_[0]}, "descriptors");
}

TEST_F(BrokerTest, AppliesNoChangeForASenderOutsideOfTheSandbox) {
  UniqueFd self(static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0)));
  calls::NetChangeRequest request{};
  request.envelope.type = MessageType::kNetChange;
  ASSERT_TRUE(Send(BytesOf(request), {self.get()}));
  EXPECT_EQ(EPERM, Next().As<calls::NetChanged>().result.error);
  EXPECT_EQ(0, changes_allowed_);
}

TEST_F(LiveCallTest, FetchesAStandInOfTheSandboxAndNoOtherFile) {
  calls::Fetch fetch;
  fetch.envelope = To(MessageType::kFetch, call_.envelope.listener, call_.envelope.tid, 1);
  fetch.fd = static_cast<int>(call_.args[0]);
  fetch.cookie = call_.cookie;
  ASSERT_TRUE(Send(BytesOf(fetch)));
  Answered answer = Next();
  EXPECT_EQ(0, answer.As<calls::Fetched>().error);
  EXPECT_TRUE(answer.has_fd);
  fetch.fd = go_[0];
  ASSERT_TRUE(Send(BytesOf(fetch)));
  answer = Next();
  EXPECT_EQ(ENOENT, answer.As<calls::Fetched>().error);
  EXPECT_FALSE(answer.has_fd);
}

}  // namespace
}  // namespace sluice
