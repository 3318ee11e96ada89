// Accepts: connections that the sentry offered ahead of them, and what becomes of those.
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/un.h>

#include "control/broker/accept_offers.h"
#include "control/broker/testing/broker_fixture.h"

namespace sluice {
namespace {

uint64_t CookieOf(int fd) {
  uint64_t cookie = 0;
  socklen_t length = sizeof cookie;
  EXPECT_EQ(0, getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length));
  return cookie;
}

// The program has one listening socket, of which the test has a copy.
class AcceptTest : public ProgramTest {
 protected:
  AcceptTest() : listener_(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    address_.sun_family = AF_UNIX;
    length_ = sizeof(sa_family_t);  // the kernel chooses a name
    EXPECT_EQ(0, bind(listener_.get(), reinterpret_cast<sockaddr*>(&address_), length_));
    EXPECT_EQ(0, listen(listener_.get(), 16));
    length_ = sizeof address_;
    EXPECT_EQ(0, getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address_), &length_));
    cookie_ = CookieOf(listener_.get());
  }

  void StartProgram(const std::function<int(int)>& program) {
    Start([this] { return listener_.get(); }, program);
  }

  // The connections differ by their peer's port.
  calls::Offer MakeOffer(uint16_t port) const {
    sockaddr_in peer{};
    peer.sin_family = AF_INET;
    peer.sin_port = htons(port);
    calls::Offer offer;
    offer.listener = cookie_;
    offer.life = 1;
    offer.connection = port;
    offer.name_length = sizeof peer;
    std::memcpy(offer.name, &peer, sizeof peer);
    return offer;
  }

  // As the sentry does. The sentry's end.
  UniqueFd Offer(uint16_t port) {
    int ends[2];
    EXPECT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends));
    AddToken();
    EXPECT_TRUE(SendOffer(BytesOf(MakeOffer(port)), {ends[1]}));
    close(ends[1]);
    return UniqueFd(ends[0]);
  }

  void AddToken() {
    UniqueFd token(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(0, connect(token.get(), reinterpret_cast<const sockaddr*>(&address_), length_));
  }

  bool ListenerReadable() const {
    pollfd polled{listener_.get(), POLLIN, 0};
    return poll(&polled, 1, 0) == 1;
  }

  void TellOffered() {
    calls::Fetch fetch;
    fetch.envelope.type = MessageType::kOffered;
    fetch.cookie = cookie_;
    ASSERT_TRUE(Send(BytesOf(fetch)));
  }

  // What the sentry hears next.
  void ExpectAccepted(uint64_t connection, int error) {
    const Answered answer = Next();
    ASSERT_EQ(MessageType::kAccepted, answer.type());
    EXPECT_EQ(connection, answer.As<calls::Accepted>().connection);
    EXPECT_EQ(error, answer.As<calls::Accepted>().error);
  }

  void ExpectOfferRefused(Bytes offer, const std::vector<int>& fds, const std::string& text) {
    ASSERT_TRUE(SendOffer(offer, fds));
    StartProgram([](int s) { return accept(s, nullptr, nullptr) >= 0 ? 1 : 2; });
    for (int i = 0; i < 3000 && broker_->RunOnce(10); ++i) continue;
    ASSERT_NE(nullptr, broker_->violation());
    EXPECT_NE(std::string::npos, std::string(broker_->violation()).find(text)) << broker_->violation();
  }

  UniqueFd listener_;
  sockaddr_un address_{};
  socklen_t length_ = 0;
  uint64_t cookie_ = 0;
};

// The port of the peer's name, or minus the errno.
int AcceptPort(int s, int flags = 0, int* fd = nullptr) {
  sockaddr_in peer{};
  socklen_t length = sizeof peer;
  const int n = accept4(s, reinterpret_cast<sockaddr*>(&peer), &length, flags);
  if (fd != nullptr) *fd = n;
  if (n < 0) return -errno;
  return length == sizeof peer && peer.sin_family == AF_INET ? ntohs(peer.sin_port) : -EPROTO;
}

