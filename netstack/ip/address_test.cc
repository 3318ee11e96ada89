#include "netstack/ip/address.h"

#include <gtest/gtest.h>

namespace sluice {
namespace {

TEST(IpAddress, ParsesAndPrintsCanonically) {
  const std::pair<const char*, const char*> cases[] = {{"10.0.0.1", "10.0.0.1"},
                                                       {"255.255.255.255", "255.255.255.255"},
                                                       {"::", "::"},
                                                       {"::1", "::1"},
                                                       {"1::", "1::"},
                                                       {"2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"},
                                                       {"2001:DB8::0001", "2001:db8::1"},
                                                       {"::ffff:1.2.3.4", "::ffff:1.2.3.4"},
                                                       {"fe80::1:2:3:4", "fe80::1:2:3:4"},
                                                       {"1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8"},
                                                       {"1:0:3:4:5:6:7:8", "1:0:3:4:5:6:7:8"},
                                                       {"64:ff9b::10.0.0.1", "64:ff9b::a00:1"},
                                                       {"1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:0"}};
  for (const auto& [text, expected] : cases) {
    const auto a = IpAddress::Parse(text);
    ASSERT_TRUE(a) << text;
    EXPECT_EQ(ToString(*a), expected);
  }
}

TEST(IpAddress, RefusesWhatIsNoAddress) {
  for (const char* text : {"",
                           "1.2.3",
                           "1.2.3.4.5",
                           "256.1.1.1",
                           "01.2.3.4",
                           "1.2.3.4 ",
                           "1..2.3",
                           ":",
                           ":1",
                           "1:",
                           "1:2",
                           ":::",
                           "1::2::3",
                           "12345::",
                           "1:2:3:4:5:6:7:8:9",
                           "::1.2.3",
                           "1:2:3:4:5:6:7:1.2.3.4",
                           "1:2:3:4:5:6:7:8::",
                           "g::",
                           "0x1::"}) {
    EXPECT_FALSE(IpAddress::Parse(text)) << text;
  }
}

TEST(IpAddress, ClassifiesAndMaps) {
  EXPECT_TRUE(IpAddress::V4(127, 9, 9, 9).IsLoopback());
  EXPECT_TRUE(IpAddress::Parse("::1")->IsLoopback());
  EXPECT_TRUE(IpAddress::V4(239, 1, 1, 1).IsMulticast());
  EXPECT_FALSE(IpAddress::V4(240, 1, 1, 1).IsMulticast());
  EXPECT_TRUE(IpAddress::Any(Family::kIpv4).IsAny());
  EXPECT_FALSE(IpAddress().IsAny());
  const IpAddress a = IpAddress::V4(10, 1, 2, 3);
  EXPECT_TRUE(a.Mapped().IsV4Mapped());
  EXPECT_EQ(a.Mapped().Unmapped(), a);
}

TEST(IpAddress, PrefixesOfEveryLength) {
  const IpAddress v4 = IpAddress::V4(10, 1, 2, 3);
  EXPECT_TRUE(v4.InPrefix(IpAddress::V4(0, 0, 0, 0), 0));
  EXPECT_TRUE(v4.InPrefix(IpAddress::V4(10, 1, 2, 0), 24));
  EXPECT_TRUE(v4.InPrefix(v4, 32));
  EXPECT_FALSE(v4.InPrefix(IpAddress::V4(10, 1, 2, 2), 32));
  EXPECT_FALSE(v4.InPrefix(*IpAddress::Parse("::"), 0));
  const IpAddress v6 = *IpAddress::Parse("2001:db8:ff::1");
  EXPECT_TRUE(v6.InPrefix(*IpAddress::Parse("2001:db8:f0::"), 44));
  EXPECT_FALSE(v6.InPrefix(*IpAddress::Parse("2001:db8:f0::"), 45));
}

}  // namespace
}  // namespace sluice
