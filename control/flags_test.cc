#include "control/flags.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

namespace sluice {
namespace {

Status Parse(std::vector<std::string> args, CommandLine* line) { return ParseCommandLine(args, line); }

Status Parse(std::vector<std::string> args) {
  CommandLine line;
  return ParseCommandLine(args, &line);
}

TEST(Flags, DocumentIsCurrent) {
  std::ifstream file(std::string(SLUICE_SOURCE_DIR) + "/docs/flags.md");
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_EQ(text.str(), FlagsMarkdown()) << "run: sluice flags --markdown > docs/flags.md";
}

// A default that is shown but not what happens would be a lie.
TEST(Flags, EveryShownDefaultIsAcceptedAndChangesNothing) {
  for (const FlagSpec& flag : FlagTable()) {
    if (flag.set == nullptr || flag.initial.empty()) continue;
    Flags flags;
    EXPECT_TRUE(flag.set(flags, flag.initial)) << flag.name;
  }
}

TEST(Flags, TakesBothSpellingsAndBareBools) {
  CommandLine line;
  ASSERT_TRUE(Parse({"--gso=false", "--poll", "busy", "--net-raw", "--network", "none", "do", "--env=A=b=c", "--", "ls", "-l"}, &line).ok());
  EXPECT_FALSE(line.flags.gso);
  EXPECT_TRUE(line.flags.net_raw);
  EXPECT_EQ(line.flags.poll, PollMode::kBusy);
  EXPECT_EQ(line.flags.network, NetworkMode::kNone);
  EXPECT_EQ(line.do_options.env, std::vector<std::string>{"A=b=c"});
  EXPECT_EQ(line.do_options.command, (std::vector<std::string>{"ls", "-l"}));
}

TEST(Flags, CommandNeedsNoDashes) {
  CommandLine line;
  ASSERT_TRUE(Parse({"do", "--netns", "n", "--device=eth0", "--device", "eth1", "ip", "--json", "addr"}, &line).ok());
  EXPECT_EQ(line.do_options.netns, "n");
  EXPECT_EQ(line.do_options.devices, (std::vector<std::string>{"eth0", "eth1"}));
  EXPECT_EQ(line.do_options.command, (std::vector<std::string>{"ip", "--json", "addr"}));
}

TEST(Flags, WrongValuesNameFlagValueAndWhatIsAllowed) {
  const struct {
    std::vector<std::string> args;
    const char* line;
    int exit_code;
  } cases[] = {
      {{"--network=bridge", "do", "x"}, "--network=bridge: not a valid value (allowed: sandbox, host, none)", 1},
      {{"--gso=maybe", "do", "x"}, "--gso=maybe: not a valid value (allowed: true, false)", 1},
      {{"--link=tap", "do", "x"}, "--link=tap: not available in this build (allowed: auto, packet, xdp)", 1},
      {{"--link", "dpdk:net_tap", "do", "x"}, "--link=dpdk:net_tap: not available in this build (allowed: auto, packet, xdp)", 1},
      {{"--num-network-channels=4", "do", "x"}, "--num-network-channels=4: not available in this build (allowed: auto, 1)", 1},
      {{"--num-network-channels=0", "do", "x"}, "--num-network-channels=0: not a valid value (allowed: auto, 1)", 1},
      {{"--metrics=:9000", "do", "x"}, "--metrics: not available in this build", 1},
      {{"--poll-spin=5", "do", "x"}, "--poll-spin=5: not a valid value (allowed: auto, or a time up to 1s such as 50us or 1ms)", 1},
      {{"--nonsense", "do", "x"}, "--nonsense: unknown flag (see sluice flags)", 2},
      {{"--network"}, "--network: a value is missing", 2},
      {{}, "no command is given (see sluice --help)", 2},
      {{"dance"}, "dance: unknown command (see sluice --help)", 2},
      {{"create"}, "create: not available in this build", 1},
      {{"do", "--netns"}, "--netns: a value is missing", 2},
      {{"do", "--env=X", "y"}, "--env=X: not a valid value (allowed: KEY=VALUE)", 2},
      {{"do", "--gso=false", "x"}, "--gso=false: a global flag stands before the command (sluice --gso=false do ...)", 2},
      {{"do", "--device=eth0", "x"}, "--device=eth0: needs --netns (a namespace of our own has one device)", 2},
      {{"stats"}, "stats: name one sandbox, by the name of its namespace, by a process id or by --netns", 2},
  };
  for (const auto& c : cases) {
    const Status status = Parse(c.args);
    EXPECT_EQ(status.line(), c.line);
    EXPECT_EQ(status.exit_code(), c.exit_code) << c.line;
  }
}

TEST(Flags, SysctlTakesWhatTheStackUsesOnly) {
  CommandLine line;
  ASSERT_TRUE(Parse({"--sysctl", "net/ipv4/tcp_rmem=4096 8192 65536", "do", "x"}, &line).ok());
  EXPECT_EQ(line.flags.sysctls.at("net.ipv4.tcp_rmem"), "4096 8192 65536");
  EXPECT_FALSE(Parse({"--sysctl=kernel.hostname=x", "do", "x"}).ok());
  EXPECT_FALSE(Parse({"--sysctl=net.ipv4.ip_default_ttl=-4", "do", "x"}).ok());
  EXPECT_FALSE(Parse({"--sysctl=net.ipv4.ip_default_ttl", "do", "x"}).ok());
}

}  // namespace
}  // namespace sluice
