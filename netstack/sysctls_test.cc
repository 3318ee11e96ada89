#include "netstack/sysctls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace sluice {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

TEST(Sysctls, ParsesWhatIsThereAndKeepsDefaultsForTheRest) {
  std::vector<std::string> problems;
  const Sysctls s = ParseSysctls({{"net.ipv4.tcp_rmem", "4096\t131072\t33554432"},
                                  {"net.ipv4.ip_local_port_range", "10000 20000"},
                                  {"net.ipv4.tcp_sack", "0"},
                                  {"net.ipv4.tcp_rto_min_us", "150500"},
                                  {"net.ipv4.tcp_congestion_control", "reno"}},
                                 &problems);
  EXPECT_TRUE(problems.empty());
  EXPECT_EQ(s.tcp_rmem[2], 33554432);
  EXPECT_EQ(s.ip_local_port_range[0], 10000);
  EXPECT_FALSE(s.tcp_sack);
  EXPECT_EQ(s.tcp_min_rto_ms, 151);
  EXPECT_EQ(s.tcp_congestion_control, "reno");
  EXPECT_EQ(s.ip_default_ttl, 64);
}

TEST(Sysctls, ReportsWhatDoesNotParseAndKeepsTheDefault) {
  std::vector<std::string> problems;
  const Sysctls s = ParseSysctls({{"net.ipv4.tcp_rmem", "4096 131072"},
                                  {"net.ipv4.ip_default_ttl", "0"},
                                  {"net.ipv4.ip_local_port_range", "2000 1000"},
                                  {"net.ipv4.tcp_ecn", "x"}},
                                 &problems);
  EXPECT_EQ(problems.size(), 4u);
  EXPECT_THAT(problems, Contains(HasSubstr("net.ipv4.ip_default_ttl")));
  EXPECT_EQ(s.tcp_rmem[2], 6291456);
  EXPECT_EQ(s.ip_default_ttl, 64);
  EXPECT_EQ(s.ip_local_port_range[1], 60999);
  EXPECT_EQ(s.tcp_ecn, 2);
}

TEST(Sysctls, ReadsFastOpenKeysAsTheKernelDoes) {
  std::vector<std::string> problems;
  const Sysctls s = ParseSysctls({{"net.ipv4.tcp_fastopen", "1539"},
                                  {"net.ipv4.tcp_fastopen_blackhole_timeout_sec", "3600"},
                                  {"net.ipv4.tcp_fastopen_key", "00112233-44556677-8899aabb-ccddeeff"}},
                                 &problems);
  EXPECT_TRUE(problems.empty());
  EXPECT_EQ(s.tcp_fastopen, 0x603);
  EXPECT_EQ(s.tcp_fastopen_blackhole_timeout_s, 3600);
  EXPECT_EQ(s.tcp_fastopen_key, "00112233-44556677-8899aabb-ccddeeff");
  EXPECT_EQ(ParseSysctls({{"net.ipv4.tcp_fastopen_key", "0011"}}, &problems).tcp_fastopen_key, "");
  EXPECT_THAT(problems, Contains(HasSubstr("net.ipv4.tcp_fastopen_key")));
  EXPECT_TRUE(SysctlsWithoutEffect({{"net.ipv4.tcp_fastopen", "3"}}).empty());
}

TEST(Sysctls, NamesEveryKeyOnce) {
  auto names = SupportedSysctls();
  EXPECT_THAT(names, Contains("net.ipv4.tcp_wmem"));
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end());
}

TEST(Sysctls, NamesKeysThatWereSetAndActOnNothing) {
  EXPECT_TRUE(SysctlsWithoutEffect({}).empty());
  EXPECT_TRUE(SysctlsWithoutEffect({{"net.ipv4.tcp_ecn", "2"}, {"net.ipv4.tcp_rmem", "4096 8192 16384"}}).empty());
  EXPECT_EQ(std::vector<std::string>{"net.ipv4.tcp_recovery"}, SysctlsWithoutEffect({{"net.ipv4.tcp_recovery", "0"}}));
}

}  // namespace
}  // namespace sluice
