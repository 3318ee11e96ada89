// The silencing programs on a veth between fresh namespaces, and by bpf_prog_test_run. Lives here for the veth of the tests.
#include "xdp/silence.h"

#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <gtest/gtest.h>
#include <linux/if_ether.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <fstream>

#include "dataplane/packet_socket.h"
#include "dataplane/testing/test_netns.h"
#include "silence.skel.h"
#include "xdp/bpf_calls.h"

namespace sluice {
namespace {

constexpr uint32_t kMark = 0x51ce;

class SilenceTest : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (const std::string why = testing::WhyNoNetns(); !why.empty()) GTEST_SKIP() << why;
    veth_ = std::make_unique<testing::VethPair>();
    char directory[] = "/tmp/sluice-silence-XXXXXX";
    ASSERT_NE(mkdtemp(directory), nullptr);
    options_.directory = std::string(directory) + "/bpf";
    options_.mark = kMark;
    options_.name = "test";
    options_.tcx = !GetParam();
  }
  void TearDown() override {
    if (!veth_) return;
    std::string error;
    testing::InNetns in(veth_->ours());
    EXPECT_EQ(LiftSilence(veth_->our_index(), options_, &error), Errno::kOk) << error;
    const std::string parent = options_.directory.substr(0, options_.directory.rfind('/'));
    unlink((options_.directory + ".lock").c_str());
    rmdir(options_.directory.c_str());  // fails where something is still mounted on it
    // Fails where pins or the bpffs are left behind.
    EXPECT_EQ(rmdir(parent.c_str()), 0) << strerror(errno);
  }
  bool PeerHears() { return veth_->Run(veth_->peer(), "ping -c1 -W1 -q 10.77.0.1", &output_) == 0; }
  // Where an answer is expected: a device that just came up or a resolution that failed may take a moment.
  bool PeerHearsSoon() {
    for (int i = 0; i < 20; ++i) {
      if (PeerHears()) return true;
    }
    return false;
  }
  Errno Attach(Silence* out) {
    testing::InNetns in(veth_->ours());
    return SilenceDevice(veth_->our_index(), options_, out, &error_);
  }

  std::unique_ptr<testing::VethPair> veth_;
  SilenceOptions options_;
  std::string output_, error_;
};

// One raw frame of an unused type from `netns` by a packet socket with `mark`; true where the peer's tap saw it.
bool FrameArrives(const testing::VethPair& veth, uint32_t mark) {
  PacketSocket sender, receiver;
  std::string error;
  {
    testing::InNetns in(veth.peer());
    EXPECT_EQ(OpenPacketSocket(veth.peer_index(), {.vnet_header = false}, &receiver, &error), Errno::kOk) << error;
  }
  testing::InNetns in(veth.ours());
  EXPECT_EQ(OpenPacketSocket(veth.our_index(), {.vnet_header = false, .mark = mark}, &sender, &error), Errno::kOk) << error;
  uint8_t frame[64] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5, 0x42};
  send(sender.fd.get(), frame, sizeof frame, 0);  // ENOBUFS where the egress program drops it
  // A veth hands over in the sender's context but for the softirq: a bounded wait for "comes", the same for "does not".
  pollfd p{receiver.fd.get(), POLLIN, 0};
  while (poll(&p, 1, 300) == 1) {
    uint8_t got[2048];
    const ssize_t n = recv(receiver.fd.get(), got, sizeof got, 0);
    if (n >= 15 && got[12] == 0x88 && got[13] == 0xb5) return true;
  }
  return false;
}

