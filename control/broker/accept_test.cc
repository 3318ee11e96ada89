// Accepts: connections that the sentry offered ahead of them, and what becomes of those.
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/un.h>

#include "base/sanitizer.h"
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

// The port of the peer's name, or minus the errno.
int AcceptPort(int s, int flags = 0, int* fd = nullptr) {
  sockaddr_in peer{};
  socklen_t length = sizeof peer;
  const int n = accept4(s, reinterpret_cast<sockaddr*>(&peer), &length, flags);
  if (fd != nullptr) *fd = n;
  if (n < 0) return -errno;
  return length == sizeof peer && peer.sin_family == AF_INET ? ntohs(peer.sin_port) : -EPROTO;
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
  calls::Offer MakeOffer(uint16_t port, int end) const {
    sockaddr_in peer{};
    peer.sin_family = AF_INET;
    peer.sin_port = htons(port);
    calls::Offer offer;
    offer.listener = cookie_;
    offer.life = 1;
    offer.connection = CookieOf(end);
    offer.end = end;
    offer.name_length = sizeof peer;
    std::memcpy(offer.name, &peer, sizeof peer);
    return offer;
  }

  struct Connection {
    UniqueFd ours, programs;
    uint64_t cookie = 0;
  };
  // As the sentry does.
  Connection Offer(uint16_t port) {
    int ends[2];
    EXPECT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends));
    AddToken();
    EXPECT_TRUE(SendOffer(BytesOf(MakeOffer(port, ends[1]))));
    return {UniqueFd(ends[0]), UniqueFd(ends[1]), CookieOf(ends[1])};
  }

  // Likewise, where the program's end waits in the native queue.
  Connection OfferQueued(uint16_t port) {
    UniqueFd ours(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(0, connect(ours.get(), reinterpret_cast<const sockaddr*>(&address_), length_));
    calls::Offer offer = MakeOffer(port, ours.get());
    offer.end = -1;
    EXPECT_TRUE(SendOffer(BytesOf(offer)));
    const uint64_t name = offer.connection;
    return {std::move(ours), UniqueFd(), name};
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
  void ExpectAccepted(const Connection& connection, int error, bool again = false) {
    const Answered answer = Next();
    ASSERT_EQ(MessageType::kAccepted, answer.type());
    const auto accepted = answer.As<calls::Accepted>();
    EXPECT_EQ(connection.cookie, accepted.connection);
    EXPECT_EQ(cookie_, accepted.listener);
    EXPECT_EQ(1u, accepted.life);
    EXPECT_EQ(error, accepted.error);
    EXPECT_EQ(again ? 1u : 0u, accepted.again);
  }

  // The broker works until the program has written a byte to its pipe; the sentry hears nothing meanwhile.
  void ServeUntilProgramSays() {
    pollfd said{pipe_[0], POLLIN, 0};
    for (int i = 0; i < 3000 && poll(&said, 1, 0) == 0; ++i) ASSERT_TRUE(broker_->RunOnce(10));
    char c;
    ASSERT_EQ(1, poll(&said, 1, 0)) << "the program says nothing";
    ASSERT_EQ(1, read(pipe_[0], &c, 1));
    EXPECT_FALSE(Receive());
  }

  // The program accepts what has port 1001, after `tries` during which the broker has no descriptor left, one, and so on.
  void AcceptsAreShortOfDescriptors(int tries) {
    StartProgram([this, tries](int s) {
      for (int i = 0; i < tries; ++i) {
        if (AcceptPort(s) != -EMFILE) return 1;
        if (write(pipe_[1], "e", 1) != 1) return 2;
        Await();
      }
      return AcceptPort(s) == 1001 ? 0 : 3;
    });
    rlimit limit{};
    ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &limit));
    int first = 0;  // behind all that is open
    for (int fd = 0; fd < 1024; ++fd) {
      if (fcntl(fd, F_GETFD) >= 0) first = fd + 1;
    }
    std::vector<UniqueFd> fillers;  // no number is free below the last one
    for (int fd = 0; fd < first; fd = fillers.back().get()) {
      fillers.emplace_back(dup(listener_.get()));
      ASSERT_TRUE(fillers.back());
    }
    for (int i = 0; i < tries; ++i) {
      const rlimit few{static_cast<rlim_t>(first + 1 + i), limit.rlim_max};
      EXPECT_EQ(0, setrlimit(RLIMIT_NOFILE, &few));
      ServeUntilProgramSays();
      EXPECT_EQ(0, setrlimit(RLIMIT_NOFILE, &limit));
      Go();
    }
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

TEST_F(AcceptTest, GivesWhatWasOfferedWithoutTheSentry) {
  Connection first = Offer(1001), second = Offer(1002);
  StartProgram([](int s) {
    int fd = -1;
    if (AcceptPort(s, SOCK_NONBLOCK | SOCK_CLOEXEC, &fd) != 1001) return 1;
    if ((fcntl(fd, F_GETFL) & O_NONBLOCK) == 0 || fcntl(fd, F_GETFD) != FD_CLOEXEC) return 2;
    if (write(fd, "1", 1) != 1) return 3;
    if (AcceptPort(s, 0, &fd) != 1002) return 4;
    if ((fcntl(fd, F_GETFL) & O_NONBLOCK) != 0 || fcntl(fd, F_GETFD) != 0) return 5;
    return write(fd, "2", 1) == 1 ? 0 : 6;
  });
  ExpectAccepted(first, 0);
  ExpectAccepted(second, 0);
  EXPECT_FALSE(ListenerReadable());
  EXPECT_EQ(0, ExitStatus());
  char c = 0;
  EXPECT_EQ(1, read(first.ours.get(), &c, 1));
  EXPECT_EQ('1', c);
  EXPECT_EQ(1, read(second.ours.get(), &c, 1));
  EXPECT_EQ('2', c);
  second.programs.reset();
  EXPECT_EQ(0, read(second.ours.get(), &c, 1));  // the broker keeps nothing of it
}

TEST_F(AcceptTest, KeepsTheConnectionWhereTheProgramHasNoNumberForIt) {
  const Connection offered = Offer(1001);
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
  ExpectAccepted(offered, EMFILE, true);
  EXPECT_FALSE(ListenerReadable());  // the sentry offers it once more
  AddToken();
  ASSERT_TRUE(SendOffer(BytesOf(MakeOffer(1001, offered.programs.get()))));
  Go();
  ExpectAccepted(offered, 0);
  EXPECT_FALSE(ListenerReadable());
  EXPECT_EQ(0, ExitStatus());
}

TEST_F(AcceptTest, GivesTheEndThatWaitsInTheNativeQueue) {
  Connection first = OfferQueued(1001), second = Offer(1002), third = OfferQueued(1003);
  ASSERT_EQ(3, write(first.ours.get(), "one", 3));
  ASSERT_EQ(5, write(third.ours.get(), "three", 5));
  StartProgram([](int s) {
    int fd = -1;
    char bytes[8] = {};
    if (AcceptPort(s, SOCK_NONBLOCK | SOCK_CLOEXEC, &fd) != 1001) return 1;
    if ((fcntl(fd, F_GETFL) & O_NONBLOCK) == 0 || fcntl(fd, F_GETFD) != FD_CLOEXEC) return 2;
    if (read(fd, bytes, sizeof bytes) != 3) return 3;
    if (AcceptPort(s) != 1002) return 4;
    if (AcceptPort(s, 0, &fd) != 1003) return 5;
    if ((fcntl(fd, F_GETFL) & O_NONBLOCK) != 0 || fcntl(fd, F_GETFD) != 0) return 6;
    return read(fd, bytes, sizeof bytes) == 5 ? 0 : 7;
  });
  for (const Connection* c : {&first, &second, &third}) {
    const auto accepted = Next().As<calls::Accepted>();
    EXPECT_EQ(c->cookie, accepted.connection);
    EXPECT_EQ(0, accepted.error);
    // What the program calls it by, where the sentry has not seen it.
    EXPECT_EQ(c->programs ? 0u : 1u, accepted.cookie != 0 && accepted.cookie != c->cookie && accepted.inode != 0 ? 1u : 0u);
  }
  EXPECT_FALSE(ListenerReadable());
  EXPECT_EQ(0, ExitStatus());
  char c = 0;
  EXPECT_EQ(0, read(first.ours.get(), &c, 1));  // the broker keeps nothing of it
}

TEST_F(AcceptTest, HandsTheSentryTheQueuedEndThatTheProgramHasNoNumberFor) {
  const Connection offered = OfferQueued(1001);
  StartProgram([](int s) {
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    const rlimit none{0, limit.rlim_max};
    setrlimit(RLIMIT_NOFILE, &none);
    return AcceptPort(s) == -EMFILE ? 0 : 1;
  });
  const Answered answer = Next();
  const auto accepted = answer.As<calls::Accepted>();
  EXPECT_EQ(offered.cookie, accepted.connection);
  EXPECT_EQ(EMFILE, accepted.error);
  EXPECT_EQ(1u, accepted.again);
  EXPECT_TRUE(answer.has_fd);
  EXPECT_EQ(0, ExitStatus());
}

// A sentry that lies does not hold up the broker, and what it offered stays.
TEST_F(AcceptTest, AnOfferWithoutItsEndInTheQueueIsLeftToTheSentry) {
  const UniqueFd ours(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  calls::Offer offer = MakeOffer(1001, ours.get());
  offer.end = -1;
  ASSERT_TRUE(SendOffer(BytesOf(offer)));
  StartProgram([](int s) { return AcceptPort(s) == 1001 ? 0 : 1; });
  ASSERT_EQ(MessageType::kCall, Next().type());
  ASSERT_EQ(0, connect(ours.get(), reinterpret_cast<const sockaddr*>(&address_), length_));
  TellOffered();
  EXPECT_EQ(0, Next().As<calls::Accepted>().error);
  EXPECT_EQ(0, ExitStatus());
}

TEST_F(AcceptTest, ATokenThatIsNotThereYetKeepsItsOffer) {
  int ends[2];
  ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends));
  const UniqueFd ours(ends[0]), programs(ends[1]);
  ASSERT_TRUE(SendOffer(BytesOf(MakeOffer(1001, programs.get()))));
  StartProgram([](int s) { return AcceptPort(s) == 1001 ? 0 : 1; });
  ASSERT_EQ(MessageType::kCall, Next().type());
  AddToken();
  TellOffered();
  EXPECT_EQ(0, Next().As<calls::Accepted>().error);
  EXPECT_FALSE(ListenerReadable());
  EXPECT_EQ(0, ExitStatus());
}

