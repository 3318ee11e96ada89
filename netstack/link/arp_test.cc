#include <gtest/gtest.h>

#include "netstack/testing/frames.h"

namespace sluice::testing {
namespace {

wire::ArpMessage Arp(const Frame& f) {
  const auto eth = wire::EthernetView::Parse(f);
  if (!eth || eth->type() != wire::kEtherArp) return {};
  return wire::ArpMessage::Parse(Bytes(f).subspan(wire::kEthernetHeader)).value_or(wire::ArpMessage{});
}

Frame Echo(const FrameHost& h, std::string_view from, size_t size = 8) {
  const std::vector<uint8_t> data(size, 0x5a);
  return Ipv4Frame(h.mac(),
                   {.source = *IpAddress::Parse(from), .destination = IpAddress::V4(10, 0, 0, 1), .protocol = kIpProtoIcmp},
                   IcmpMessage(wire::kIcmpEcho, 0, 0x00010001, data));
}

uint16_t StateOf(FrameHost& h, std::string_view address) {
  for (const NeighborInfo& n : h.stack().Neighbors()) {
    if (n.address == *IpAddress::Parse(address)) return n.state;
  }
  return 0;
}

TEST(Arp, AnswersForOurAddressOnly) {
  FrameHost h(false);
  h.In(ArpFrame(1, kBroadcastMac, kPeerMac, "10.0.0.2", {}, "10.0.0.1"));
  const Frame reply = h.Out();
  ASSERT_EQ(Arp(reply).operation, wire::kArpReply);
  EXPECT_EQ(Arp(reply).sender_mac, h.mac());
  EXPECT_EQ(Arp(reply).sender, IpAddress::V4(10, 0, 0, 1));
  EXPECT_EQ(wire::EthernetView::Parse(reply)->destination(), kPeerMac);
  h.In(ArpFrame(1, kBroadcastMac, kPeerMac, "10.0.0.2", {}, "10.0.0.3"));
  h.In(ArpFrame(1, kBroadcastMac, kPeerMac, "10.0.0.2", {}, "127.0.0.1"));
  EXPECT_TRUE(h.Out().empty());
}

TEST(Arp, AnswersAProbeWithoutLearningFromIt) {
  FrameHost h(false);
  h.In(ArpFrame(1, kBroadcastMac, kPeerMac, "0.0.0.0", {}, "10.0.0.1"));
  EXPECT_EQ(Arp(h.Out()).operation, wire::kArpReply);
  EXPECT_TRUE(h.stack().Neighbors().empty());
}

TEST(Arp, ResolvesThenSendsWhatWaited) {
  FrameHost h(false);
  h.In(Echo(h, "10.0.0.2"));  // the reply must wait for the address of its target
  const wire::ArpMessage ask = Arp(h.Out());
  EXPECT_EQ(ask.operation, wire::kArpRequest);
  EXPECT_EQ(ask.target, IpAddress::V4(10, 0, 0, 2));
  EXPECT_EQ(ask.sender, IpAddress::V4(10, 0, 0, 1));
  EXPECT_EQ(StateOf(h, "10.0.0.2"), 0x01);
  h.In(ArpFrame(2, h.mac(), kPeerMac, "10.0.0.2", h.mac(), "10.0.0.1"));
  const Frame out = h.Out();
  ASSERT_FALSE(out.empty());
  EXPECT_EQ(wire::EthernetView::Parse(out)->destination(), kPeerMac);
  EXPECT_EQ(StateOf(h, "10.0.0.2"), 0x02);
  EXPECT_EQ(h.drops(), 0u);
}

TEST(Arp, GivesUpAfterThreeProbesAndCountsWhatWaited) {
  FrameHost h(false);
  h.In(Echo(h, "10.0.0.2"));
  h.In(Echo(h, "10.0.0.2"));
  h.Advance(Duration::Seconds(10));
  EXPECT_EQ(h.AllOut().size(), 3u);
  EXPECT_EQ(h.counter(Counter::kDropNeighborFailed), 2u);
  EXPECT_EQ(StateOf(h, "10.0.0.2"), 0x20);
  EXPECT_FALSE(h.stack().NextDeadline());
}

TEST(Arp, ConfirmedNeighborGoesStaleThenIsProbedUnicast) {
  FrameHost h(false);
  h.In(Echo(h, "10.0.0.2"));
  h.In(ArpFrame(2, h.mac(), kPeerMac, "10.0.0.2", h.mac(), "10.0.0.1"));
  h.Advance(Duration::Seconds(46));  // longer than 1.5 times the base
  h.AllOut();
  EXPECT_EQ(StateOf(h, "10.0.0.2"), 0x04);
  h.In(Echo(h, "10.0.0.2"));
  EXPECT_EQ(StateOf(h, "10.0.0.2"), 0x08);
  EXPECT_EQ(h.AllOut().size(), 1u);  // used while it is being doubted
  h.Advance(Duration::Seconds(6));
  EXPECT_EQ(StateOf(h, "10.0.0.2"), 0x10);
  const Frame probe = h.Out();
  EXPECT_EQ(Arp(probe).operation, wire::kArpRequest);
  EXPECT_EQ(wire::EthernetView::Parse(probe)->destination(), kPeerMac);
  h.In(ArpFrame(2, h.mac(), kPeerMac, "10.0.0.2", h.mac(), "10.0.0.1"));
  EXPECT_EQ(StateOf(h, "10.0.0.2"), 0x02);
}

TEST(Arp, PendingQueuesAreBounded) {
  FrameHost h(false);
  for (int i = 0; i < 150; ++i) h.In(Echo(h, "10.0.0.2"));
  EXPECT_EQ(h.counter(Counter::kDropNeighborQueueFull), 49u);
  h.AllOut();
  h.In(ArpFrame(2, h.mac(), kPeerMac, "10.0.0.2", h.mac(), "10.0.0.1"));
  h.Turn();
  EXPECT_EQ(h.AllOut().size(), 101u);
}

TEST(Arp, TableIsBounded) {
  NetConfig config = LoopbackOnlyConfig();
  AddDevice(&config, "eth0", "10.0.0.1/8");
  FrameHost h(false, config);
  for (int i = 0; i < 3000; ++i) {
    const std::string from = "10.1." + std::to_string(i / 200) + "." + std::to_string(1 + i % 200);
    h.In(ArpFrame(1, kBroadcastMac, kPeerMac, from, {}, "10.0.0.1"));
  }
  EXPECT_LE(h.stack().Neighbors().size(), 1024u);
}

TEST(Arp, UnsolicitedRepliesDoNotMakeEntries) {
  FrameHost h(false);
  h.In(ArpFrame(2, h.mac(), kPeerMac, "10.0.0.9", h.mac(), "10.0.0.1"));
  h.In(ArpFrame(1, kBroadcastMac, kPeerMac, "10.0.0.9", {}, "10.0.0.9"));
  EXPECT_TRUE(h.stack().Neighbors().empty());
}

TEST(Arp, DefendsItsAddressOncePerInterval) {
  FrameHost h(false);
  for (int i = 0; i < 3; ++i) h.In(ArpFrame(1, kBroadcastMac, kPeerMac, "10.0.0.1", {}, "10.0.0.1"));
  const auto out = h.AllOut();
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(Arp(out[0]).sender, IpAddress::V4(10, 0, 0, 1));
  EXPECT_EQ(Arp(out[0]).target, IpAddress::V4(10, 0, 0, 1));
  EXPECT_EQ(h.counter(Counter::kArpConflicts), 3u);
  h.Advance(Duration::Seconds(11));
  h.In(ArpFrame(1, kBroadcastMac, kPeerMac, "10.0.0.1", {}, "10.0.0.1"));
  EXPECT_EQ(h.AllOut().size(), 1u);
}

TEST(Arp, AnnouncesNewAddresses) {
  FrameHost h(false);
  AddAddress(&h.config(), kSimIfIndex, "10.0.0.77/24");
  h.ApplyConfig();
  h.Turn();
  const auto out = h.AllOut();
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(Arp(out[0]).target, IpAddress::V4(10, 0, 0, 77));
  h.ApplyConfig();
  h.Turn();
  EXPECT_TRUE(h.AllOut().empty());
}

TEST(Arp, MalformedMessagesAreCounted) {
  FrameHost h(false);
  Frame f = ArpFrame(1, kBroadcastMac, kPeerMac, "10.0.0.2", {}, "10.0.0.1");
  f.resize(wire::kEthernetHeader + 27);
  h.In(f);
  f = ArpFrame(1, kBroadcastMac, kPeerMac, "224.0.0.2", {}, "10.0.0.1");
  h.In(f);
  EXPECT_EQ(h.counter(Counter::kDropArpMalformed), 2u);
  EXPECT_TRUE(h.AllOut().empty());
}

TEST(Ethernet, FramesForOthersAreCounted) {
  FrameHost h;
  Frame f = Echo(h, "10.0.0.2");
  f[5] ^= 1;
  h.In(f);
  EXPECT_EQ(h.counter(Counter::kDropLinkNotForUs), 1u);
  f.resize(13);
  h.In(f);
  EXPECT_EQ(h.counter(Counter::kDropLinkTooShort), 1u);
  f = Echo(h, "10.0.0.2");
  StoreBe16(&f[12], wire::kEtherVlan);
  h.In(f);
  EXPECT_EQ(h.counter(Counter::kDropLinkUnknownProtocol), 1u);
  EXPECT_TRUE(h.AllOut().empty());
  EXPECT_EQ(h.drops(), 3u);
}

TEST(Device, TransmitQueueIsBoundedAndGoesOnWhenTheLinkTakesMore) {
  FrameHost h;
  h.accept_frames = 0;
  for (int i = 0; i < 1100; ++i) h.In(Echo(h, "10.0.0.2"));
  EXPECT_EQ(h.counter(Counter::kDropLinkTxQueueFull), 100u);
  h.accept_frames = 300;
  EXPECT_FALSE(h.stack().Flush());
  h.accept_frames = SIZE_MAX;
  EXPECT_TRUE(h.stack().Flush());
  EXPECT_EQ(h.AllOut().size(), 1000u);
}

TEST(Device, VanishedDeviceDropsAndComesBack) {
  FrameHost h;
  NetConfig without = h.config();
  h.config() = LoopbackOnlyConfig();
  h.ApplyConfig();
  h.In(Echo(h, "10.0.0.2"));
  EXPECT_EQ(h.counter(Counter::kDropLinkDown), 1u);
  h.config() = without;
  h.ApplyConfig();
  h.Turn();
  h.AllOut();
  h.In(ArpFrame(1, kBroadcastMac, kPeerMac, "10.0.0.2", {}, "10.0.0.1"));
  EXPECT_EQ(Arp(h.Out()).operation, wire::kArpReply);
}

}  // namespace
}  // namespace sluice::testing