TEST_P(SilenceTest, KernelNeitherAnswersNorEmitsUntilLifted) {
  ASSERT_TRUE(PeerHearsSoon()) << output_;
  Silence silence;
  ASSERT_EQ(Attach(&silence), Errno::kOk) << error_;
  EXPECT_EQ(silence.kind(), !options_.tcx ? SilenceKind::kClsact : SilenceKind::kTcx);
  veth_->Run(veth_->peer(), "ip neigh flush dev pe0");
  EXPECT_FALSE(PeerHears());
  std::string neighbours;
  veth_->Run(veth_->peer(), "ip neigh show 10.77.0.1", &neighbours);
  EXPECT_EQ(neighbours.find("lladdr"), std::string::npos) << "the kernel answered ARP: " << neighbours;
  // With a permanent neighbour a SYN leaves the peer; no RST comes back.
  veth_->Run(veth_->peer(), "ip neigh replace 10.77.0.1 lladdr ff:ff:ff:ff:ff:ff dev pe0 nud permanent");
  EXPECT_EQ(veth_->Run(veth_->peer(), "timeout 1 bash -c 'exec 3<>/dev/tcp/10.77.0.1/81'", &output_), 124) << output_;
  {
    testing::InNetns in(veth_->ours());
    EXPECT_EQ(silence.Check(&error_), Errno::kOk) << error_;
    EXPECT_EQ(LiftSilence(veth_->our_index(), options_, &error_), Errno::kOk) << error_;
    EXPECT_EQ(silence.Check(&error_), Errno::kENOENT);
    // `silence` still holds the links: what is in them lets everything pass and is nobody's filter.
    EXPECT_EQ(CountTcx(veth_->our_index(), bpf::kTcxIngress), 0);
    EXPECT_EQ(CountTcx(veth_->our_index(), bpf::kTcxEgress), 0);
    EXPECT_EQ(LiftSilence(veth_->our_index(), options_, &error_), Errno::kOk) << "a second time: " << error_;
  }
  veth_->Run(veth_->peer(), "ip neigh flush dev pe0 nud permanent; ip neigh flush dev pe0");
  EXPECT_TRUE(PeerHearsSoon()) << output_;
  std::string qdisc;
  veth_->Run(veth_->ours(), "tc qdisc show dev sl0", &qdisc);
  EXPECT_EQ(qdisc.find("clsact"), std::string::npos) << qdisc;
}

TEST_P(SilenceTest, OnlyFramesWithTheMarkLeave) {
  EXPECT_TRUE(FrameArrives(*veth_, 0));
  Silence silence;
  ASSERT_EQ(Attach(&silence), Errno::kOk) << error_;
  EXPECT_FALSE(FrameArrives(*veth_, 0));
  EXPECT_FALSE(FrameArrives(*veth_, kMark + 1));
  EXPECT_TRUE(FrameArrives(*veth_, kMark));
}

TEST_P(SilenceTest, SurvivesTheDeathOfWhoAttachedAndIsReplaced) {
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    Silence silence;
    const char answer = Attach(&silence) == Errno::kOk ? 'y' : 'n';
    if (write(ready[1], &answer, 1) != 1) _exit(1);
    pause();
    _exit(0);
  }
  close(ready[1]);
  char answer = 0;
  EXPECT_EQ(read(ready[0], &answer, 1), 1);
  EXPECT_EQ(answer, 'y');
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  close(ready[0]);
  EXPECT_FALSE(PeerHears());
  Silence again;
  ASSERT_EQ(Attach(&again), Errno::kOk) << error_;
  testing::InNetns in(veth_->ours());
  EXPECT_EQ(again.Check(&error_), Errno::kOk) << error_;
  EXPECT_EQ(!options_.tcx ? LiftAllClsact(&error_) : LiftAllPinned(options_, &error_), Errno::kOk) << error_;
  EXPECT_TRUE(PeerHearsSoon()) << "one layer of silence was left: " << output_;
}

TEST_P(SilenceTest, NoticesAProgramPutInFrontAndADeviceGone) {
  Silence first, second;
  ASSERT_EQ(Attach(&first), Errno::kOk) << error_;
  SilenceOptions other = options_;
  other.name = "other";
  other.tcx = true;  // runs before clsact, too
  {
    testing::InNetns in(veth_->ours());
    for (const uint32_t hook : {bpf::kTcxIngress, bpf::kTcxEgress})
      EXPECT_EQ(CountTcx(veth_->our_index(), hook), options_.tcx ? 1 : 0);
    ASSERT_EQ(SilenceDevice(veth_->our_index(), other, &second, &error_), Errno::kOk) << error_;
    EXPECT_EQ(first.Check(&error_), Errno::kEEXIST);
    EXPECT_NE(error_.find("before"), std::string::npos) << error_;
    EXPECT_EQ(LiftAllPinned(other, &error_), Errno::kOk) << error_;
    second = Silence();  // the last that holds its links
    EXPECT_EQ(first.Check(&error_), Errno::kOk) << error_;
  }
  ASSERT_EQ(veth_->Run(veth_->ours(), "ip link del sl0"), 0);
  testing::InNetns in(veth_->ours());
  EXPECT_EQ(first.Check(&error_), Errno::kENODEV);
}