TEST_F(AcceptTest, GivesWhatWasOfferedWithoutTheSentry) {
  const UniqueFd first = Offer(1001), second = Offer(1002);
  StartProgram([](int s) {
    int fd = -1;
    if (AcceptPort(s, SOCK_NONBLOCK | SOCK_CLOEXEC, &fd) != 1001) return 1;
    if ((fcntl(fd, F_GETFL) & O_NONBLOCK) == 0 || fcntl(fd, F_GETFD) != FD_CLOEXEC) return 2;
    if (write(fd, "1", 1) != 1) return 3;
    if (AcceptPort(s, 0, &fd) != 1002) return 4;
    if ((fcntl(fd, F_GETFL) & O_NONBLOCK) != 0 || fcntl(fd, F_GETFD) != 0) return 5;
    return write(fd, "2", 1) == 1 ? 0 : 6;
  });
  ExpectAccepted(1001, 0);
  ExpectAccepted(1002, 0);
  EXPECT_FALSE(ListenerReadable());
  EXPECT_EQ(0, ExitStatus());
  char c = 0;
  EXPECT_EQ(1, read(first.get(), &c, 1));
  EXPECT_EQ('1', c);
  EXPECT_EQ(1, read(second.get(), &c, 1));
  EXPECT_EQ('2', c);
  EXPECT_EQ(0, read(second.get(), &c, 1));  // the broker keeps nothing of it
}

TEST_F(AcceptTest, KeepsTheConnectionWhereTheProgramHasNoNumberForIt) {
  const UniqueFd end = Offer(1001);
  StartProgram([this](int s) {
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    const rlimit none{0, limit.rlim_max};
    setrlimit(RLIMIT_NOFILE, &none);
    if (AcceptPort(s) != -EMFILE) return 1;
    setrlimit(RLIMIT_NOFILE, &limit);
    Await();
    return AcceptPort(s) == 1001 ? 0 : 2;
  });
  ExpectAccepted(1001, EMFILE);
  EXPECT_FALSE(ListenerReadable());  // until the sentry has put another token there
  AddToken();
  Go();
  ExpectAccepted(1001, 0);
  EXPECT_FALSE(ListenerReadable());
  EXPECT_EQ(0, ExitStatus());
}

TEST_F(AcceptTest, LosesTheConnectionWhoseNameCannotBeWritten) {
  const UniqueFd first = Offer(1001), second = Offer(1002);
  StartProgram([](int s) {
    socklen_t length = 16;
    if (accept(s, reinterpret_cast<sockaddr*>(8), &length) >= 0 || errno != EFAULT) return 1;
    return AcceptPort(s) == 1002 ? 0 : 2;
  });
  ExpectAccepted(1001, EFAULT);
  ExpectAccepted(1002, 0);
  EXPECT_EQ(0, ExitStatus());
}

TEST_F(AcceptTest, ServesTheAcceptsThatWaitInTheirOrder) {
  StartProgram([](int s) {
    const pid_t child = fork();
    if (child < 0) return 1;
    const int port = AcceptPort(s);
    if (child == 0) _exit(port == 1001 || port == 1002 ? 0 : 2);
    int status = -1;
    if (waitpid(child, &status, 0) != child || status != 0) return 3;
    return port == 1001 || port == 1002 ? 0 : 4;
  });
  pid_t callers[2];
  for (pid_t& caller : callers) {
    const Answered call = Next();
    ASSERT_EQ(MessageType::kCall, call.type());
    caller = static_cast<pid_t>(calls::Envelope(reinterpret_cast<const calls::Call*>(call.bytes.data())->envelope).tid);
  }
  const UniqueFd first = Offer(1001), second = Offer(1002);
  TellOffered();
  for (const pid_t caller : callers) {
    const Answered answer = Next();
    ASSERT_EQ(MessageType::kAccepted, answer.type());
    EXPECT_EQ(static_cast<uint32_t>(caller), answer.As<calls::Accepted>().envelope.tid);
  }
  EXPECT_EQ(0, ExitStatus());
}

