// Which frames the programs of engine flows take for the kernel's, by bpf_prog_test_run: one flow is known, and one ARP request
// was sent.
#include <bpf/bpf.h>
#include <gtest/gtest.h>
#include <time.h>

#include "netstack/testing/frames.h"
#include "xdp/engine_flows.h"

namespace sluice::testing {
namespace {

constexpr uint32_t kMark = 0x51ce;
constexpr int kNext = -1, kDrop = 2;  // TCX_NEXT, TCX_DROP
const IpAddress kOurs = IpAddress::V4(10, 0, 0, 1), kServer = IpAddress::V4(10, 0, 0, 53), kOther = IpAddress::V4(10, 0, 0, 54);
constexpr uint16_t kLocal = 40000, kNames = SLUICE_ENGINE_PORT;
const MacAddress kHost{};  // of the loopback, on which test runs take place

uint32_t Wire(const IpAddress& a) {
  uint32_t v;
  std::memcpy(&v, a.bytes().data(), sizeof v);
  return v;
}

Frame Udp(const IpAddress& from, uint16_t from_port, const IpAddress& to, uint16_t to_port, wire::Ipv4Fields fields = {}) {
  const uint8_t payload[64] = {};
  fields.source = from, fields.destination = to, fields.protocol = kIpProtoUdp;
  return Ipv4Frame(kHost, fields, UdpMessage(from, to, from_port, to_port, payload));
}

// An error about a datagram that we sent.
Frame Error(uint8_t type, const IpAddress& to, const Frame& about, size_t quoted = 28) {
  const Bytes quote = Bytes(about).subspan(wire::kEthernetHeader, quoted);
  return Ipv4Frame(kHost, {.source = kOther, .destination = to, .protocol = kIpProtoIcmp}, IcmpMessage(type, 3, 0, quote));
}

class EngineFlowProgramsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root: loads BPF programs";
    std::string error;
    ASSERT_EQ(CreateEngineFlowMaps(&maps_, &error), Errno::kOk) << error;
    ASSERT_EQ(LoadEngineFlowPrograms(maps_, kMark, &programs_, &error), Errno::kOk) << error;
    ASSERT_EQ(gate_.Open(maps_.gate.get()), Errno::kOk);
    gate_.Ask();
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    const uint64_t ns = static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec);
    for (const uint8_t protocol : {kIpProtoUdp, kIpProtoTcp}) {
      const sluice_flow flow{Wire(kOurs), Wire(kServer), htons(kLocal), htons(kNames), protocol, {}};
      ASSERT_EQ(bpf_map_update_elem(maps_.table.get(), &flow, &ns, BPF_ANY), 0);
    }
    const uint32_t asked = Wire(kServer);
    const sluice_resolution resolution{ns, Wire(kOurs), 0};
    ASSERT_EQ(bpf_map_update_elem(maps_.resolutions.get(), &asked, &resolution, BPF_ANY), 0);
  }
  static uint16_t htons(uint16_t v) { return static_cast<uint16_t>(v >> 8 | v << 8); }

  static int Run(const UniqueFd& program, const Frame& frame, uint32_t mark = 0, bool vlan = false) {
    __sk_buff context{};
    context.mark = mark;
    Frame data = frame;
    if (vlan) data.insert(data.begin() + 12, {0x81, 0, 0, 5});
    bpf_test_run_opts options{};
    options.sz = sizeof options;
    options.data_in = data.data();
    options.data_size_in = static_cast<uint32_t>(data.size());
    options.ctx_in = &context;
    options.ctx_size_in = sizeof context;
    EXPECT_EQ(bpf_prog_test_run_opts(program.get(), &options), 0) << strerror(errno);
    return static_cast<int>(options.retval);
  }
  // The kernel's ingress and the stack's socket agree.
  bool Kernels(const Frame& frame) {
    const int in = Run(programs_.in, frame), tap = Run(programs_.tap, frame);
    EXPECT_EQ(in == kNext, tap == 0);
    EXPECT_TRUE((in == kNext || in == kDrop) && (tap == 0 || tap == -1)) << in << " " << tap;
    return in == kNext;
  }
  bool Leaves(const Frame& frame) { return Run(programs_.out, frame) == kNext; }

  EngineFlowMaps maps_;
  EngineFlowPrograms programs_;
  FlowGate gate_;
};