TEST_P(SilenceTest, GoesInFrontOfProgramsThatAreThere) {
  SilenceOptions other = options_;
  other.name = "other";
  other.tcx = true;
  testing::InNetns in(veth_->ours());
  Silence first, second;
  ASSERT_EQ(SilenceDevice(veth_->our_index(), other, &first, &error_), Errno::kOk) << error_;
  ASSERT_EQ(Attach(&second), Errno::kOk) << error_;
  EXPECT_EQ(second.kind(), SilenceKind::kTcx);
  EXPECT_EQ(second.Check(&error_), Errno::kOk) << error_;
  EXPECT_EQ(LiftSilence(veth_->our_index(), other, &error_), Errno::kOk) << error_;
}

TEST_P(SilenceTest, WorksBesideAnIngressQdisc) {
  ASSERT_EQ(veth_->Run(veth_->ours(), "tc qdisc add dev sl0 ingress", &output_), 0) << output_;
  Silence silence;
  ASSERT_EQ(Attach(&silence), Errno::kOk) << error_;
  EXPECT_FALSE(PeerHears());
  EXPECT_FALSE(FrameArrives(*veth_, 0));
  testing::InNetns in(veth_->ours());
  EXPECT_EQ(silence.Check(&error_), Errno::kOk) << error_;
  EXPECT_EQ(LiftSilence(veth_->our_index(), options_, &error_), Errno::kOk) << error_;
  ASSERT_EQ(veth_->Run(veth_->ours(), "tc qdisc show dev sl0", &output_), 0);
  EXPECT_NE(output_.find("ingress"), std::string::npos) << output_;
  EXPECT_TRUE(PeerHearsSoon()) << output_;
}

TEST_P(SilenceTest, NoticesATcFilterInFront) {
  Silence silence;
  ASSERT_EQ(Attach(&silence), Errno::kOk) << error_;
  ASSERT_EQ(veth_->Run(veth_->ours(), "tc qdisc add dev sl0 clsact 2>/dev/null; true"), 0);
  const std::string filter = "tc filter add dev sl0 ingress protocol all ";
  ASSERT_EQ(veth_->Run(veth_->ours(), filter + "pref 2 bpf bytecode '1,6 0 0 0'", &output_), 0) << output_;
  testing::InNetns in(veth_->ours());
  EXPECT_EQ(silence.Check(&error_), Errno::kOk) << error_;  // behind ours, or behind TCX
  ASSERT_EQ(veth_->Run(veth_->ours(), filter + "pref 1 bpf bytecode '1,6 0 0 0'", &output_), 0) << output_;
  EXPECT_EQ(silence.Check(&error_), options_.tcx ? Errno::kOk : Errno::kEEXIST);
  // What others have put there by now stays, whoever made the qdisc.
  EXPECT_EQ(LiftSilence(veth_->our_index(), options_, &error_), Errno::kOk) << error_;
  ASSERT_EQ(veth_->Run(veth_->ours(), "tc filter show dev sl0 ingress", &output_), 0);
  EXPECT_NE(output_.find("pref 2 bpf"), std::string::npos) << output_;
  EXPECT_NE(output_.find("pref 1 bpf"), std::string::npos) << output_;
  EXPECT_EQ(output_.find("sluice_"), std::string::npos) << output_;
  EXPECT_EQ(veth_->Run(veth_->ours(), "tc qdisc del dev sl0 clsact", &output_), 0) << output_;
}

TEST_P(SilenceTest, AFilterOfAnotherChainIsNotInFront) {
  Silence silence;
  ASSERT_EQ(veth_->Run(veth_->ours(), "tc qdisc add dev sl0 clsact", &output_), 0) << output_;
  ASSERT_EQ(
      veth_->Run(veth_->ours(), "tc filter add dev sl0 egress chain 5 protocol all pref 1 bpf bytecode '1,6 0 0 0'", &output_), 0)
      << output_;
  ASSERT_EQ(Attach(&silence), Errno::kOk) << error_;
  testing::InNetns in(veth_->ours());
  EXPECT_EQ(silence.Check(&error_), Errno::kOk) << error_;
  EXPECT_EQ(LiftSilence(veth_->our_index(), options_, &error_), Errno::kOk) << error_;
  ASSERT_EQ(veth_->Run(veth_->ours(), "tc filter show dev sl0 egress", &output_), 0);
  EXPECT_NE(output_.find("chain 5"), std::string::npos) << output_;
}