// The bound is the broker's, which sets it where it first takes something: no system call for each accept.
TEST_F(AcceptTest, AnAcceptThatDoesNotWaitIsToldThatTheQueueIsEmpty) {
  const UniqueFd ours(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  calls::Offer offer = MakeOffer(1001, ours.get());
  offer.end = -1;
  ASSERT_TRUE(SendOffer(BytesOf(offer)));
  ASSERT_EQ(0, fcntl(listener_.get(), F_SETFL, O_NONBLOCK));
  StartProgram([this](int s) {
    if (AcceptPort(s) != -EAGAIN) return 1;
    if (write(pipe_[1], "e", 1) != 1) return 2;
    Await();
    return AcceptPort(s) == 1001 ? 0 : 3;
  });
  ServeUntilProgramSays();
  ASSERT_EQ(0, connect(ours.get(), reinterpret_cast<const sockaddr*>(&address_), length_));
  Go();
  EXPECT_EQ(0, Next().As<calls::Accepted>().error);
  EXPECT_EQ(0, ExitStatus());
}

// Nothing of the queue is lost, or given away without its offer, wherever in the call the descriptors end.
TEST_F(AcceptTest, TheBrokersOwnWantOfDescriptorsIsToldOfAQueuedEnd) {
  if (SLUICE_ASAN) GTEST_SKIP() << "the sanitizer looks into memory by pipes of its own";
  const Connection offered = OfferQueued(1001);
  AcceptsAreShortOfDescriptors(3);  // a handle of the thread, the listener, the end
  ExpectAccepted(offered, 0);
  EXPECT_FALSE(ListenerReadable());
  EXPECT_EQ(0, ExitStatus());
}

TEST_F(AcceptTest, TheBrokersOwnWantOfDescriptorsIsToldOfATokensEnd) {
  if (SLUICE_ASAN) GTEST_SKIP() << "the sanitizer looks into memory by pipes of its own";
  const Connection offered = Offer(1001);
  AcceptsAreShortOfDescriptors(4);  // the token, too
  ExpectAccepted(offered, 0);
  EXPECT_FALSE(ListenerReadable());
  EXPECT_EQ(0, ExitStatus());
}

TEST_F(AcceptTest, LosesTheConnectionWhoseNameCannotBeWritten) {
  const Connection first = Offer(1001), second = Offer(1002);
  StartProgram([](int s) {
    socklen_t length = 16;
    if (accept(s, reinterpret_cast<sockaddr*>(8), &length) >= 0 || errno != EFAULT) return 1;
    return AcceptPort(s) == 1002 ? 0 : 2;
  });
  ExpectAccepted(first, EFAULT);
  ExpectAccepted(second, 0);
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
  const Connection first = Offer(1001), second = Offer(1002);
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
    struct sigaction action{};
    action.sa_handler = [](int) {};
    sigaction(SIGALRM, &action, nullptr);
    itimerval again{{0, 20000}, {0, 20000}};
    setitimer(ITIMER_REAL, &again, nullptr);
    if (AcceptPort(s) != -EINTR) return 1;
    again = {};
    setitimer(ITIMER_REAL, &again, nullptr);
    if (write(pipe_[1], "e", 1) != 1) return 2;
    Await();
    return AcceptPort(s) == 1001 ? 0 : 3;
  });
  ASSERT_EQ(MessageType::kCall, Next().type());
  char c;
  ASSERT_EQ(1, read(pipe_[0], &c, 1));  // its call is over
  const Connection offered = Offer(1001);
  TellOffered();
  Go();
  ExpectAccepted(offered, 0);
  EXPECT_EQ(0, ExitStatus());
}

