// Messages between broker and sentry, as they come out at the other end.
#include "sentry/broker_channel.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <string_view>

namespace sluice::calls {
namespace {

Bytes BytesOf(std::string_view text) { return {reinterpret_cast<const uint8_t*>(text.data()), text.size()}; }
std::string TextOf(const ReceivedMessage& message) { return {message.bytes.begin(), message.bytes.end()}; }

class BrokerChannel : public ::testing::Test {
 protected:
  BrokerChannel() {
    int ends[2];
    EXPECT_EQ(0, socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends));
    ours_ = UniqueFd(ends[0]);
    theirs_ = UniqueFd(ends[1]);
  }
  void Send(std::string_view text, int fd = -1) { ASSERT_EQ(SendOutcome::kSent, SendMessage(theirs_.get(), BytesOf(text), fd)); }

  UniqueFd ours_, theirs_;
  MessageReader reader_{100};
};

TEST_F(BrokerChannel, GivesWhatWaitsAtOnceAndInItsOrder) {
  EXPECT_TRUE(reader_.Receive(ours_.get()).empty());
  for (const char* text : {"one", "two", "three"}) Send(text);
  const auto received = reader_.Receive(ours_.get());
  ASSERT_EQ(3u, received.size());
  EXPECT_EQ("one", TextOf(received[0]));
  EXPECT_EQ("two", TextOf(received[1]));
  EXPECT_EQ("three", TextOf(received[2]));
  EXPECT_TRUE(reader_.Receive(ours_.get()).empty());
}

TEST_F(BrokerChannel, LeavesForLaterWhatItHasNoRoomFor) {
  for (size_t i = 0; i <= MessageReader::kAtOnce; ++i) Send(std::to_string(i));
  EXPECT_EQ(MessageReader::kAtOnce, reader_.Receive(ours_.get()).size());
  const auto rest = reader_.Receive(ours_.get());
  ASSERT_EQ(1u, rest.size());
  EXPECT_EQ(std::to_string(MessageReader::kAtOnce), TextOf(rest[0]));
}

TEST_F(BrokerChannel, ADescriptorComesWithItsMessageAndIsClosedByTheNextReceive) {
  int ends[2];
  ASSERT_EQ(0, pipe2(ends, O_CLOEXEC | O_NONBLOCK));
  const UniqueFd reads(ends[0]);
  UniqueFd writes(ends[1]);
  Send("without");
  Send("with", writes.get());
  writes.reset();
  const auto received = reader_.Receive(ours_.get());
  ASSERT_EQ(2u, received.size());
  EXPECT_TRUE(received[0].fds.empty());
  ASSERT_EQ(1u, received[1].fds.size());
  EXPECT_EQ(FD_CLOEXEC, fcntl(received[1].fds[0].get(), F_GETFD));
  EXPECT_TRUE(reader_.Receive(ours_.get()).empty());
  char c;
  EXPECT_EQ(0, read(reads.get(), &c, 1));
}

TEST_F(BrokerChannel, TellsOfMessagesThatAreLongerThanAnyAndOfDescriptorsThatAreTooMany) {
  Send(std::string(1000, 'x'));
  EXPECT_TRUE(reader_.Receive(ours_.get()).front().cut);
  int fds[5] = {0, 0, 0, 0, 0};
  char c = 'x';
  iovec iov{&c, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fds)] = {};
  msghdr h{};
  h.msg_iov = &iov;
  h.msg_iovlen = 1;
  h.msg_control = control;
  h.msg_controllen = sizeof control;
  cmsghdr* cmsg = CMSG_FIRSTHDR(&h);
  cmsg->cmsg_level = SOL_SOCKET;
  cmsg->cmsg_type = SCM_RIGHTS;
  cmsg->cmsg_len = CMSG_LEN(sizeof fds);
  std::memcpy(CMSG_DATA(cmsg), fds, sizeof fds);
  ASSERT_EQ(1, sendmsg(theirs_.get(), &h, 0));
  EXPECT_TRUE(reader_.Receive(ours_.get()).front().descriptor_lost);
}

TEST_F(BrokerChannel, TheEndFollowsWhatWasSentBefore) {
  Send("last");
  theirs_.reset();
  const auto received = reader_.Receive(ours_.get());
  ASSERT_LE(2u, received.size());
  EXPECT_EQ("last", TextOf(received[0]));
  EXPECT_TRUE(received[1].bytes.empty());
}

}  // namespace
}  // namespace sluice::calls
