#include "control/top.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace sluice {
namespace {

using nlohmann::json;

json Stats(uint64_t scale) {
  return {{"counters",
           {{"LinkInFrames", 10 * scale},
            {"LinkInBytes", 1000 * scale},
            {"LinkOutFrames", 20 * scale},
            {"LinkOutBytes", 2000000 * scale},
            {"TcpRetransSegs", scale},
            {"DropIpHeader", 2 * scale},
            {"DropTcpPaws", scale}}},
          {"ports", {{{"rx_dropped", scale}, {"tx_dropped", scale}}}},
          {"tcp", {{"established", 7}}},
          {"process", {{"cpu_ns", 500000000 * scale}}}};
}

TEST(Top, RatesArePerSecondBetweenTwoLooks) {
  const auto before = SampleOf(Stats(1), 1000000000), now = SampleOf(Stats(5), 3000000000);
  ASSERT_TRUE(before && now);
  const TopRates r = RatesOf(*before, *now);
  EXPECT_DOUBLE_EQ(r.rx_frames, 20);
  EXPECT_DOUBLE_EQ(r.rx_bytes, 2000);
  EXPECT_DOUBLE_EQ(r.tx_frames, 40);
  EXPECT_DOUBLE_EQ(r.tx_bytes, 4000000);
  EXPECT_DOUBLE_EQ(r.retransmits, 2);
  EXPECT_DOUBLE_EQ(r.drops, 10);
  EXPECT_DOUBLE_EQ(r.cpu_percent, 100);
  EXPECT_EQ(r.connections, 7u);
  EXPECT_EQ(RatesOf(*now, *before).rx_frames, 0);  // time does not run backwards, counters of a port that went may
}

TEST(Top, AnswersThatAreNoneHaveNoSample) {
  for (const char* text : {"{}", "{\"counters\":5,\"ports\":[]}", "{\"counters\":{\"LinkInFrames\":\"x\"},\"ports\":[]}",
                           "{\"counters\":{},\"ports\":[7]}", "{\"counters\":{\"DropX\":[]},\"ports\":[]}"}) {
    EXPECT_FALSE(SampleOf(json::parse(text), 1)) << text;
  }
  EXPECT_TRUE(SampleOf(json::parse("{\"counters\":{},\"ports\":[]}"), 1));  // of an older sandbox
}

TEST(Top, TableIsAlignedAndClean) {
  const std::string table =
      TopTable({{"web", TopRates{.rx_frames = 12345, .rx_bytes = 1.5e9, .cpu_percent = 99.94}}, {"\x1b[2Jx", {}}});
  EXPECT_EQ(table,
            "SANDBOX IN pkt/s   IN B/s  OUT p/s  OUT B/s   CONNS  RETR/s  DROP/s  CPU %\n"
            "web        12.3k    1500M        0        0       0       0       0   99.9\n"
            "?[2Jx   does not answer\n");
}

}  // namespace
}  // namespace sluice