TEST_F(AcceptTest, ACallerThatWentAwayTakesNothing) {
  StartProgram([this](int s) {
    signal(SIGUSR1, [](int) {});
    struct sigaction action{};
    action.sa_handler = [](int) {};
    sigaction(SIGUSR1, &action, nullptr);
    if (AcceptPort(s) != -EINTR) return 1;
    Await();
    return AcceptPort(s) == 1001 ? 0 : 2;
  });
  ASSERT_EQ(MessageType::kCall, Next().type());
  ASSERT_EQ(0, kill(child_, SIGUSR1));
  const UniqueFd end = Offer(1001);
  // Told too soon, it would be the interrupted call's: the program says by its own order that the call is over.
  Go();
  ExpectAccepted(1001, 0);
  EXPECT_EQ(0, ExitStatus());
}

TEST_F(AcceptTest, OffersOfAClosedListenerAreGivenUp) {
  const UniqueFd first = Offer(1001);
  calls::Withdrawal withdrawal;
  withdrawal.envelope.type = MessageType::kWithdraw;
  withdrawal.listener = cookie_;
  withdrawal.life = 2;
  ASSERT_TRUE(Send(BytesOf(withdrawal)));
  EXPECT_EQ(2u, Next().As<calls::Withdrawal>().life);
  pollfd polled{first.get(), POLLIN, 0};
  EXPECT_EQ(0, poll(&polled, 1, 0));  // another life's
  withdrawal.life = 1;
  ASSERT_TRUE(Send(BytesOf(withdrawal)));
  const Answered answer = Next();
  EXPECT_EQ(MessageType::kWithdrawn, answer.type());
  EXPECT_EQ(cookie_, answer.As<calls::Withdrawal>().listener);
  char c;
  EXPECT_EQ(0, read(first.get(), &c, 1));
}

TEST_F(AcceptTest, RefusesAnOfferOfAnotherLength) {
  calls::Offer offer = MakeOffer(1);
  ExpectOfferRefused(BytesOf(offer).first(sizeof offer - 1), {STDIN_FILENO}, "length");
}

TEST_F(AcceptTest, RefusesAnOfferWithoutADescriptor) { ExpectOfferRefused(BytesOf(MakeOffer(1)), {}, "descriptors"); }

TEST_F(AcceptTest, RefusesAnOfferWithTwo) {
  ExpectOfferRefused(BytesOf(MakeOffer(1)), {STDIN_FILENO, STDIN_FILENO}, "descriptors");
}

TEST_F(AcceptTest, RefusesANameThatIsLongerThanAnyIs) {
  calls::Offer offer = MakeOffer(1);
  offer.name_length = sizeof offer.name + 1;
  ExpectOfferRefused(BytesOf(offer), {STDIN_FILENO}, "does not hold");
}

TEST_F(AcceptTest, RefusesMoreOffersThanThereCanBe) {
  AcceptOffers offers(broker_offers_.get());
  UniqueFd null(open("/dev/null", O_RDONLY | O_CLOEXEC));
  calls::Offer offer = MakeOffer(1);
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur < calls::kMaxOffers + 100) GTEST_SKIP() << "needs more descriptors";
  for (size_t i = 0; i < calls::kMaxOffers; ++i) {
    ASSERT_TRUE(SendOffer(BytesOf(offer), {null.get()}));
    ASSERT_FALSE(offers.Take(cookie_ + 1));
  }
  EXPECT_EQ(Violation::kNone, offers.violation());
  ASSERT_TRUE(SendOffer(BytesOf(offer), {null.get()}));
  EXPECT_FALSE(offers.Take(cookie_ + 1));
  EXPECT_EQ(Violation::kTooManyOffers, offers.violation());
}

}  // namespace
}  // namespace sluice