TEST_F(EngineFlowProgramsTest, OnlyTheAddressesAndPortsOfTheFlow) {
  EXPECT_TRUE(Kernels(Udp(kServer, kNames, kOurs, kLocal)));
  EXPECT_FALSE(Kernels(Udp(kServer, kNames + 1, kOurs, kLocal)));
  EXPECT_FALSE(Kernels(Udp(kServer, kNames, kOurs, kLocal + 1)));
  EXPECT_FALSE(Kernels(Udp(kOther, kNames, kOurs, kLocal)));
  EXPECT_FALSE(Kernels(Udp(kServer, kNames, kOther, kLocal)));
  Frame tcp = Udp(kServer, kNames, kOurs, kLocal);
  tcp[23] = kIpProtoTcp;
  EXPECT_TRUE(Kernels(tcp));
  tcp[23] = 132;  // SCTP has its ports there, too
  EXPECT_FALSE(Kernels(tcp));
  EXPECT_EQ(Run(programs_.in, Udp(kServer, kNames, kOurs, kLocal), 0, true), kDrop) << "in a VLAN";
  Frame elsewhere = Udp(kServer, kNames, kOurs, kLocal);
  elsewhere[0] = 2;
  EXPECT_EQ(Run(programs_.in, elsewhere), kDrop) << "for another host";
}

TEST_F(EngineFlowProgramsTest, WhatIsCutShortIsNotTheKernels) {
  const Frame whole = Udp(kServer, kNames, kOurs, kLocal);
  // Test runs take no shorter packets of IP.
  for (size_t size = 14 + 20; size < 14 + 20 + 4; ++size) {
    EXPECT_FALSE(Kernels(Frame(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(size)))) << size;
  }
  for (const int first : {0x44, 0x65, 0x05}) {  // header too short, other versions
    Frame wrong = whole;
    wrong[14] = static_cast<uint8_t>(first);
    EXPECT_FALSE(Kernels(wrong)) << first;
  }
  Frame options = whole;
  options[14] = 0x46;  // the ports are four bytes further
  EXPECT_FALSE(Kernels(options));
}

TEST_F(EngineFlowProgramsTest, ErrorsByWhatTheyQuote) {
  const Frame sent = Udp(kOurs, kLocal, kServer, kNames);
  for (const uint8_t type : {3, 11, 12}) EXPECT_TRUE(Kernels(Error(type, kOurs, sent))) << int{type};
  for (const uint8_t type : {0, 4, 5, 8, 13}) EXPECT_FALSE(Kernels(Error(type, kOurs, sent))) << int{type};
  EXPECT_FALSE(Kernels(Error(3, kOther, sent))) << "quotes another's";
  EXPECT_FALSE(Kernels(Error(3, kOurs, Udp(kOurs, kLocal, kServer, kNames + 1))));
  EXPECT_FALSE(Kernels(Error(3, kOurs, Udp(kServer, kNames, kOurs, kLocal)))) << "the wrong way round";
  EXPECT_FALSE(Kernels(Error(3, kOurs, sent, 22))) << "no ports";
  EXPECT_FALSE(Kernels(Error(3, kOurs, Udp(kOurs, kLocal, kServer, kNames, {.fragment = 8}))));
}