TEST_F(AcceptTest, OffersOfAClosedListenerAreGivenUp) {
  const Connection first = Offer(1001);
  StartProgram([this](int s) {
    Await();
    return accept4(s, nullptr, nullptr, 0) < 0 ? errno : 0;
  });
  calls::Withdrawal withdrawal;
  withdrawal.envelope.type = MessageType::kWithdraw;
  withdrawal.listener = cookie_;
  withdrawal.life = 2;
  ASSERT_TRUE(Send(BytesOf(withdrawal)));
  EXPECT_EQ(2u, Next().As<calls::Withdrawal>().life);
  withdrawal.life = 1;
  const Connection second = Offer(1002);
  calls::Offer of_another_life = MakeOffer(1003, second.programs.get());
  of_another_life.life = 3;
  ASSERT_TRUE(SendOffer(BytesOf(of_another_life)));
  ASSERT_TRUE(Send(BytesOf(withdrawal)));
  const Answered answer = Next();
  EXPECT_EQ(MessageType::kWithdrawn, answer.type());
  EXPECT_EQ(cookie_, answer.As<calls::Withdrawal>().listener);
  Go();
  EXPECT_EQ(3u, Next().As<calls::Accepted>().life);
  EXPECT_EQ(0, ExitStatus());
}

TEST_F(AcceptTest, GivesNothingButWhatWasOffered) {
  const Connection offered = Offer(1001);
  UniqueFd other(open("/dev/null", O_RDONLY | O_CLOEXEC));
  ASSERT_EQ(offered.programs.get(), dup3(other.get(), offered.programs.get(), O_CLOEXEC));
  StartProgram([](int s) { return AcceptPort(s) == -ECONNABORTED ? 0 : 1; });
  ExpectAccepted(offered, EBADF);
  EXPECT_EQ(0, ExitStatus());
}

