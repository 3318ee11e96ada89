#include "netstack/tcp/bind_table.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "netstack/testing/sim.h"

namespace sluice::tcp {
namespace {

class BindTableTest : public ::testing::Test {
 protected:
  std::unique_ptr<PortHolder> Hold(uint16_t port) {
    auto s = std::make_unique<PortHolder>();
    s->bound_address = IpAddress::Any(Family::kIpv4);
    s->reuse_address = true;
    table_.Add(s.get(), port);
    return s;
  }

  TimerWheel timers_{Instant(0)};
  testing::TestSecureRng secure_{1};
  Rng rng_{1};
  Counters counters_;
  HeapBlockPool pool_{1 << 20};
  QueueMemory streams_{{}}, datagrams_{{}};
  StackContext context_{Instant(0), timers_, rng_, secure_, counters_, pool_, streams_, datagrams_};
  BindTable table_{context_};
};

// A connection request must not look at every connection that the listener has accepted, nor at what is in TIME_WAIT.
TEST_F(BindTableTest, ThoseThatListenAreFoundWithoutThoseThatDoNot) {
  std::vector<std::unique_ptr<PortHolder>> accepted;
  for (int i = 0; i < 3; ++i) accepted.push_back(Hold(80));
  const auto listener = Hold(80);
  table_.SetListening(listener.get(), true);
  for (int i = 0; i < 3; ++i) accepted.push_back(Hold(80));
  EXPECT_EQ(table_.FirstListening(80), listener.get());
  EXPECT_EQ(listener->next_holder, nullptr);
  table_.Remove(accepted[1].get());
  table_.Remove(accepted[4].get());
  EXPECT_EQ(table_.FirstListening(80), listener.get());
  EXPECT_EQ(table_.FirstListening(81), nullptr);
}

TEST_F(BindTableTest, SharingLooksAtBoth) {
  const auto listener = Hold(80), connection = Hold(80);
  PortHolder fresh;
  fresh.bound_address = IpAddress::Any(Family::kIpv4);
  fresh.reuse_address = true;
  EXPECT_FALSE(table_.Conflicts(fresh, 80));
  table_.SetListening(listener.get(), true);
  EXPECT_TRUE(table_.Conflicts(fresh, 80));
  table_.SetListening(listener.get(), false);
  EXPECT_FALSE(table_.Conflicts(fresh, 80));
  connection->reuse_address = false;
  EXPECT_TRUE(table_.Conflicts(fresh, 80));
}

TEST_F(BindTableTest, AListenerThatStopsKeepsItsPortUntilItIsRemoved) {
  const auto listener = Hold(80);
  table_.SetListening(listener.get(), true);
  table_.SetListening(listener.get(), false);
  EXPECT_EQ(table_.FirstListening(80), nullptr);
  EXPECT_TRUE(table_.InUse(80));
  table_.Remove(listener.get());
  EXPECT_FALSE(table_.InUse(80));
  table_.SetListening(listener.get(), true);  // one that holds no port is in no list
  EXPECT_FALSE(table_.InUse(80));
}

}  // namespace
}  // namespace sluice::tcp
