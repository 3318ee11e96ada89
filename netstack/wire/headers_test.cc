#include "netstack/wire/headers.h"

#include <gtest/gtest.h>

#include <vector>

namespace sluice::wire {
namespace {

TEST(Ipv4View, GoldenBytesRoundTrip) {
  // 45 00 00 54 00 00 40 00 40 01: echo request 10.0.0.1 > 10.0.0.2 as Linux sends it; checksum 26a7.
  Ipv4Fields f;
  f.source = IpAddress::V4(10, 0, 0, 1);
  f.destination = IpAddress::V4(10, 0, 0, 2);
  f.total_length = 84;
  f.fragment = kIpv4DontFragment;
  f.protocol = 1;
  uint8_t out[20];
  f.Write(out);
  const uint8_t golden[20] = {0x45, 0, 0, 0x54, 0, 0, 0x40, 0, 0x40, 1, 0x26, 0xa7, 10, 0, 0, 1, 10, 0, 0, 2};
  EXPECT_EQ(std::vector<uint8_t>(out, out + 20), std::vector<uint8_t>(golden, golden + 20));
  const auto v = Ipv4View::Parse(out, 84);
  ASSERT_TRUE(v);
  EXPECT_TRUE(v->ChecksumOk());
  EXPECT_TRUE(v->dont_fragment());
  EXPECT_FALSE(v->is_fragment());
  EXPECT_EQ(v->destination(), f.destination);
  out[15] ^= 1;
  EXPECT_FALSE(Ipv4View::Parse(out, 84)->ChecksumOk());
}

TEST(Ipv4View, RefusesWrongLengths) {
  uint8_t h[24] = {0x45, 0, 0, 24};
  EXPECT_TRUE(Ipv4View::Parse(h, 24));
  EXPECT_FALSE(Ipv4View::Parse(h, 23));        // total length beyond the frame
  EXPECT_FALSE(Ipv4View::Parse({h, 19}, 24));  // header cut
  h[0] = 0x44;
  EXPECT_FALSE(Ipv4View::Parse(h, 24));  // header length below 20
  h[0] = 0x47;
  EXPECT_FALSE(Ipv4View::Parse(h, 24));  // header beyond what is there
  h[0] = 0x46, h[3] = 20;
  EXPECT_FALSE(Ipv4View::Parse(h, 24));  // total length below the header's
  h[0] = 0x65, h[3] = 24;
  EXPECT_FALSE(Ipv4View::Parse(h, 24));  // version
}

TEST(Ipv4Options, FindsSourceRoutesAndRefusesWrongLengths) {
  const uint8_t good[] = {1, 131, 7, 4, 10, 0, 0, 1};
  ASSERT_TRUE(Ipv4Options::Parse(good));
  EXPECT_TRUE(Ipv4Options::Parse(good)->source_route);
  const uint8_t end[] = {0, 131, 0, 0};
  ASSERT_TRUE(Ipv4Options::Parse(end));
  EXPECT_FALSE(Ipv4Options::Parse(end)->source_route);
  const uint8_t zero_length[] = {7, 0, 4, 0}, too_long[] = {7, 5, 4, 0}, cut[] = {1, 1, 1, 7};
  EXPECT_FALSE(Ipv4Options::Parse(zero_length));
  EXPECT_FALSE(Ipv4Options::Parse(too_long));
  EXPECT_FALSE(Ipv4Options::Parse(cut));
}

TEST(ArpMessage, RoundTripAndRefusals) {
  ArpMessage m;
  m.operation = kArpRequest;
  m.sender_mac = {{2, 0, 0, 0, 0, 1}};
  m.sender = IpAddress::V4(10, 0, 0, 1);
  m.target = IpAddress::V4(10, 0, 0, 2);
  uint8_t out[kArpSize];
  m.Write(out);
  const auto p = ArpMessage::Parse(out);
  ASSERT_TRUE(p);
  EXPECT_EQ(p->sender_mac, m.sender_mac);
  EXPECT_EQ(p->target, m.target);
  EXPECT_FALSE(ArpMessage::Parse({out, kArpSize - 1}));
  out[7] = 3;
  EXPECT_FALSE(ArpMessage::Parse(out));
  out[7] = 1, out[5] = 16;
  EXPECT_FALSE(ArpMessage::Parse(out));
}

TEST(UdpView, RefusesWrongLengths) {
  uint8_t h[12] = {0, 1, 0, 2, 0, 12, 0, 0};
  EXPECT_TRUE(UdpView::Parse(h, 12));
  EXPECT_TRUE(UdpView::Parse(h, 40));  // IP padding behind
  EXPECT_FALSE(UdpView::Parse(h, 11));
  h[5] = 7;
  EXPECT_FALSE(UdpView::Parse(h, 12));
  EXPECT_FALSE(UdpView::Parse({h, 7}, 12));
}

TEST(Ipv6View, RoundTripAndRefusals) {
  Ipv6Fields f;
  f.source = f.destination = IpAddress::Loopback(Family::kIpv6);
  f.payload_length = 8;
  f.traffic_class = 0xab;
  f.flow_label = 0x12345;
  f.next_header = 17;
  uint8_t out[48];
  f.Write(out);
  const auto v = Ipv6View::Parse(out, 48);
  ASSERT_TRUE(v);
  EXPECT_EQ(v->traffic_class(), 0xab);
  EXPECT_EQ(v->flow_label(), 0x12345u);
  EXPECT_EQ(v->source(), f.source);
  EXPECT_FALSE(Ipv6View::Parse(out, 47));
  EXPECT_FALSE(Ipv6View::Parse({out, 39}, 48));
}

}  // namespace
}  // namespace sluice::wire