TEST_F(AcceptTest, RefusesAnOfferOfAnotherLength) {
  const calls::Offer offer = MakeOffer(1, listener_.get());
  ExpectOfferRefused(BytesOf(offer).first(sizeof offer - 1), {}, "length");
}

TEST_F(AcceptTest, RefusesAnOfferWithADescriptor) {
  ExpectOfferRefused(BytesOf(MakeOffer(1, listener_.get())), {STDIN_FILENO}, "descriptors");
}

TEST_F(AcceptTest, RefusesANameThatIsLongerThanAnyIs) {
  calls::Offer offer = MakeOffer(1, listener_.get());
  offer.name_length = sizeof offer.name + 1;
  ExpectOfferRefused(BytesOf(offer), {}, "does not hold");
}

TEST_F(AcceptTest, RefusesMoreOffersThanThereCanBe) {
  AcceptOffers offers(broker_offers_.get());
  const calls::Offer offer = MakeOffer(1, listener_.get());
  for (size_t i = 0; i < calls::kMaxOffers; ++i) {
    ASSERT_TRUE(SendOffer(BytesOf(offer)));
    ASSERT_FALSE(offers.Take(cookie_ + 1));
  }
  EXPECT_EQ(Violation::kNone, offers.violation());
  ASSERT_TRUE(SendOffer(BytesOf(offer)));
  EXPECT_FALSE(offers.Take(cookie_ + 1));
  EXPECT_EQ(Violation::kTooManyOffers, offers.violation());
}

}  // namespace
}  // namespace sluice