TEST_F(EngineFlowProgramsTest, LaterFragmentsBehindTheirFirst) {
  const auto part = [](const IpAddress& from, uint16_t id, uint16_t offset, bool more) {
    return Udp(from, kNames, kOurs, kLocal, {.id = id, .fragment = static_cast<uint16_t>(offset / 8 | (more ? 0x2000 : 0))});
  };
  EXPECT_FALSE(Kernels(part(kServer, 7, 64, true)));
  EXPECT_TRUE(Kernels(part(kServer, 7, 0, true)));
  EXPECT_TRUE(Kernels(part(kServer, 7, 64, true)));
  EXPECT_TRUE(Kernels(part(kServer, 7, 128, false)));
  EXPECT_FALSE(Kernels(part(kServer, 8, 64, false)));
  EXPECT_FALSE(Kernels(part(kOther, 7, 64, false)));
  EXPECT_FALSE(Kernels(part(kOther, 9, 0, true)));
  EXPECT_FALSE(Kernels(part(kOther, 9, 64, false)));
}

TEST_F(EngineFlowProgramsTest, OneAnswerToAnArpRequestAndNoRequest) {
  const auto arp = [](uint16_t operation, std::string_view sender, std::string_view target) {
    return ArpFrame(operation, kHost, kPeerMac, sender, kHost, target);
  };
  const auto in = [this](const Frame& frame) {
    EXPECT_EQ(Run(programs_.tap, frame), -1) << "the stack gets ARP, too";
    return Run(programs_.in, frame) == kNext;
  };
  EXPECT_FALSE(in(arp(1, "10.0.0.53", "10.0.0.1")));
  EXPECT_FALSE(in(arp(2, "10.0.0.54", "10.0.0.1")));
  EXPECT_FALSE(in(arp(2, "10.0.0.53", "10.0.0.2")));
  EXPECT_TRUE(in(arp(2, "10.0.0.53", "10.0.0.1")));
  EXPECT_FALSE(in(arp(2, "10.0.0.53", "10.0.0.1"))) << "a second answer";
  EXPECT_TRUE(Leaves(arp(1, "10.0.0.1", "10.0.0.53")));
  EXPECT_FALSE(Leaves(arp(1, "10.0.0.1", "10.0.0.1"))) << "an announcement";
  EXPECT_FALSE(Leaves(arp(1, "0.0.0.0", "10.0.0.53"))) << "a probe";
  EXPECT_FALSE(Leaves(arp(2, "10.0.0.1", "10.0.0.53"))) << "an answer";
}

TEST_F(EngineFlowProgramsTest, OnlyWhatASocketSendsMakesAFlow) {
  // A test run's packet has a socket of no type.
  EXPECT_FALSE(Leaves(Udp(kOurs, kLocal + 1, kServer, kNames)));
  EXPECT_TRUE(Leaves(Udp(kOurs, kLocal, kServer, kNames))) << "a known flow";
  EXPECT_FALSE(Leaves(Udp(kOurs, kLocal, kServer, kNames + 1)));
  EXPECT_FALSE(Leaves(Error(3, kServer, Udp(kServer, kNames, kOurs, kLocal)))) << "the kernel complains to nobody";
  EXPECT_EQ(Run(programs_.out, Udp(kOurs, 1, kServer, 2), kMark), kNext) << "the sandbox's own";
}

TEST_F(EngineFlowProgramsTest, WhatASentryWritesWakesNothing) {
  for (const uint64_t bits : {UINT64_MAX, uint64_t{0}}) {
    for (uint32_t word = 0; word < SLUICE_HELD_WORDS; ++word) {
      ASSERT_EQ(bpf_map_update_elem(maps_.held.get(), &word, &bits, BPF_ANY), 0);
    }
    EXPECT_EQ(Kernels(Udp(kServer, kNames, kOurs, kLocal)), bits == 0);
    EXPECT_FALSE(Kernels(Udp(kServer, kNames, kOurs, kLocal + 1)));
    EXPECT_FALSE(Leaves(Udp(kOurs, kLocal + 1, kServer, kNames)));
  }
}

}  // namespace
}  // namespace sluice::testing