TEST_P(SilenceTest, TellsThatItCouldNotAskFromWhatItFinds) {
  Silence silence;
  ASSERT_EQ(Attach(&silence), Errno::kOk) << error_;
  testing::InNetns in(veth_->ours());
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  // From none on, each next step of the look is the first that gets no descriptor.
  const int free_fd = dup(0);
  ASSERT_GE(free_fd, 0);
  close(free_fd);
  Errno result = Errno::kEAGAIN;
  int refused = 0;
  for (int room = 0; room < 64 && result == Errno::kEAGAIN; ++room) {
    const rlimit few{static_cast<rlim_t>(free_fd + room), before.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    result = silence.Check(&error_);
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
    if (result == Errno::kEAGAIN) ++refused;
  }
  EXPECT_GT(refused, 0);
  EXPECT_EQ(result, Errno::kOk) << error_;
}

TEST_P(SilenceTest, ADeviceThatWasMovedOutCanBeUsed) {
  Silence silence;
  ASSERT_EQ(Attach(&silence), Errno::kOk) << error_;
  EXPECT_FALSE(PeerHears());
  const std::string there = "silence-moved-" + std::to_string(getpid());
  const std::string move = "ip netns add " + there + " && ip link set sl0 netns " + there + " && ip -n " + there +
                           " addr add 10.77.0.1/24 dev sl0 && ip -n " + there + " link set sl0 up";
  ASSERT_EQ(veth_->Run(veth_->ours(), move, &output_), 0) << output_;
  {
    testing::InNetns in(veth_->ours());
    EXPECT_EQ(LiftSilence(veth_->our_index(), options_, &error_), Errno::kOk) << error_;
  }
  EXPECT_TRUE(PeerHearsSoon()) << output_;
  EXPECT_EQ(veth_->Run(veth_->ours(), "ip netns del " + there, &output_), 0) << output_;
}

TEST_P(SilenceTest, RefusesWhatItCannotDoWithAReason) {
  Silence silence;
  testing::InNetns in(veth_->ours());
  EXPECT_EQ(SilenceDevice(4711, options_, &silence, &error_), Errno::kENODEV);
  EXPECT_NE(error_.find("4711"), std::string::npos);
  SilenceOptions no_mark = options_;
  no_mark.mark = 0;
  EXPECT_EQ(SilenceDevice(veth_->our_index(), no_mark, &silence, &error_), Errno::kEINVAL);
}

INSTANTIATE_TEST_SUITE_P(Hooks, SilenceTest, ::testing::Bool(), [](const auto& info) { return info.param ? "Clsact" : "Tcx"; });

TEST(SilencePrograms, JudgeByMark) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root: loads BPF programs";
  sluice_silence_bpf* programs = sluice_silence_bpf__open();
  ASSERT_NE(programs, nullptr);
  programs->rodata->sluice_mark = kMark;
  ASSERT_EQ(sluice_silence_bpf__load(programs), 0);
  auto run = [](bpf_program* program, uint32_t mark) {
    uint8_t frame[64] = {};
    __sk_buff context{};
    context.mark = mark;
    bpf_test_run_opts options{};
    options.sz = sizeof options;
    options.data_in = frame;
    options.data_size_in = sizeof frame;
    options.ctx_in = &context;
    options.ctx_size_in = sizeof context;
    EXPECT_EQ(bpf_prog_test_run_opts(bpf_program__fd(program), &options), 0);
    return static_cast<int>(options.retval);
  };
  EXPECT_EQ(run(programs->progs.sluice_quiet_in, kMark), 2);
  EXPECT_EQ(run(programs->progs.sluice_quiet_in, 0), 2);
  EXPECT_EQ(run(programs->progs.sluice_quiet_out, kMark), -1);
  EXPECT_EQ(run(programs->progs.sluice_quiet_out, 0), 2);
  EXPECT_EQ(run(programs->progs.sluice_quiet_out, 7), 2);
  sluice_silence_bpf__destroy(programs);
}

}  // namespace
}  // namespace sluice
