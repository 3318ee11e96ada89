#include "dataplane/gro_port.h"

#include <gtest/gtest.h>

#include <functional>

#include "dataplane/gso.h"
#include "dataplane/pipe_port.h"
#include "dataplane/testing/test_frames.h"

namespace sluice {
namespace {

using testing::CheckedPayload;
using testing::FrameSpec;
using testing::MakeFrame;
using testing::Pattern;

class GroTest : public ::testing::Test {
 protected:
  GroTest() {
    auto [a, b] = MakePipePorts(2, 3, pool_);
    wire_ = std::move(a);
    gro_ = std::make_unique<GroPort>(std::move(b));
  }
  void Send(const FrameSpec& spec) {
    Packet p = MakeFrame(pool_, spec);
    ASSERT_EQ(wire_->Transmit(std::span(&p, 1)), 1u);
  }
  std::vector<Packet> Receive() {
    std::vector<Packet> got(64);
    got.resize(gro_->Receive(got));
    return got;
  }
  HeapBlockPool pool_{64 << 20};
  std::unique_ptr<Port> wire_, gro_;
};

TEST_F(GroTest, GivesBackWhatSegmentationCut) {
  for (bool v6 : {false, true}) {
    const auto payload = Pattern(20 * 1000 - 123, 4);
    const Packet super = MakeFrame(pool_, {.payload = payload, .v6 = v6, .gso_size = 1000, .flags = 0x18});
    GsoCutter cutter(super);
    while (!cutter.done()) {
      Packet p = Packet::Allocate(pool_, cutter.next_size());
      p.Append(cutter.next_size());
      cutter.Next(p.linear());
      ASSERT_EQ(wire_->Transmit(std::span(&p, 1)), 1u);
    }
    auto got = Receive();
    ASSERT_EQ(got.size(), 1u);
    EXPECT_EQ(CheckedPayload(got[0]), payload);
    EXPECT_EQ(got[0].offload.gso_size, 1000);
    EXPECT_EQ(got[0].offload.gso, v6 ? GsoType::kTcpV6 : GsoType::kTcpV4);
    EXPECT_EQ(got[0].offload.hdr_len, super.offload.hdr_len);
    EXPECT_EQ(got[0].data()[super.offload.csum_start + 13], 0x18) << "PSH of the last is kept";
  }
}

TEST_F(GroTest, JoinsOnlyWhatFollowsAndIsAlike) {
  struct Case {
    const char* what;
    std::function<void(FrameSpec&)> change;
    size_t frames;
  };
  const Case cases[] = {
      {"in order", [](FrameSpec&) {}, 1},
      {"gap", [](FrameSpec& s) { s.seq += 1; }, 2},
      {"repeated", [](FrameSpec& s) { s.seq -= 500; }, 2},
      {"other acknowledgement", [](FrameSpec& s) { s.ack += 1; }, 2},
      {"FIN", [](FrameSpec& s) { s.flags = 0x11; }, 2},
      {"RST", [](FrameSpec& s) { s.flags = 0x14; }, 2},
      {"URG", [](FrameSpec& s) { s.flags = 0x30; }, 2},
      {"CWR", [](FrameSpec& s) { s.flags = 0x90; }, 2},
      {"options", [](FrameSpec& s) { s.tcp_options = {1, 1, 1, 1}; }, 2},
      {"longer", [](FrameSpec& s) { s.payload.push_back(1); }, 2},
      {"shorter", [](FrameSpec& s) { s.payload.pop_back(); }, 1},
      {"empty", [](FrameSpec& s) { s.payload.clear(); }, 2},
      {"UDP", [](FrameSpec& s) { s.udp = true; }, 2},
  };
  for (const Case& c : cases) {
    FrameSpec first{.payload = Pattern(500, 1)}, second{.payload = Pattern(500, 2), .seq = 1500};
    c.change(second);
    Send(first);
    Send(second);
    auto got = Receive();
    EXPECT_EQ(got.size(), c.frames) << c.what;
    std::vector<uint8_t> joined, expected = first.payload;
    for (const Packet& p : got) {
      const auto part = CheckedPayload(p);
      joined.insert(joined.end(), part.begin(), part.end());
    }
    expected.insert(expected.end(), second.payload.begin(), second.payload.end());
    EXPECT_EQ(joined, expected) << c.what;
  }
}

TEST_F(GroTest, LeavesAWrongChecksumForTheStackToCount) {
  Send({.payload = Pattern(500, 1)});
  Packet bad = MakeFrame(pool_, {.payload = Pattern(500, 2), .seq = 1500});
  bad.data()[100] ^= 1;
  ASSERT_EQ(wire_->Transmit(std::span(&bad, 1)), 1u);
  Send({.payload = Pattern(500, 3), .seq = 2000});
  auto got = Receive();
  ASSERT_EQ(got.size(), 3u);
  EXPECT_EQ(got[1].offload.checksum, ChecksumState::kNone);
}

TEST_F(GroTest, KeepsTheOrderWithinAFlow) {
  // A pure ACK between two segments: they must not be joined around it.
  Send({.payload = Pattern(500, 1)});
  Send({.seq = 1500, .ack = 99});
  Send({.payload = Pattern(500, 2), .seq = 1500});
  Send({.payload = Pattern(500, 3), .seq = 2000});
  auto got = Receive();
  ASSERT_EQ(got.size(), 3u);
  EXPECT_EQ(CheckedPayload(got[0]).size(), 500u);
  EXPECT_EQ(CheckedPayload(got[1]).size(), 0u);
  EXPECT_EQ(CheckedPayload(got[2]).size(), 1000u);
}

}  // namespace
}  // namespace sluice
