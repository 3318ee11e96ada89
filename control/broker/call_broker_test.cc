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

#include "control/broker/testing/broker_fixture.h"

namespace sluice {
namespace {

using calls::Envelope;
using calls::MessageType;

size_t OpenDescriptors() {
  const auto dir = std::filesystem::directory_iterator("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(dir), end(dir)));
}

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
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(Send(BytesOf(r)));
    EXPECT_EQ(ENOENT, Next().As<calls::Delivered>().error);
  }
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

// The program makes one getsockname call; its exit status says what it saw.
class LiveCallTest : public ProgramTest {
 protected:
  void SetUp() override {
    Start([] { return socket(AF_UNIX, SOCK_STREAM, 0); }, Program);
    if (IsSkipped() || HasFatalFailure()) return;
    const Answered a = Next();
    ASSERT_EQ(MessageType::kCall, a.type());
    std::memcpy(&call_, a.bytes.data(), sizeof call_);
    ASSERT_EQ(calls::CallKind::kGetSockName, call_.kind);
  }

  static int Program(int s) {
    Canary canary;
    std::memset(&canary, 0x5a, sizeof canary);
    socklen_t length = sizeof canary.name;
    const long result = syscall(SYS_getsockname, s, canary.name.data(), &length);
    if (!canary.Intact()) return 2;
    if (result != 0) return 100 + errno % 100;
    return canary.name[0] == 'n' && canary.name[15] == 'n' && length == 120 ? 0 : 3;
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

TEST_F(LiveCallTest, SaysNothingOfADeliveryThatNobodyAsksAfter) {
  std::vector<uint8_t> answer = Answer(120, 0, 0, 120);
  reinterpret_cast<calls::Result*>(answer.data())->report = 0;
  ASSERT_TRUE(Send(answer));
  EXPECT_EQ(0, ExitStatus());
  while (const auto said = Receive()) EXPECT_NE(MessageType::kDelivered, said->type());
}

TEST_F(ProgramTest, TellsUnaskedHowMuchOfAVectorWasDelivered) {
  Start([] { return socket(AF_UNIX, SOCK_DGRAM, 0); },
        [](int s) {
          char byte = 0;
          iovec good{&byte, 1}, bad{reinterpret_cast<void*>(8), 1};
          mmsghdr messages[2] = {};
          messages[0].msg_hdr.msg_iov = &good;
          messages[1].msg_hdr.msg_iov = &bad;
          for (mmsghdr& m : messages) m.msg_hdr.msg_iovlen = 1;
          return syscall(SYS_recvmmsg, s, messages, 2, 0, nullptr) == 1 && byte == 'a' ? 0 : 1;
        });
  if (IsSkipped() || HasFatalFailure()) return;
  const Answered call = Next();
  ASSERT_EQ(MessageType::kCall, call.type());
  calls::Result result;
  std::memcpy(&result.envelope, call.bytes.data(), sizeof result.envelope);
  result.envelope.type = MessageType::kResult;
  result.value = result.count = 2;
  result.report = 0;
  std::vector<uint8_t> message = Copy(BytesOf(result));
  const calls::PartResult part{.data_length = 1, .return_value = 1};
  for (int i = 0; i < 2; ++i) message.insert(message.end(), BytesOf(part).begin(), BytesOf(part).end());
  for (const char c : {'a', 'b'}) message.push_back(static_cast<uint8_t>(c));
  ASSERT_TRUE(Send(message));
  const auto delivered = Next().As<calls::Delivered>();
  EXPECT_EQ(0, delivered.error);
  EXPECT_EQ(1u, delivered.parts);
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
