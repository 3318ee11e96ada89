#include "sentry/unread_memory.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <memory>
#include <string>

#include "base/unique_fd.h"

namespace sluice {
namespace {

constexpr size_t kLimit = 256 << 10;

struct Pair {
  explicit Pair(UnreadMemory& all) : queue(std::make_unique<UnreadMemory::Queue>(all)) {
    std::array<int, 2> fds;
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds.data()), 0);
    s = UniqueFd(fds[0]), p = UniqueFd(fds[1]);
  }
  // As a stand-in does: what there is room for, in pieces of at most `piece`. Returns how much that was.
  size_t Fill(size_t piece) {
    size_t total = 0;
    for (;;) {
      const size_t room = std::min(queue->Room(s.get()), piece);
      const ssize_t n = room == 0 ? -1 : send(s.get(), std::string(room, 'x').data(), room, 0);
      if (n <= 0) return total;
      queue->Wrote(s.get(), static_cast<size_t>(n));
      total += static_cast<size_t>(n);
    }
  }
  size_t Read(size_t most) {
    std::string buffer(most, 0);
    const ssize_t n = recv(p.get(), buffer.data(), most, 0);
    return n < 0 ? 0 : static_cast<size_t>(n);
  }
  UniqueFd s, p;
  std::unique_ptr<UnreadMemory::Queue> queue;
};

TEST(UnreadMemory, QueuesThatNobodyReadsStayWithinTwiceTheLimitAndEachGetsSome) {
  UnreadMemory all(kLimit);
  std::vector<std::unique_ptr<Pair>> pairs;
  for (int i = 0; i < 100; ++i) {
    pairs.push_back(std::make_unique<Pair>(all));
    EXPECT_GT(pairs.back()->Fill(16384), 0u) << i;
  }
  // The kernel rounds what a message takes.
  EXPECT_LE(all.held(), 2 * kLimit + 100 * 2 * UnreadMemory::kMinimum);
  EXPECT_EQ(pairs.front()->Fill(16384), 0u);
}

TEST(UnreadMemory, AReaderIsNotHeldUpByWhatWasReadLongAgo) {
  UnreadMemory all(kLimit);
  Pair pair(all);
  size_t sent = 0, read = 0;
  while (sent < 100 * kLimit) {
    const size_t n = pair.Fill(16384);
    ASSERT_GT(n, 0u);
    sent += n;
    while (size_t r = pair.Read(65536)) read += r;
  }
  EXPECT_EQ(read, sent);
}

TEST(UnreadMemory, AMessageThatGoesWholeIsNotHeldUpByWhatWasReadLongAgo) {
  UnreadMemory all(kLimit);
  Pair pair(all);
  constexpr size_t kMessage = 1001;  // the bound is no multiple of what it counts for
  for (size_t i = 0; i < 4 * kLimit / kMessage; ++i) {
    ASSERT_GE(pair.queue->Room(pair.s.get(), kMessage + UnreadMemory::kOverhead), kMessage + UnreadMemory::kOverhead) << i;
    ASSERT_EQ(send(pair.s.get(), std::string(kMessage, 'x').data(), kMessage, 0), static_cast<ssize_t>(kMessage));
    pair.queue->Wrote(pair.s.get(), kMessage);
    ASSERT_EQ(pair.Read(kMessage), kMessage);
  }
}

TEST(UnreadMemory, OneThatReadsGoesOnBesideOneThatDoesNot) {
  UnreadMemory all(kLimit);
  Pair hog(all), good(all);
  EXPECT_GT(hog.Fill(16384), 0u);
  for (int i = 0; i < 100; ++i) {
    EXPECT_GT(good.Fill(4096), 0u) << i;
    while (good.Read(65536) > 0) continue;
  }
  // What is left when its socket is closed counts until the program's end is gone.
  hog.queue->Detach();
  hog.s.reset();
  EXPECT_GT(hog.queue->held(), 0u);
  const size_t with = all.held();
  hog.queue.reset();
  EXPECT_LT(all.held(), with);
}

}  // namespace
}  // namespace sluice
